"""CGC: its numbered equations against plain loops, its variants, its worked case, and that a run without a source,
or with cameras, resumes to the same bits."""
from dataclasses import replace
from math import exp, isnan, log, sqrt, tanh

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import silhouette_samples as reference_silhouettes
from torch import nn

from small import Linear
from upl_reid.components.encoder import build_encoder
from upl_reid.core import ConfigError, DataError
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.image_bank import ImageBank
from upl_reid.methods import cgc
from upl_reid.methods.cgc import (CGC, TABLE_1, TABLE_2, camera_proxies, centroid_weights, confidence_guided_centroids,
                                  confidence_guided_labels, identity_consistency,
                                  silhouette_threshold, weighted_centroids)
from upl_reid.experiments.config import RunConfig
from upl_reid.experiments.runs import get_run, pretraining_configs
from upl_reid.core import read_tensors
from upl_reid.data.synthetic import write_domain
from upl_reid.training.method import Batch, Budget
from upl_reid.training.loop import adapt

SIZE = (48, 24)
BUDGET = Budget(2, 4, identities=6, lr=1e-3, stem_lr_factor=1., cluster_every=1, warmup=0)


def drawn(seed, n=24, d=4, k=4):
    """Features, labels without a gap but with noise, silhouettes."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(-1, k, n - k)])
    return rng.normal(size=(n, d)), labels, rng.uniform(-1, 1, n)


def cosine(u, v): return sum(a*b for a, b in zip(u, v))/sqrt(sum(a*a for a in u)*sum(b*b for b in v))


def naive_centroids(x, labels, weigh):
    """Weighted means; `weigh` says for the members of one cluster, (index, silhouette) each, what they weigh."""
    out = []
    for k in range(max(labels) + 1):
        own = [i for i, y in enumerate(labels) if y == k]
        w = weigh(own)
        if sum(w) == 0: w = [1.]*len(own)
        out.append([sum(a*x[i][c] for a, i in zip(w, own))/sum(w) for c in range(len(x[0]))])
    return out


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("threshold", [-.5, 0., .5, 2.])
def test_centroids_are_equation_7(seed, threshold):
    x, labels, s = drawn(seed)
    want = naive_centroids(x.tolist(), labels.tolist(), lambda own: [float(s[i] > threshold) for i in own])
    np.testing.assert_allclose(confidence_guided_centroids(x, labels, s, threshold), want, atol=1e-12)
    # nobody: the plain mean of Eq. 1
    if threshold == 2: np.testing.assert_allclose(want, [x[labels == k].mean(0) for k in range(4)])


def test_the_threshold_itself_is_outside():
    assert confidence_guided_centroids(np.array([[1.], [5.]]), [0, 0], [.25, .5], .25).tolist() == [[5.]]


@pytest.mark.parametrize("seed", range(5))
def test_variants_of_table_1(seed):
    x, labels, s = drawn(seed, n=90)
    labels[-15:] = 3                                                   # one cluster with more than 25 images
    def rm(own):
        drop = sorted(own, key=lambda i: s[i])[:int(.1*len(own) + .5)]
        return [float(i not in drop) for i in own]
    for kind, weigh in dict(all=lambda own: [1.]*len(own), ws=lambda own: [(1 + s[i])/2 for i in own], rm=rm).items():
        got = cgc.weighted_centroids(x, labels, centroid_weights(labels, s, kind))
        np.testing.assert_allclose(got, naive_centroids(x.tolist(), labels.tolist(), weigh), atol=1e-12)
    assert (centroid_weights(labels, s, "rm")[labels >= 0] == 0).sum() >= 5


def naive_labels(x, centroids, labels, beta, owners):
    """Eq. 8 and 9."""
    out = []
    for f, y in zip(x, labels):
        p = [1/(1 + exp(1 - cosine(f, m))) for m in centroids]
        p = [v/sum(p) for v in p]
        own = sum(o == y for o in owners)
        out.append([beta*(o == y)/own + (1 - beta)*v if y >= 0 else v for o, v in zip(owners, p)])
    return out


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [0., .3, .8, 1.])
def test_labels_are_equations_8_and_9(seed, beta):
    x, labels, _ = drawn(seed)
    m = np.random.default_rng(seed + 100).normal(size=(4, 4))
    np.testing.assert_allclose(confidence_guided_labels(x, m, labels, beta),
                               naive_labels(x.tolist(), m.tolist(), labels.tolist(), beta, range(4)), atol=1e-12)
    owners, m = [0, 0, 1, 2, 3, 3, 3], np.random.default_rng(seed).normal(size=(7, 4))
    np.testing.assert_allclose(confidence_guided_labels(x, m, labels, beta, owners),
                               naive_labels(x.tolist(), m.tolist(), labels.tolist(), beta, owners), atol=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(2, 12))
def test_labels_lie_on_the_simplex_and_nearer_means_more(seed, beta, k):
    rng = np.random.default_rng(seed)
    x, m, y = rng.normal(size=(9, 5)), rng.normal(size=(k, 5)), rng.integers(0, k, 9)
    soft = confidence_guided_labels(x, m, y, beta)
    np.testing.assert_allclose(soft.sum(1), 1)
    assert (soft >= 0).all() and (soft[np.arange(9), y] >= beta).all()
    near = np.array([[cosine(f, c) for c in m] for f in x])
    for row, close, own in zip(soft, near, y):
        others = np.delete(np.arange(k), own)
        assert (np.diff(row[others][np.argsort(close[others])]) >= -1e-12).all()
        # sigma(0)/sigma(-2) = 4.19: no neighbour is much preferred
        if beta < 1: assert row[others].max() <= 4.2*row[others].min()


def test_kinds_and_precisions():
    x, labels, s = drawn(0)
    f, y = torch.tensor(x, dtype=torch.float32, requires_grad=True), torch.tensor(labels)
    m = confidence_guided_centroids(f, y, torch.tensor(s), 0.)
    soft = confidence_guided_labels(f, m, y)
    assert isinstance(m, torch.Tensor) and isinstance(soft, torch.Tensor) and m.dtype == soft.dtype == torch.float32
    assert not m.requires_grad and not soft.requires_grad
    both = confidence_guided_centroids(x, labels, s, 0.)
    assert isinstance(both, np.ndarray) and np.allclose(both, m, atol=1e-6)
    assert isinstance(confidence_guided_labels(x, both, labels), np.ndarray)
    assert np.allclose(confidence_guided_labels(x, both, labels), soft, atol=1e-6)


def test_what_does_not_fit_is_refused():
    x, labels, s = drawn(0)
    # label 3 has no centroid
    with pytest.raises(DataError, match="one label each"): confidence_guided_labels(x, x[:3], labels)
    with pytest.raises(DataError, match="one label each"): confidence_guided_labels(x, x[:4], labels[:-1])
    with pytest.raises(DataError, match="no image has label 1"): confidence_guided_centroids(x[:2], [0, 2], s[:2], 0.)
    for wrong, word in ((dict(centroids="best"), "'best'"), (dict(threshold="cubic"), "'cubic'"),
                        (dict(beta=1.1), "beta=1.1"), (dict(memory_momentum=-1), "momentum=-1")):
        with pytest.raises(ConfigError, match=word): CGC(Linear(0, 4), **wrong)
    with pytest.raises(ConfigError, match="no argument 'delta'"):
        RunConfig("tiny", "plaza", "campus", "cgc", dict(delta=.1))


@pytest.mark.parametrize("t", [0, 7, 35, 70])
def test_thresholds_of_table_2(t):
    assert silhouette_threshold("linear", t, 70) == pytest.approx(.2*t/70 - .1)
    assert silhouette_threshold("dynamic", t, 70) == pytest.approx(.1*tanh(.1*(t - 35)))
    assert silhouette_threshold(-.1, t, 70) == -.1
    assert silhouette_threshold("linear", t, 70, reach=.3) == pytest.approx(.6*t/70 - .3)


def test_camera_proxies_number_pairs():
    rng = np.random.default_rng(0)
    labels, camids = np.concatenate([np.arange(5), rng.integers(-1, 5, 40)]), rng.integers(0, 4, 45)*3
    rows, owners = camera_proxies(labels, camids)
    pairs = sorted({(y, c) for y, c in zip(labels.tolist(), camids.tolist()) if y >= 0})
    assert owners.tolist() == [y for y, _ in pairs]
    assert rows.tolist() == [pairs.index((y, c)) if y >= 0 else -1 for y, c in zip(labels.tolist(), camids.tolist())]


def naive_consistency(pids, labels, s, threshold, share, min_size):
    """Section IV-G: identity set G, weights q, and the rim's mean of them."""
    scores = []
    for k in range(max(labels) + 1):
        own = [i for i, y in enumerate(labels) if y == k]
        if len(own) <= min_size: continue
        core = [i for i in own if threshold is None or s[i] > threshold] or own
        q = {g: sum(pids[i] == g for i in core)/len(core) for g in {pids[i] for i in core}}
        rim = sorted(own, key=lambda i: s[i])[:max(1, int(share*len(own)))]
        scores.append(sum(q.get(pids[i], 0.) for i in rim)/len(rim))
    return sum(scores)/len(scores)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [None, 0., .3, 5.])
def test_identity_consistency_in_plain_loops(seed, threshold):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.zeros(120, int), np.ones(64, int), np.full(8, 2), np.full(9, -1)])
    pids, s = rng.integers(0, 6, 201), rng.uniform(-1, 1, 201)
    for share, min_size in ((.05, 100), (.25, 50), (.05, 5), (.5, 0)):
        assert identity_consistency(pids, labels, s, threshold, share,
                min_size) == pytest.approx(naive_consistency(pids.tolist(), labels.tolist(), s.tolist(), threshold,
                                                             share, min_size))


def test_identity_consistency_of_the_papers_three_images():
    pids, labels, s = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), torch.tensor([.5, -.3, .1])
    assert identity_consistency(pids, labels, s, share=1., min_size=0) == pytest.approx((2*2/3 + 1/3)/3)
    # the rim is the second image, whose person has two thirds
    assert identity_consistency(pids, labels, s, share=.4, min_size=0) == pytest.approx(2/3)
    # without it the centroid holds one image of each person
    assert identity_consistency(pids, labels, s, threshold=0., share=.4, min_size=0) == pytest.approx(1/2)
    assert isnan(identity_consistency(pids, labels, s, min_size=3))


# -- the class ---------------------------------------------------------------------------------------------------------


def crowd(people=7, cameras=3, visits=4, dim=16, noise=.25, seed=0):
    g = torch.Generator().manual_seed(seed)
    pid = torch.arange(people).repeat_interleave(cameras*visits)
    x = torch.randn(people, dim, generator=g)[pid] + noise*torch.randn(len(pid), dim, generator=g)
    return nn.functional.normalize(x, dim=1), pid, torch.arange(cameras).repeat_interleave(visits).repeat(people)


def step(**kwargs):
    """A method in the middle of a round, and a batch of it, both in double precision."""
    x, _, cam = crowd(dim=4, people=5)
    method = CGC(Linear(0, 4), k1=8, **kwargs)
    method.start(BUDGET, len(x))
    labels = method.relabel(x.double(), cam, 0)
    method.start_round(labels)
    g = torch.Generator().manual_seed(1)
    index = torch.randint(0, len(x), (12,), generator=g)
    images = torch.randn(12, 3, 2, 2, generator=g, dtype=torch.float64)
    return method, labels, Batch(images, index, cam[index], labels.hard[index], labels.rows(index),
                                 labels.weight[index].double(), 7, 0, 1e-3), cam


@pytest.mark.parametrize("kwargs", [{}, dict(beta=1.), dict(camera=True), dict(beta=.5, scale=4.)])
def test_loss_is_equation_10_and_the_memory_follows_equation_3(kwargs):
    method, labels, batch, cam = step(**kwargs)
    M, owners, beta, tau = method.memory.centroids.tolist(), method.owners.tolist(), kwargs.get("beta",
            .8), 1/kwargs.get("scale", 20.)
    features = method.features(batch)
    loss = method.losses(features, batch)
    assert loss.keys() == {"cluster_nce"}
    total, used = 0., [i for i, y in enumerate(batch.hard.tolist()) if y >= 0]
    f = features.tolist()
    soft = naive_labels(f, M, batch.hard.tolist(), beta, owners)
    for i in used:
        z = [cosine(f[i], m)/tau for m in M]
        norm = log(sum(exp(v - max(z)) for v in z)) + max(z)
        total -= sum(t*(v - norm) for t, v in zip(soft[i], z))
    assert loss["cluster_nce"].item() == pytest.approx(total/len(used), abs=1e-10) and len(used) > 5
    before = method.memory.centroids.clone()
    loss["cluster_nce"].backward()
    # nothing moves inside backward
    assert torch.equal(before, method.memory.centroids) and method.encoder.weight.grad.abs().sum() > 0
    method.after_step(batch)
    rows = sorted({(y, c) for y,
                   c in zip(labels.hard.tolist(), cam.tolist()) if y >= 0}) if kwargs.get("camera") else None
    for i in used:
        y = batch.hard[i].item()
        r = rows.index((y, batch.camids[i].item())) if rows else y
        moved = [.1*m + .9*v for m, v in zip(M[r], f[i])]
        M[r] = [v/sqrt(sum(a*a for a in moved)) for v in moved]
    torch.testing.assert_close(method.memory.centroids, torch.tensor(M, dtype=torch.float64), atol=1e-10, rtol=0)


def test_with_hard_labels_and_plain_centroids_it_is_cluster_nce():
    """Eq. 2, the baseline: cross-entropy against the index of the own cluster."""
    method, _, batch, _ = step(**TABLE_1["Cluster-Contrast"])
    features, used = method.encoder(batch.images), batch.hard >= 0
    want = nn.functional.cross_entropy(20*features[used] @ method.memory.centroids.T, batch.hard[used])
    torch.testing.assert_close(method.losses(features, batch)["cluster_nce"], want)


def test_losses_are_pure_and_labels_carry_no_gradient():
    method, _, batch, _ = step(beta=0.)
    state = {k: v.clone() for k, v in method.state_dict().items()}
    x = method.encoder(batch.images).detach().requires_grad_()
    first, second = method.losses(x, batch)["cluster_nce"], method.losses(x, batch)["cluster_nce"]
    assert torch.equal(first, second) and all(torch.equal(v, method.state_dict()[k]) for k, v in state.items())
    soft = torch.tensor(naive_labels(x.tolist(), method.memory.centroids.tolist(), batch.hard.tolist(), 0.,
                                     range(len(method.memory))))
    want = torch.autograd.grad(-((soft*method.memory(x).log_softmax(1)).sum(1)*batch.weight).sum()/batch.weight.sum(),
                               x)[0]
    torch.testing.assert_close(torch.autograd.grad(first, x)[0], want.to(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_round_is_clusters_silhouettes_centroids(metric):
    x, pid, cam = crowd(noise=.8, dim=8)
    method = CGC(Linear(0, 4), k1=10, eps=.6, threshold="linear", metric=metric)
    method.start(replace(BUDGET, epochs=8, cluster_every=2), len(x))
    # the fourth round begins after six of eight epochs
    labels = method.relabel(x, cam, 3)
    method.start_round(labels)
    hard, used = labels.hard.numpy(), (labels.hard >= 0).numpy()
    s = np.full(len(x), np.nan)
    s[used] = reference_silhouettes(x.double().numpy()[used], hard[used], metric=metric)
    delta = .2*6/8 - .1
    want = nn.functional.normalize(confidence_guided_centroids(x, hard, s, delta), dim=1)
    torch.testing.assert_close(labels.centroids, torch.as_tensor(want).float())
    torch.testing.assert_close(method.memory.centroids, labels.centroids)
    torch.testing.assert_close(labels.soft, confidence_guided_labels(x, labels.centroids, labels.hard))
    assert torch.equal(labels.weight, torch.tensor(used).float())
    assert method.log_values() == pytest.approx(dict(threshold=delta, silhouette=np.nanmean(s),
                                                     kept=(s[used] > delta).mean()), abs=1e-6)
    assert 0 < method.log_values()["kept"] < 1


def test_clusters_of_one_image_are_noise(monkeypatch):
    x, pid, cam = crowd(people=4)
    found = pid.clone()
    found[found == 1] = -1
    found[20] = 1                                                      # the only one of cluster 1
    monkeypatch.setattr(CGC, "find_clusters", lambda *a: found)
    labels = CGC(Linear(0, 4)).relabel(x, cam, 0)
    assert labels.hard[20] == -1 and labels.weight[20] == 0 and labels.hard.max() == 2 and len(labels.centroids) == 3


def test_first_vectors_of_each_camera_are_the_means_of_its_confident_images():
    x, pid, cam = crowd(noise=.6, dim=8)
    x = nn.functional.normalize(x + torch.randn(3, 8, generator=torch.Generator().manual_seed(5))[cam], dim=1)
    method = CGC(Linear(0, 4), k1=10, eps=.6, threshold=.3, **CGC.tuned())
    method.start(BUDGET, len(x))
    labels = method.relabel(x, cam, 0)
    method.start_round(labels)
    hard, used = labels.hard.numpy(), (labels.hard >= 0).numpy()
    rows, points = x.double().numpy(), np.zeros(x.shape)
    for c in range(3): points[cam == c] = rows[cam == c] - rows[cam == c].mean(0)
    s = np.full(len(x), np.nan)
    s[used] = reference_silhouettes(points[used]/np.linalg.norm(points[used], axis=1, keepdims=True), hard[used])
    want, fallen_back = [], 0
    for k, c in sorted({(k, c) for k, c in zip(hard.tolist(), cam.tolist()) if k >= 0}):
        own = [i for i in range(len(x)) if hard[i] == k and cam[i] == c]
        core = [i for i in own if s[i] > .3]
        fallen_back += not core
        mean = sum(rows[i] for i in core or own)/len(core or own)
        want.append(mean/sqrt((mean**2).sum()))
    assert 0 < fallen_back < len(want)
    assert method.owners.tolist() == [k for k,
                                      _ in sorted({(k, c) for k, c in zip(hard.tolist(), cam.tolist()) if k >= 0})]
    torch.testing.assert_close(method.memory.centroids.double(), torch.as_tensor(np.array(want)), atol=1e-5, rtol=0)


def test_what_cannot_be_weighed_is_refused():
    with pytest.raises(ConfigError, match="share=2"): centroid_weights([0, 0], [.1, .2], "rm", share=2.)
    with pytest.raises(ConfigError, match="threshold=nan"): CGC(Linear(0, 4), threshold=float("nan"))
    with pytest.raises(ConfigError, match="reach=nan"): CGC(Linear(0, 4), threshold="linear", reach=float("nan"))
    with pytest.raises(ConfigError, match="metric='l1'"): CGC(Linear(0, 4), metric="l1")
    with pytest.raises(ConfigError, match="'cubic'"): silhouette_threshold("cubic", 0, 5)
    with pytest.raises(ConfigError, match="epochs=0"): silhouette_threshold("linear", 0, 0)
    with pytest.raises(ConfigError, match="beta=3"): confidence_guided_labels(np.eye(2), np.eye(2), [0, 1], beta=3.)
    with pytest.raises(DataError, match="1 clustered images is NaN"):
        centroid_weights([0, 0, -1], [.1, np.nan, np.nan], "ws")
    with pytest.raises(DataError, match="below 0"): weighted_centroids(np.eye(2), [0, 0], [1., -1.])
    with pytest.raises(DataError, match="2 identities and 3"): identity_consistency([0, 1], [0, 0, 0], [.1, .2, .3])
    with pytest.raises(ConfigError, match="share=0"): identity_consistency([0, 1], [0, 0], [.1, .2], share=0)


def test_centring_moves_clusters_and_silhouettes_but_not_the_memory():
    x, pid, cam = crowd(noise=.2)
    bias = 3*torch.randn(3, 16, generator=torch.Generator().manual_seed(5))
    x = nn.functional.normalize(x + bias[cam], dim=1)
    raw, centred = (CGC(Linear(0, 4), k1=10, center=c, centroids="all").relabel(x, cam, 0) for c in (False, True))
    together = lambda labels: len({(p, h) for p, h in zip(pid.tolist(), labels.hard.tolist())})
    # one cluster a person; without centring people are split by camera
    assert together(centred) == 7 < together(raw)
    for k in range(len(centred.centroids)):
        mean = x[centred.hard == k].mean(0)
        torch.testing.assert_close(centred.centroids[k], mean/mean.norm(), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    domain = load_domain("campus",
            write_domain("campus", tmp_path_factory.mktemp("cgc"), train_ids=12, test_ids=4, cameras=4, size=SIZE))
    return domain, ImageBank(domain.train.paths, SIZE)


@pytest.mark.parametrize("kwargs",
        [{}, dict(camera=True, threshold="linear"),
         dict(centroids="ws", beta=1., average=False)], ids=["default", "cameras", "ws"])
def test_resumes_to_the_same_bits(world, kwargs):
    domain, bank = world
    def train(**more):
        kept, rows = [], []
        method = CGC(build_encoder("micro", SIZE, 16), momentum=.9, k1=8, eps=.6, **kwargs)
        adapt(method, domain.train.withhold(), bank, BUDGET, progress=False, save=lambda t, row,
              r: (kept.append({k: v.clone() for k, v in t.items()}), rows.append(row)), **more)
        return method, kept, [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]
    whole, states, rows = train()
    again, end, later = train(state=states[0], epoch=1)
    assert later == rows[1:] and whole.state_dict().keys() == again.state_dict().keys()
    for name, value in states[-1].items(): assert torch.equal(value, end[-1][name]), name


@pytest.mark.parametrize("camera", [False, True])
def test_going_on_inside_a_round_restores_the_memory(world, camera):
    domain, bank = world
    def train(**more):
        kept = []
        method = CGC(build_encoder("micro", SIZE, 16), momentum=.9, k1=8, eps=.6, camera=camera)
        adapt(method, domain.train.withhold(), bank, replace(BUDGET, cluster_every=2), progress=False, save=lambda t,
              row, r: kept.append({k: v.clone() for k, v in t.items()}), **more)
        return method, kept
    whole, states = train()
    again, _ = train(state=states[0], epoch=1)
    assert len(whole.memory) == len(again.memory) and (len(whole.memory) > int(whole.owners.max()) + 1) == camera
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    assert not torch.equal(states[0]["method.memory.centroids"], whole.memory.centroids)


def test_unsupervised_runs_start_from_weights_that_no_person_has_touched(tmp_path, monkeypatch):
    config = RunConfig("tiny", "campus", "campus", "cgc", dict(pretrained=False, average=False), seed=2)
    adapted = replace(config, source="plaza", method_args={})
    assert pretraining_configs(config) == [] and len(pretraining_configs(adapted)) == 1
    assert config.id != replace(config, method_args=dict(average=False)).id
    assert RunConfig("tiny", "plaza", "campus", "cgc",
                     dict(pretrained=True)).id == RunConfig("tiny", "plaza", "campus", "cgc").id
    seen, start = [], CGC.start
    monkeypatch.setattr(CGC, "start", lambda self,
            *a: (seen.append({k: v.clone() for k, v in self.encoder.state_dict().items()}), start(self, *a)))
    run = get_run(config, store=tmp_path, device="cpu", progress=False)
    fresh = build_encoder("micro", SIZE, 64, "none", seed=2).state_dict()
    assert all(torch.equal(v, fresh[k]) for k, v in seen[0].items())
    # nothing was pretrained
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["data", "locks", config.id])
    assert any(not torch.equal(v, fresh[k]) for k, v in read_tensors(run.path/"model.safetensors")[0].items())
    assert {"ari", "ami", "fmi", "v_measure", "silhouette"} <= run.metrics["rounds"][0].keys()


def test_rows_of_the_ablations_are_runs_of_their_own():
    ids = {name: RunConfig("tiny", "plaza", "campus", "cgc", args).id for name,
           args in {**TABLE_1, **TABLE_2, "letter": CGC.as_written()}.items()}
    assert ids.pop("constant 0") == ids["+ CGL + CGC"]
    assert len(set(ids.values())) == len(ids) == len(TABLE_1) + len(TABLE_2)
