"""ONNX export against torch, and the model card."""
import json

import numpy as np
import onnxruntime
import pytest

from upl_reid.core import RunError
from upl_reid.deployment.embedder import Embedder
from upl_reid.deployment.onnx_export import export_onnx, model_card
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


def test_an_export_that_differs_is_not_kept(saved, tmp_path):
    with pytest.raises(RunError, match="differ"):
        export_onnx(Embedder.load(saved, "cpu"), tmp_path/"m.onnx", tolerance=-1)
    assert list(tmp_path.iterdir()) == []


def test_model_card_has_the_facts(saved, run):
    card = model_card(Embedder.load(saved, "cpu"), "stability: 1\nused: 90 %")
    for word in (run.id, "dbscan", "campus", "- stability: 1", "- used: 90 %", "biometric", "yes, on pseudo-labels"):
        assert word in card
    assert "{" not in card and "not judged" in model_card(Embedder.load(saved, "cpu"))
