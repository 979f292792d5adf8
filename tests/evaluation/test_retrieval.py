"Retrieval scores and bootstrap intervals against naive float64 loops, plus properties, edge cases and faults."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from retrieval_problem import naive_distance, problem
from upl_reid.core import ConfigError, DataError
from upl_reid.evaluation import retrieval
from upl_reid.evaluation.retrieval import bootstrap_interval, evaluate_distances, evaluate_retrieval, match_positions

NAMES = ("query_pids", "query_camids", "gallery_pids", "gallery_camids")

def naive_retrieval(distance, ids, ranks=(1, 5, 10)):
    "One query at a time, one image at a time."
    qp, qc, gp, gc = (ids[name] for name in NAMES)
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
    ids = dict(query_pids=[1, 2, 3], query_camids=[0, 0, 0], gallery_pids=[1, 3], gallery_camids=[1, 1])
    found = evaluate_distances(np.zeros((3, 2)), **ids)
    assert found.evaluated.tolist() == [0, 2] and len(found.ap) == 2

@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["numpy", "numpy float32", "torch", "torch float32", "torch float32 unit"])
def test_retrieval_equals_naive_loop(seed, kind):
    q, g, ids = problem(seed)
    if "unit" in kind: g = g/np.linalg.norm(g, axis=1, keepdims=True)
    q, g = (x.astype(np.float32 if "float32" in kind else float) for x in (q, g))
    naive = naive_retrieval(naive_distance(q.astype(float), g.astype(float)), ids, (1, 3, 5, 200))
    if "torch" in kind:
        q, g, ids = torch.as_tensor(q), torch.as_tensor(g), {k: torch.as_tensor(v) for k, v in ids.items()}
    same_scores(evaluate_retrieval(q, g, **ids, ranks=(1, 3, 5, 200)), naive)

@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_those_of_double_precision(seed):
    "Images that single precision cannot tell apart, near matches and far from them."
    q, g, ids = problem(seed, queries=12, images=200)
    rng = np.random.default_rng(seed)
    g = g[rng.integers(0, 20, 200)] + 1e-8*rng.normal(size=g.shape)
    naive = naive_retrieval(naive_distance(q, g), ids)
    same_scores(evaluate_retrieval(q, g, **ids), naive)
    rounded = evaluate_retrieval(q.astype(np.float32), g.astype(np.float32), **ids)
    assert np.abs(rounded.ap - naive[0]).max() > 1e-6       # so the test can fail

def test_ranks_among_near_copies():
    "Six thousand near copies of five hundred images: most matches have others within the slack, some do not."
    q, g, ids = problem(1, queries=3, images=6000, ids=30)
    rng = np.random.default_rng(1)
    g = g[rng.integers(0, 500, 6000)] + 1e-6*rng.normal(size=g.shape)
    g[::40] = rng.normal(size=(150, 5))
    same_scores(evaluate_retrieval(q, g, **ids), naive_retrieval(naive_distance(q, g), ids))

@pytest.mark.parametrize("decimals", [2, 12])
@pytest.mark.parametrize("slack", [0., 1e-4, .01, .3])
def test_positions_are_those_of_the_exact_distances(slack, decimals):
    "Rough distances are off by up to the slack, which spans no, some or all images; with two decimals, many tie."
    rng = np.random.default_rng(4)
    exact = torch.from_numpy(rng.uniform(0, 1, (12, 400)).round(decimals))
    ranges = (-1, 12, 12), (0, 3, 12), (-1, 9, 400), (0, 3, 400)
    labels = [torch.from_numpy(rng.integers(low, high, n)) for low, high, n in ranges]
    rough = exact + .99*slack*torch.from_numpy(rng.uniform(-1, 1, exact.shape))
    if slack: rough = rough.float()
    position, count = match_positions(rough, slack, lambda i, j: exact[i, j], *labels)
    qp, qc, gp, gc = (x.tolist() for x in labels)
    for i, row in enumerate(exact):
        valid = [j for j in range(400) if gp[j] != -1 and (gp[j] != qp[i] or gc[j] != qc[i])]
        valid = sorted(valid, key=lambda j: row[j])
        assert position[i, :count[i]].tolist() == [p for p, j in enumerate(valid, 1) if gp[j] == qp[i] and gp[j] > 0]

@pytest.mark.parametrize("scale, shift", [(1e-30, 0), (1e30, 0), (1e300, 0), (1e-305, 0), (1, 1e6), (-1, -3)])
def test_distances_of_any_range_equal_naive_loop(scale, shift):
    rng = np.random.default_rng(3)
    distance = scale*rng.normal(size=(6, 150)) + shift
    labels = rng.integers(1, 9, 6), rng.integers(0, 2, 6), rng.integers(-1, 9, 150), rng.integers(0, 2, 150)
    ids = dict(zip(NAMES, labels))
    same_scores(evaluate_distances(distance, **ids), naive_retrieval(distance, ids))

def test_matches_close_together_and_strangers_far_nearer():
    "Every query's matches lie within a thousandth, its strangers anywhere from far nearer to far behind."
    rng = np.random.default_rng(6)
    labels = rng.integers(1, 5, 8), rng.integers(0, 2, 8), rng.integers(1, 30, 120), rng.integers(0, 2, 120)
    distance = rng.uniform(-50, 50, (8, 120))
    match = labels[0][:, None] == labels[2]
    distance[match] = rng.uniform(0, .001, match.sum())
    ids = dict(zip(NAMES, labels))
    same_scores(evaluate_distances(distance, **ids), naive_retrieval(distance, ids))

def on_a_line(rng, n, dims):
    "Rows along an arc of one plane, at distances from equal to antipodal."
    turn = rng.choice([0, 1e-9, 1e-4, .5, 3.1], n) + rng.choice([0, 1e-7], n)
    return np.cos(turn)[:, None]*np.eye(dims)[0] + np.sin(turn)[:, None]*np.eye(dims)[-1]

HARD = {
    "random": lambda rng, n, dims: rng.normal(size=(n, dims)),
    "close together": lambda rng, n, dims: 30 + rng.normal(size=(n, dims)),
    "duplicates": lambda rng, n, dims: rng.normal(size=(9, dims))[rng.integers(0, 9, n)],
    "nearly equal": lambda rng, n, dims: 1 + 1e-7*rng.normal(size=(n, dims)),
    "all equal": lambda rng, n, dims: np.ones((n, dims)),
    "on a line": on_a_line}

@pytest.mark.parametrize("dims", [1, 5, 300, 2048])
@pytest.mark.parametrize("kind", HARD.values(), ids=HARD)
@pytest.mark.parametrize("scale", [1e-18, 1, 1e18])
def test_positions_of_hard_features_are_those_of_a_stable_sort(kind, dims, scale):
    "Single-precision features of any length; all distances in double precision, rounded as the text says."
    rng = np.random.default_rng(dims)
    q, g = (np.asarray(scale*kind(rng, n, dims)*rng.uniform(.5, 2, (n, 1)), np.float32) for n in (8, 700))
    ids = dict(zip(NAMES, (rng.integers(1, 30, 8), rng.integers(0, 3, 8), rng.integers(-1, 30, 700),
                           rng.integers(0, 3, 700))))
    same_scores(evaluate_retrieval(q, g, **ids), naive_retrieval(retrieval.unit_distances(q, g).numpy(), ids))

@pytest.mark.parametrize("dims", [1, 127, 128, 129, 768, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_within_the_stated_slack(dims, dtype):
    "Vectors with equal signs, whose absolute products sum to 1, and random ones."
    for x in (torch.rand(40, dims), torch.randn(40, dims)):
        x = torch.nn.functional.normalize(x.double(), dim=1)
        exact = np.array([[math.fsum(u*v for u, v in zip(a, b)) for b in x[:9].tolist()] for a in x[:3].tolist()])
        found = retrieval.split_product(-2*x[:3].to(dtype), x[:9].to(dtype), torch.empty(3, 9, dtype=dtype), columns=4)
        assert np.abs(found.double().numpy() + 2*exact).max() <= retrieval.product_slack(dims, dtype)
    assert retrieval.product_slack(768, torch.float32) < retrieval.product_slack(768, torch.float32, terms=768)/2

LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "transposed": lambda d: np.ascontiguousarray(d.T).T,
    "every second column": lambda d: np.repeat(d, 2, 1)[:, ::2],
    "transposed tensor": lambda d: torch.from_numpy(np.ascontiguousarray(d.T)).T,
    "rows and columns reversed": lambda d: np.ascontiguousarray(d[::-1, ::-1])[::-1, ::-1],
    "every second row and column of a tensor": lambda d:
        torch.from_numpy(d).repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2],
    "part of a tensor": lambda d: torch.from_numpy(d).repeat(1, 2)[:, :d.shape[1]]}

@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_memory_layout_changes_nothing(layout):
    distance, (_, _, ids) = np.random.default_rng(2).normal(size=(25, 90)), problem(2)
    given_distance, wanted = layout(distance), evaluate_distances(distance, **ids)
    if isinstance(given_distance, np.ndarray): assert not given_distance.flags.c_contiguous
    else: assert not given_distance.is_contiguous()
    found = evaluate_distances(given_distance, **ids)
    assert np.array_equal(found.ap, wanted.ap) and found == wanted
    same_scores(found, naive_retrieval(distance, ids))

def test_features_of_any_memory_layout_give_the_same_scores():
    q, g, ids = problem(2)
    wanted = evaluate_retrieval(q, g, **ids)
    other = evaluate_retrieval(np.asfortranarray(q), torch.from_numpy(np.asfortranarray(g)), **ids)
    assert np.array_equal(other.ap, wanted.ap) and other == wanted

def test_identities_and_cameras_cannot_be_swapped():
    "They are named, so their order does not matter; without names they are refused, whatever their order."
    q, g, ids = problem(4)
    qp, qc, gp, gc = ids.values()
    distance = naive_distance(q, g)
    wanted = evaluate_retrieval(q, g, **ids)
    for order in (NAMES, NAMES[::-1], (NAMES[0], NAMES[2], NAMES[1], NAMES[3])):
        named = {name: ids[name] for name in order}
        assert evaluate_retrieval(q, g, **named) == wanted and evaluate_distances(distance, **named) == wanted
    for call in (lambda: evaluate_distances(distance, qp, gp, qc, gc),         # as in torchreid
                 lambda: evaluate_distances(distance, qp, qc, gp, gc),
                 lambda: evaluate_retrieval(q, qp, qc, g, gp, gc), lambda: evaluate_retrieval(q, g, qp, qc, gp, gc)):
        with pytest.raises(TypeError, match="positional argument"): call()
    with pytest.raises(TypeError, match="gallery_camids"):
        evaluate_distances(distance, query_pids=qp, query_camids=qc, gallery_pids=gp)

def test_rounded_matrix_products_change_nothing():
    q, g, ids = problem(5)
    q, g = q.astype(np.float32), g.astype(np.float32)
    before = evaluate_retrieval(q, g, **ids)
    assert retrieval.product_type() == torch.float32
    torch.set_float32_matmul_precision("medium")
    try:
        assert retrieval.product_type() == torch.float64
        after = evaluate_retrieval(q, g, **ids)
    finally: torch.set_float32_matmul_precision("highest")
    assert (after.ap == before.ap).all()

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 12), st.integers(1, 4))
def test_integer_distances_with_ties_equal_naive_loop(seed, queries, images, levels):
    "Few images and levels: ties, junk, distractors, lists shorter than the rank, and queries without a match occur."
    rng = np.random.default_rng(seed)
    distance = rng.integers(0, levels, (queries, images)).astype(float)
    ids = dict(query_pids=rng.integers(0, 4, queries), query_camids=rng.integers(0, 2, queries),
               gallery_pids=rng.integers(-1, 4, images), gallery_camids=rng.integers(0, 2, images))
    naive = naive_retrieval(distance, ids, (1, 2, 5, 10))
    if not naive[0]:
        with pytest.raises(DataError, match="none of the"): evaluate_distances(distance, **ids, ranks=(1, 2, 5, 10))
    else: same_scores(evaluate_distances(distance, **ids, ranks=(1, 2, 5, 10)), naive)

def test_block_boundaries_change_nothing(monkeypatch):
    q, g, ids = problem(7)
    whole = evaluate_retrieval(q, g, **ids)
    monkeypatch.setattr(retrieval, "row_blocks", lambda n, width, most=0: [(i, min(i + 4, n)) for i in range(0, n, 4)])
    found = evaluate_retrieval(q, g, **ids)
    assert np.array_equal(found.ap, whole.ap) and found == whole

def test_blocks_cover_every_row_once_and_stay_small():
    for n, width in [(1, 1), (3368, 19732), (7, 10**8), (2**21 + 3, 1)]:
        blocks = retrieval.row_blocks(n, width)
        assert blocks[0][0] == 0 and blocks[-1][1] == n and all(a[1] == b[0] for a, b in zip(blocks, blocks[1:]))
        assert all(stop > start and (stop - start == 1 or (stop - start)*width <= 2**20) for start, stop in blocks)

def test_tie_goes_to_the_lower_gallery_index():
    "Four copies of one image, at every position of the right one, in a dimension where summation order matters."
    rng = np.random.default_rng(0)
    copies = np.repeat(rng.normal(size=(1, 769)), 37, axis=0)
    for place in (0, 1, 17, 36):
        gp = np.where(np.arange(37) == place, 5, 6)
        ids = dict(query_pids=[5], query_camids=[0], gallery_pids=gp, gallery_camids=np.ones(37, int))
        found = evaluate_retrieval(rng.normal(size=(1, 769)), copies, **ids)
        assert found.mAP == pytest.approx(1/(place + 1))

def test_short_list_does_not_inherit_from_the_query_before():
    "Query 0 hits at once in a long list; query 1 has two valid images and its match is the second."
    gallery = dict(gallery_pids=[1, 2, 2, 3, 2], gallery_camids=[1, 0, 0, 1, 1], ranks=(1, 2, 3, 50))
    distance = [[0, 9, 9, 9, 9], [5, 1, 1, -1, 9]]
    found = evaluate_distances(distance, query_pids=[1, 2], query_camids=[0, 0], **gallery)
    assert found.cmc == {1: .5, 2: .5, 3: 1, 50: 1} # valid for query 1: image 3, 0, 4
    alone = evaluate_distances([distance[1]], query_pids=[2], query_camids=[0], **gallery)
    assert alone.cmc == {1: 0, 2: 0, 3: 1, 50: 1}

def test_distractors_count_against_and_never_for():
    ids = dict(query_pids=[3], query_camids=[0], gallery_pids=[0, -1, 3], gallery_camids=[0, 1, 1])
    near = evaluate_distances([[0, 1, 2]], **ids)
    assert near.mAP == .5 # the distractor stands before the match although its camera is the query's; junk does not
    with pytest.raises(DataError, match="pid"):
        evaluate_distances([[0, 1]], query_pids=[0], query_camids=[0], gallery_pids=[0, 0], gallery_camids=[1, 1])

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_gallery_order_does_not_matter_without_ties(seed):
    q, g, ids = problem(seed, queries=8, images=30, ids=4)
    p = np.random.default_rng(seed).permutation(len(g))
    moved = {k: v[p] if k.startswith("gallery") else v for k, v in ids.items()}
    one, other = evaluate_retrieval(q, g, **ids), evaluate_retrieval(q, g[p], **moved)
    assert np.array_equal(one.ap, other.ap) and one == other

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 4))
def test_perfect_features_score_one(seed, ids, cams):
    rng = np.random.default_rng(seed)
    pids, camids = np.repeat(np.arange(1, ids + 1), cams), np.tile(np.arange(cams), ids)
    features = np.eye(ids + 1)[pids]*rng.uniform(.1, 10, (len(pids), 1)) # length is no information
    found = evaluate_retrieval(features, features, **dict(zip(NAMES, (pids, camids)*2)))
    assert found.mAP == found.mINP == 1 and found.cmc == {1: 1, 5: 1, 10: 1} and found.skipped == 0

def test_scores_are_frozen_and_readable():
    ids = dict(query_pids=[1], query_camids=[0], gallery_pids=[1, 2], gallery_camids=[1, 1])
    found = evaluate_distances([[0, 1.]], **ids, ranks=[1])
    with pytest.raises(AttributeError): found.mAP = 0
    assert "mAP 100.0" in str(found) and "rank-1 100.0" in str(found) and "0 skipped" in str(found)

def test_arguments_are_left_as_they_were():
    q, g, ids = problem(3)
    arrays = [q, g, *ids.values()]
    before = [x.copy() for x in arrays]
    for x in arrays: x.flags.writeable = False
    evaluate_retrieval(q, g, **ids)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before))

GOOD = dict(query=np.eye(2), gallery=np.eye(2), query_pids=[1, 2], query_camids=[0, 0],
            gallery_pids=[1, 2], gallery_camids=[1, 1])
@pytest.mark.parametrize("change, says", [
    (dict(query=np.eye(2)[0]), "query features have shape"),
    (dict(gallery=np.zeros((0, 2))), "gallery features have shape"),
    (dict(query=np.eye(2, 3)), "dimensions"), (dict(query=np.array([[1, 0], [0, np.nan]])), "query feature 1"),
    (dict(gallery=np.array([[0., 0], [0, 1]])), "gallery feature 0"),
    (dict(gallery=np.array([[np.inf, 0], [0, 1]])), "gallery feature 0"),
    (dict(query_pids=[1]), "query pids"), (dict(gallery_camids=[1, 1, 1]), "gallery camids"),
    (dict(gallery_pids=[[1], [1, 2]]), "gallery pids make no table.*equal length"),
    (dict(gallery=[[1, 0], [1]]), "gallery features make no table.*equal length"),
    (dict(query=[["a", "b"]]), "query features are no numbers"),
    (dict(query=[[None, 1]]), "query feature 0.*number"),
    (dict(gallery_pids=[1., 2.]), "integers"), (dict(gallery_pids=[8, 9]), "pid"),
    (dict(query_camids=[1, 1]), "camera 1"),
    (dict(gallery_pids=[1, 9], gallery_camids=[0, 1]), "camera as well")])
def test_bad_retrieval_input_says_what_and_why(change, says):
    assert evaluate_retrieval(**GOOD).mAP == 1
    with pytest.raises(DataError, match=says): evaluate_retrieval(**{**GOOD, **change})

def test_bad_distances_and_ranks_are_refused():
    ids = dict(query_pids=[1], query_camids=[0], gallery_pids=[1, 2], gallery_camids=[1, 1])
    for bad in ([[np.nan, 0]], [[np.inf, 0]], [0, 1], [[0, 1, 2]], [[0, 1], [0]], [["a", "b"]], "ab", None):
        with pytest.raises(DataError): evaluate_distances(bad, **ids)
    for ranks in ((0,), (1.5,), (-1,), True):
        with pytest.raises(ConfigError): evaluate_distances([[0, 1]], **ids, ranks=ranks)

# ---- intervals

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
        people = [ids[rng.integers(len(ids))] for _ in ids]
        values = [d[r][q] for i in people for q in range(len(groups)) if groups[q] == i for r in runs]
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

@pytest.mark.parametrize("args, error", [
    (([],), DataError), (([1, 2], [1]), DataError), (([math.nan],), DataError), (([1., 2.], None, [1]), DataError),
    (([[[1.]]],), DataError), (([1.], None, None, 0), ConfigError), (([1.], None, None, 10, 1.), ConfigError),
    (([1.], None, None, 100.), ConfigError), (([1.], None, None, "9"), ConfigError), ((["a"],), DataError),
    (([1.], None, None, 9, ".9"), ConfigError), (([[1.], [1., 2.]],), DataError), (([1.], ["b"]), DataError),
    (([1., 2.], None, [[1], [1, 2]]), DataError)])
def test_bootstrap_refuses_what_it_cannot_resample(args, error):
    with pytest.raises(error): bootstrap_interval(*args)


def test_scores_do_not_depend_on_how_torch_was_set():
    "Autocast around the call, or a precision set by torch's newer names, must not change a rank."
    g = torch.Generator().manual_seed(7)
    q, G = torch.randn(12, 32, generator=g), torch.randn(60, 32, generator=g)
    labels = torch.arange(12) % 6, torch.zeros(12, dtype=torch.int64), torch.arange(60) % 6, torch.arange(60) % 3
    ids = dict(zip(NAMES, labels))
    wanted = evaluate_retrieval(q, G, **ids)
    with torch.autocast("cpu", torch.bfloat16): got = evaluate_retrieval(q, G, **ids)
    np.testing.assert_array_equal(got.ap, wanted.ap)
    def refuses(): raise RuntimeError("set by another name")
    with pytest.MonkeyPatch.context() as m:
        m.setattr(torch, "get_float32_matmul_precision", refuses)
        np.testing.assert_array_equal(evaluate_retrieval(q, G, **ids).ap, wanted.ap)

@pytest.mark.parametrize("v", [1e301, 1e308, np.nan_to_num(np.inf)])
def test_distances_too_large_to_compare_are_refused(v):
    ids = dict(query_pids=[1], query_camids=[0], gallery_pids=[1, 2, 1], gallery_camids=[1]*3)
    want = evaluate_distances([[1e300, .2, .3]], **ids, ranks=(k for k in (1, 5)))
    assert want == evaluate_distances([[1., .2, .3]], **ids, ranks=(1, 5)) and evaluate_distances(
        [[1., .2, .3]], **ids, ranks=5).cmc == {5: 1.}
    with pytest.raises(DataError, match="below 1e301"): evaluate_distances([[v, .2, .3]], **ids)


@pytest.mark.parametrize("values", [
    np.array([["2024", "2025"]], "M8[Y]"), np.array([["1", "2"]]), np.ones((1, 2), complex),
    torch.ones(1, 2, dtype=torch.complex64)], ids=["dates", "text", "complex", "tensor"])
def test_what_is_no_number_is_not_measured(values):
    ids = dict(query_pids=[1], query_camids=[0], gallery_pids=[1, 2], gallery_camids=[1, 1])
    with pytest.raises(DataError, match="are no numbers"): evaluate_distances(values, **ids)
    with pytest.raises(DataError, match="are no numbers"): evaluate_retrieval(values, np.ones((2, 2)), **ids)
    assert evaluate_distances(np.array([[1, 2]], object), **ids).mAP == 1
