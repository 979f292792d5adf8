"""Gallery: search against a full sort, and files that are wrong."""
import json
import math
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

import upl_reid.deployment.gallery as module
from faults import fault
from upl_reid.core import ConfigError
from upl_reid.deployment.gallery import KNOWN, Gallery, checked_name, draw_hits, unit_vectors
from upl_reid.deployment.match_calibration import Calibration


def some(n, d=8, seed=0): return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def naive(queries, x, cameras, without, k):
    "Hits by sorting all cosines."
    out = []
    for q, camera in zip(queries.astype(float), without):
        cosine = [float(np.dot(q,
                               v)/np.linalg.norm(q)/np.linalg.norm(v)) if not camera or c != camera else -np.inf for v,
                               c in zip(x.astype(float), cameras)]
        out.append([i for i in np.argsort(-np.array(cosine), kind="stable")[:k] if cosine[i] > -np.inf])
    return out


@pytest.mark.parametrize("k", [1, 5, 100])
def test_exact_search_is_a_sort(k):
    x, cameras = some(60), [f"cam{i % 4}" for i in range(60)]
    queries, without = some(6, seed=1), ["", "cam1", "cam1", "", "cam3", "nowhere"]
    hits = Gallery(8).add(x, range(60), cameras).search(queries, k, without)
    for q, wanted in enumerate(naive(queries, x, cameras, without, k)):
        found = hits[hits["query"] == q]
        assert found.position.tolist() == wanted and found["rank"].tolist() == list(range(1, len(wanted) + 1))
        assert found.path.tolist() == [str(i) for i in wanted]


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
    assert gallery.nprobe and gallery.index.nlist == round(1500**.5/2)
    for without in ([""]*30, [f"c{i % 3}" for i in range(30)]):
        hits = gallery.search(queries, 10, without)
        share = [len(set(hits[hits["query"] == q].position) & set(w))/10 for q,
                 w in enumerate(naive(queries, x, gallery.rows.camera, without, 10))]
        assert np.mean(share) > .95
        assert all(camera != without[q] for q, camera in zip(hits["query"], hits.camera))


@pytest.mark.parametrize("bias, share", [(1., .25), (2., .25), (1., .9)])
def test_a_camera_left_out_leaves_the_others_to_be_found(monkeypatch, bias, share):
    "As for an unadapted model, images of one camera lie together: the cells nearest to a query hold only its camera."
    monkeypatch.setattr(module, "EXACT", 500)
    rng = np.random.default_rng(5)
    who = np.repeat(np.arange(200), 20)
    cam = np.where(rng.random(4000) < share, 0, rng.integers(1, 4, 4000))
    x = unit_vectors(rng.normal(size=(200, 24))[who] + bias*4*rng.normal(size=(4, 24))[cam] + .4*rng.normal(size=(4000,
            24)))
    gallery, names = Gallery(24).add(x, range(4000), [f"c{i}" for i in cam]), np.array([f"c{i}" for i in cam], object)
    some = rng.choice(4000, 60, replace=False)
    hits = gallery.search(x[some], 10, list(names[some]))
    wanted = naive(x[some], x, names, names[some], 10)
    assert (hits.groupby("query").size() == 10).all() and len(hits) == 600
    assert np.mean([len(set(hits[hits["query"] == q].position) & set(w))/10 for q, w in enumerate(wanted)]) > .97


def test_copies_do_not_make_a_search_slow(divided, monkeypatch):
    x, gallery = divided
    copies = Gallery(16).add(np.concatenate([x, np.repeat(x[:3], 21, 0)]), range(1563))
    assert copies.nprobe <= 2*gallery.nprobe


@pytest.mark.parametrize("without", [False, True])
def test_many_hits_are_found_too(monkeypatch, without):
    "Cells are tried for ten hits; the hundredth lies further away than they reach."
    monkeypatch.setattr(module, "EXACT", 500)
    rng = np.random.default_rng(4)
    x = unit_vectors(np.repeat(rng.normal(size=(400, 32)), 20, 0) + .6*rng.normal(size=(8000, 32)))
    cameras = [f"c{i % 3}" for i in range(8000)]
    gallery, left = Gallery(32).add(x, range(8000), cameras), ["c1"]*40 if without else [""]*40
    assert gallery.index is not None and gallery.nprobe < gallery.index.nlist
    for k in (10, 30, 100, 500):
        hits = gallery.search(x[:40], k, left)
        assert len(hits) == 40*k and np.mean([len(set(hits[hits["query"] == q].position) & set(w))/k for q,
                                              w in enumerate(naive(x[:40], x, np.array(cameras), left, k))]) > .97, k


def test_names_that_are_none_are_unknown():
    gallery = Gallery(4).add(some(4, 4), list("abcd"), ["door", None, float("nan"), ""], [None, np.datetime64("NaT"),
            "9:00", 7])
    assert [checked_name(v) for v in (pd.NA, pd.NaT, "nan", np.nan, np.float32("nan"))] == ["", "", "nan", "", ""]
    assert gallery.rows.camera.tolist() == ["door", "", "", ""] and gallery.rows.time.tolist() == ["", "", "9:00", "7"]
    assert len(gallery.search(some(1, 4), 9, [None])) == 4 and len(gallery.search(some(1, 4), 9, ["door"])) == 3
    fault(gallery.add, some(1, 4), ["a\0b"])
    assert len(gallery) == len(gallery.vectors) == 4


def test_one_name_holds_for_all_rows():
    x = some(4, 8)
    gallery = Gallery(8).add(x, list("abcd"), "cam1", "9:00").add(x[:1], "one", ["cam2"])
    assert gallery.rows.camera.tolist() == ["cam1"]*4 + ["cam2"] and gallery.rows.time.tolist() == ["9:00"]*4 + [""]
    assert gallery.rows.path.tolist() == ["a", "b", "c", "d", "one"]
    for name in ("cam1", "cam2"):
        assert gallery.search(x, 9, name).equals(gallery.search(x, 9, [name]*4))
    assert set(gallery.search(x, 9, "cam1").path) == {"one"}


def test_an_unknown_camera_to_leave_out_is_told():
    gallery = Gallery(8).add(some(4, 8), list("abcd"), "cam1")
    with pytest.warns(UserWarning, match="from camera cam9, nowhere, so nothing is left out"):
        assert len(gallery.search(some(3, 8), 9, ["nowhere", "cam1", "cam9"])) == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gallery.search(some(2, 8), 9, ["cam1", None])


def test_more_hits_than_there_are(divided):
    x, gallery = divided
    assert len(gallery.search(x[:2], 10**12)) == 2*1500 and len(gallery.search(x[:1], 10**12, ["c1"])) == 1000


def test_added_vectors_are_found_and_cells_grow_with_them(divided):
    x, gallery = divided
    before = gallery.index.nlist
    gallery.add(some(3, 16, 9), ["n0", "n1", "n2"])
    assert gallery.index.nlist == before and gallery.search(some(3, 16, 9), 1).path.tolist() == ["n0", "n1", "n2"]
    gallery.add(np.repeat(x, 4, 0) + .01, range(6000))
    assert gallery.index.nlist == round(7503**.5/2) and len(gallery) == 7503
    np.testing.assert_allclose(gallery.vectors[:1500], unit_vectors(x), atol=1e-6)


@pytest.mark.parametrize("size", ["empty", "small", "divided"])
def test_a_saved_gallery_is_the_same(tmp_path, divided, size):
    gallery = {"empty": Gallery(16), "small": Gallery(16, Calibration(9, -5, range(5))).add(some(9, 16),
            [f"ü\n{i}" for i in range(9)], ["a,\"b"]*9, ["9:00"]*9), "divided": divided[1]}[size]
    again = Gallery.load(gallery.save(tmp_path/"g.safetensors"))
    assert again.rows.equals(gallery.rows) and again.nprobe == gallery.nprobe
    assert again.candidates == gallery.candidates and again.built == gallery.built
    assert again.calibration == gallery.calibration and len(again) == len(gallery)
    np.testing.assert_array_equal(again.vectors, gallery.vectors)
    if len(gallery):
        assert again.search(some(5, 16, 4), 7, ["c1"]*5).equals(gallery.search(some(5, 16, 4), 7, ["c1"]*5))
    new = some(2, 16, 11)
    assert again.add(new, ["x", "y"]).search(new, 1).path.tolist() == ["x", "y"]


def test_what_is_wrong_adds_nothing():
    gallery = Gallery(8).add(some(3), list("abc"))
    for x, paths, cameras in ((some(2), ["a"], None), (some(2), ["a", "b"], ["c"]), (some(2, 7), ["a", "b"], None),
                              (some(2), "ab", None), (some(2), Path("ab"), None),
                              (np.zeros((1, 8)), ["a"], None), (np.full((1, 8), np.nan), ["a"], None),
                              (np.full((1, 8), np.inf), ["a"], None), (np.zeros(8), ["a"], None)):
        fault(gallery.add, x, paths, cameras)
        assert len(gallery) == 3 == len(gallery.vectors)
    fault(gallery.search, np.full((1, 8), np.nan))
    fault(gallery.search, some(2), without=["a"])
    for k in (0, True, 2., "2", None): assert f"k={k!r}" in fault(gallery.search, some(1), k=k, error=ConfigError)
    fault(gallery.search, some(1), false_match_rate=.01, error=ConfigError)
    fault(Gallery(8).search, some(1))
    fault(Gallery, 8, recall=1, error=ConfigError)


def test_a_threshold_leaves_out_what_is_below():
    x = unit_vectors([[1, 0], [.8, .6], [0, 1]])
    hits = Gallery(2, Calibration(10, -6, (.7, .8, .9, .95, .99))).add(x, list("abc")).search([[1, 0]], 3,
            false_match_rate=1e-3)
    assert hits.path.tolist() == ["a"] and hits.probability[0] == pytest.approx(1/(1 + math.exp(-4)), rel=1e-5)


BROKEN = {"vectors": lambda t: t.update(vectors=t["vectors"][:-1]),
          "type": lambda t: t.update(vectors=t["vectors"].astype(np.float64)),
          "zero": lambda t: t.update(vectors=t["vectors"]*0), "nan": lambda t: t.update(vectors=t["vectors"]*np.nan),
          "paths": lambda t: t.update(path=t["path"][:-5]), "no text": lambda t: t.pop("path"),
          "codebook": lambda t: t.update(codebook=t["codebook"][1:].copy()), "no codebook": lambda t: t.pop("codebook"),
          "codebook type": lambda t: t.update(codebook=t["codebook"].astype(np.float64)),
          "wild codebook": lambda t: t.update(codebook=t["codebook"]*np.float32(np.nan)),
          "no cells": lambda t: t.update(centres=t["centres"][:0].copy()),
          "centres": lambda t: t.update(centres=t["centres"][:, :3].copy()), "no centres": lambda t: t.pop("centres"),
          "axes": lambda t: t.update(axes=t["axes"][:3].copy()), "no axes": lambda t: t.pop("axes"),
          "wild axes": lambda t: t.update(axes=t["axes"]*np.float32(np.inf))}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_broken_gallery_is_refused(tmp_path, divided, change):
    path = divided[1].save(tmp_path/"g.safetensors")
    with safe_open(path, "np") as f: tensors, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    change(tensors)
    save_file(tensors, path, metadata=meta)
    assert str(path) in fault(Gallery.load, path)


GOOD = dict(format=3, count=2, dim=8, probe=0, candidates=0, built=0, recall=.9, model="", calibration=None)
OTHER = (dict(probe=1.5), dict(recall=7), dict(model=5), dict(count=-1, dim=16), dict(format=9), dict(built=-1),
         dict(candidates="9"), dict(probe=1, candidates=1))


@pytest.mark.parametrize("facts", ["["*200_000, "", "{}", "[]", "null", '{"format": 1}',
                                   *(json.dumps({**GOOD, **other}) for other in OTHER)], ids=lambda facts: facts[:60])
def test_a_gallery_with_other_facts_is_refused(tmp_path, facts):
    path = tmp_path/"g.safetensors"
    save_file(dict(vectors=some(2), **{k: np.frombuffer(b"a\0b", np.uint8) for k in KNOWN}), path,
              metadata=dict(upl_reid_gallery=facts))
    fault(Gallery.load, path)
    path.write_bytes(path.read_bytes()[:50])
    fault(Gallery.load, path)
    fault(Gallery.load, tmp_path/"absent")


def test_picture_of_hits(tmp_path):
    for n in "ab": Image.new("RGB", (8, 16)).save(tmp_path/f"{n}.png")
    gallery = Gallery(2).add([[1, 0], [0, 1]], [tmp_path/"a.png", tmp_path/"gone.png"], ["door", "yard"])
    fig = draw_hits([tmp_path/"a.png"], gallery.search([[1, 0]], 2), columns=3)
    assert len(fig.axes) == 4 and [a.get_xlabel() for a in fig.axes[:3]] == ["query\na.png", "door 1.00\na.png",
                                                                               "yard 0.00\ngone.png"]
    assert len(fig.axes[1].images) == 1 and not fig.axes[2].images
    plt.close(fig)
