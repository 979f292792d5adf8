"""Multi-step pseudo-label refinement: its equations in loops over floats, what is pruned, what stands still, and
that a run goes on where it stopped."""
import functools
import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from sklearn.metrics import adjusted_rand_score
from torch import nn

from small import people_in_cameras
from upl_reid.components.encoder import build_encoder
from upl_reid.components.clustering import camera_center, dbscan, kmeans_labels
from upl_reid.components.neighbours import jaccard_distance
from upl_reid.components.tracks import answer_links, check_answers, find_links
from upl_reid.core import ConfigError, DataError
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.image_bank import ImageBank
from upl_reid.components.losses import center_loss
from upl_reid.methods.baseline import hard_pseudo_labels
from upl_reid.methods.mspl import (MSPL, TABLE3, TABLE4, FrozenStart, camera_normalize, label_agreement, learning_rate,
                                   number_of_clusters, refined_clusters,
                                   select_clusters, stopping_round)
from upl_reid.experiments.config import RunConfig
from upl_reid.data.synthetic import write_domain
from upl_reid.training.method import Batch, Budget, PseudoLabels
from upl_reid.training.loop import fit


crowd = functools.partial(people_in_cameras, people=20, cameras=4, visits=3, noise=.3)


# -- equation 4 --------------------------------------------------------------------------------------------------------

def naive_normalize(x, cams):
    out = np.zeros((len(x), len(x[0])))
    for i in range(len(x)):
        own = [x[j] for j in range(len(x)) if cams[j] == cams[i]]
        for k in range(len(x[0])):
            mean = sum(row[k] for row in own)/len(own)
            var = sum((row[k] - mean)**2 for row in own)/len(own)
            if any(row[k] != own[0][k] for row in own): out[i, k] = (x[i][k] - mean)/math.sqrt(var)
    return out


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 25), st.integers(1, 6), st.integers(1, 4))
def test_camera_normalize_is_equation_4(seed, n, cameras, d):
    rng = np.random.default_rng(seed)
    # a coarse grid: equal values happen
    x, cams = np.round(rng.normal(size=(n, d))*3, 1), rng.integers(0, cameras, n)*7 - 3
    before, want = x.copy(), naive_normalize(x.tolist(), cams.tolist())
    np.testing.assert_allclose(camera_normalize(x, cams), want, atol=1e-9)
    assert (x == before).all()
    single = camera_normalize(torch.tensor(x, dtype=torch.float32, requires_grad=True), torch.tensor(cams))
    assert isinstance(single, torch.Tensor) and single.dtype == torch.float32 and not single.requires_grad
    np.testing.assert_allclose(single, want, atol=1e-4)


@pytest.mark.parametrize("value", [0., .1, 1/3, 1e-30, 1e6])
def test_a_dimension_without_spread_and_a_camera_with_one_image_become_zero(value):
    x = torch.full((8, 2), value)
    x[:, 1] = torch.arange(8.)
    cams = torch.tensor([0]*7 + [5])
    out = camera_normalize(x, cams)
    assert not out[:, 0].any() and not out[7].any() and out[:7, 1].std(correction=0) == pytest.approx(1)
    assert torch.isfinite(out).all()
    assert not camera_normalize(torch.tensor([[0., 1], [1e-30, 1]]), torch.zeros(2))[:, 1].any()


def test_normalising_undoes_what_a_camera_does():
    rng = np.random.default_rng(1)
    x, cams = rng.normal(size=(60, 5)), np.repeat(np.arange(3), 20)
    scale, shift = rng.uniform(.3, 4, (3, 5)), rng.normal(size=(3, 5))*10
    np.testing.assert_allclose(camera_normalize(x*scale[cams] + shift[cams], cams), camera_normalize(x, cams),
                               atol=1e-9)
    order = rng.permutation(60)
    np.testing.assert_allclose(camera_normalize(x[order], cams[order]), camera_normalize(x, cams)[order], atol=1e-12)


def test_normalising_names_what_is_wrong():
    x = np.ones((6, 2))
    with pytest.raises(DataError, match="camera"): camera_normalize(x, np.zeros(5))
    x[4, 1] = np.nan
    with pytest.raises(DataError, match="row 4"): camera_normalize(x, np.zeros(6))


# -- equation 1, selection ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n, per, k",
                         [(30, 15, 2), (44, 15, 2), (45, 15, 3), (12936, 15, 862), (16522, 15, 1101), (7, 1, 7)])
def test_number_of_clusters_is_equation_1(n, per, k):
    assert number_of_clusters(n, per) == math.floor(n/per) == k


def test_too_few_images_for_equation_1():
    with pytest.raises(DataError, match="29 images.*per_cluster"): number_of_clusters(29)
    with pytest.raises(ConfigError, match="per_cluster=0"): number_of_clusters(29, 0)


def naive_select(labels, cams, size):
    out, names = [], {}
    for i, k in enumerate(labels):
        own = [j for j in range(len(labels)) if labels[j] == k]
        if k < 0 or len(own) < size or len({cams[j] for j in own}) < 2: out.append(-1)
        else: out.append(names.setdefault(k, len(names)))
    return out


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(-2, 6), st.integers(-1, 3)), min_size=1, max_size=40), st.integers(1, 6))
def test_selection_is_its_two_rules(rows, size):
    labels, cams = np.array(rows).T
    got = select_clusters(labels, cams, size)
    assert got.dtype == np.int64 and got.tolist() == naive_select(labels.tolist(), cams.tolist(), size)
    again = select_clusters(torch.tensor(got), torch.tensor(cams), size)
    # selecting twice is selecting once
    assert isinstance(again, torch.Tensor) and again.tolist() == got.tolist()


def test_selection_of_nothing_and_of_one_camera():
    for labels in (np.full(5, -1), np.zeros(5, int), np.arange(5)):
        assert (select_clusters(labels, np.zeros(5)) == -1).all()
    assert len(select_clusters(np.zeros(0, int), np.zeros(0, int))) == 0
    # the paper's 4: "less than 4" are dropped
    assert select_clusters(np.array([9, 9, 9, 9]), np.array([1, 1, 1, 2])).tolist() == [0]*4
    assert select_clusters(np.array([9, 9, 9, -1]), np.array([1, 1, 2, 2])).tolist() == [-1]*4
    with pytest.raises(ConfigError, match="min_size=0"): select_clusters(np.zeros(3, int), np.arange(3), 0)
    with pytest.raises(DataError, match="camera"): select_clusters(np.zeros(3, int), np.arange(2))


def test_steps_of_the_clustering_and_their_switches():
    x, _, cam = crowd()
    raw = dbscan(jaccard_distance(x, 12, 6), .5, 4)
    off = dict(k1=12, normalize=False, select=False)
    assert refined_clusters(x, cam, **off).tolist() == raw.tolist()
    assert refined_clusters(x, cam, k1=12, normalize=False).tolist() == naive_select(raw.tolist(), cam.tolist(), 4)
    points = torch.tensor(naive_normalize(x.double().tolist(), cam.tolist())).float()
    full = dbscan(jaccard_distance(points, 12, 6), .5, 4)
    assert refined_clusters(x, cam, k1=12).tolist() == naive_select(full.tolist(), cam.tolist(), 4)
    assert refined_clusters(x, cam,
            **{**off, "center": True}).tolist() == dbscan(jaccard_distance(camera_center(x, cam), 12,
                    6), .5, 4).tolist()
    means = kmeans_labels(points, len(x)//12, 3).tolist()
    assert refined_clusters(x, cam, "kmeans", select=False, per_cluster=12, seed=3).tolist() == means
    assert refined_clusters(x, cam, "kmeans", min_size=9, per_cluster=12,
                            seed=3).tolist() == naive_select(means, cam.tolist(), 9)


def test_normalising_saves_people_from_cameras():
    x, pid, cam = crowd(people=30, bias=2., visits=4)
    def ari(**k): return adjusted_rand_score(pid, refined_clusters(x, cam, k1=12, **k))
    assert ari() > .9 > .5 > ari(normalize=False, select=False)


def test_no_cluster_left_says_what_to_do():
    x, _, cam = crowd()
    # one camera
    with pytest.raises(DataError, match="select=False"): refined_clusters(x, torch.zeros_like(cam), k1=12)
    with pytest.raises(DataError, match="min_size"): refined_clusters(x, cam, k1=12, min_size=500)
    with pytest.raises(DataError, match="raise eps"): refined_clusters(x, cam, min_samples=200)


# -- convergence, schedule ---------------------------------------------------------------------------------------------

def naive_stop(scores, patience, tolerance):
    best, since = 0, 0
    for i in range(1, len(scores)):
        if scores[i] - scores[best] > tolerance: best, since = i, 0
        else: since += 1
        if since == patience: return best
    return None


@settings(max_examples=150)
@given(st.lists(st.integers(0, 8), max_size=12), st.integers(1, 4), st.integers(0, 2))
def test_stopping_round_is_the_last_progress(scores, patience, tolerance):
    assert stopping_round(scores, patience, tolerance) == naive_stop(scores, patience, tolerance)
    assert stopping_round(torch.tensor(scores, dtype=torch.float64), patience,
                          tolerance) == naive_stop(scores, patience, tolerance)


def test_stopping_round_at_the_edges():
    assert stopping_round([]) is None and stopping_round([.5]) is None and stopping_round([.5, .5]) == 0
    assert stopping_round([.1, .15, .5], tolerance=.1) == 0
    assert stopping_round([.1, .15, .5], patience=2, tolerance=.1) is None
    with pytest.raises(ConfigError, match="patience=0"): stopping_round([1.], 0)
    with pytest.raises(DataError, match="NaN"): stopping_round([.1, math.nan])


def test_agreement_counts_pairs_of_images_used_twice():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-1, 4, 40), rng.integers(-1, 4, 40)
    used = [i for i in range(40) if a[i] >= 0 and b[i] >= 0]
    pairs = [(a[i] == a[j], b[i] == b[j]) for i in used for j in used if i < j]
    both, first, second, n = sum(p and q for p,
                                 q in pairs), sum(p for p, _ in pairs), sum(q for _, q in pairs), len(pairs)
    want = (both - first*second/n)/((first + second)/2 - first*second/n)                             # Hubert and Arabie
    assert label_agreement(a, torch.tensor(b)) == pytest.approx(want)
    assert label_agreement([0, -1], [-1, 0]) == label_agreement([0, -1], [0, 0]) == 0.
    with pytest.raises(DataError, match="same images"): label_agreement([0, 1], [0])


def test_learning_rate_is_equation_6():
    for epoch in range(1, 91):
        if epoch <= 10: want = 3.5*10**-5*(epoch/10)
        elif epoch <= 40: want = 3.5*10**-4
        elif epoch <= 70: want = 3.5*10**-5
        else: want = 3.5*10**-6
        assert learning_rate(epoch) == pytest.approx(want, rel=1e-12)
    assert learning_rate(0) == 0 and learning_rate(2.5) == pytest.approx(8.75e-6)
    for bad in (-1, math.nan):
        with pytest.raises(ConfigError, match="epoch"): learning_rate(bad)


# -- a step ------------------------------------------------------------------------------------------------------------

SIZE = (48, 24)


def step(seed=0, **kwargs):
    "A method in double precision in the middle of a round, and a batch for it."
    g = torch.Generator().manual_seed(seed)
    labels = PseudoLabels(torch.arange(40) % 5, None, torch.ones(40),
                          F.normalize(torch.randn(5, 8, generator=g, dtype=torch.float64), dim=1))
    method = MSPL(build_encoder("micro", SIZE, 8), **kwargs).double()
    method.start_round(labels)
    index = torch.randperm(40, generator=g)[:16]
    hard = labels.hard[index]
    batch = Batch(torch.randn(16, 3, *SIZE, generator=g, dtype=torch.float64), index, index % 3, hard,
                  labels.rows(index), torch.ones(16).double(), 7, 10, .05)
    return method, batch


def test_losses_are_equation_5():
    method, batch = step()
    method.centers += .3
    with torch.no_grad():
        f = method.features(batch)
        out, weights = method.losses(f, batch), method.loss_weights()
    x, y, W = f.numpy(), batch.hard.tolist(), [row/np.linalg.norm(row) for row in method.head.detach().numpy()]
    ce = triplet = center = 0.
    for i in range(16):
        z = np.array([20*(x[i] @ w) for w in W])
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        ce -= sum((.9*(k == y[i]) + .1/5)*log_p[k] for k in range(5))/16
        far = [np.linalg.norm(x[i] - x[j]) for j in range(16) if y[j] == y[i] and j != i]
        near = [np.linalg.norm(x[i] - x[j]) for j in range(16) if y[j] != y[i]]
        triplet += max(0, max(far) - min(near) + .3)/16
        center += .5*((x[i] - method.centers[y[i]].numpy())**2).sum()
    assert {k: v.item() for k, v in out.items()} == pytest.approx(dict(ce=ce, triplet=triplet, center=center), rel=1e-6)
    total = sum(weights.get(k, 1.)*v for k, v in out.items()).item()
    assert total == pytest.approx(triplet + ce + .005*center, rel=1e-6)


def test_losses_are_pure_and_the_centre_loss_can_be_left_out():
    method, batch = step()
    f = method.features(batch)
    state = {k: v.clone() for k, v in method.state_dict().items()}
    first, second = method.losses(f, batch), method.losses(f, batch)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert all(torch.equal(v, method.state_dict()[k]) for k, v in state.items())
    assert first["center"] == center_loss(f, batch.hard, method.centers)
    without, batch = step(center_weight=0.)
    assert set(without.losses(without.features(batch), batch)) == {"ce", "triplet"} and without.loss_weights() == {}


def test_centres_move_after_the_step_by_the_features_of_the_step():
    method, batch = step(center_rate=.4)
    before, f = method.centers.clone(), method.features(batch).detach()
    method.after_step(batch)
    for k in range(5):
        own = [f[i] for i in range(16) if batch.hard[i] == k]
        want = before[k] - .4*sum((before[k] - x for x in own), torch.zeros(8))/(1 + len(own))
        torch.testing.assert_close(method.centers[k], want)


# -- runs --------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    domain = load_domain("campus",
            write_domain("campus", tmp_path_factory.mktemp("data"), train_ids=12, test_ids=4, cameras=4, size=SIZE))
    return domain, ImageBank(domain.train.paths, SIZE)


BUDGET = Budget(4, steps=3, identities=6, lr=1e-3, stem_lr_factor=1., cluster_every=2, warmup=0)


def make(**kwargs): return MSPL(build_encoder("micro", SIZE, 16, seed=1), momentum=.9, k1=8, eps=.6, **kwargs)


def run(world, method, budget=BUDGET, **kwargs):
    domain, bank = world
    states, rows = [], []
    def save(tensors, row, round): states.append({k: v.clone() for k, v in tensors.items()}); rows.append(row)
    fit(method, bank, domain.train.camids, budget, 5, progress=False, save=save, **kwargs)
    return states, rows


RESUMED = {"default": {}, "k-means": dict(clusters="kmeans", frozen=.5), "DA": TABLE3["DA"],
           "always frozen": dict(frozen=1.)}


@pytest.mark.parametrize("name, stop",
        [("default", 1), ("default", 2), ("default", 3),
         *((n, s) for n in ("k-means", "DA", "always frozen") for s in (1, 2))])
def test_going_on_is_bit_identical(world, name, stop):
    args = RESUMED[name]
    states, rows = run(world, make(**args))
    again, rest = run(world, make(**args), state=states[stop - 1], epoch=stop)
    assert all(torch.equal(v, again[-1][k]) for k, v in states[-1].items()) and states[-1].keys() == again[-1].keys()
    timeless = lambda row: {k: v for k, v in row.items() if "seconds" not in k}
    assert [timeless(r) for r in rows[stop:]] == [timeless(r) for r in rest]


def test_the_encoder_stands_still_and_then_moves(world):
    for args, still in ((dict(frozen=1/3), [True, True, False, False, False, False]*2),
                        (dict(frozen=1/3, progressive=False), [True]*4 + [False]*8),
                        (dict(frozen=0.), [False]*12), (dict(frozen=1.), [True]*12)):
        method, stood, heads = make(select=False, **args), [], []
        weights = {k: v.clone() for k, v in method.encoder.state_dict().items()}
        after = method.after_step
        def after_step(batch):
            state = method.encoder.state_dict()
            # the neck has no shift
            same = [torch.equal(v, weights[k]) for k, v in state.items() if "num_batches" not in k and k != "neck.bias"]
            assert all(same) or not any(same)                # weights and statistics alike
            assert method.encoder.training and not method.ema.training
            stood.append(all(same)); heads.append(method.head.detach().clone())
            weights.update({k: v.clone() for k, v in state.items()})
            after(batch)
        method.after_step = after_step
        run(world, method)
        assert stood == still
        # the classifier always learns
        assert all(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(heads, heads[1:]))


def test_old_momentum_does_not_move_a_frozen_encoder(world):
    """The second round is frozen after a first that was not: Adam has moments and weight decay, and still does
    nothing."""
    method = make(frozen=0., select=False)
    method.start = lambda budget, images: FrozenStart.start(method, budget, images)
    original, begun = method.start_round, []
    def start_round(labels):
        original(labels)
        begun.append(copy.deepcopy(method.encoder.state_dict()))
        if len(begun) == 2: method.frozen_steps = method.round_steps
    method.start_round = start_round
    run(world, method)
    assert all(torch.equal(v, method.encoder.state_dict()[k]) for k, v in begun[1].items())
    assert not torch.equal(begun[0]["project.weight"], begun[1]["project.weight"])


def test_without_progressive_learning_the_first_labels_stay(world):
    states, rows = run(world, make(**TABLE3["DA"]))
    assert all(torch.equal(s["labels.hard"], states[0]["labels.hard"]) for s in states)
    assert [r["agreement"] for r in rows] == [0.]*4
    assert not torch.equal(states[0]["method.head"], states[2]["method.head"])
    method = make(progressive=False)
    method.start(BUDGET, 100)
    assert (method.round_steps, method.frozen_steps) == (12, round(12*2/9))


def test_agreement_of_rounds_is_in_the_history(world):
    states, rows = run(world, make(select=False))
    want = label_agreement(states[1]["labels.hard"], states[2]["labels.hard"])
    assert [r["agreement"] for r in rows] == [0., 0., pytest.approx(want, abs=1e-6), pytest.approx(want, abs=1e-6)]
    assert all(r["weight_center"] == pytest.approx(.005)
               and r["loss"] == pytest.approx(r["ce"] + r["triplet"] + .005*r["center"], rel=1e-4) for r in rows)


def test_relabel_gives_hard_labels_of_the_features_given():
    x, _, cam = crowd()
    method = MSPL(nn.Identity(), k1=12)
    got, want = method.relabel(x, cam, 0), hard_pseudo_labels(x, refined_clusters(x, cam, k1=12))
    assert got.soft is None and torch.equal(got.hard, want.hard) and torch.equal(got.centroids, want.centroids)
    assert torch.equal(got.weight, (got.hard >= 0).float())


# -- arguments ---------------------------------------------------------------------------------------------------------

def test_rows_of_the_tables_are_runs():
    ids = {RunConfig("tiny", "plaza", "campus", "mspl", args).id for args in [*TABLE3.values(), *TABLE4.values()]}
    assert len(ids) == 5 and TABLE3["CN"] == TABLE4["DBSCAN"] == {}
    assert {"frozen", "momentum", "average", "clusters", "center"} <= set(MSPL.arguments())


@pytest.mark.parametrize("args, word",
        [(dict(clusters="spectral"), "kmeans"), (dict(center=True), "normalize=False"), (dict(frozen=1.2), "frozen"),
         (dict(frozen=-.1), "frozen"),
                                        (dict(frozen=math.nan), "frozen")])
def test_arguments_that_make_no_sense(args, word):
    with pytest.raises(ConfigError, match=word): MSPL(nn.Identity(), **args)


@pytest.mark.parametrize("args, word",
        [(dict(smoothing=3.), "smoothing=3"), (dict(center_rate=30.), "center_rate=30"),
         (dict(center_weight=-1.), "center_weight=-1"), (dict(min_size=0), "min_size=0")])
def test_numbers_out_of_range(args, word):
    with pytest.raises(ConfigError, match=word): MSPL(nn.Identity(), **args)


def test_refined_clusters_know_only_two_ways():
    with pytest.raises(ConfigError, match="'kmean'"):
        refined_clusters(torch.eye(8), torch.arange(8) % 2, clusters="kmean")
    with pytest.raises(ConfigError, match="exclude each other"):
        refined_clusters(torch.eye(8), torch.arange(8) % 2, center=True)


def test_shares_of_a_round_are_rounded_to_steps():
    for share in (0, .1, 2/9, .5, 1):
        method = FrozenStart(nn.Identity(), frozen=share)
        method.start(replace(BUDGET, steps=7), 100)
        assert method.round_steps == 14 and method.frozen_steps == round(14*share)


def test_a_random_classifier_is_the_same_again_and_names_another_run():
    labels = hard_pseudo_labels(torch.eye(6)[:, :4].repeat(3, 4)[:, :16] + .1, torch.arange(6).repeat(3))
    heads = {}
    for classifier in ("centroids", "random"):
        for again in (0, 1):
            method = make(classifier=classifier)
            method.start_round(labels)
            heads[classifier, again] = method.head.detach()
    assert torch.equal(heads["random", 0], heads["random", 1])
    assert torch.equal(heads["centroids", 0], labels.centroids)
    assert heads["random", 0].shape == labels.centroids.shape and not torch.equal(heads["random", 0], labels.centroids)
    name = lambda **args: RunConfig("demo", "plaza", "campus", "mspl", args)
    assert name(classifier="centroids").id == name().id != name(**MSPL.as_written()).id
    with pytest.raises(ConfigError, match="classifier='zero'"): make(classifier="zero")


@pytest.mark.parametrize("given", [dict(k1=5, k2=2, min_samples=2, eps=.6), dict(clusters="kmeans")],
                         ids=["dbscan", "k-means"])
def test_a_track_counts_as_its_images(given):
    x, _, cam = people_in_cameras(8, 3, 10, .3, bias=.3, seed=1)        # 24 tracks of ten images each
    method = MSPL(nn.Identity(), **given)
    method.links = links = find_links(np.arange(240)//10, cam.numpy())
    labels = method.relabel(links.means(x), cam, 0).hard
    assert int(labels.max()) > 1
    assert (labels.view(24, 10) == labels.view(24, 10)[:, :1]).all()
    assert torch.equal(labels, select_clusters(labels, cam))


@pytest.mark.parametrize("given", [dict(k1=5, k2=2, min_samples=2, eps=.6), dict(clusters="kmeans")],
                         ids=["dbscan", "k-means"])
def test_a_confirmed_pair_stays_a_cluster_that_the_selection_would_drop(given):
    x, _, cam = people_in_cameras(8, 3, 6, .3, bias=.3, seed=1)
    stranger = torch.nn.functional.normalize(torch.randn(2, 24, generator=torch.Generator().manual_seed(9)), dim=1)
    x, cam = torch.cat([x, stranger]), torch.cat([cam, torch.tensor([0, 0])])   # one camera, two images: dropped
    n = len(x)
    method = MSPL(nn.Identity(), **given)
    pairs, same = np.array([[n - 2, n - 1], [0, 1], [0, 2]]), np.array([True, True, False])
    method.links = links = answer_links(find_links(np.full(n, -1), cam.numpy()), pairs, same)
    labels = method.relabel(links.means(x), cam, 0).hard
    check_answers(labels, links, "mspl")
    assert labels[n - 2] == labels[n - 1] >= 0 and labels[0] == labels[1] != labels[2] and method.keeps_answers
