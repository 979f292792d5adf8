"Re-ranking against a naive version with lists, sets and dictionaries, plus edge cases and faults."
import math

import numpy as np
import pytest
import torch

from retrieval_problem import problem
from upl_reid.core import ConfigError, DataError
from upl_reid.evaluation import reranking, retrieval
from upl_reid.evaluation.reranking import expand_queries, rerank

def naive_rerank(query, gallery, k1, k2, lam):
    "Zhong et al. 2017 from its description, with lists, sets and dictionaries."
    x = [np.asarray(v, dtype=float)/math.sqrt(sum(t*t for t in np.asarray(v, dtype=float))) for v in [*query, *gallery]]
    n, q = len(x), len(query)
    d = [[float(((x[i] - x[j])**2).sum()) for j in range(n)] for i in range(n)]
    d = [[v/max(row) for v in row] for row in d]
    order = [sorted(range(n), key=lambda j: (j != i, d[i][j], j)) for i in range(n)]
    def reciprocal(i, k): return {j for j in order[i][:k + 1] if i in order[j][:k + 1]}
    half, v = round(k1/2), []
    for i in range(n):
        base = reciprocal(i, k1)
        members = set(base)
        for c in base:
            h = reciprocal(c, half)
            if len(h & base) > 2/3*len(h): members |= h
        weight = {j: math.exp(-d[i][j]) for j in members}
        total = math.fsum(weight.values())
        v.append({j: w/total for j, w in weight.items()})
    averaged = []
    for i in range(n):
        near = order[i][:k2]
        averaged.append({j: sum(v[m].get(j, 0) for m in near)/len(near) for m in near for j in v[m]})
    result = np.zeros((q, n - q))
    for i in range(q):
        for j in range(q, n):
            low = sum(min(averaged[i].get(m, 0), averaged[j].get(m, 0)) for m in range(n))
            high = sum(max(averaged[i].get(m, 0), averaged[j].get(m, 0)) for m in range(n))
            result[i, j - q] = (1 - lam)*(1 - low/high) + lam*d[i][j]
    return result

def clustered(seed, n, ids=6, dims=6, spread=.6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(ids, dims))[rng.integers(0, ids, n)] + spread*rng.normal(size=(n, dims))

@pytest.mark.parametrize("k1, k2, lam", [
    (20, 6, .3), (5, 1, 0.), (7, 3, .5), (3, 8, 1.), (1, 1, .3), (2, 2, .3), (9, 5, .1)])
def test_rerank_equals_naive_loop(k1, k2, lam):
    x = clustered(k1, 70)
    found, wanted = (f(x[:15], x[15:], k1, k2, lam) for f in (rerank, naive_rerank))
    np.testing.assert_allclose(found, wanted, atol=1e-10)

@pytest.mark.parametrize("k1, k2", [(11, 3), (12, 12), (40, 6), (200, 100)])
def test_rerank_lists_stop_at_the_number_of_images(k1, k2):
    x = clustered(5, 12, ids=3)
    np.testing.assert_allclose(rerank(x[:4], x[4:], k1, k2), naive_rerank(x[:4], x[4:], k1, k2, .3), atol=1e-10)

def test_rerank_expansion_takes_more_than_two_thirds_not_exactly_two_thirds():
    "Over many small sets the strict and the lax rule differ somewhere; the strict one must be what is computed."
    rng, exact = np.random.default_rng(1), 0
    for _ in range(12):
        x = rng.normal(size=(14, 2))
        unit = x/np.linalg.norm(x, axis=1, keepdims=True)
        order = np.argsort(-unit @ unit.T, axis=1)
        mutual = lambda i, k: {j for j in order[i][:k + 1] if i in order[j][:k + 1]}
        pairs = [(mutual(c, 2), mutual(i, 4)) for i in range(14) for c in mutual(i, 4)]
        exact += sum(3*len(half & full) == 2*len(half) for half, full in pairs)
        np.testing.assert_allclose(rerank(x[:4], x[4:], 4, 2), naive_rerank(x[:4], x[4:], 4, 2, .3), atol=1e-10)
    assert exact > 0 # otherwise the sets did not put the question

def test_rerank_with_duplicates_equals_naive_loop():
    "More copies than neighbours: an image still heads its own list, then the lower index."
    x = np.repeat(np.array([[1., 0, 0], [0, 2, 0], [0, 0, 4], [4, 0, 3]]), 6, axis=0)
    np.testing.assert_allclose(rerank(x[::5], x, 3, 2), naive_rerank(x[::5], x, 3, 2, .3), atol=1e-10)

@pytest.mark.parametrize("dims", [2, 2048])
@pytest.mark.parametrize("k1, k2", [(4, 2), (20, 6)])
def test_rerank_of_hard_features_equals_naive_loop(dims, k1, k2):
    "Random vectors and copies, of very different lengths (powers of two, so that copies stay exact)."
    rng = np.random.default_rng(dims)
    for x in (rng.normal(size=(40, dims)), rng.normal(size=(4, dims))[rng.integers(0, 4, 40)]):
        x = x*2.**rng.integers(-30, 30, (40, 1))
        np.testing.assert_allclose(rerank(x[:9], x[9:], k1, k2), naive_rerank(x[:9], x[9:], k1, k2, .3), atol=1e-10)

@pytest.mark.parametrize("kind", ["random", "one dimension", "copies", "nearly equal", "all equal", "orthogonal",
                                  "turned"])
def test_lists_and_farthest_are_those_of_double_precision(kind):
    "Single-precision tiles of several sizes, and rows whose candidates are too many to keep."
    rng = np.random.default_rng(3)
    x = {"random": rng.normal(size=(700, 30)), "one dimension": rng.normal(size=(700, 1)),
         "copies": rng.normal(size=(60, 30))[rng.integers(0, 60, 700)],
         "nearly equal": 1 + 1e-6*rng.normal(size=(700, 30)), "all equal": np.ones((700, 3)),
         "orthogonal": np.eye(700), "turned": np.stack([np.cos(t := np.arange(700)/200), np.sin(t)], 1)}[kind]
    x = torch.from_numpy(x.astype(np.float32))
    g, slack = torch.nn.functional.normalize(x, dim=1), 1e-4
    d = retrieval.unit_distances(x, x).numpy()
    own = d + np.where(np.eye(700) > 0, -9, 0)
    order, farthest = reranking._neighbours(x, x.double().norm(dim=1), g, slack, 21)
    assert np.array_equal(order, np.argsort(own, axis=1, kind="stable")[:, :21])
    np.testing.assert_allclose(farthest, np.where(d.max(1) > 0, d.max(1), 1), atol=4e-12)

@pytest.mark.parametrize("size, most", [(16, 50), (33, 10**6)])
def test_candidates_hold_all_near_pairs(size, most, monkeypatch):
    "Tiles that do not divide the matrix, and pruning after nearly every tile."
    monkeypatch.setattr(reranking._Candidates, "most", most)
    x = torch.nn.functional.normalize(torch.from_numpy(clustered(4, 150)).float(), dim=1)
    kept = np.empty((40, 110), np.float32)
    near, far = reranking._collect(x, 7, 1e-5, kept, size=size)
    score = -2*x.double() @ x.double().T
    np.testing.assert_allclose(kept, score[:40, 40:], atol=1e-6)
    for found, wanted, k in ((near, score + torch.eye(150)*9, 7), (far, -score, 1)):
        pairs = set(zip(*(y.tolist() for y in found.pairs())))
        assert {(i, int(j)) for i, row in enumerate(wanted) for j in row.argsort()[:k]} <= pairs and len(pairs) < 150*20

def test_rerank_kind_and_range():
    x = clustered(2, 40).astype(np.float32)
    found, tensor = rerank(x[:10], x[10:], 8, 3), rerank(torch.from_numpy(x[:10]), torch.from_numpy(x[10:]), 8, 3)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32 and found.shape == (10, 30)
    assert 0 <= found.min() and found.max() <= 1
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32 and np.array_equal(tensor.numpy(), found)
    assert rerank(x[:10].astype(float), x[10:]).dtype == np.float64
    np.testing.assert_allclose(rerank(x[:10]*3, x[10:]*7, 8, 3), found, atol=1e-6) # lengths carry nothing
    alike = rerank(np.ones((2, 3)), np.ones((3, 3))) # no distance to divide by
    assert alike.shape == (2, 3) and 0 <= alike.min() and alike.max() < 1e-12

@pytest.mark.parametrize("change", [dict(k1=0), dict(k2=0), dict(k1=20.), dict(k2="6"), dict(k1=None), dict(k1=True),
                                    dict(lambda_value=".3"), dict(lambda_value=1.1), dict(lambda_value=-.1),
                                    dict(lambda_value=float("nan"))])
def test_rerank_refuses_parameters_out_of_range(change):
    with pytest.raises(ConfigError): rerank(np.eye(3), np.eye(3), **change)

def test_rerank_refuses_features_that_do_not_fit():
    for query, gallery in ((np.eye(2), np.eye(3)), (np.eye(3), np.eye(3)*np.nan), (np.zeros((1, 3)), np.eye(3))):
        with pytest.raises(DataError): rerank(query, gallery)

def test_block_boundaries_change_nothing(monkeypatch):
    q, g, _ = problem(7)
    whole = rerank(q, g, k1=6, k2=3)
    for module in (retrieval, reranking):
        monkeypatch.setattr(module, "row_blocks", lambda n, width, most=0: [(i, min(i + 4, n)) for i in range(0, n, 4)])
    np.testing.assert_allclose(rerank(q, g, k1=6, k2=3), whole, atol=1e-11)

def test_arguments_are_left_as_they_were():
    q, g, _ = problem(3)
    before = q.copy(), g.copy()
    for x in (q, g): x.flags.writeable = False
    rerank(q, g)
    assert np.array_equal(q, before[0]) and np.array_equal(g, before[1])


# ---- query expansion

@pytest.mark.parametrize("k, alpha", [(1, 0), (3, 3), (5, 1.5), (50, 2)])
@pytest.mark.parametrize("kind", ["array", "tensor", "single"])
def test_queries_are_means_with_their_nearest_images(k, alpha, kind):
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(6, 5)), rng.normal(size=(20, 5))
    unit = lambda v: v/math.sqrt(sum(t*t for t in v))
    meant = []
    for q in map(unit, query):
        cosines = sorted(((float(q @ g), i) for i, g in enumerate(map(unit, gallery))), reverse=True)[:k]
        total = q + sum((c**alpha*unit(gallery[i]) for c, i in cosines if c > 0), np.zeros(5))
        meant.append(unit(total))
    make = dict(array=lambda x: x, tensor=torch.from_numpy, single=lambda x: torch.from_numpy(x).float())[kind]
    got = expand_queries(make(query), make(gallery), k, alpha)
    assert type(got) is type(make(query)) and got.dtype == make(query).dtype
    assert np.allclose(np.asarray(got), np.array(meant), atol=1e-5 if kind == "single" else 1e-12)


def test_expansion_in_blocks_is_the_same(monkeypatch):
    query, gallery = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = expand_queries(query, gallery)
    monkeypatch.setattr(reranking, "row_blocks", lambda n, width: [(i, min(i + 2, n)) for i in range(0, n, 2)])
    assert torch.allclose(whole, expand_queries(query, gallery), atol=1e-12)


def test_unfit_expansions_are_refused():
    x = np.eye(3)
    for how in (dict(k=0), dict(k=2.), dict(k="2"), dict(alpha="3"), dict(alpha=-1), dict(alpha=math.nan)):
        with pytest.raises(ConfigError, match="k starts at 1"): expand_queries(x, x, **how)
    with pytest.raises(DataError, match="dimensions"): expand_queries(x, np.eye(4))
    with pytest.raises(DataError, match="query"): expand_queries(np.zeros((2, 3)), x)
