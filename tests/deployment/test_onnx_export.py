"""ONNX export against torch, and the model card."""
import json

import numpy as np
import onnx
import onnxruntime
import pytest

import upl_reid.deployment.onnx_export as module
from upl_reid.core import ConfigError, RunError
from upl_reid.deployment.embedder import Embedder
from upl_reid.deployment.onnx_export import describe_crops, export_onnx, model_card
from upl_reid.experiments.config import RunConfig
from upl_reid.experiments.runs import get_run


@pytest.mark.parametrize("method", ["dbscan", "inclr"])
def test_onnx_gives_the_vectors_of_torch(store, tmp_path, method):
    embedder = Embedder.load(get_run(RunConfig("tiny", "plaza", "campus", method), device="cpu", store=store,
                                     progress=False), "cpu")
    assert export_onnx(embedder, tmp_path/"m.onnx") <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path/"m.onnx")
    pixels = np.random.default_rng(5).integers(0, 256, (5, *embedder.size, 3), dtype=np.uint8)
    for n in (1, 5):
        np.testing.assert_allclose(session.run(None, {"pixels": pixels[:n]})[0], embedder.embed(pixels[:n]), atol=1e-4)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["upl_reid"])
    assert facts["origin"]["run"] == embedder.facts["origin"]["run"]


@pytest.mark.parametrize("opset", [14, 17, 18, 21])
def test_the_chosen_opset_is_written_and_gives_the_vectors_of_torch(saved, tmp_path, opset):
    embedder = Embedder.load(saved, "cpu")
    assert export_onnx(embedder, tmp_path/"m.onnx", opset=opset) <= 1e-4
    found = {entry.domain: entry.version for entry in onnx.load(tmp_path/"m.onnx").opset_import}
    assert found[""] == opset
    session = onnxruntime.InferenceSession(tmp_path/"m.onnx")
    pixels = np.random.default_rng(6).integers(0, 256, (5, *embedder.size, 3), dtype=np.uint8)
    for n in (1, 5):
        np.testing.assert_allclose(session.run(None, {"pixels": pixels[:n]})[0], embedder.embed(pixels[:n]), atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["upl_reid"])["dim"] == embedder.dim


@pytest.mark.parametrize("opset", [13, 24, -1, 17.5, "17", True])
def test_an_opset_that_cannot_be_written_is_refused(saved, tmp_path, opset):
    with pytest.raises(ConfigError, match=f"opset {opset} cannot be written; choose 14 to 23"):
        export_onnx(Embedder.load(saved, "cpu"), tmp_path/"m.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_another_opset_than_the_chosen_one_is_not_kept(saved, tmp_path, monkeypatch):
    "As torch's exporter does, which writes 18 where less is asked for and says nothing."
    monkeypatch.setattr(module, "GRAPH_OPSETS", 14)
    with pytest.raises(RunError, match="writes opset 18 instead of 15"):
        export_onnx(Embedder.load(saved, "cpu"), tmp_path/"m.onnx", opset=15)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_differs_is_not_kept(saved, tmp_path):
    with pytest.raises(RunError, match="differ"):
        export_onnx(Embedder.load(saved, "cpu"), tmp_path/"m.onnx", tolerance=-1)
    assert list(tmp_path.iterdir()) == []


def test_model_card_has_the_facts(saved, run):
    card = model_card(Embedder.load(saved, "cpu"), "stability: 1\nused: 90 %")
    for word in (run.id, "dbscan", "campus", "- stability: 1", "- used: 90 %", "biometric", "yes, on pseudo-labels"):
        assert word in card
    assert "{" not in card and "not judged" in model_card(Embedder.load(saved, "cpu"))


def test_model_card_names_the_data(saved):
    crops = dict(name="town|hall_2", cameras={"gate": 1200, "<b>": 3, "": 7}, people=0)
    card = model_card(Embedder.load(saved, "cpu"), "", crops)
    assert card.startswith("# Model card: people on the cameras of town\\|hall_2\n")
    for text in ("1,210 crops of people, no identities were used", "| gate | 1,200 |", "| \\<b\\> | 3 |",
                 "| (unknown) | 7 |", "## What it may be used for", "## What it must not be used for",
                 "`upl-reid forget GALLERY PICTURE`"): assert text in card
    assert "identities of 12 people were used" in describe_crops({**crops, "people": 12})
    without = model_card(Embedder.load(saved, "cpu"))
    assert without.startswith("# Model card: people on the cameras of campus\n") and "crops of people" not in without
