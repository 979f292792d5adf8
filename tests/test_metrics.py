"Metrics against naive float64 loops that share no code with them, plus properties, edge cases and faults."
import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from upl_reid import metrics
from upl_reid.core import ConfigError, DataError
from upl_reid.metrics import (bootstrap_interval, cluster_quality, evaluate_distances, evaluate_retrieval, expected_calibration_error, match_positions,
                              pseudo_label_correct, pseudo_label_ece, reliability_bins, rerank, same_camera_chance, same_camera_neighbour_rate)

# ---------------------------------------------------------------- retrieval

def naive_retrieval(distance, qp, qc, gp, gc, ranks):
    "One query at a time, one image at a time."
    aps, inps, firsts, skipped = [], [], [], 0
    for i in range(len(qp)):
        valid = [j for j in range(len(gp)) if gp[j] != -1 and not (gp[j] == qp[i] and gc[j] == qc[i])]
        valid = sorted(valid, key=lambda j: (distance[i][j], j))
        places = [p for p, j in enumerate(valid, 1) if gp[j] == qp[i] and gp[j] != 0]
        if not places:
            skipped += 1
            continue
        aps.append(math.fsum(n/p for n, p in enumerate(places, 1))/len(places))
        inps.append(len(places)/places[-1])
        firsts.append(places[0])
    cmc = {k: sum(f <= k for f in firsts)/len(firsts) for k in ranks} if firsts else {}
    return aps, inps, cmc, skipped

def same_scores(found, naive):
    aps, inps, cmc, skipped = naive
    np.testing.assert_allclose(found.ap, aps, rtol=1e-12)
    assert found.mAP == pytest.approx(np.mean(aps), rel=1e-12) and found.mINP == pytest.approx(np.mean(inps), rel=1e-12)
    assert found.cmc == pytest.approx(cmc) and found.skipped == skipped

def test_which_queries_were_evaluated():
    "The second query has no match in another camera; large problems are cut into blocks and must count on."
    found = evaluate_distances(np.zeros((3, 2)), [1, 2, 3], [0, 0, 0], [1, 3], [1, 1])
    assert found.evaluated.tolist() == [0, 2] and len(found.ap) == 2

def problem(seed, queries=25, images=90, ids=9, cams=3, dims=5):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(queries, dims)), rng.integers(1, ids, queries), rng.integers(0, cams, queries),
            rng.normal(size=(images, dims)), rng.integers(-1, ids, images), rng.integers(0, cams, images))

def naive_distance(a, b):
    "Squared Euclidean distance of unit vectors, straight from the definition."
    return [[sum((x/np.sqrt(sum(u*u)) - y/np.sqrt(sum(v*v)))**2 for x, y in zip(u, v)) for v in b] for u in a]

@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["numpy", "numpy float32", "torch", "torch float32", "torch float32 unit"])
def test_retrieval_equals_naive_loop(seed, kind):
    q, qp, qc, g, gp, gc = problem(seed)
    if "unit" in kind: g = g/np.linalg.norm(g, axis=1, keepdims=True)
    q, g = (x.astype(np.float32 if "float32" in kind else float) for x in (q, g))
    naive = naive_retrieval(naive_distance(q.astype(float), g.astype(float)), qp, qc, gp, gc, (1, 3, 5, 200))
    args = (q, qp, qc, g, gp, gc)
    found = evaluate_retrieval(*(map(torch.as_tensor, args) if "torch" in kind else args), ranks=(1, 3, 5, 200))
    same_scores(found, naive)

@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_those_of_double_precision(seed):
    "Images that single precision cannot tell apart, near matches and far from them."
    q, qp, qc, g, gp, gc = problem(seed, queries=12, images=200)
    rng = np.random.default_rng(seed)
    g = g[rng.integers(0, 20, 200)] + 1e-8*rng.normal(size=g.shape)
    naive = naive_retrieval(naive_distance(q, g), qp, qc, gp, gc, (1, 5, 10))
    same_scores(evaluate_retrieval(q, qp, qc, g, gp, gc), naive)
    rounded = evaluate_retrieval(q.astype(np.float32), qp, qc, g.astype(np.float32), gp, gc)
    assert np.abs(rounded.ap - naive[0]).max() > 1e-6       # so the test can fail

def test_ranks_among_near_copies():
    "Six thousand near copies of five hundred images: most matches have others within the slack, some do not."
    q, qp, qc, g, gp, gc = problem(1, queries=3, images=6000, ids=30)
    rng = np.random.default_rng(1)
    g = g[rng.integers(0, 500, 6000)] + 1e-6*rng.normal(size=g.shape)
    g[::40] = rng.normal(size=(150, 5))
    same_scores(evaluate_retrieval(q, qp, qc, g, gp, gc), naive_retrieval(naive_distance(q, g), qp, qc, gp, gc, (1, 5, 10)))

@pytest.mark.parametrize("decimals", [2, 12])
@pytest.mark.parametrize("slack", [0., 1e-4, .01, .3])
def test_positions_are_those_of_the_exact_distances(slack, decimals):
    "Rough distances are off by up to the slack that is stated, which spans none, some or all of the images; with two decimals, many are equal."
    rng = np.random.default_rng(4)
    exact = torch.from_numpy(rng.uniform(0, 1, (12, 400)).round(decimals))
    labels = [torch.from_numpy(rng.integers(low, high, n)) for low, high, n in ((-1, 12, 12), (0, 3, 12), (-1, 9, 400), (0, 3, 400))]
    rough = exact + .99*slack*torch.from_numpy(rng.uniform(-1, 1, exact.shape))
    if slack: rough = rough.float()
    position, count = match_positions(rough, slack, lambda i, j: exact[i, j], *labels)
    qp, qc, gp, gc = (x.tolist() for x in labels)
    for i, row in enumerate(exact):
        valid = sorted((j for j in range(400) if gp[j] != -1 and (gp[j] != qp[i] or gc[j] != qc[i])), key=lambda j: row[j])
        assert position[i, :count[i]].tolist() == [p for p, j in enumerate(valid, 1) if gp[j] == qp[i] and gp[j] > 0]

@pytest.mark.parametrize("scale, shift", [(1e-30, 0), (1e30, 0), (1, 1e6), (-1, -3)])
def test_distances_of_any_range_equal_naive_loop(scale, shift):
    rng = np.random.default_rng(3)
    distance = scale*rng.normal(size=(6, 150)) + shift
    labels = rng.integers(1, 9, 6), rng.integers(0, 2, 6), rng.integers(-1, 9, 150), rng.integers(0, 2, 150)
    same_scores(evaluate_distances(distance, *labels), naive_retrieval(distance, *labels, (1, 5, 10)))

def test_matches_close_together_and_strangers_far_nearer():
    "Every query's matches lie within a thousandth, its strangers anywhere from far nearer to far behind."
    rng = np.random.default_rng(6)
    labels = rng.integers(1, 5, 8), rng.integers(0, 2, 8), rng.integers(1, 30, 120), rng.integers(0, 2, 120)
    distance = rng.uniform(-50, 50, (8, 120))
    match = labels[0][:, None] == labels[2]
    distance[match] = rng.uniform(0, .001, match.sum())
    same_scores(evaluate_distances(distance, *labels), naive_retrieval(distance, *labels, (1, 5, 10)))

def test_rounded_matrix_products_change_nothing():
    args = problem(5)
    before = evaluate_retrieval(*args)
    torch.set_float32_matmul_precision("medium")
    try: after = evaluate_retrieval(*args)
    finally: torch.set_float32_matmul_precision("highest")
    assert (after.ap == before.ap).all()

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 12), st.integers(1, 4))
def test_integer_distances_with_ties_equal_naive_loop(seed, queries, images, levels):
    "Few images, few levels: ties, junk, distractors, lists shorter than the rank, and queries without a match all occur."
    rng = np.random.default_rng(seed)
    distance = rng.integers(0, levels, (queries, images)).astype(float)
    labels = rng.integers(0, 4, queries), rng.integers(0, 2, queries), rng.integers(-1, 4, images), rng.integers(0, 2, images)
    naive = naive_retrieval(distance, *labels, (1, 2, 5, 10))
    if not naive[0]:
        with pytest.raises(DataError, match="none of the"): evaluate_distances(distance, *labels, ranks=(1, 2, 5, 10))
    else: same_scores(evaluate_distances(distance, *labels, ranks=(1, 2, 5, 10)), naive)

def test_block_boundaries_change_nothing(monkeypatch):
    args = problem(7)
    whole, distance = evaluate_retrieval(*args), rerank(args[0], args[3], k1=6, k2=3)
    rate, quality = same_camera_neighbour_rate(args[3], args[4], args[5]), cluster_quality(args[3], args[4], args[4], args[5])
    monkeypatch.setattr(metrics, "_blocks", lambda n, width, most=0: [(i, min(i + 4, n)) for i in range(0, n, 4)])
    found = evaluate_retrieval(*args)
    assert np.array_equal(found.ap, whole.ap) and found == whole
    np.testing.assert_allclose(rerank(args[0], args[3], k1=6, k2=3), distance, atol=1e-11)
    assert same_camera_neighbour_rate(args[3], args[4], args[5]) == rate and cluster_quality(args[3], args[4], args[4], args[5]) == quality

def test_blocks_cover_every_row_once_and_stay_small():
    for n, width in [(1, 1), (3368, 19732), (7, 10**8), (2**21 + 3, 1)]:
        blocks = metrics._blocks(n, width)
        assert blocks[0][0] == 0 and blocks[-1][1] == n and all(a[1] == b[0] for a, b in zip(blocks, blocks[1:]))
        assert all(stop > start and (stop - start == 1 or (stop - start)*width <= 2**20) for start, stop in blocks)

def test_tie_goes_to_the_lower_gallery_index():
    "Four copies of one image, at every position of the right one, in a dimension where summation order matters."
    rng = np.random.default_rng(0)
    copies = np.repeat(rng.normal(size=(1, 769)), 37, axis=0)
    for place in (0, 1, 17, 36):
        gp = np.where(np.arange(37) == place, 5, 6)
        found = evaluate_retrieval(rng.normal(size=(1, 769)), [5], [0], copies, gp, np.ones(37, int))
        assert found.mAP == pytest.approx(1/(place + 1))

def test_short_list_does_not_inherit_from_the_query_before():
    "Query 0 hits at once in a long list; query 1 has two valid images and its match is the second."
    gp, gc = [1, 2, 2, 3, 2], [1, 0, 0, 1, 1]
    distance = [[0, 9, 9, 9, 9], [5, 1, 1, -1, 9]]
    found = evaluate_distances(distance, [1, 2], [0, 0], gp, gc, ranks=(1, 2, 3, 50))
    assert found.cmc == {1: .5, 2: .5, 3: 1, 50: 1} # valid for query 1: image 3, 0, 4
    assert evaluate_distances([distance[1]], [2], [0], gp, gc, ranks=(1, 2, 3, 50)).cmc == {1: 0, 2: 0, 3: 1, 50: 1}

def test_distractors_count_against_and_never_for():
    near = evaluate_distances([[0, 1, 2]], [3], [0], [0, -1, 3], [0, 1, 1])
    assert near.mAP == .5 # the distractor stands before the match although its camera is the query's; junk does not
    with pytest.raises(DataError, match="pid"): evaluate_distances([[0, 1]], [0], [0], [0, 0], [1, 1])

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_gallery_order_does_not_matter_without_ties(seed):
    q, qp, qc, g, gp, gc = problem(seed, queries=8, images=30, ids=4)
    p = np.random.default_rng(seed).permutation(len(g))
    one, other = evaluate_retrieval(q, qp, qc, g, gp, gc), evaluate_retrieval(q, qp, qc, g[p], gp[p], gc[p])
    assert np.array_equal(one.ap, other.ap) and one == other

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 4))
def test_perfect_features_score_one(seed, ids, cams):
    rng = np.random.default_rng(seed)
    pids, camids = np.repeat(np.arange(1, ids + 1), cams), np.tile(np.arange(cams), ids)
    features = np.eye(ids + 1)[pids]*rng.uniform(.1, 10, (len(pids), 1)) # length is no information
    found = evaluate_retrieval(features, pids, camids, features, pids, camids)
    assert found.mAP == found.mINP == 1 and found.cmc == {1: 1, 5: 1, 10: 1} and found.skipped == 0

def test_scores_are_frozen_and_readable():
    found = evaluate_distances([[0, 1.]], [1], [0], [1, 2], [1, 1], ranks=[1])
    with pytest.raises(AttributeError): found.mAP = 0
    assert "mAP 100.0" in str(found) and "rank-1 100.0" in str(found) and "0 skipped" in str(found)

def test_arguments_are_left_as_they_were():
    args = problem(3)
    before = [x.copy() for x in args]
    for x in args: x.flags.writeable = False
    evaluate_retrieval(*args); rerank(args[0], args[3]); cluster_quality(args[3], args[4], args[4], args[5])
    assert all(np.array_equal(a, b) for a, b in zip(args, before))

GOOD = dict(query=np.eye(2), query_pids=[1, 2], query_camids=[0, 0], gallery=np.eye(2), gallery_pids=[1, 2], gallery_camids=[1, 1])
@pytest.mark.parametrize("change, says", [
    (dict(query=np.eye(2)[0]), "query features have shape"), (dict(gallery=np.zeros((0, 2))), "gallery features have shape"),
    (dict(query=np.eye(2, 3)), "dimensions"), (dict(query=np.array([[1, 0], [0, np.nan]])), "query feature 1"),
    (dict(gallery=np.array([[0., 0], [0, 1]])), "gallery feature 0"), (dict(gallery=np.array([[np.inf, 0], [0, 1]])), "gallery feature 0"),
    (dict(query_pids=[1]), "query pids"), (dict(gallery_camids=[1, 1, 1]), "gallery camids"), (dict(gallery_pids=[1., 2.]), "integers"),
    (dict(query_camids=[1, 1]), "camera 1"), (dict(gallery_pids=[8, 9]), "pid"), (dict(gallery_pids=[1, 9], gallery_camids=[0, 1]), "camera as well")])
def test_bad_retrieval_input_says_what_and_why(change, says):
    assert evaluate_retrieval(**GOOD).mAP == 1
    with pytest.raises(DataError, match=says): evaluate_retrieval(**{**GOOD, **change})

def test_bad_distances_and_ranks_are_refused():
    labels = [1], [0], [1, 2], [1, 1]
    for bad in ([[np.nan, 0]], [[np.inf, 0]], [0, 1], [[0, 1, 2]]):
        with pytest.raises(DataError): evaluate_distances(bad, *labels)
    for ranks in ((0,), (1.5,), (-1,)):
        with pytest.raises(ConfigError): evaluate_distances([[0, 1]], *labels, ranks=ranks)

# ---------------------------------------------------------------- re-ranking

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

@pytest.mark.parametrize("k1, k2, lam", [(20, 6, .3), (5, 1, 0.), (7, 3, .5), (3, 8, 1.), (1, 1, .3), (2, 2, .3), (9, 5, .1)])
def test_rerank_equals_naive_loop(k1, k2, lam):
    x = clustered(k1, 70)
    np.testing.assert_allclose(rerank(x[:15], x[15:], k1, k2, lam), naive_rerank(x[:15], x[15:], k1, k2, lam), atol=1e-10)

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
        exact += sum(3*len(mutual(c, 2) & mutual(i, 4)) == 2*len(mutual(c, 2)) for i in range(14) for c in mutual(i, 4))
        np.testing.assert_allclose(rerank(x[:4], x[4:], 4, 2), naive_rerank(x[:4], x[4:], 4, 2, .3), atol=1e-10)
    assert exact > 0 # otherwise the sets did not put the question

def test_rerank_with_duplicates_equals_naive_loop():
    "More copies than neighbours: an image still heads its own list, then the lower index."
    x = np.repeat(np.array([[1., 0, 0], [0, 2, 0], [0, 0, 4], [4, 0, 3]]), 6, axis=0)
    np.testing.assert_allclose(rerank(x[::5], x, 3, 2), naive_rerank(x[::5], x, 3, 2, .3), atol=1e-10)

def test_rerank_kind_and_range():
    x = clustered(2, 40).astype(np.float32)
    found, tensor = rerank(x[:10], x[10:], 8, 3), rerank(torch.from_numpy(x[:10]), torch.from_numpy(x[10:]), 8, 3)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32 and found.shape == (10, 30) and 0 <= found.min() and found.max() <= 1
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32 and np.array_equal(tensor.numpy(), found)
    assert rerank(x[:10].astype(float), x[10:]).dtype == np.float64
    np.testing.assert_allclose(rerank(x[:10]*3, x[10:]*7, 8, 3), found, atol=1e-6) # lengths carry nothing
    alike = rerank(np.ones((2, 3)), np.ones((3, 3))) # no distance to divide by
    assert alike.shape == (2, 3) and 0 <= alike.min() and alike.max() < 1e-12

@pytest.mark.parametrize("change", [dict(k1=0), dict(k2=0), dict(lambda_value=1.1), dict(lambda_value=-.1), dict(lambda_value=float("nan"))])
def test_rerank_refuses_parameters_out_of_range(change):
    with pytest.raises(ConfigError): rerank(np.eye(3), np.eye(3), **change)

def test_rerank_refuses_features_that_do_not_fit():
    for query, gallery in ((np.eye(2), np.eye(3)), (np.eye(3), np.eye(3)*np.nan), (np.zeros((1, 3)), np.eye(3))):
        with pytest.raises(DataError): rerank(query, gallery)

# ---------------------------------------------------------------- calibration

def naive_ece(confidence, correct, n_bins):
    total = 0
    for b in range(n_bins):
        inside = [i for i, c in enumerate(confidence) if b/n_bins < c <= (b + 1)/n_bins or (b == 0 and c == 0)]
        if inside: total += len(inside)/len(confidence)*abs(np.mean([correct[i] for i in inside]) - np.mean([confidence[i] for i in inside]))
    return total

@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.one_of(st.floats(0, 1), st.integers(0, 30).map(lambda k: k/30)), st.booleans()), min_size=1, max_size=60), st.integers(1, 30))
def test_ece_equals_naive_loop(pairs, n_bins):
    confidence, correct = zip(*pairs)
    assert expected_calibration_error(confidence, correct, n_bins) == pytest.approx(naive_ece(confidence, correct, n_bins), abs=1e-12)

def test_bins_close_at_their_upper_edge_in_every_precision():
    for kind in (np.float32, np.float64):
        for n_bins in (10, 15, 20):
            edges = np.array([float(f"{k/n_bins:.17g}") for k in range(1, n_bins + 1)]).astype(kind)
            count, mean, accuracy = reliability_bins(edges, np.ones(n_bins, bool), n_bins)
            assert count.tolist() == [1]*n_bins and np.allclose(mean, edges) and (accuracy == 1).all()
    count, mean, accuracy = reliability_bins(torch.tensor([0., 1e-9]), torch.tensor([0, 1]), 4)
    assert count.tolist() == [2, 0, 0, 0] and accuracy[0] == .5 and np.isnan(mean[1:]).all() and np.isnan(accuracy[1:]).all()

def test_ece_extremes():
    assert expected_calibration_error([1., 1.], [True, True]) == 0
    assert expected_calibration_error([1., 1.], [False, False]) == 1
    assert expected_calibration_error(torch.full((3,), 1 + 1e-7, dtype=torch.float64), [1, 1, 1]) == 0 # a softmax that rounded up

@pytest.mark.parametrize("confidence, correct", [([], []), ([.5], [1, 0]), ([1.2], [1]), ([-.1], [1]), ([float("nan")], [1]), ([.5], [2]), ([[.5]], [[1]])])
def test_bad_calibration_input_is_refused(confidence, correct):
    with pytest.raises(DataError): expected_calibration_error(confidence, correct)

def test_no_bins_are_refused():
    with pytest.raises(ConfigError): expected_calibration_error([.5], [1], 0)

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(1, 4)), min_size=1, max_size=40))
def test_pseudo_label_correct_equals_counting(pairs):
    votes = {}
    for k, pid in pairs: votes.setdefault(k, Counter())[pid] += 1
    majority = {k: min(c, key=lambda pid: (-c[pid], pid)) for k, c in votes.items()}
    hard, pids = map(np.array, zip(*pairs))
    assert pseudo_label_correct(hard, pids).tolist() == [majority[k] == pid for k, pid in pairs if k >= 0]

def test_pseudo_label_ece_reads_the_mass_on_the_hard_label():
    rng = np.random.default_rng(0)
    hard, pids = rng.integers(-1, 5, 80), rng.integers(1, 7, 80)
    soft = rng.dirichlet(np.ones(5), 80)
    used = [i for i in range(80) if hard[i] >= 0]
    confidence = [soft[i, hard[i]] for i in used]
    expected = naive_ece(confidence, pseudo_label_correct(hard, pids).tolist(), 10)
    assert pseudo_label_ece(soft, hard, pids, 10) == pytest.approx(expected)
    given_confidence = np.array([soft[i, hard[i]] if hard[i] >= 0 else np.nan for i in range(80)]) # what noise carries is not read
    assert pseudo_label_ece(torch.from_numpy(given_confidence), torch.from_numpy(hard), torch.from_numpy(pids), 10) == pytest.approx(expected)
    assert math.isnan(pseudo_label_ece(soft, np.full(80, -1), pids))
    with pytest.raises(DataError, match="no column"): pseudo_label_ece(soft[:, :3], hard, pids)
    with pytest.raises(DataError, match="pids"): pseudo_label_ece(soft, hard, pids[1:])

# ---------------------------------------------------------------- clusters

def naive_pairs(labels, pids, camids=None):
    pairs = [(i, j) for i, j in combinations(range(len(pids)), 2) if camids is None or camids[i] != camids[j]]
    claimed = [p for p in pairs if labels[p[0]] == labels[p[1]] >= 0]
    true = [p for p in pairs if pids[p[0]] == pids[p[1]]]
    both = len(set(claimed) & set(true))
    return both/len(claimed) if claimed else math.nan, both/len(true) if true else math.nan

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=25))
def test_pair_scores_equal_looking_at_every_pair(rows):
    labels, pids, camids = map(np.array, zip(*rows))
    found = cluster_quality(np.random.default_rng(0).normal(size=(len(rows), 3)), labels, pids, camids)
    np.testing.assert_equal((found["pair_precision"], found["pair_recall"]), naive_pairs(labels, pids))
    np.testing.assert_equal((found["cross_camera_precision"], found["cross_camera_recall"]), naive_pairs(labels, pids, camids))
    assert found["noise_ratio"] == pytest.approx(np.mean(labels == -1)) and found["clusters"] == len(set(labels.tolist()) - {-1})

def naive_geometry(x, labels):
    "Silhouette and Davies-Bouldin from their definitions on unit vectors."
    x = [v/math.sqrt(v @ v) for v in x]
    groups = {k: [i for i, l in enumerate(labels) if l == k] for k in set(labels)}
    dist = lambda u, v: math.sqrt(sum((u - v)**2))
    s = []
    for i, k in enumerate(labels):
        if len(groups[k]) == 1: s.append(0.); continue
        a = sum(dist(x[i], x[j]) for j in groups[k])/(len(groups[k]) - 1)
        b = min(np.mean([dist(x[i], x[j]) for j in groups[other]]) for other in groups if other != k)
        s.append((b - a)/max(a, b))
    centre = {k: np.mean([x[i] for i in g], axis=0) for k, g in groups.items()}
    scatter = {k: np.mean([dist(x[i], centre[k]) for i in g]) for k, g in groups.items()}
    worst = [max((scatter[k] + scatter[o])/dist(centre[k], centre[o]) for o in groups if o != k) for k in groups]
    return np.mean(s), np.mean(worst)

def test_geometry_is_of_unit_vectors_without_noise():
    rng = np.random.default_rng(3)
    x, labels = rng.normal(size=(40, 4))*rng.uniform(.1, 9, (40, 1)), rng.integers(-1, 5, 40)
    kept = labels >= 0
    found = cluster_quality(torch.from_numpy(x), torch.from_numpy(labels))
    assert (found["silhouette"], found["davies_bouldin"]) == pytest.approx(naive_geometry(x[kept], labels[kept].tolist()))
    assert set(found) == {"silhouette", "davies_bouldin", "silhouette_images", "noise_ratio", "clusters"} and found["silhouette_images"] == kept.sum()

@pytest.mark.parametrize("labels, clusters", [([-1]*4, 0), ([0]*4, 1), ([0, 1, 2, 3], 4), ([0, -1, -1, -1], 1)])
def test_undefined_figures_are_nan(labels, clusters):
    found = cluster_quality(np.eye(4), labels, [1, 1, 2, 2], [0, 1, 0, 1])
    assert math.isnan(found["silhouette"]) and math.isnan(found["davies_bouldin"]) and found["clusters"] == clusters
    assert math.isnan(found["ari"]) == (clusters == 0)

def test_agreement_ignores_names_and_noise():
    rng = np.random.default_rng(0)
    pids, x = rng.integers(1, 6, 60), rng.normal(size=(60, 3))
    labels = (pids*7) % 11
    labels[::4] = -1
    found = cluster_quality(x, labels, pids)
    assert all(found[name] == pytest.approx(1) for name in ("ari", "ami", "fmi", "v_measure", "pair_precision")) and found["pair_recall"] < 1
    assert "cross_camera_recall" not in found

def test_silhouette_of_many_images_is_a_fixed_sample(monkeypatch):
    "The limit itself is too large for a quick test, so silhouette_samples is replaced by one that only looks at what it is given."
    seen = []
    monkeypatch.setattr(metrics, "silhouette_samples", lambda x, labels: seen.append((x, labels)) or np.zeros(1))
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(20_500, 2)), rng.integers(-1, 3, 20_500)
    labels[:20_100] = np.abs(labels[:20_100])
    found = [cluster_quality(x, labels)["silhouette_images"] for _ in range(2)]
    assert found == [20_000]*2 and np.array_equal(seen[0][0], seen[1][0]) and np.array_equal(seen[0][1], seen[1][1])
    unit = x/np.linalg.norm(x, axis=1, keepdims=True)
    where = {row.tobytes(): i for i, row in enumerate(np.round(unit, 12))}
    assert len({row.tobytes() for row in np.round(seen[0][0], 12)}) == 20_000 # no image twice
    assert all(labels[where[row.tobytes()]] == label for row, label in zip(np.round(seen[0][0], 12), seen[0][1]))

def test_cluster_quality_refuses_what_does_not_fit():
    for change in (dict(labels=[0, 1]), dict(pids=[1]), dict(camids=[0.5]*3), dict(features=np.zeros((3, 3)))):
        with pytest.raises(DataError): cluster_quality(**{**dict(features=np.eye(3), labels=[0, 0, 1], pids=[1, 1, 2], camids=[0, 1, 0]), **change})

# ---------------------------------------------------------------- camera bias and intervals

@pytest.mark.parametrize("seed", range(3))
def test_camera_bias_equals_naive_loop(seed):
    _, _, _, x, pids, camids = problem(seed, images=40)
    d, same, chance = naive_distance(x, x), 0, 0
    for i in range(40):
        others = [j for j in range(40) if pids[j] != pids[i]]
        same += camids[min(others, key=lambda j: d[i][j])] == camids[i]
        chance += sum(camids[j] == camids[i] for j in others)/len(others)
    assert same_camera_neighbour_rate(torch.from_numpy(x), torch.from_numpy(pids), torch.from_numpy(camids)) == pytest.approx(same/40)
    assert same_camera_chance(pids, camids) == pytest.approx(chance/40)

def test_camera_bias_at_its_extremes():
    pids, camids = np.arange(12), np.arange(12) % 3
    assert same_camera_neighbour_rate(np.eye(3)[camids], pids, camids) == 1
    assert same_camera_neighbour_rate(np.ones((12, 2)), pids, camids) == 3/12 # all alike: image 0 is nearest to 3, 6, 9 of its camera, 1 to image 0
    for f in (lambda: same_camera_neighbour_rate(np.eye(3), [1, 1, 1], [0, 1, 2]), lambda: same_camera_chance([1, 1, 1], [0, 1, 2])):
        with pytest.raises(DataError, match="one identity"): f()

def test_bootstrap_interval_agrees_with_theory():
    x = np.random.default_rng(0).normal(5, 2, 900)
    half = 1.96*x.std()/30
    assert bootstrap_interval(x) == pytest.approx((x.mean() - half, x.mean() + half), abs=.15*half)
    narrow, wide = bootstrap_interval(x, level=.5), bootstrap_interval(x, level=.99)
    assert wide[0] < narrow[0] < x.mean() < narrow[1] < wide[1]

def test_bootstrap_is_paired_and_repeatable():
    rng = np.random.default_rng(1)
    hard = rng.uniform(size=200) # a difficulty that both models share
    low, high = bootstrap_interval(torch.from_numpy(hard + .01), hard)
    assert low == pytest.approx(.01) and high == pytest.approx(.01)
    assert bootstrap_interval(hard, seed=3) == bootstrap_interval(hard, seed=3) != bootstrap_interval(hard, seed=4)

def naive_intervals(d, groups, n, rng):
    """Draw people and runs one at a time."""
    ids, means = sorted(set(groups)), []
    for _ in range(n):
        runs = [rng.integers(len(d)) for _ in d]
        values = [d[r][q] for i in (ids[rng.integers(len(ids))] for _ in ids) for q in range(len(groups)) if groups[q] == i for r in runs]
        means.append(math.fsum(values)/len(values))
    return np.quantile(means, [.025, .975])

@pytest.mark.parametrize("runs", [1, 3])
def test_whole_identities_and_runs_are_resampled(runs):
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(12), rng.integers(1, 9, 12))            # people with unequal numbers of queries
    d = rng.normal(size=12)[groups] + .3*rng.normal(size=(runs, len(groups))) + .5*rng.normal(size=(runs, 1))
    found = bootstrap_interval(d if runs > 1 else d[0], groups=groups + 7, n=20000)
    expected = naive_intervals(d.tolist(), groups.tolist(), 3000, rng)
    assert found == pytest.approx(expected, abs=.1*(expected[1] - expected[0]))

def test_pairing_is_by_run_and_query():
    rng = np.random.default_rng(5)
    b = rng.uniform(size=(3, 50))
    assert bootstrap_interval(b + .02, b, groups=np.arange(50)//5) == pytest.approx((.02, .02))

@pytest.mark.parametrize("args, error", [(([],), DataError), (([1, 2], [1]), DataError), (([math.nan],), DataError), (([1., 2.], None, [1]), DataError), (([[[1.]]],), DataError), (([1.], None, None, 0), ConfigError),
                                         (([1.], None, None, 10, 1.), ConfigError)])
def test_bootstrap_refuses_what_it_cannot_resample(args, error):
    with pytest.raises(error): bootstrap_interval(*args)


def test_scores_do_not_depend_on_how_torch_was_set():
    "Autocast around the call, or a precision set by torch's newer names, must not change a rank."
    g = torch.Generator().manual_seed(7)
    q, G = torch.randn(12, 32, generator=g), torch.randn(60, 32, generator=g)
    ids = torch.arange(12) % 6, torch.zeros(12, dtype=torch.int64), torch.arange(60) % 6, torch.arange(60) % 3
    wanted = evaluate_retrieval(q, ids[0], ids[1], G, ids[2], ids[3])
    with torch.autocast("cpu", torch.bfloat16): got = evaluate_retrieval(q, ids[0], ids[1], G, ids[2], ids[3])
    np.testing.assert_array_equal(got.ap, wanted.ap)
    def refuses(): raise RuntimeError("set by another name")
    with pytest.MonkeyPatch.context() as m:
        m.setattr(torch, "get_float32_matmul_precision", refuses)
        np.testing.assert_array_equal(evaluate_retrieval(q, ids[0], ids[1], G, ids[2], ids[3]).ap, wanted.ap)
