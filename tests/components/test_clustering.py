"""Neighbours and clustering: every step against slow, literal code written with Python sets and loops."""
import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings, strategies as st
from sklearn.cluster import DBSCAN

from upl_reid.components.neighbours import (approximate_neighbours, exact_neighbours, jaccard_distance, nearest_images,
                                            overlap_distance, unit_rows)
from upl_reid.components.clustering import (camera_center, camera_dbscan, cluster_camids, cluster_centroids, dbscan,
                                            group_images, kmeans_labels, merge_across_cameras, relabel_consecutive,
                                            silhouette_samples)
from upl_reid.core import ConfigError, DataError


def clumps(seed, n=60, d=5, people=9, spread=.35):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(people, d))[np.arange(n) % people] + spread*rng.normal(size=(n, d))


def dense(distance):
    out = np.ones(distance.shape)
    c = distance.tocoo()
    out[c.row, c.col] = c.data
    return out


def slow_jaccard(features, k1, k2):
    n = len(features)
    unit = [[a/math.sqrt(sum(v*v for v in f)) for a in f] if any(f) else f for f in features]
    d = [[sum((a - b)**2 for a, b in zip(unit[i], unit[j])) for j in range(n)] for i in range(n)]
    near = [[i] + sorted((j for j in range(n) if j != i), key=lambda j: (d[i][j], j)) for i in range(n)]
    k1, k2 = min(k1, n - 1), min(k2, n)

    def mutual(i, k): return {j for j in near[i][:k + 1] if i in near[j][:k + 1]}

    v = []
    for i in range(n):
        own = mutual(i, k1)
        grown = set(own)
        for j in own:
            half = mutual(j, round(k1/2))
            if 3*len(half & own) > 2*len(half): grown |= half
        total = sum(math.exp(-d[i][j]) for j in grown)
        v.append([math.exp(-d[i][j])/total if j in grown else 0. for j in range(n)])
    v = [[sum(v[j][k] for j in near[i][:k2])/k2 for k in range(n)] for i in range(n)]
    out = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            low = sum(min(a, b) for a, b in zip(v[i], v[j]))
            out[i, j] = 1 - low/(2 - low)
    return out


@pytest.mark.parametrize("k1, k2", [(20, 6), (6, 2), (7, 1), (1, 1), (5, 9), (4, 3)])
def test_jaccard_equals_sets_and_loops(k1, k2):
    for seed in range(3):
        x = clumps(seed)
        np.testing.assert_allclose(dense(jaccard_distance(x, k1, k2)), slow_jaccard(x.tolist(), k1, k2), atol=1e-12)


def test_jaccard_k_beyond_n_is_clipped():
    x = clumps(1, n=7)
    np.testing.assert_allclose(dense(jaccard_distance(x, 50, 30)), slow_jaccard(x.tolist(), 50, 30), atol=1e-12)
    assert (jaccard_distance(x, 50, 30) != jaccard_distance(x, 6, 7)).nnz == 0


def test_jaccard_with_copies_and_zero_rows():
    axes = np.concatenate([np.eye(4)]*3 + [np.zeros((2, 4))])       # exact ties everywhere
    for k1, k2 in [(3, 1), (2, 2), (6, 3), (1, 2)]:
        np.testing.assert_allclose(dense(jaccard_distance(axes, k1, k2)), slow_jaccard(axes.tolist(), k1, k2),
                                   atol=1e-12)


def test_copies_are_stored_zeros_and_cluster():
    d = jaccard_distance(np.ones((5, 3)), k1=4, k2=2)
    assert d.nnz == 25 and not d.data.any()
    assert dbscan(d, .1, 5).tolist() == [0]*5


def test_one_image():
    d = jaccard_distance(np.ones((1, 3)))
    assert d.shape == (1, 1) and d.nnz == 1 and d.data[0] == 0
    assert dbscan(d, .5, 2).tolist() == [-1] and dbscan(d, .5, 1).tolist() == [0]


def test_max_distance_drops_exactly_the_far_pairs():
    x = clumps(5)
    whole, part = jaccard_distance(x, 10, 3), jaccard_distance(x, 10, 3, max_distance=.55)
    expected = dense(whole)
    expected[expected >= .55] = 1
    assert (dense(part) == expected).all() and 0 < part.nnz < whole.nnz and part.data.max() < .55
    edge = np.sort(whole.data[whole.data > 0])[20]
    # a pair exactly there is left out
    assert jaccard_distance(x, 10, 3, max_distance=edge).data.max() < edge


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 12), st.sampled_from([.05, .3, .5, .6, .8, .99, 1.]))
def test_overlap_equals_naive_sums(seed, n, most, limit):
    "Rows of any mass distribution, with ties exactly at the limit: the bound may let no pair slip."
    rng = np.random.default_rng(seed)
    v = np.zeros((n, n))
    for row in v:
        members = rng.choice(n, rng.integers(1, min(n, most) + 1), replace=False)
        row[members] = rng.choice([1., 1., 2., .01, .3], len(members))
        row /= row.sum()
    found = overlap_distance(sp.csr_array(v), limit, block=7, pairs=5).toarray()
    for i in range(n):
        for j in range(n):
            m = sum(min(a, b) for a, b in zip(v[i], v[j]))
            d = 0 if i == j else 1 - m/(2 - m)
            if abs(d - limit) > 1e-12: assert found[i, j] == pytest.approx(d if d < limit and m > 0 else 0, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 12), st.integers(1, 8))
def test_jaccard_is_a_symmetric_dissimilarity(seed, n, k1, k2):
    d = jaccard_distance(clumps(seed, n), k1, k2)
    a = dense(d)
    assert sp.issparse(d) and d.format == "csr" and (a == a.T).all() and not a.diagonal().any()
    assert a.min() >= 0 and a.max() <= 1
    scaled = dense(jaccard_distance(clumps(seed, n)*4, k1, k2))            # only directions count
    assert np.allclose(a, scaled)


def test_jaccard_follows_a_permutation():
    x, order = clumps(8), np.random.default_rng(0).permutation(60)
    assert np.allclose(dense(jaccard_distance(x[order], 8, 3)), dense(jaccard_distance(x, 8, 3))[np.ix_(order, order)])


def test_jaccard_kinds_agree():
    x = clumps(3).astype(np.float32)
    t = torch.tensor(x, requires_grad=True)
    a = jaccard_distance(x, 8, 3)
    assert (a != jaccard_distance(t, 8, 3)).nnz == 0
    assert np.allclose(dense(a), dense(jaccard_distance(x.astype(np.float64), 8, 3)), atol=1e-5)


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_nearest_ties_take_the_lower_index(block):
    x = unit_rows(np.repeat(np.eye(3), [4, 3, 2], axis=0))
    d = ((x[:, None] - x)**2).sum(2).tolist()
    for k in (1, 2, 5, 9):
        expected = [[i] + sorted((j for j in range(9) if j != i), key=lambda j: (d[i][j], j)) for i in range(9)]
        assert exact_neighbours(x, k, np.arange(9), block).tolist() == [row[:k] for row in expected]


@pytest.mark.parametrize("n, k", [(1100, 7), (2060, 30), (1500, 700)])
def test_nearest_among_many_with_ties_in_every_list(n, k):
    """Unit vectors along eight axes have exact distances and hundreds of copies; a few rows have no direction."""
    g = np.random.default_rng(n)
    x = np.eye(8)[g.integers(0, 8, n)]*g.choice([-1., 1.], n)[:, None]
    x[::97] = 0
    got = exact_neighbours(torch.tensor(x), k, np.arange(len(x)), block=512)
    for i in range(0, n, 53):
        squares = ((x - x[i])**2).sum(1)
        squares[i] = -1
        assert got[i].tolist() == sorted(range(n), key=lambda j: (squares[j], j))[:k]


def people(n, d=32, each=12, noise=.4, seed=0):
    g = torch.Generator().manual_seed(seed)
    pid = torch.arange(n) % -(-n//each)
    return unit_rows(torch.randn(int(pid.max()) + 1, d, generator=g)[pid] + noise*torch.randn(n, d, generator=g)), pid


@pytest.mark.parametrize("n, k", [(3, 3), (40, 13), (3000, 12)])
def test_inverted_file_with_all_centres_is_exact(n, k):
    x, _ = people(n)
    assert (approximate_neighbours(x, k, probes=n) == exact_neighbours(x, k, np.arange(n))).all()


def test_inverted_file_finds_most_of_each_person():
    x, pid = people(6000)
    near = approximate_neighbours(x, 12)
    assert (near[:, 0] == np.arange(6000)).all() and all(len(set(row)) == 12 and min(row) >= 0 for row in near.tolist())
    assert .95 < (pid[near] == pid[:, None]).float().mean() and (near != exact_neighbours(x, 12, np.arange(6000))).any()


def test_inverted_file_fills_short_lists_and_keeps_copies_apart():
    x, _ = people(400)
    near = approximate_neighbours(x, 300, probes=1)              # no centre has so many images
    assert (near == exact_neighbours(x, 300, np.arange(400))).all()
    same = approximate_neighbours(torch.ones(50, 4)/2, 5)
    assert (same[:, 0] == np.arange(50)).all() and all(len(set(row)) == 5 for row in same.tolist())


def test_neighbours_are_exact_up_to_a_stated_size(monkeypatch):
    x, _ = people(2000)
    whole = exact_neighbours(x, 12, np.arange(2000))
    assert (nearest_images(x, 12) == whole).all() and (nearest_images(x, 12, exact=2000) == whole).all()
    assert (nearest_images(x, 12, exact=1999) == approximate_neighbours(x, 12)).all()


def test_bad_input_is_named():
    x = clumps(0, 10)
    broken = x.copy()
    broken[3, 1] = np.nan
    for call in (jaccard_distance, lambda f: camera_dbscan(f, np.zeros(10)), lambda f: camera_center(f, np.zeros(10)),
                 lambda f: merge_across_cameras(f, np.arange(10), .5),
                 lambda f: cluster_centroids(f, np.zeros(10, int))):
        with pytest.raises(DataError, match="row 3"): call(broken)
    for bad in (np.zeros((0, 4)), np.zeros(4)):
        with pytest.raises(DataError, match="shape"): jaccard_distance(bad)
    for bad in (dict(k1=0), dict(k2=0), dict(max_distance=0.), dict(max_distance=1.5), dict(max_distance=math.nan)):
        with pytest.raises(ConfigError): jaccard_distance(x, **bad)
    for call in (camera_center, camera_dbscan, lambda f, c: merge_across_cameras(f, c, .5)):
        with pytest.raises(DataError, match="camera"): call(x, np.zeros(9))


def slow_dbscan(d, eps, min_samples):
    n, labels, cluster = len(d), [None]*len(d), -1
    around = [[j for j in range(n) if j == i or d[i][j] <= eps] for i in range(n)]
    for i in range(n):
        if labels[i] is not None or len(around[i]) < min_samples: continue
        cluster += 1
        labels[i], queue = cluster, list(around[i])
        while queue:
            j = queue.pop(0)
            if labels[j] is not None: continue
            labels[j] = cluster
            if len(around[j]) >= min_samples: queue += around[j]
    return [-1 if label is None else label for label in labels]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.sampled_from([0., .1, .3, .6]), st.integers(1, 5))
def test_dbscan_equals_the_textbook_and_scikit_learn(seed, n, eps, min_samples):
    rng = np.random.default_rng(seed)
    # a coarse grid: many distances are exactly eps
    d = np.round(rng.random((n, n)), 1)
    d = np.minimum(d, d.T)*2
    d[d > 1] = 1
    np.fill_diagonal(d, 0)
    expected = slow_dbscan(d.tolist(), eps, min_samples)
    i, j = np.nonzero(d < 1)
    sparse = sp.csr_array((d[i, j], (i, j)), shape=(n, n))
    assert dbscan(d, eps, min_samples).tolist() == expected
    assert dbscan(sparse, eps, min_samples).tolist() == expected
    if eps > 0:
        assert DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(d).tolist() == expected


def test_dbscan_counts_the_image_without_a_stored_diagonal():
    pair = sp.csr_array(([.2, .2], ([0, 1], [1, 0])), shape=(3, 3))
    assert dbscan(pair, .5, 2).tolist() == [0, 0, -1]


def test_dbscan_kinds_and_faults():
    d = np.array([[0, .1, 1], [.1, 0, 1], [1, 1, 0]])
    labels = dbscan(torch.tensor(d), .5, 2)
    assert isinstance(labels, torch.Tensor) and labels.dtype == torch.int64 and labels.tolist() == [0, 0, -1]
    assert dbscan(d, .5, 2).dtype == np.int64 and dbscan(d.tolist(), .5, 2).tolist() == [0, 0, -1]
    for kind in ("csc", "coo", "lil", "dok"):
        assert dbscan(sp.csr_array(np.where(d < 1, d, 0)).asformat(kind), .5, 2).tolist() == [0, 0, -1]
    assert dbscan(d, 1., 3).tolist() == [0, 0, 0]                         # dense distances may reach 1 and more
    for eps in (1., -.1, math.nan):
        with pytest.raises(ConfigError, match="eps"): dbscan(sp.csr_array(d), eps, 2)
    with pytest.raises(ConfigError, match="min_samples"): dbscan(d, .5, 0)
    with pytest.raises(DataError, match="square"): dbscan(d[:2], .5, 2)
    d[0, 1] = np.nan
    for bad in (d, sp.csr_array(d)):
        with pytest.raises(DataError, match="NaN"): dbscan(bad, .5, 2)


def test_camera_center_equals_a_loop():
    x, cams = clumps(2, 20), np.random.default_rng(1).integers(0, 3, 20)
    expected = []
    for i in range(20):
        own = [x[j] for j in range(20) if cams[j] == cams[i]]
        row = [x[i][k] - sum(o[k] for o in own)/len(own) for k in range(x.shape[1])]
        expected.append([v/math.sqrt(sum(r*r for r in row)) for v in row])
    before = x.copy()
    np.testing.assert_allclose(camera_center(x, cams), expected, atol=1e-12)
    assert (x == before).all()
    got = camera_center(torch.tensor(x, dtype=torch.float32), torch.tensor(cams))
    assert got.dtype == torch.float32 and np.allclose(got.numpy(), expected, atol=1e-5)


def test_camera_center_leaves_no_direction_of_rounding():
    # every camera: seven copies of one image
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    assert not camera_center(np.repeat(rows, 7, axis=0), np.repeat(np.arange(30), 7)).any()


def test_camera_dbscan_is_dbscan_of_each_camera():
    x, cams = clumps(4, 90, spread=.2), np.random.default_rng(2).integers(3, 6, 90)
    expected, offset = np.full(90, -1), 0
    for cam in (3, 4, 5):
        own = [i for i in range(90) if cams[i] == cam]
        found = np.array(slow_dbscan(slow_jaccard(x[own].tolist(), 4, 2), .6, 2))
        for i, label in zip(own, found):
            if label >= 0: expected[i] = label + offset
        offset += found.max() + 1
    labels = camera_dbscan(x, cams, k1=4, k2=2, eps=.6, min_samples=2)
    assert labels.dtype == np.int64 and labels.tolist() == expected.tolist()
    assert set(labels) - {-1} == set(range(offset))
    assert torch.equal(camera_dbscan(torch.tensor(x), torch.tensor(cams), 4), torch.tensor(labels))
    assert (cluster_camids(labels, cams) == [cams[list(labels).index(k)] for k in range(offset)]).all()


def test_one_camera_and_all_noise():
    x = clumps(6, 40)
    assert camera_dbscan(x, np.zeros(40), k1=6, k2=2).tolist() == dbscan(jaccard_distance(x, 6, 2), .6, 2).tolist()
    each = camera_dbscan(x, np.arange(40))                                # a camera per image: nothing to cluster
    assert (each == -1).all()
    centroids = cluster_centroids(x, each)
    groups = merge_across_cameras(centroids, cluster_camids(each, np.arange(40)), .5)
    assert centroids.shape == (0, 5) and len(groups) == 0 and (group_images(each, groups) == -1).all()


def test_centroids_equal_a_loop():
    x, labels = clumps(7, 12), np.array([2, 0, 1, -1, 0, 2, 2, 1, -1, 0, 0, 1])
    expected = []
    for k in range(3):
        mean = np.mean([x[i]/np.linalg.norm(x[i]) for i in range(12) if labels[i] == k], axis=0)
        expected.append(mean/np.linalg.norm(mean))
    np.testing.assert_allclose(cluster_centroids(x, labels), expected, atol=1e-12)
    got = cluster_centroids(torch.tensor(x).float(), torch.tensor(labels))
    assert got.dtype == torch.float32 and np.allclose(got, expected, atol=1e-6)
    with pytest.raises(DataError, match="label 1"): cluster_centroids(x, np.where(labels == 1, 0, labels))
    with pytest.raises(DataError, match="one label per image"): cluster_centroids(x, labels[:5])


def slow_merge(x, cams, threshold):
    x = [f/np.linalg.norm(f) for f in x]
    groups = [[i] for i in range(len(x))]
    while True:
        options = []
        for a in range(len(groups)):
            for b in range(a + 1, len(groups)):
                if {cams[i] for i in groups[a]} & {cams[i] for i in groups[b]}: continue
                options.append((np.mean([1 - x[i] @ x[j] for i in groups[a] for j in groups[b]]), a, b))
        if not options or min(options)[0] > threshold: break
        _, a, b = min(options)
        groups[a] += groups.pop(b)
        groups.sort(key=min)
    out = np.empty(len(x), int)
    for k, members in enumerate(groups): out[members] = k
    return out.tolist()


@pytest.mark.parametrize("threshold", [0., .1, .3, .6, 1.2, 2.])
def test_merging_equals_averages_from_scratch(threshold):
    for seed in range(4):
        x, cams = clumps(seed, 36), np.random.default_rng(seed + 50).integers(0, 4, 36)
        assert merge_across_cameras(x, cams, threshold).tolist() == slow_merge(x, cams, threshold)


def test_merging_ties_take_the_lowest_pair():
    same = np.eye(2)[[0, 0, 0, 1, 1]]                                     # exact distances 0 and 1
    cams = np.array([0, 1, 1, 0, 1])
    assert merge_across_cameras(same, cams, .5).tolist() == slow_merge(same, cams, .5) == [0, 0, 1, 2, 2]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 6), st.floats(0, 2))
def test_groups_never_hold_a_camera_twice(seed, m, cameras, threshold):
    cams = np.random.default_rng(seed).integers(0, cameras, m)
    groups = merge_across_cameras(clumps(seed, m), cams, threshold)
    pairs = list(zip(groups.tolist(), cams.tolist()))
    assert len(set(pairs)) == m
    assert list(dict.fromkeys(groups.tolist())) == list(range(groups.max() + 1))         # numbered by first appearance


def test_merging_kinds_and_faults():
    x, cams = clumps(9, 12), np.arange(12) % 3
    got = merge_across_cameras(torch.tensor(x), torch.tensor(cams), .5)
    assert got.dtype == torch.int64 and got.tolist() == merge_across_cameras(x, cams, .5).tolist()
    assert merge_across_cameras(x[:1], cams[:1], 2.).tolist() == [0]
    assert merge_across_cameras(x, np.zeros(12), 2.).tolist() == list(range(12))
    for bad in (-.1, math.inf, math.nan):
        with pytest.raises(ConfigError, match="threshold"): merge_across_cameras(x, cams, bad)


def test_labels_and_groups_compose():
    labels = np.array([5, -1, 5, 2, -7, 9, 2])
    once = relabel_consecutive(torch.tensor(labels))
    assert once.tolist() == [0, -1, 0, 1, -1, 2, 1] and torch.equal(relabel_consecutive(once), once)
    assert group_images(once, torch.tensor([1, 0, 1])).tolist() == [1, -1, 1, 0, -1, 1, 0]
    with pytest.raises(DataError, match="label 2"): group_images(once, torch.tensor([0, 1]))
    with pytest.raises(DataError, match="two cameras"): cluster_camids(np.array([0, 0, 1]), np.array([1, 2, 2]))


def sum_of_squares(x, labels):
    total = 0.
    for c in set(labels):
        own = [x[i] for i in range(len(x)) if labels[i] == c]
        mean = [sum(column)/len(own) for column in zip(*own)]
        total += sum((a - m)**2 for row in own for a, m in zip(row, mean))
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 15), st.integers(1, 15))
def test_kmeans_ends_where_each_row_is_with_its_nearest_mean(seed, n, k):
    x, k = clumps(seed, n, d=3, people=5), min(k, n)
    labels = kmeans_labels(x, k, seed)
    # all k are used, numbered by first appearance
    assert list(dict.fromkeys(labels.tolist())) == list(range(k))
    means = [np.mean([x[i] for i in range(n) if labels[i] == c], axis=0) for c in range(k)]
    for i in range(n):
        d = [sum((a - m)**2 for a, m in zip(x[i], mean)) for mean in means]
        assert d[labels[i]] <= min(d) + 1e-9


def test_kmeans_finds_the_best_split_of_clumps():
    x = np.repeat([[0., 0], [9, 0], [0, 9]], [3, 2, 2], axis=0) + np.random.default_rng(3).normal(size=(7, 2))
    best = min(sum_of_squares(x.tolist(), (0, *rest)) for rest in np.ndindex(*[3]*6))
    for seed in range(5): assert math.isclose(sum_of_squares(x.tolist(), kmeans_labels(x, 3, seed).tolist()), best)


def test_kmeans_edges_kinds_and_faults():
    x = clumps(2, 12)
    assert kmeans_labels(x, 12).tolist() == list(range(12)) and kmeans_labels(x, 1).tolist() == [0]*12
    # three distinct images
    assert kmeans_labels(np.repeat(np.eye(3), 4, axis=0), 7).tolist() == np.repeat(range(3), 4).tolist()
    t = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    got = kmeans_labels(t, 4, seed=9)
    assert isinstance(got, torch.Tensor) and got.dtype == torch.int64
    assert got.tolist() == kmeans_labels(t.detach().numpy(), 4, seed=9).tolist() == kmeans_labels(t, 4, seed=9).tolist()
    assert kmeans_labels(x, 4, seed=2**63 - 1).dtype == np.int64                          # any seed of seed_for
    state = np.random.get_state()[1].copy()
    starts = {tuple(kmeans_labels(np.random.default_rng(0).normal(size=(40, 2)), 9, s)) for s in range(6)}
    # the seed matters, the global stream does not
    assert len(starts) > 1 and (np.random.get_state()[1] == state).all()
    for k in (0, -3):
        with pytest.raises(ConfigError, match=f"k={k}"): kmeans_labels(x, k)
    with pytest.raises(DataError, match="k=13"): kmeans_labels(x, 13)
    x[5, 0] = np.inf
    with pytest.raises(DataError, match="row 5"): kmeans_labels(x, 3)


def slow_silhouettes(x, labels, metric, leave_one_out=True):
    """Eq. 4-6 of CGC, one image and one pair at a time."""
    unit = [[a/math.sqrt(sum(v*v for v in row)) for a in row] for row in x.tolist()]
    def d(i, j):
        square = sum((a - b)**2 for a, b in zip(unit[i], unit[j]))
        return math.sqrt(square) if metric == "euclidean" else square/2
    clusters, out = {c: [j for j, l in enumerate(labels) if l == c] for c in set(labels) if c >= 0}, []
    for i, c in enumerate(labels):
        if c < 0: out.append(math.nan); continue
        if len(clusters[c]) == 1: out.append(0.); continue
        a = sum(d(i, j) for j in clusters[c] if j != i)/(len(clusters[c]) - leave_one_out)
        b = min(sum(d(i, j) for j in other)/len(other) for k, other in clusters.items() if k != c)
        out.append((b - a)/max(a, b))
    return out


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 30), st.integers(1, 9), st.booleans())
def test_silhouettes_are_their_definition(metric, seed, n, block, leave_one_out):
    x, labels = clumps(seed, n), np.random.default_rng(seed).integers(-1, 4, n)*3
    # at least two clusters; ids have gaps
    labels[:2] = 0, 3
    got = silhouette_samples(x, labels, metric, leave_one_out, block)
    np.testing.assert_allclose(got, slow_silhouettes(x, labels.tolist(), metric, leave_one_out), atol=1e-10)
    assert (np.abs(got[labels >= 0]) <= 1 + 1e-12).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_silhouettes_are_those_of_scikit_learn(metric):
    from sklearn.metrics import silhouette_samples as reference
    rng = np.random.default_rng(4)
    x, labels = unit_rows(clumps(5, 400, d=16, people=30)).numpy(), rng.integers(0, 30, 400)
    labels[7] = 30                                                                        # the only one of its cluster
    assert np.abs(silhouette_samples(x, labels, metric) - reference(x, labels, metric=metric)).max() < 1e-10
    t = silhouette_samples(torch.tensor(x, dtype=torch.float32, requires_grad=True), torch.tensor(labels), metric)
    assert isinstance(t, torch.Tensor) and t.dtype == torch.float64 and not t.requires_grad
    assert np.abs(t.numpy() - reference(x, labels, metric=metric)).max() < 1e-5


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_silhouettes_never_hold_all_pairs(metric):
    from torch.utils._python_dispatch import TorchDispatchMode
    sizes = []
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            out = f(*args, **(kwargs or {}))
            sizes.extend(o.numel() for o in (out if isinstance(out, (tuple, list)) else [out])
                         if isinstance(o, torch.Tensor))
            return out
    with Watch(): silhouette_samples(torch.tensor(clumps(0, 600)), np.arange(600) % 9, metric, block=16)
    assert 600 <= max(sizes) <= 600*16


def test_silhouettes_of_copies_and_faults():
    twins = np.repeat(np.eye(3), 2, axis=0)
    for metric in ("euclidean", "cosine"):
        assert silhouette_samples(twins, [0, 0, 1, 1, -1, -1], metric)[:4].tolist() == pytest.approx([1]*4)
        # nothing tells them apart
        assert silhouette_samples(np.ones((4, 2)), [0, 0, 1, 1], metric).tolist() == pytest.approx([0]*4)
    with pytest.raises(ConfigError, match="'l2'"): silhouette_samples(twins, [0, 0, 1, 1, 2, 2], "l2")
    with pytest.raises(DataError, match="1 clusters"): silhouette_samples(twins, [0, 0, 0, 0, -1, -1])
    with pytest.raises(DataError, match="one label per image"): silhouette_samples(twins, [0, 1])
