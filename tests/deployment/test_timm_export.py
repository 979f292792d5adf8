"""A model under timm's names: the folded layer by loops, the file read by timm alone, what timm does not have."""
import json
import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from upl_reid.components.encoder import Encoder, build_encoder
from upl_reid.core import ConfigError, RunError
from upl_reid.deployment import timm_export
from upl_reid.deployment.embedder import Embedder
from upl_reid.deployment.timm_export import export_timm, fold_neck, timm_state
from upl_reid.methods.inclr import PartEncoder


def stirred(name, size=(64, 32), dim=7, **how):
    "An embedder whose weights and statistics are all other than at the start."
    encoder, g = build_encoder(name, size, dim, **how), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, v in encoder.state_dict().items():
            if v.is_floating_point(): v.mul_(1 + .2*torch.rand(v.shape, generator=g)).add_(.01 if "var" in key else .02)
    facts = dict(backbone=name, size=list(size), dim=dim, method="dbscan", calibration=None, pooling=how.get("pooling",
                                                                                                           "avg"))
    return Embedder(encoder, facts)


def test_projection_and_neck_by_loops():
    encoder = Encoder(nn.Identity(), 5, 3).double().eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for v in (*encoder.neck.parameters(), encoder.neck.running_mean, encoder.neck.running_var):
            v.copy_(torch.rand(v.shape, generator=g) + .1)
    (weight, bias), neck, x = fold_neck(encoder), encoder.neck, torch.rand(5, generator=g, dtype=torch.float64)
    for k in range(3):
        v = sum(encoder.project.weight[k, c].item()*x[c].item() for c in range(5)) + encoder.project.bias[k].item()
        want = (v - neck.running_mean[k].item())/math.sqrt(neck.running_var[k].item() + neck.eps)
        want = want*neck.weight[k].item() + neck.bias[k].item()
        assert sum(weight[k, c].item()*x[c].item() for c in range(5)) + bias[k].item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "mobilenetv3_small_050", "convnext_atto",
                                  "regnety_002", "deit_tiny_patch16_224", "tf_efficientnet_lite0"])
def test_timm_alone_gives_the_same_vectors(name, tmp_path):
    embedder, file = stirred(name), tmp_path/"m.safetensors"
    assert export_timm(embedder, file) <= 1e-4
    with safe_open(file, "pt") as f:
        about, state = json.loads(f.metadata()["upl_reid_timm"]), {k: f.get_tensor(k) for k in f.keys()}
    more = dict(img_size=tuple(about["size"])) if "deit" in name else {}
    model = timm.create_model(about["architecture"], num_classes=about["num_classes"], **more).eval()
    model.load_state_dict(state)
    picture = np.random.default_rng(0).integers(0, 256, (*about["size"], 3), dtype=np.uint8)
    x = torch.from_numpy((picture/255. - about["mean"])/about["std"]).permute(2, 0, 1)[None].float()
    with torch.no_grad(): vector = nn.functional.normalize(model(x), dim=1).numpy()
    np.testing.assert_allclose(vector, embedder.embed([Image.fromarray(picture)]), atol=1e-4)
    assert about["colours"] == "RGB" and (about["mean"] == [.5, .5, .5]) == (name == "tf_efficientnet_lite0")


@pytest.mark.parametrize("embedder", [stirred("micro"), stirred("resnet18", pooling="gem"), stirred("resnet18_ibn_a")],
                         ids=["ours", "gem", "ibn"])
def test_what_timm_does_not_have_is_said(embedder, tmp_path):
    with pytest.raises(ConfigError, match=f"{embedder.facts['backbone']}.*onnx"): export_timm(embedder, tmp_path/"m")
    assert not list(tmp_path.iterdir())


def test_a_model_of_parts_is_refused(tmp_path):
    plain = stirred("resnet18")
    parts = Embedder(PartEncoder(plain.model), {**plain.facts, "method": "inclr"})
    with pytest.raises(ConfigError, match="resnet18 of method inclr"): export_timm(parts, tmp_path/"m")


def test_other_vectors_are_not_written(tmp_path, monkeypatch):
    def wrong(embedder):
        model, facts = timm_state(embedder)
        with torch.no_grad(): model.fc.weight.neg_()
        return model, facts
    monkeypatch.setattr(timm_export, "timm_state", wrong)
    with pytest.raises(RunError, match="differ by"): export_timm(stirred("resnet18"), tmp_path/"m.safetensors")
    assert not list(tmp_path.iterdir())
