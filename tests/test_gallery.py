"""Embedder, calibration and gallery: the same vectors for every kind of picture, pairs and curves against naive counts, search against a full sort, files that are wrong."""
import json
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file

import upl_reid.gallery as module
from upl_reid.core import ConfigError, DataError, RunError
from upl_reid.embedder import RATES, Calibration, Embedder, as_pixels, calibrate, draw_pairs
from upl_reid.export import export_onnx, model_card
from upl_reid.gallery import KNOWN, Gallery, draw_hits, unit_vectors
from upl_reid.runs import RunConfig, get_run, open_domain


@pytest.fixture(scope="module")
def store(tmp_path_factory): return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(store): return get_run(RunConfig("tiny", "plaza", "campus", "dbscan"), device="cpu", store=store, progress=False)


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    told = Calibration(10., -6., (.1, .2, .3, .4, .5))
    return Embedder.load(run, "cpu").calibrated(told).save(tmp_path_factory.mktemp("model")/"model.safetensors")


def fault(f, *args, error=DataError, **kwargs):
    with pytest.raises(error) as e: f(*args, **kwargs)
    assert "\n" not in str(e.value)
    return str(e.value)


# ---- calibration

@pytest.mark.parametrize("cameras", [1, 3])
def test_share_of_pairs_is_counted(cameras):
    rng = np.random.default_rng(0)
    y, c = rng.integers(-1, 6, 60), rng.integers(0, cameras, 60)
    same, apart, inside, outside = draw_pairs(y, c, 4000)
    pairs = [(i, j) for i in range(60) for j in range(i) if y[i] >= 0 and y[j] >= 0 and (c[i] != c[j] or cameras == 1)]
    assert inside == sum(y[i] == y[j] for i, j in pairs) and inside + outside == len(pairs)
    for p, equal in ((same, True), (apart, False)):
        assert ((y[p[0]] == y[p[1]]) == equal).all() and (y[p] >= 0).all() and (p[0] != p[1]).all() and (cameras == 1 or (c[p[0]] != c[p[1]]).all())


def test_pairs_of_a_cluster_are_drawn_evenly():
    y, c = np.array([0]*2 + [1]*5), np.arange(7)
    same = draw_pairs(y, c, 220_000)[0]
    found, count = np.unique(np.sort(same, axis=0), axis=1, return_counts=True)
    assert found.shape[1] == 1 + 10 and count.min() > .95*count.mean() and count.max() < 1.05*count.mean()


def test_curve_and_thresholds_are_those_of_the_pairs():
    "Logistic regression by Newton's method on the same weighted pairs; the threshold by sorting."
    g = np.random.default_rng(1)
    y, c = np.arange(300) % 30, np.arange(300) // 30 % 5
    x = unit_vectors(g.normal(size=(30, 16))[y] + .8*g.normal(size=(300, 16)))
    told = calibrate(x, y, c, 20_000)
    same, apart, inside, outside = draw_pairs(y, c, 20_000)
    share = inside/(inside + outside)
    a, b = ((x[p[0]]*x[p[1]]).sum(1).astype(float) for p in (same, apart))
    s, t, w = np.r_[a, b], np.r_[np.ones(len(a)), np.zeros(len(b))], np.r_[np.full(len(a), share/len(a)), np.full(len(b), (1 - share)/len(b))]
    theta, X = np.zeros(2), np.stack([s, np.ones_like(s)], 1)
    for _ in range(60):
        p = 1/(1 + np.exp(-X @ theta))
        theta += np.linalg.solve((X.T*(w*p*(1 - p))) @ X, X.T @ (w*(t - p)))
    assert (told.slope, told.offset) == pytest.approx(tuple(theta), rel=2e-3)
    assert len(told.thresholds) == 3                                 # 14,000 pairs cannot tell one in 10,000
    fault(told.threshold, 1e-4, error=ConfigError)
    for rate, threshold in zip(RATES[:3], told.thresholds): assert (b > threshold).mean() == pytest.approx(rate, rel=.02, abs=1.5/len(b))
    assert told.threshold(1e-2) == told.thresholds[1] and told.thresholds[1] < told.threshold(3e-3) < told.thresholds[2]
    assert (w*told.probability(s)).sum() == pytest.approx(share, rel=1e-3)              # on average as many as there are


@pytest.mark.parametrize("labels, cams", [([-1]*6, [0, 1]*3), ([0]*6, [0, 1]*3), ([0, 1, 2, 3, 4, 5], [0, 1]*3), ([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1])])
def test_labels_without_pairs_cannot_calibrate(labels, cams): fault(calibrate, np.eye(6), np.array(labels), np.array(cams))


def test_what_a_calibration_cannot_be():
    for slope, offset, t in ((math.nan, 0, [0]*5), (1, math.inf, [0]*5), (1, 0, []), (1, 0, [0]*6), (1, 0, [5, 4, 3, 2, 1]), (-1, 0, [0]*5), (0, 0, [0]*5)): fault(Calibration, slope, offset, t)
    for rate in (0, .5, 1e-7, -1): fault(Calibration(1, 0, range(5)).threshold, rate, error=ConfigError)
    assert Calibration(1e9, 0, range(5)).probability(np.array([-1e9, 1e9])).tolist() == pytest.approx([0, 1])


# ---- embedder

def test_every_kind_of_picture_gives_the_vectors_of_the_run(run, saved, store, tmp_path):
    embedder, paths = Embedder.load(saved, "cpu"), open_domain("campus", "tiny", store=store).query.paths
    vectors = embedder.embed(paths, batch=7)
    np.testing.assert_allclose(vectors, run.test_features()["query"], atol=1e-6)
    arrays = np.stack([np.asarray(Image.open(p)) for p in paths])
    for other in ([str(p) for p in paths], [Image.open(p) for p in paths], arrays, list(arrays), torch.from_numpy(arrays).permute(0, 3, 1, 2), torch.from_numpy(arrays).permute(0, 3, 1, 2)/255):
        np.testing.assert_array_equal(embedder.embed(other, batch=7), vectors)
    assert embedder.embed([]).shape == (0, embedder.dim) and embedder.facts["origin"]["run"] == run.id and embedder.calibration.slope == 10
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
    assert np.array_equal(as_pixels(torch.ones(3, 4, 2, dtype=torch.bfloat16)/2, (4, 2)), as_pixels(torch.ones(3, 4, 2)/2, (4, 2)))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 48, 3), dtype=np.uint8)).save(tmp_path/"cut.jpg")
    (tmp_path/"cut.jpg").write_bytes((tmp_path/"cut.jpg").read_bytes()[:1500])
    closed = Image.open(tmp_path/"deep.png"); closed.close()
    for picture in (Image.new("F", (4, 4), .5), Image.new("RGB", (0, 5)), Image.open(tmp_path/"cut.jpg"), closed): fault(as_pixels, picture, (8, 4))
    embedder = Embedder.load(saved, "cpu")
    for batch in (0, -1): assert f"batch={batch}" in fault(embedder.embed, [tmp_path/"deep.png"], batch=batch, error=ConfigError)
    for one in (str(tmp_path/"deep.png"), tmp_path/"deep.png", Image.open(tmp_path/"deep.png")): assert "list" in fault(embedder.embed, one)


@pytest.mark.parametrize("picture", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.full((4, 4, 3), 7.), np.full((4, 4, 3), np.nan), np.zeros((4, 4, 3), np.int64), 7, None, b"bytes", "absent.jpg"], ids=str)
def test_what_is_no_picture(picture): fault(as_pixels, picture, (8, 4))


def altered(saved, tmp_path, change=None, facts=None, raw=None):
    "A model file with other tensors, other facts, or other text in its header."
    tensors, path = load_file(saved), tmp_path/"other.safetensors"
    own = json.loads(json.dumps(Embedder.load(saved, "cpu").facts))
    if change: change(tensors)
    save_file(tensors, path, metadata=dict(upl_reid=json.dumps({**own, **(facts or {})}) if raw is None else raw))
    return path


def first(tensors): return next(k for k, v in tensors.items() if v.is_floating_point())


FACTS = {"format": 2, "backbone": "../../etc/passwd", "other backbone": {"backbone": "resnet50"}, "size": [10**9, 10**9], "small": {"size": [1, 1]}, "floats": {"size": [48., 24.]}, "one size": {"size": [48]}, "dim": 10**9, "no dim": {"dim": None}, "flag": {"dim": True},
         "method": "os.system", "origin": "x", "calibration": {"slope": "x"}, "thresholds": {"calibration": dict(slope=1, offset=0, thresholds=[])}, "words": {"calibration": dict(slope=1, offset=0, thresholds=["x"])}, "endless": {"calibration": dict(slope=1, offset=0, thresholds=[10**400]*5)}, "gigantic": {"backbone": "vit_gigantic_patch14_224", "size": [224, 224]}, "extra": {"calibration": dict(slope=1, offset=0, thresholds=[0]*5, code=1)}}


@pytest.mark.parametrize("name", FACTS)
def test_facts_that_are_wrong_build_nothing(saved, tmp_path, name):
    wrong = FACTS[name] if isinstance(FACTS[name], dict) and name not in ("calibration",) else {name: FACTS[name]}
    path = altered(saved, tmp_path, facts=wrong)
    assert str(path) in fault(Embedder.load, path, "cpu")


@pytest.mark.parametrize("change", [lambda t: t.pop(first(t)), lambda t: t.update(more=torch.zeros(3)), lambda t: t.update({first(t): torch.zeros(2, 2)}), lambda t: t[first(t)].fill_(float("nan")), lambda t: t.clear()], ids=["missing", "more", "shape", "nan", "empty"])
def test_weights_that_do_not_fit(saved, tmp_path, change):
    path = altered(saved, tmp_path, change)
    assert str(path) in fault(Embedder.load, path, "cpu")


def test_a_run_whose_environment_is_gone(run, tmp_path):
    import shutil
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
    for name in ("a.safetensors", "b.safetensors", "c.safetensors", "d", "e.safetensors", "absent", "pipe"): fault(Embedder.load, tmp_path/name, "cpu")
    for raw in ("", "{", "[]", "null", '"x"', "1e999", "["*200_000, '{"format": ' + "9"*5000 + "}"): fault(Embedder.load, altered(saved, tmp_path, raw=raw), "cpu")
    assert not (tmp_path/"written").exists()


@settings(max_examples=300)
@given(where=st.integers(0, 6000), value=st.integers(0, 255))
def test_a_changed_byte_is_a_model_or_a_data_error(saved, tmp_path_factory, where, value):
    content, path = bytearray(saved.read_bytes()), tmp_path_factory.getbasetemp()/"changed.safetensors"
    content[where % len(content)] = value
    path.write_bytes(content)
    try: assert Embedder.load(path, "cpu").dim > 0
    except DataError as e: assert str(path) in str(e)


# ---- gallery

def some(n, d=8, seed=0): return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def naive(queries, x, cameras, without, k):
    "Hits by sorting all cosines."
    out = []
    for q, camera in zip(queries.astype(float), without):
        cosine = [float(np.dot(q, v)/np.linalg.norm(q)/np.linalg.norm(v)) if not camera or c != camera else -np.inf for v, c in zip(x.astype(float), cameras)]
        out.append([i for i in np.argsort(-np.array(cosine), kind="stable")[:k] if cosine[i] > -np.inf])
    return out


@pytest.mark.parametrize("k", [1, 5, 100])
def test_exact_search_is_a_sort(k):
    x, cameras = some(60), [f"cam{i % 4}" for i in range(60)]
    queries, without = some(6, seed=1), ["", "cam1", "cam1", "", "cam3", "nowhere"]
    hits = Gallery(8).add(x, range(60), cameras).search(queries, k, without)
    for q, wanted in enumerate(naive(queries, x, cameras, without, k)):
        found = hits[hits["query"] == q]
        assert found.position.tolist() == wanted and found["rank"].tolist() == list(range(1, len(wanted) + 1)) and found.path.tolist() == [str(i) for i in wanted]


@pytest.fixture
def divided(monkeypatch):
    "A gallery that has cells although it is small."
    monkeypatch.setattr(module, "EXACT", 500)
    rng = np.random.default_rng(2)
    x = np.repeat(rng.normal(size=(150, 16)), 10, 0) + .4*rng.normal(size=(1500, 16))
    return x.astype(np.float32), Gallery(16).add(x, range(1500), [f"c{i % 3}" for i in range(1500)], range(1500))


def test_cells_find_nearly_everything_and_leave_cameras_out(divided):
    x, gallery = divided
    queries = x[::50] + .1*some(30, 16, 3)
    assert gallery.probe and gallery.index.nlist == round(4*1500**.5)
    for without in ([""]*30, [f"c{i % 3}" for i in range(30)]):
        hits = gallery.search(queries, 10, without)
        share = [len(set(hits[hits["query"] == q].position) & set(w))/10 for q, w in enumerate(naive(queries, x, gallery.rows.camera, without, 10))]
        assert np.mean(share) > .95
        assert all(camera != without[q] for q, camera in zip(hits["query"], hits.camera))


@pytest.mark.parametrize("bias, share", [(1., .25), (2., .25), (1., .9)])
def test_a_camera_left_out_leaves_the_others_to_be_found(monkeypatch, bias, share):
    "Images of one camera lie together, as an unadapted model puts them: the cells nearest to a query are full of images that do not count."
    monkeypatch.setattr(module, "EXACT", 500)
    rng = np.random.default_rng(5)
    who = np.repeat(np.arange(200), 20)
    cam = np.where(rng.random(4000) < share, 0, rng.integers(1, 4, 4000))
    x = unit_vectors(rng.normal(size=(200, 24))[who] + bias*4*rng.normal(size=(4, 24))[cam] + .4*rng.normal(size=(4000, 24)))
    gallery, names = Gallery(24).add(x, range(4000), [f"c{i}" for i in cam]), np.array([f"c{i}" for i in cam], object)
    some = rng.choice(4000, 60, replace=False)
    hits = gallery.search(x[some], 10, list(names[some]))
    wanted = naive(x[some], x, names, names[some], 10)
    assert (hits.groupby("query").size() == 10).all() and len(hits) == 600
    assert np.mean([len(set(hits[hits["query"] == q].position) & set(w))/10 for q, w in enumerate(wanted)]) > .97


def test_copies_do_not_make_a_search_slow(divided, monkeypatch):
    x, gallery = divided
    copies = Gallery(16).add(np.concatenate([x, np.repeat(x[:3], 21, 0)]), range(1563))
    assert copies.probe <= 2*gallery.probe


@pytest.mark.parametrize("without", [False, True])
def test_many_hits_are_found_too(monkeypatch, without):
    "Cells are tried for ten hits; the hundredth lies further away than they reach."
    monkeypatch.setattr(module, "EXACT", 500)
    rng = np.random.default_rng(4)
    x = unit_vectors(np.repeat(rng.normal(size=(400, 32)), 20, 0) + .6*rng.normal(size=(8000, 32)))
    cameras = [f"c{i % 3}" for i in range(8000)]
    gallery, left = Gallery(32).add(x, range(8000), cameras), ["c1"]*40 if without else [""]*40
    assert gallery.index is not None and gallery.probe < gallery.index.nlist/4
    for k in (10, 30, 100, 500):
        hits = gallery.search(x[:40], k, left)
        assert len(hits) == 40*k and np.mean([len(set(hits[hits["query"] == q].position) & set(w))/k for q, w in enumerate(naive(x[:40], x, np.array(cameras), left, k))]) > .97, k


def test_names_that_are_none_are_unknown():
    gallery = Gallery(4).add(some(4, 4), list("abcd"), ["door", None, float("nan"), ""], [None, np.datetime64("NaT"), "9:00", 7])
    assert gallery.rows.camera.tolist() == ["door", "", "", ""] and gallery.rows.time.tolist() == ["", "", "9:00", "7"]
    assert len(gallery.search(some(1, 4), 9, [None])) == 4 and len(gallery.search(some(1, 4), 9, ["door"])) == 3
    fault(gallery.add, some(1, 4), ["a\0b"])
    assert len(gallery) == len(gallery.vectors) == 4


def test_more_hits_than_there_are(divided):
    x, gallery = divided
    assert len(gallery.search(x[:2], 10**12)) == 2*1500 and len(gallery.search(x[:1], 10**12, ["c1"])) == 1000


def test_added_vectors_are_found_and_cells_grow_with_them(divided):
    x, gallery = divided
    before = gallery.index.nlist
    gallery.add(some(3, 16, 9), ["n0", "n1", "n2"])
    assert gallery.index.nlist == before and gallery.search(some(3, 16, 9), 1).path.tolist() == ["n0", "n1", "n2"]
    gallery.add(np.repeat(x, 4, 0) + .01, range(6000))
    assert gallery.index.nlist == round(4*7503**.5) and len(gallery) == 7503
    np.testing.assert_allclose(gallery.vectors[:1500], unit_vectors(x), atol=1e-6)


@pytest.mark.parametrize("size", ["empty", "small", "divided"])
def test_a_saved_gallery_is_the_same(tmp_path, divided, size):
    gallery = {"empty": Gallery(16), "small": Gallery(16, Calibration(9, -5, range(5))).add(some(9, 16), [f"ü\n{i}" for i in range(9)], ["a,\"b"]*9, ["9:00"]*9), "divided": divided[1]}[size]
    again = Gallery.load(gallery.save(tmp_path/"g.safetensors"))
    assert again.rows.equals(gallery.rows) and again.probe == gallery.probe and again.calibration == gallery.calibration and len(again) == len(gallery)
    np.testing.assert_array_equal(again.vectors, gallery.vectors)
    if len(gallery): assert again.search(some(5, 16, 4), 7, ["c1"]*5).equals(gallery.search(some(5, 16, 4), 7, ["c1"]*5))
    assert again.add(some(2, 16), ["x", "y"]).search(some(2, 16), 1).path.tolist() == ["x", "y"] or size != "empty"


def test_what_is_wrong_adds_nothing():
    gallery = Gallery(8).add(some(3), "abc")
    for x, paths, cameras in ((some(2), "a", None), (some(2), "ab", "c"), (some(2, 7), "ab", None), (np.zeros((1, 8)), "a", None), (np.full((1, 8), np.nan), "a", None), (np.full((1, 8), np.inf), "a", None), (np.zeros(8), "a", None)):
        fault(gallery.add, x, paths, cameras)
        assert len(gallery) == 3 == len(gallery.vectors)
    fault(gallery.search, np.full((1, 8), np.nan))
    fault(gallery.search, some(2), without=["a"])
    fault(gallery.search, some(1), k=0, error=ConfigError)
    fault(gallery.search, some(1), false_match_rate=.01, error=ConfigError)
    fault(Gallery(8).search, some(1))
    fault(Gallery, 8, recall=1, error=ConfigError)


def test_a_threshold_leaves_out_what_is_below():
    x = unit_vectors([[1, 0], [.8, .6], [0, 1]])
    hits = Gallery(2, Calibration(10, -6, (.7, .8, .9, .95, .99))).add(x, "abc").search([[1, 0]], 3, false_match_rate=1e-3)
    assert hits.path.tolist() == ["a"] and hits.probability[0] == pytest.approx(1/(1 + math.exp(-4)), rel=1e-5)


BROKEN = {"vectors": lambda t: t.update(vectors=t["vectors"][:-1]), "type": lambda t: t.update(vectors=t["vectors"].astype(np.float64)), "zero": lambda t: t.update(vectors=t["vectors"]*0), "nan": lambda t: t.update(vectors=t["vectors"]*np.nan),
          "paths": lambda t: t.update(path=t["path"][:-5]), "no text": lambda t: t.pop("path"), "cells": lambda t: t.update(cells=t["cells"] + 10**6), "negative": lambda t: t.update(cells=-t["cells"] - 1), "centres": lambda t: t.update(centres=t["centres"][:, :3].copy()),
          "no centres": lambda t: t.pop("centres"), "cell type": lambda t: t.update(cells=t["cells"].astype(np.float32)), "axes": lambda t: t.update(axes=t["axes"][:3].copy()), "no axes": lambda t: t.pop("axes"), "wild axes": lambda t: t.update(axes=t["axes"]*np.float32(np.inf))}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_broken_gallery_is_refused(tmp_path, divided, change):
    from safetensors import safe_open
    path = divided[1].save(tmp_path/"g.safetensors")
    with safe_open(path, "np") as f: tensors, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    change(tensors)
    save_numpy(tensors, path, metadata=meta)
    assert str(path) in fault(Gallery.load, path)


@pytest.mark.parametrize("facts", ["["*200_000, '{"format": 1, "count": 2, "dim": 8, "probe": 1.5, "recall": 0.9, "model": "", "calibration": null}', '{"format": 1, "count": 2, "dim": 8, "probe": 0, "recall": 7, "model": "", "calibration": null}', '{"format": 1, "count": 2, "dim": 8, "probe": 0, "recall": 0.9, "model": 5, "calibration": null}', "", "{}", "[]", "null", '{"format": 1}', '{"format": 1, "count": -1, "dim": 16, "probe": 0, "recall": 0.9, "calibration": null}', '{"format": 9}'])
def test_a_gallery_with_other_facts_is_refused(tmp_path, facts):
    path = tmp_path/"g.safetensors"
    save_numpy(dict(vectors=some(2), **{k: np.frombuffer(b"a\0b", np.uint8) for k in KNOWN}), path, metadata=dict(upl_reid_gallery=facts))
    fault(Gallery.load, path)
    path.write_bytes(path.read_bytes()[:50])
    fault(Gallery.load, path)
    fault(Gallery.load, tmp_path/"absent")


def test_picture_of_hits(tmp_path):
    for n in "ab": Image.new("RGB", (8, 16)).save(tmp_path/f"{n}.png")
    gallery = Gallery(2).add([[1, 0], [0, 1]], [tmp_path/"a.png", tmp_path/"gone.png"], ["door", "yard"])
    fig = draw_hits([tmp_path/"a.png"], gallery.search([[1, 0]], 2), columns=3)
    assert len(fig.axes) == 4 and [a.get_xlabel() for a in fig.axes[:3]] == ["query", "door 1.00", "yard 0.00"] and len(fig.axes[1].images) == 1 and not fig.axes[2].images
    import matplotlib.pyplot as plt
    plt.close(fig)


# ---- export

@pytest.mark.parametrize("method", ["dbscan", "inclr"])
def test_onnx_gives_the_vectors_of_torch(store, tmp_path, method):
    import onnxruntime
    embedder = Embedder.load(get_run(RunConfig("tiny", "plaza", "campus", method), device="cpu", store=store, progress=False), "cpu")
    assert export_onnx(embedder, tmp_path/"m.onnx") <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path/"m.onnx")
    pixels = np.random.default_rng(5).integers(0, 256, (5, *embedder.size, 3), dtype=np.uint8)
    for n in (1, 5): np.testing.assert_allclose(session.run(None, {"pixels": pixels[:n]})[0], embedder.embed(pixels[:n]), atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["upl_reid"])["origin"]["run"] == embedder.facts["origin"]["run"]


def test_an_export_that_differs_is_not_kept(saved, tmp_path):
    with pytest.raises(RunError, match="differ"): export_onnx(Embedder.load(saved, "cpu"), tmp_path/"m.onnx", tolerance=-1)
    assert list(tmp_path.iterdir()) == []


def test_model_card_has_the_facts(saved, run):
    card = model_card(Embedder.load(saved, "cpu"), "stability: 1\nused: 90 %")
    for word in (run.id, "dbscan", "campus", "- stability: 1", "- used: 90 %", "biometric", "yes, on pseudo-labels"): assert word in card
    assert "{" not in card and "not judged" in model_card(Embedder.load(saved, "cpu"))
