"""Embedder: the same vectors for every kind of picture, and files that are wrong."""
import json
import os
import shutil
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from faults import fault
from upl_reid.components.encoder import build_encoder, Encoder
from upl_reid.core import ConfigError, DataError
from upl_reid.data.image_bank import ImageBank, normalise_images
from upl_reid.deployment.embedder import Embedder, as_pixels
from upl_reid.experiments.runs import open_domain


def test_every_kind_of_picture_gives_the_vectors_of_the_run(run, saved, store, tmp_path):
    embedder, paths = Embedder.load(saved, "cpu"), open_domain("campus", "tiny", store=store).query.paths
    vectors = embedder.embed(paths, batch=7)
    np.testing.assert_allclose(vectors, run.test_features()["query"], atol=1e-6)
    arrays = np.stack([np.asarray(Image.open(p)) for p in paths])
    for other in ([str(p) for p in paths], [Image.open(p) for p in paths], arrays, list(arrays),
                  torch.from_numpy(arrays).permute(0, 3, 1, 2), torch.from_numpy(arrays).permute(0, 3, 1, 2)/255):
        np.testing.assert_array_equal(embedder.embed(other, batch=7), vectors)
    assert embedder.embed([]).shape == (0, embedder.dim) and embedder.facts["origin"]["run"] == run.id
    assert embedder.calibration.slope == 10
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_an_opened_picture_is_the_picture_of_its_path(saved, tmp_path):
    "16 bits, orientation, modes: the same pixels whoever opens the file; what cannot be seen is refused."
    deep, exif = (np.arange(48*24, dtype=np.uint16)*56).reshape(48, 24), Image.Exif()
    exif[274] = 6
    Image.fromarray(deep).save(tmp_path/"deep.png")
    Image.new("RGB", (48, 24), (9, 90, 200)).save(tmp_path/"turned.png", exif=exif)
    for name in ("deep", "turned"):
        path = tmp_path/f"{name}.png"
        assert np.array_equal(as_pixels(path, (48, 24)), as_pixels(Image.open(path), (48, 24)))
    assert np.array_equal(as_pixels(torch.ones(3, 4, 2, dtype=torch.bfloat16)/2, (4, 2)),
                          as_pixels(torch.ones(3, 4, 2)/2, (4, 2)))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 48, 3), dtype=np.uint8)).save(tmp_path/"cut.jpg")
    (tmp_path/"cut.jpg").write_bytes((tmp_path/"cut.jpg").read_bytes()[:1500])
    closed = Image.open(tmp_path/"deep.png"); closed.close()
    for picture in (Image.new("F", (4, 4), .5), Image.new("RGB", (0, 5)), Image.open(tmp_path/"cut.jpg"), closed):
        fault(as_pixels, picture, (8, 4))
    embedder = Embedder.load(saved, "cpu")
    for batch in (0, -1, 2., "2", True):
        assert f"batch={batch!r}" in fault(embedder.embed, [tmp_path/"deep.png"], batch=batch, error=ConfigError)
    for one in (str(tmp_path/"deep.png"), tmp_path/"deep.png", Image.open(tmp_path/"deep.png")):
        assert "list" in fault(embedder.embed, one)
    for none in ({tmp_path/"deep.png"}, frozenset(), {tmp_path/"deep.png": 1}, 7, None, np.array(1.)):
        assert "no list of pictures; give a list" in fault(embedder.embed, none)


def test_pictures_may_come_one_by_one(saved, tmp_path):
    rng, embedder = np.random.default_rng(4), Embedder.load(saved, "cpu")
    pictures = [Image.fromarray(rng.integers(0, 256, (48, 24, 3), dtype=np.uint8)) for _ in range(5)]
    wanted = embedder.embed(pictures)
    for form in (lambda: (p for p in pictures), lambda: iter(pictures), lambda: dict(enumerate(pictures)).values(),
                 lambda: deque(pictures), lambda: tuple(pictures)):
        np.testing.assert_array_equal(embedder.embed(form(), batch=2), embedder.embed(pictures, batch=2))
        np.testing.assert_allclose(embedder.embed(form()), wanted, atol=1e-5)
    assert embedder.embed(iter(())).shape == (0, embedder.dim)


@pytest.mark.parametrize("picture", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8),
                                     np.full((4, 4, 3), 7.), np.full((4, 4, 3), np.nan), np.zeros((4, 4, 3), np.int64),
                                     7, None, b"bytes", "absent.jpg"], ids=str)
def test_what_is_no_picture(picture): fault(as_pixels, picture, (8, 4))


@pytest.mark.parametrize("picture", [np.zeros((4, 4)), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 3), np.int64)],
                         ids=["shape", "tensor's shape", "type"])
def test_a_message_about_an_array_names_the_order_of_channels(picture):
    assert "RGB order (OpenCV gives BGR; turn it with image[..., ::-1])" in fault(as_pixels, picture, (8, 4))


def test_channels_are_red_green_blue(saved, tmp_path):
    "A picture as OpenCV reads it, turned as the message says, has the vector of its file; not turned, another one."
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 256, (48, 24, 3), dtype=np.uint8)).save(tmp_path/"a.png")
    bgr, embedder = np.asarray(Image.open(tmp_path/"a.png"))[..., ::-1], Embedder.load(saved, "cpu")
    of_file = embedder.embed([tmp_path/"a.png"])
    assert np.array_equal(embedder.embed([bgr[..., ::-1]]), of_file) and not np.allclose(embedder.embed([bgr]), of_file)
    for taker in (Embedder.embed, as_pixels, ImageBank, normalise_images, build_encoder, Encoder):
        assert "RGB" in taker.__doc__, taker


def altered(saved, tmp_path, change=None, facts=None, raw=None):
    "A model file with other tensors, other facts, or other text in its header."
    tensors, path = load_file(saved), tmp_path/"other.safetensors"
    own = json.loads(json.dumps(Embedder.load(saved, "cpu").facts))
    if change: change(tensors)
    save_file(tensors, path, metadata=dict(upl_reid=json.dumps({**own, **(facts or {})}) if raw is None else raw))
    return path


def first(tensors): return next(k for k, v in tensors.items() if v.is_floating_point())


FACTS = {"format": 2, "backbone": "../../etc/passwd", "other backbone": {"backbone": "resnet50"},
         "size": [10**9, 10**9], "small": {"size": [1, 1]}, "floats": {"size": [48., 24.]}, "one size": {"size": [48]},
         "dim": 10**9, "no dim": {"dim": None}, "flag": {"dim": True},
         "method": "os.system", "origin": "x", "calibration": {"slope": "x"},
         "thresholds": {"calibration": dict(slope=1, offset=0, thresholds=[])},
         "words": {"calibration": dict(slope=1, offset=0, thresholds=["x"])},
         "endless": {"calibration": dict(slope=1, offset=0, thresholds=[10**400]*5)},
         "gigantic": {"backbone": "vit_gigantic_patch14_224", "size": [224, 224]},
         "extra": {"calibration": dict(slope=1, offset=0, thresholds=[0]*5, code=1)}}


@pytest.mark.parametrize("name", FACTS)
def test_facts_that_are_wrong_build_nothing(saved, tmp_path, name):
    wrong = FACTS[name] if isinstance(FACTS[name], dict) and name not in ("calibration",) else {name: FACTS[name]}
    path = altered(saved, tmp_path, facts=wrong)
    assert str(path) in fault(Embedder.load, path, "cpu")


@pytest.mark.parametrize("change", [lambda t: t.pop(first(t)), lambda t: t.update(more=torch.zeros(3)),
                                    lambda t: t.update({first(t): torch.zeros(2, 2)}),
                                    lambda t: t[first(t)].fill_(float("nan")), lambda t: t.clear()],
                                    ids=["missing", "more", "shape", "nan", "empty"])
def test_weights_that_do_not_fit(saved, tmp_path, change):
    path = altered(saved, tmp_path, change)
    assert str(path) in fault(Embedder.load, path, "cpu")


def test_a_run_whose_environment_is_gone(run, tmp_path):
    for text in (None, "[]", "[{}]", "{"):
        shutil.copytree(run.path, tmp_path/"run", dirs_exist_ok=True)
        if text is None: (tmp_path/"run/environment.json").unlink()
        else: (tmp_path/"run/environment.json").write_text(text)
        assert str(tmp_path/"run") in fault(Embedder.load, tmp_path/"run", "cpu")


def test_models_are_told_apart_by_their_weights(saved, tmp_path):
    one, same = Embedder.load(saved, "cpu"), Embedder.load(altered(saved, tmp_path, facts=dict(origin={})), "cpu")
    other = Embedder.load(altered(saved, tmp_path, lambda t: t[first(t)].add_(1e-3)), "cpu")
    assert one.digest == same.digest != other.digest and len(one.digest) == 16


def test_files_that_are_no_models(saved, tmp_path):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/"written"), "w"))
    torch.save({"weights": Evil()}, tmp_path/"a.safetensors")
    (tmp_path/"b.safetensors").write_bytes(saved.read_bytes()[:2000])
    (tmp_path/"c.safetensors").write_bytes(b"")
    (tmp_path/"d").mkdir()
    os.mkfifo(tmp_path/"pipe")
    (tmp_path/"e.safetensors").write_bytes(b"\xff"*8 + b"{}")
    for name in ("a.safetensors", "b.safetensors", "c.safetensors", "d", "e.safetensors", "absent", "pipe"):
        fault(Embedder.load, tmp_path/name, "cpu")
    for raw in ("", "{", "[]", "null", '"x"', "1e999", "["*200_000, '{"format": ' + "9"*5000 + "}"):
        fault(Embedder.load, altered(saved, tmp_path, raw=raw), "cpu")
    assert not (tmp_path/"written").exists()


@settings(max_examples=300)
@given(where=st.integers(0, 6000), value=st.integers(0, 255))
def test_a_changed_byte_is_a_model_or_a_data_error(saved, tmp_path_factory, where, value):
    content, path = bytearray(saved.read_bytes()), tmp_path_factory.getbasetemp()/"changed.safetensors"
    content[where % len(content)] = value
    path.write_bytes(content)
    try: assert Embedder.load(path, "cpu").dim > 0
    except DataError as e: assert str(path) in str(e)


def test_a_tensor_of_another_shape_is_named_as_it_was_given(saved):
    assert "shape (48, 24, 3) is" in fault(as_pixels, torch.zeros(48, 24, 3), (48, 24))


def test_a_model_of_a_method_that_is_not_registered_says_so(saved, tmp_path):
    facts = json.loads(json.dumps(Embedder.load(saved, "cpu").facts)) | dict(method="my_method")
    save_file(load_file(saved), tmp_path/"m.safetensors", metadata=dict(upl_reid=json.dumps(facts)))
    told = fault(Embedder.load, tmp_path/"m.safetensors")
    assert "was made by the method 'my_method', which is not registered here" in told and "UPL_REID_PLUGINS" in told


def test_weights_are_hashed_once(saved, monkeypatch):
    embedder = Embedder.load(saved, "cpu")
    first = embedder.digest
    monkeypatch.setattr(embedder.model, "state_dict", None)
    assert embedder.digest == first
