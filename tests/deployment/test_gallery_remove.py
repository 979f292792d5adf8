"""What is removed from a gallery is gone: from searches, memory, index and file. Files of older formats."""
import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import upl_reid.deployment.gallery as module
from faults import fault
from upl_reid.core import ConfigError, write_tensors
from upl_reid.deployment.gallery import Gallery, unit_vectors


def people(n, d=16, seed=0):
    rng = np.random.default_rng(seed)
    return unit_vectors(rng.normal(size=(-(-n//10), d)).repeat(10, 0)[:n] + .4*rng.normal(size=(n, d)))


def made(n, keep=None):
    "A gallery of n people, or of some of its rows."
    rows = range(n) if keep is None else keep
    columns = [[f"p{i}" for i in rows], [f"c{i % 3}" for i in rows], [f"t{i}" for i in rows], [f"d{i}" for i in rows]]
    return Gallery(16).add(people(n)[list(rows)], *columns) if len(rows) else Gallery(16)


def sorted_hits(queries, x, k):
    return [sorted(range(len(x)), key=lambda i: -float(x[i].astype(float) @ q.astype(float)))[:k] for q in queries]


@pytest.mark.parametrize("paths, cameras, stays", [
    ("p4", None, lambda i: i != 4), (Path("p4"), None, lambda i: i != 4), (["p4", "p9", "p4"], None,
                                                                           lambda i: i not in (4, 9)),
    (None, "c1", lambda i: i % 3 != 1), (None, ["c0", "c2"], lambda i: i % 3 == 1),
    ("p4", "c0", lambda i: i != 4 and i % 3), ([], None, lambda i: True), (None, ["c0", "c1", "c2"], lambda i: False),
    (np.array(["p4", "p5"]), None, lambda i: i not in (4, 5))], ids=lambda v: "" if callable(v) else str(v))
def test_what_is_removed_is_not_found_and_the_rest_is(paths, cameras, stays):
    gallery, keep = made(40), [i for i in range(40) if stays(i)]
    assert gallery.remove(paths, cameras) == 40 - len(keep) and len(gallery) == len(keep) == len(gallery.vectors)
    wanted = made(40, keep)
    assert gallery.rows.equals(wanted.rows) and np.array_equal(gallery.vectors, wanted.vectors)
    assert list(gallery.cameras) == list(wanted.cameras)
    if not keep: return
    found = gallery.search(people(40)[:5], 7)
    for q, want in enumerate(sorted_hits(people(40)[:5], people(40)[keep], 7)):
        assert found.path[found["query"] == q].tolist() == [f"p{keep[i]}" for i in want]


def test_a_name_that_is_not_there_removes_nothing():
    gallery = made(30)
    for arguments in (("p99",), (["p1", "p99"],), (None, "c9"), ("p1", "c9"), (["p99"], ["c0"])):
        assert "9" in fault(gallery.remove, *arguments)
        assert gallery.rows.equals(made(30).rows) and len(gallery.vectors) == 30
    fault(gallery.remove, error=ConfigError)


def test_unknown_cameras_are_removed_by_the_empty_name():
    gallery = Gallery(16).add(people(4), list("abcd"), ["x", None, "", "x"])
    assert gallery.remove(cameras="") == 2 and gallery.rows.path.tolist() == ["a", "d"]


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan])
def test_a_missing_name_among_others_removes_nothing(missing):
    gallery = Gallery(16).add(people(4), list("abcd"), identities=["bob", None, "", "bob"])
    assert "missing identity" in fault(gallery.remove, identities=["bob", missing])
    assert "missing camera" in fault(gallery.remove, cameras=[missing]) and len(gallery) == 4


@pytest.mark.parametrize("limit, n", [(500, 900), (500, 505), (10**6, 60)], ids=["index", "index dropped", "exact"])
def test_nothing_that_was_made_with_the_removed_stays(monkeypatch, tmp_path, limit, n):
    "Everything is as in a gallery that never had them: the index too, and every byte of the file."
    monkeypatch.setattr(module, "EXACT", limit)
    gone = [f"p{i}" for i in range(0, n, 50)]
    gallery, fresh = made(n), made(n, [i for i in range(n) if i % 50])
    assert (gallery.index is not None) == (n > limit)
    gallery.remove(gone)
    assert (gallery.index is not None) == (fresh.index is not None) == (len(fresh) > limit)
    for name in ("axes", "nprobe", "candidates", "built"):
        assert np.array_equal(getattr(gallery, name), getattr(fresh, name)), name
    assert gallery.save(tmp_path/"a").read_bytes() == fresh.save(tmp_path/"b").read_bytes()
    again = Gallery.load(tmp_path/"a")
    assert again.rows.equals(fresh.rows)
    assert not set(again.search(people(n)[::50], 5).path) & set(gone)


def test_the_file_holds_neither_name_nor_vector_nor_camera(tmp_path):
    x = people(6)
    gallery = Gallery(16).add(x, [f"/crops/picture-{i}.jpg" for i in range(6)], ["gate", "hall"] + ["yard"]*4,
                              digests=[f"{i:016x}" for i in range(6)])
    before = gallery.save(tmp_path/"g.safetensors").read_bytes()
    traces = [b"picture-0.jpg", b"gate", x[0].tobytes(), x[0, :4].tobytes(), b"0"*16]
    assert all(t in before for t in traces)
    gallery.remove("/crops/picture-0.jpg")
    after = gallery.save(tmp_path/"g.safetensors").read_bytes()
    assert not any(t in after for t in traces) and b"hall" in after and x[1].tobytes() in after
    assert list(tmp_path.iterdir()) == [tmp_path/"g.safetensors"]


def test_no_old_buffer_is_kept(monkeypatch):
    monkeypatch.setattr(module, "EXACT", 500)
    gallery = made(600)
    gallery.add(people(3, seed=5), ["x", "y", "z"])                     # now its buffers are larger than its contents
    held = [weakref.ref(a) for a in (gallery._vectors.buffer, gallery._codes.buffer, gallery.axes)]
    assert len(gallery.rows) == 603
    gallery.remove("p7")
    gc.collect()
    assert [ref() for ref in held] == [None]*3 and gallery._rows is None
    assert gallery._vectors.buffer.shape == (602, 16) and gallery._vectors.buffer.base is None


def test_old_positions_are_refused_and_added_vectors_are_found():
    gallery = made(30)
    hits = gallery.nearest(people(30)[:2], 3)
    assert len(hits.table()) == 6 and gallery.remove([]) == 0 and len(hits.table()) == 6
    gallery.remove("p0")
    assert "removed" in fault(hits.table)
    gallery.add(people(30)[:1], ["again"], ["new"])
    assert gallery.search(people(30)[:1], 1)[["path", "camera"]].values.tolist() == [["again", "new"]]
    assert len(gallery.nearest(people(30)[:2], 3).table()) == 6


FACTS = dict(format=3, count=2, dim=16, probe=0, candidates=0, built=0, recall=.99, model="", calibration=None)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_digests_are_kept_and_unknown_in_older_files(tmp_path, version):
    text = dict(path="a\0b", camera="x\0", time="\0" + "9:00") | (dict(digest="0a\0") if version == 3 else {})
    tensors = dict(vectors=torch.from_numpy(people(2)), **{k: torch.frombuffer(bytearray(v.encode()), dtype=torch.uint8)
                                                           for k, v in text.items()})
    facts = dict(FACTS, format=version)
    path = write_tensors(tmp_path/"g.safetensors", tensors, upl_reid_gallery=json.dumps(facts))
    gallery = Gallery.load(path)
    assert gallery.digests == (["0a", ""] if version == 3 else ["", ""])
    assert gallery.rows.time.tolist() == ["", "9:00"]
    gallery.add(people(1), ["c"], digests=["0c"])
    again = Gallery.load(gallery.save(path))
    assert again.rows.equals(gallery.rows) and again.digests == [*gallery.digests[:2], "0c"]


def test_a_file_without_its_digests_is_refused(tmp_path):
    tensors = dict(vectors=torch.from_numpy(people(2)), **{k: torch.tensor([97, 0, 98], dtype=torch.uint8)
                                                           for k in ("path", "camera", "time")})
    fault(Gallery.load, write_tensors(tmp_path/"g.safetensors", tensors, upl_reid_gallery=json.dumps(FACTS)))


def test_other_numbers_of_digests_add_nothing():
    gallery = made(3)
    fault(gallery.add, people(2), ["a", "b"], None, None, ["0a"])
    assert len(gallery) == 3 == len(gallery.digests)
