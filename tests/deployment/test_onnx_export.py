"""ONNX export against torch, and the model card."""
import json

import numpy as np
import onnx
import onnxruntime
import pytest

import upl_reid.deployment.onnx_export as module
from upl_reid.core import ConfigError, DataError, RunError
from upl_reid.deployment.embedder import Embedder
from upl_reid.deployment.onnx_export import describe_crops, export_onnx, model_card, OnnxEmbedder
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


@pytest.mark.parametrize("opset", [None, 15], ids=["chosen", "older"])
def test_a_file_that_takes_normalised_floats(saved, tmp_path, opset):
    embedder = Embedder.load(saved, "cpu")
    assert export_onnx(embedder, tmp_path/"m.onnx", opset=opset, normalised=True) <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path/"m.onnx")
    entry, = session.get_inputs()
    assert (entry.name, entry.type) == ("images", "tensor(float)") and entry.shape[1:] == [3, *embedder.size]
    pixels = np.random.default_rng(5).integers(0, 256, (5, *embedder.size, 3), dtype=np.uint8)
    values = np.stack([(pixels[..., c]/255 - mean)/std for c, (mean, std) in
                       enumerate(((.485, .229), (.456, .224), (.406, .225)))], 1).astype(np.float32)
    wanted = embedder.embed(pixels)
    for n in (1, 5):
        np.testing.assert_allclose(session.run(None, {"images": values[:n]})[0], wanted[:n], atol=1e-4)
    exported = OnnxEmbedder(tmp_path/"m.onnx")
    np.testing.assert_allclose(exported.embed(list(pixels), batch=2), wanted, atol=1e-4)
    assert "normalised as ImageNet" in exported.facts["input"]


# ---------------------------------------------------------------- 8-bit weights

def test_an_exported_file_embeds_pictures_as_the_model_does(saved, run, tmp_path):
    embedder = Embedder.load(saved, "cpu")
    export_onnx(embedder, tmp_path/"m.onnx")
    paths = sorted(p for p in (run.path.parent/"data").rglob("*") if p.suffix in (".png", ".jpg"))[:7]
    assert len(paths) == 7
    exported = OnnxEmbedder(tmp_path/"m.onnx")
    np.testing.assert_allclose(exported.embed(paths, batch=3), embedder.embed(paths), atol=1e-4)
    assert (exported.dim, exported.size, exported.calibration) == (embedder.dim, embedder.size, embedder.calibration)
    assert exported.embed([]).shape == (0, embedder.dim)


@pytest.mark.parametrize("opset", [None, 15], ids=["chosen", "older"])
def test_weights_become_integers_and_vectors_stay_near(saved, tmp_path, opset):
    embedder = Embedder.load(saved, "cpu")
    export_onnx(embedder, tmp_path/"m.onnx", opset=opset)
    assert export_onnx(embedder, tmp_path/"r.onnx", opset=opset, int8=True) <= 1e-4
    graph = onnx.load(tmp_path/"r.onnx").graph
    weights = {i.name: i for i in graph.initializer}
    products = [n for n in graph.node if n.op_type == "MatMulInteger"]
    assert products and not any(n.op_type in ("ConvInteger", "Gemm") for n in graph.node)
    for node in products:
        if node.input[1] in weights: assert weights[node.input[1]].data_type == onnx.TensorProto.INT8
    assert (tmp_path/"r.onnx").stat().st_size < .8*(tmp_path/"m.onnx").stat().st_size
    whole, rounded = (OnnxEmbedder(tmp_path/name) for name in ("m.onnx", "r.onnx"))
    pixels = np.random.default_rng(7).integers(0, 256, (20, *embedder.size, 3), dtype=np.uint8)
    x, y = whole.embed(list(pixels)), rounded.embed(list(pixels))
    np.testing.assert_allclose((y**2).sum(1), 1, atol=1e-5)
    assert .98 < (x*y).sum(1).min() and not np.allclose(x, y, atol=1e-4)
    assert rounded.facts == whole.facts
    told = rounded.session.get_modelmeta().custom_metadata_map
    assert told["upl_reid_weights"] == "int8"


def test_a_network_without_matrix_products_is_told():
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [x], [
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])])
    with pytest.raises(RunError, match="no matrix product"):
        module.quantize_weights(onnx.helper.make_model(graph).SerializeToString())


def test_a_foreign_file_is_refused(tmp_path, saved):
    (tmp_path/"a.onnx").write_bytes(b"text")
    with pytest.raises(DataError, match="no ONNX file that can be run"): OnnxEmbedder(tmp_path/"a.onnx")
    export_onnx(Embedder.load(saved, "cpu"), tmp_path/"m.onnx")
    graph = onnx.load(tmp_path/"m.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path/"b.onnx")
    with pytest.raises(DataError, match="was not written by `upl-reid export`"): OnnxEmbedder(tmp_path/"b.onnx")


def test_the_commands_export_and_measure_it(saved, tmp_path, monkeypatch, capsys):
    from upl_reid.cli import main
    monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path/"runs"))
    assert main(["synth", str(tmp_path/"mine"), "--preset", "tiny"]) == 0
    capsys.readouterr()
    assert main(["export", str(saved), str(tmp_path/"r.onnx"), "--int8"]) == 0
    assert "(convolutions stay floats); measure the loss with upl-reid evaluate" in capsys.readouterr().out
    assert main(["export", str(saved), str(tmp_path/"m.onnx")]) == 0
    assert main(["export", str(saved), str(tmp_path/"f.onnx"), "--normalised"]) == 0
    scores = {}
    for model in (saved, tmp_path/"m.onnx", tmp_path/"f.onnx", tmp_path/"r.onnx"):
        capsys.readouterr()
        assert main(["evaluate", str(model), str(tmp_path/"mine/truth.csv"), "--device", "cpu", "--json"]) == 0
        scores[model] = json.loads(capsys.readouterr().out)["mAP"]
    whole, exported, floats, rounded = scores.values()
    assert exported == pytest.approx(whole, abs=1e-3) and floats == pytest.approx(whole, abs=1e-3)
    assert 0 < abs(rounded - whole) < .05
    assert main(["export", str(saved), str(tmp_path/"t.safetensors"), "--int8"]) == 1
    assert "--opset and --int8 are for .onnx" in capsys.readouterr().err
    assert main(["export", str(saved), str(tmp_path/"t.safetensors"), "--normalised"]) == 1
    assert "so is --normalised" in capsys.readouterr().err


def test_wrong_arguments_are_refused_as_by_the_embedder(saved, tmp_path):
    embedder = Embedder.load(saved, "cpu")
    export_onnx(embedder, tmp_path/"m.onnx")
    for model in (embedder, OnnxEmbedder(tmp_path/"m.onnx")):
        for batch in (0, -1):
            with pytest.raises(ConfigError, match="at least one picture at a time"): model.embed([], batch=batch)
        with pytest.raises(DataError, match="put it into a list"): model.embed("a.jpg")
    broken = OnnxEmbedder(tmp_path/"m.onnx")
    broken.session = type("Session", (), dict(get_inputs=broken.session.get_inputs, run=lambda *_: [np.nan]))()
    with pytest.raises(DataError, match="no finite vector for 1 of 1"): broken.embed([np.zeros((48, 24, 3), np.uint8)])
    graph = onnx.load(tmp_path/"m.onnx")
    for facts in ("[]", "{}", "null", '{"size": 3, "dim": 1, "calibration": null}'):
        onnx.helper.set_model_props(graph, dict(upl_reid=facts))
        onnx.save(graph, tmp_path/"n.onnx")
        with pytest.raises(DataError, match="was not written by `upl-reid export`"): OnnxEmbedder(tmp_path/"n.onnx")


def test_running_a_file_needs_onnxruntime_only(saved, tmp_path, monkeypatch):
    export_onnx(Embedder.load(saved, "cpu"), tmp_path/"m.onnx")
    there = module.importlib.util.find_spec
    without = lambda *names: lambda name, *rest: None if name in names else there(name, *rest)
    monkeypatch.setattr(module.importlib.util, "find_spec", without("onnx", "onnxscript"))
    assert module.OnnxFile(tmp_path/"m.onnx").dim == Embedder.load(saved, "cpu").dim
    monkeypatch.setattr(module.importlib.util, "find_spec", without("onnxruntime"))
    with pytest.raises(DataError, match="pip install onnxruntime"): module.OnnxFile(tmp_path/"m.onnx")
