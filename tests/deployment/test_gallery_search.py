"""Gallery: the index against sorted cosines in double precision, growing, and files of the first format."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import upl_reid.deployment.gallery as module
from upl_reid.core import write_tensors
from upl_reid.deployment.gallery import (Gallery, GrowingArray, best_of_all, best_of_candidates, cell_ranks,
                                         empty_index, unit_vectors)


def sorted_cosines(queries, x, k, keep):
    "Cosines and positions of the k best by sorting all; `keep(query, vector)` says which count."
    out = []
    for i, q in enumerate(queries.astype(float)):
        cosine = [float(np.dot(q, v)) if keep(i, j) else -np.inf for j, v in enumerate(x.astype(float))]
        order = np.argsort(-np.array(cosine), kind="stable")[:k]
        out.append([(cosine[j], int(j)) for j in order if cosine[j] > -np.inf])
    return out


def check_exact(found, wanted, k):
    "Positions are those of the sort, except among equal cosines; what is missing is -1 and -inf."
    for cosine, position, want in zip(*found, wanted):
        assert len(cosine) == len(position) == k
        n = len(want)
        np.testing.assert_allclose(cosine[:n], [c for c, _ in want], atol=1e-6)
        assert (position[n:] == -1).all() and (cosine[n:] == -np.inf).all() and len(set(position[:n])) == n
        for c, p in zip(cosine[:n], position[:n]):
            assert any(abs(c - w) < 1e-6 for w, at in want if at == p) or abs(c - want[-1][0]) < 1e-6


def share_found(cosine, wanted, k):
    "Share of the true hits; any hit as near as the last true one counts."
    return np.mean([c >= want[-1][0] - 1e-6 for row, want in zip(cosine, wanted) for c in row[:len(want)]])


def people(n, d=24, each=10, noise=.4, seed=0):
    rng = np.random.default_rng(seed)
    return unit_vectors(rng.normal(size=(-(-n//each), d)).repeat(each, 0)[:n] + noise*rng.normal(size=(n, d)))


@pytest.mark.parametrize("n, queries, k", [(1, 1, 3), (1, 3, 1), (37, 5, 60), (5000, 300, 4), (2500, 520, 1)])
@pytest.mark.parametrize("left", [False, True])
def test_exact_search_in_blocks_is_a_sort(n, queries, k, left):
    rng = np.random.default_rng(n + k)
    x, cameras = people(n, 8), rng.integers(0, 3, n)
    q, left_out = people(queries, 8, 1, seed=1), rng.integers(-1, 3, queries) if left else np.full(queries, -1)
    some = rng.choice(queries, min(queries, 12), replace=False)
    found = [a[some] for a in best_of_all(q, x, k, cameras, left_out)]
    check_exact(found, sorted_cosines(q[some], x, k, lambda i, j: cameras[j] != left_out[some[i]]), k)


def test_exact_search_without_queries():
    cosine, position = best_of_all(np.empty((0, 8), np.float32), people(9, 8), 3)
    assert cosine.shape == position.shape == (0, 3)


def test_candidates_are_compared_exactly():
    rng = np.random.default_rng(0)
    x, q = people(200, 16), people(7, 16, 1, seed=1)
    candidates = np.stack([rng.choice(200, 30, replace=False) for _ in q])
    candidates[3, 5:], candidates[4] = -1, -1
    found = best_of_candidates(q, x, candidates, 9)
    check_exact(found, sorted_cosines(q, x, 9, lambda i, j: j in candidates[i]), 9)


def test_rank_of_a_cell_is_counted():
    centres, z, neighbours = people(9, 6, 1), people(4, 6, 1, seed=1), people(20, 6, 1, seed=2).reshape(4, 5, 6)
    ranks = cell_ranks(empty_index(centres, 3), z, neighbours)
    for i in range(4):
        for j in range(5):
            own = max(range(9), key=lambda c: float(centres[c].astype(float) @ neighbours[i, j]))
            assert ranks[i, j] == sum(float(c @ z[i]) > float(centres[own] @ z[i]) for c in np.delete(centres, own, 0))


@pytest.fixture
def small_index(monkeypatch):
    monkeypatch.setattr(module, "EXACT", 500)


@pytest.mark.parametrize("share", [.1, .5, .9, .99, 1.])
def test_a_camera_is_left_out_at_every_crowding(small_index, share):
    "All neighbours of a query are in its own camera, which holds this share of the gallery."
    rng = np.random.default_rng(3)
    own = rng.random(1500) < share
    rest = unit_vectors(people(1500, seed=4) - 2*people(1, 24, 1, seed=5))      # the other cameras are far away
    x = np.where(own[:, None], unit_vectors(people(1500) + 2*people(1, 24, 1, seed=5)), rest)
    names = np.where(own, "own", rng.choice(["a", "b"], 1500))
    gallery, q = Gallery(24).add(x, range(1500), names), x[np.flatnonzero(own)[:20]]
    assert gallery.index
    found = gallery.nearest(q, 10, ["own"]*len(q))
    wanted = sorted_cosines(q, x, 10, lambda i, j: not own[j])
    assert [(row >= 0).sum() for row in found.position] == [len(want) for want in wanted]
    assert not own[found.position[found.position >= 0]].any()
    assert not any(wanted) or share_found(found.cosine, wanted, 10) > .97
    check_exact([gallery.nearest(q, 2000, ["own"]*len(q)).cosine, gallery.nearest(q, 2000, ["own"]*len(q)).position],
                sorted_cosines(q, x, 1500, lambda i, j: not own[j]), 1500)


def test_the_index_after_adding_saving_and_loading(small_index, tmp_path):
    x, names = people(2400), np.array([f"c{i % 3}" for i in range(2400)])
    gallery = Gallery(24).add(x[:600], range(600), names[:600])
    for s in (*range(600, 640), *range(640, 2400, 80)):
        gallery.add(x[s:s + 1] if s < 640 else x[s:s + 80], range(len(x[s:s + 1] if s < 640 else x[s:s + 80])),
                    names[s:s + 1] if s < 640 else names[s:s + 80])
    assert len(gallery) == 2400 == gallery.index.ntotal and gallery.built == 600
    np.testing.assert_allclose(gallery.vectors, x, atol=1e-6)
    q = unit_vectors(x[::60] + .05*people(40, seed=6))
    for g in (gallery, Gallery.load(gallery.save(tmp_path/"g.safetensors"))):
        for left in ("", "c1"):
            wanted = sorted_cosines(q, x, 10, lambda i, j: not left or names[j] != left)
            found = g.nearest(q, 10, [left]*40)
            assert share_found(found.cosine, wanted, 10) > .97
            np.testing.assert_allclose(found.cosine, (q[:, None]*x[found.position]).sum(2), atol=1e-6)


def test_duplicates_and_a_single_query(small_index):
    x = np.concatenate([np.repeat(people(1), 700, 0), people(600, seed=8)])
    gallery = Gallery(24).add(x, range(1300))
    found = gallery.nearest(x[:1], 10)
    np.testing.assert_allclose(found.cosine, 1, atol=1e-6)
    assert found.position.shape == (1, 10) and len(set(found.position[0])) == 10 and (found.position < 700).all()
    assert gallery.nearest(x[800:801], 1).position.tolist() == [[800]]
    same = Gallery(24).add(np.repeat(people(1), 700, 0), range(700)).nearest(x[:1], 800)
    assert sorted(same.position[0]) == list(range(700))


def test_vectors_that_suit_no_index_are_compared_one_by_one(small_index):
    "512 directions of equal length: 128 components hold too little, and the promised recall is kept all the same."
    x = unit_vectors(np.random.default_rng(0).normal(size=(1200, 512)))
    gallery, q = Gallery(512, recall=.999).add(x, range(1200)), people(5, 512, 1)
    assert gallery.index is None and gallery.built == 1200
    check_exact([gallery.nearest(q).cosine, gallery.nearest(q).position], sorted_cosines(q, x, 10, lambda i, j: True),
                10)
    gallery.add(x[:1], ["again"])
    assert gallery.built == 1200                        # not tried again before it has grown to four times


def test_the_promised_recall_is_kept_on_the_sample(small_index):
    for noise in (.3, .9):
        x = people(3000, 32, 20, noise)
        gallery = Gallery(32, recall=.98).add(x, range(3000), [f"c{i % 2}" for i in range(3000)])
        for x, left_out, skip, cosine, _ in gallery._true_neighbours():
            found = gallery._by_index(x, 10 + skip, left_out, gallery.candidates, gallery.nprobe)[0][:, skip:]
            assert (found >= cosine[:, -1:] - 1e-6).mean() >= .98


@pytest.mark.parametrize("size", [20, 1500])
def test_arrays_and_table_are_the_same_hits(small_index, size):
    gallery = Gallery(24, module.Calibration(10, -6, (.7, .8, .9))).add(people(size), [f"p{i}" for i in range(size)],
                                                                        ["x", "y"]*(size//2), range(size))
    q = people(size, noise=.5)[:6]
    for options in (dict(k=7), dict(k=7, without=["x"]*6), dict(k=7, false_match_rate=.01), dict(k=10**9)):
        hits, table = gallery.nearest(q, **options), gallery.search(q, **options)
        rows = [(i, j) for i in range(6) for j in range(hits.position.shape[1]) if hits.position[i, j] >= 0]
        assert list(zip(table["query"], table["rank"] - 1)) == rows
        assert table.position.tolist() == [hits.position[at] for at in rows] and len(rows)
        assert table.cosine.tolist() == [hits.cosine[at] for at in rows]
        for name in module.KNOWN: assert table[name].tolist() == gallery.rows[name][table.position].tolist()
        assert list(table) == ["query", "rank", "position", "cosine", "probability", *module.KNOWN]
        if "false_match_rate" in options: assert table.cosine.min() >= .8 > gallery.search(q, 7).cosine.min()


def test_adding_one_by_one_copies_each_row_a_few_times(monkeypatch):
    "Counts the rows that are copied to larger arrays, instead of seconds."
    copied, allocate = [], np.empty
    monkeypatch.setattr(module.np, "empty", lambda shape, *a, **k: copied.append(shape) or allocate(shape, *a, **k))
    array, row = GrowingArray(allocate((0, 3), np.float32)), np.ones((1, 3), np.float32)
    moves = []
    for i in range(8000):
        before = len(copied)
        array.append(row)
        if len(copied) > before: moves.append(i)
        assert len(array.values) == i + 1
    assert sum(moves) <= 3*8000 and len(array.buffer) <= 1.5*8000
    assert len(moves) == len(copied) and (array.values == 1).all()


def test_a_gallery_grows_by_few_moves():
    gallery, moves, address = Gallery(4), 0, 0
    for i, row in enumerate(people(3000, 4)):
        gallery.add(row[None], [f"p{i}"], ["door"])
        at = gallery.vectors.__array_interface__["data"][0]
        moves += at != address and i
        address = at
    assert moves <= 3*3000 and gallery.rows.path.tolist() == [f"p{i}" for i in range(3000)]
    np.testing.assert_allclose(gallery.vectors, people(3000, 4), atol=1e-6)


def test_what_the_caller_gives_is_neither_kept_nor_changed():
    x = np.full((2, 4), 3, np.float32)
    gallery = Gallery(4).add(x, ["a", "b"])
    held = gallery.vectors
    assert (x == 3).all()
    x[:] = np.nan
    gallery.add(np.ones((1, 4), np.float32), "c")
    assert (held == .5).all() and (gallery.vectors == .5).all()


@pytest.mark.parametrize("probe", [0, 7])
def test_a_file_of_the_first_format_opens(small_index, tmp_path, probe):
    "As the first version wrote it: cells of every vector, and an index of bytes instead of 4-bit codes."
    n = 1200 if probe else 30
    x, path = people(n), tmp_path/"old.safetensors"
    text = dict(path="\0".join(f"p{i}" for i in range(n)), camera="\0".join(f"c{i % 3}" for i in range(n)),
                time="\0".join([""]*n))
    tensors = dict(vectors=x, **{k: np.frombuffer(v.encode(), np.uint8).copy() for k, v in text.items()})
    if probe:
        tensors |= dict(axes=np.eye(24, 16, dtype=np.float32), centres=people(139, 16, 1), cells=np.arange(n) % 139)
    facts = dict(format=1, count=n, dim=24, probe=probe, recall=.998, model="m",
                 calibration=dict(slope=9., offset=-5., thresholds=[.5, .6]))
    write_tensors(path, {k: torch.from_numpy(v) for k, v in tensors.items()}, upl_reid_gallery=json.dumps(facts))
    gallery, q = Gallery.load(path), people(20, seed=3)
    assert (gallery.recall, gallery.model, gallery.calibration.slope) == (.998, "m", 9)
    assert bool(gallery.index) == (n > 500)
    assert gallery.rows.path[7] == "p7" and gallery.rows.camera[7] == "c1" and np.array_equal(gallery.vectors, x)
    wanted = sorted_cosines(q, x, 10, lambda i, j: j % 3 != 2)
    assert share_found(gallery.nearest(q, 10, ["c2"]*20).cosine, wanted, 10) > .98
    again = Gallery.load(gallery.save(path))
    assert np.array_equal(again.nearest(q).position, gallery.nearest(q).position) and again.nprobe == gallery.nprobe


def test_a_small_gallery_is_searched_without_large_libraries():
    code = """
import sys, numpy as np
from upl_reid.deployment.gallery import Gallery
x = np.eye(4, 8, dtype=np.float32)
gallery = Gallery(8).add(x, list("abcd"), ["door", None, float("nan"), "yard"])
assert gallery.nearest(x[1:2], 2, ["door"]).position[0, 0] == 1
print(*({"pandas", "faiss", "scipy", "sklearn"} & {*sys.modules}))"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not out.strip(), out
