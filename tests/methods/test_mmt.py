"""Mutual mean teaching: who teaches whom, against plain loops, and that a pair trains and resumes as one network
does."""
from dataclasses import replace
from math import exp, log

import pytest
import torch
from torch import nn

from small import Linear
from upl_reid.components.encoder import build_encoder
from upl_reid.core import ConfigError
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.image_bank import ImageBank
from upl_reid.methods.mmt import MMT, Pair, cluster_count
from upl_reid.experiments.config import RunConfig
from upl_reid.experiments.runs import get_run, pretraining_configs
from upl_reid.data.synthetic import write_domain
from upl_reid.training.method import Batch, Budget, PseudoLabels
from upl_reid.training.loop import adapt

SIZE = (48, 24)
BUDGET = Budget(2, 4, identities=8, lr=1e-3, stem_lr_factor=.5, cluster_every=1, warmup=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("mmt")
    domain = load_domain("plaza", write_domain("plaza", root, train_ids=16, test_ids=4, cameras=3, size=SIZE))
    return domain, ImageBank(domain.train.paths, SIZE)


def pair(cls=MMT, **kwargs):
    return cls(build_encoder("micro", SIZE, 16, seed=0), build_encoder("micro", SIZE, 16, seed=1), momentum=.9,
               **kwargs)


def small_case(n=10, k=4):
    "A method of two linear maps whose teachers differ from the students, and a batch with two views."
    g = torch.Generator().manual_seed(5)
    def randn(*shape): return torch.randn(*shape, generator=g, dtype=torch.float64)
    hard = torch.randint(-1, k, (n,), generator=g)
    soft = nn.functional.one_hot(hard.clamp(min=0), k).double()*(hard >= 0)[:, None]
    method = MMT(Linear(0, 3), Linear(1, 3), triplet_scale=3.)
    method.ema.first.weight.data, method.ema.second.weight.data = randn(3, 8), randn(3, 8)
    method.start_round(PseudoLabels(hard, None, (hard >= 0).double(), nn.functional.normalize(randn(k, 3), dim=1)))
    method.head.data, method.ema_head = randn(2, k, 3), randn(2, k, 3)
    batch = Batch(randn(n, 1, 2, 4), torch.arange(n), torch.zeros(n), hard, soft,
                  torch.rand(n, generator=g).double()*(hard >= 0), 1, 0, .1, randn(n, 1, 2, 4))
    return method, batch


def unit(v):
    length = sum(x*x for x in v)**.5
    return [x/length for x in v]


def probabilities(feature, rows, scale=20.):
    scores = [scale*sum(a*b for a, b in zip(feature, unit(row))) for row in rows.tolist()]
    top = max(scores)
    total = sum(exp(s - top) for s in scores)
    return [exp(s - top)/total for s in scores]


def test_each_student_learns_from_the_clusters_and_from_the_other_teacher():
    method, batch = small_case()
    got = method.losses(method.features(batch), batch)
    views, students, teachers = (batch.images,
            batch.second), (method.encoder.first, method.encoder.second), (method.ema.first, method.ema.second)
    def embed(net, view):
        return [unit([sum(w*x for w, x in zip(row, image)) for row in net.weight.tolist()])
                for image in view.flatten(1)[:, :8].tolist()]
    def distance(x, i, j): return sum((a - b)**2 for a, b in zip(x[i], x[j]))**.5
    want = dict.fromkeys(got, 0.)
    for a in (0, 1):
        b = 1 - a
        own, taught = embed(students[a], views[a]), embed(teachers[b], views[b])
        sums, mass, hinge, triplets = dict(ce=0., soft_ce=0.), 0., dict(triplet=0., soft_triplet=0.), 0.
        for i, (label, weight) in enumerate(zip(batch.hard.tolist(), batch.weight.tolist())):
            p, t = probabilities(own[i], method.head[a]), probabilities(taught[i], method.ema_head[b])
            if label >= 0:
                target = [.9*(k == label) + .1/len(p) for k in range(len(p))]
                sums["ce"] -= weight*sum(y*log(q) for y, q in zip(target, p))
                sums["soft_ce"] -= weight*sum(y*log(q) for y, q in zip(t, p))
                mass += weight
            positives = [j for j in range(len(own)) if j != i and label >= 0 and batch.hard[j] == label]
            negatives = [j for j in range(len(own)) if label >= 0 and batch.hard[j] >= 0 and batch.hard[j] != label]
            if not positives or not negatives: continue
            far, near = max(positives,
                            key=lambda j: distance(own, i, j)), min(negatives, key=lambda j: distance(own, i, j))
            def share(x): return 1/(1 + exp(3*(distance(x, i, far) - distance(x, i, near))))
            hinge["triplet"] -= weight*log(share(own))
            hinge["soft_triplet"] -= weight*(share(taught)*log(share(own)) + (1 - share(taught))*log(1 - share(own)))
            triplets += weight
        for name in sums: want[name] += sums[name]/mass
        for name in hinge: want[name] += hinge[name]/triplets
    for name in got: assert got[name].item() == pytest.approx(want[name], abs=1e-9), name
    assert method.loss_weights() == dict(ce=.5, soft_ce=.5, triplet=pytest.approx(.2), soft_triplet=.8)
    # half of P2LR's Eq. 1 with lambda 1, 0.4 and 1.6
    total = sum(method.loss_weights()[name]*value.item() for name, value in got.items())
    assert total == pytest.approx(.5*(want["ce"] + want["soft_ce"] + .4*want["triplet"] + 1.6*want["soft_triplet"]),
                                  abs=1e-9)


@pytest.mark.parametrize("args, word",
        [(dict(triplet_scale=-1), "triplet_scale=-1"), (dict(clusters=1), "clusters=1"),
         (dict(momentum=3), "momentum=3"), (dict(smoothing=-.1), "smoothing=-0.1")])
def test_arguments_out_of_range(args, word):
    with pytest.raises(ConfigError, match=word): MMT(Linear(0, 3), Linear(1, 3), **args)


def test_no_gradient_reaches_a_teacher():
    method, batch = small_case()
    sum(method.losses(method.features(batch), batch).values()).backward()
    assert all(p.grad is None for p in method.ema.parameters()) and not method.ema_head.requires_grad
    assert all(p.grad.abs().sum() > 0 for p in (method.encoder.first.weight, method.encoder.second.weight, method.head))


def test_teachers_follow_by_the_momentum():
    method, batch = small_case()
    before = [method.ema.first.weight.clone(), method.ema_head.clone()]
    method.after_step(batch)
    for slow, old, fast in zip((method.ema.first.weight, method.ema_head), before,
                               (method.encoder.first.weight, method.head)):
        assert torch.allclose(slow, .99*old + .01*fast, atol=1e-12)


def test_both_students_are_trained_at_the_rates_of_the_budget():
    method = pair()
    groups = method.parameter_groups(BUDGET)
    assert [g["base_lr"] for g in groups] == [5e-4, 1e-3]
    assert {id(p) for g in groups for p in g["params"]} == {id(p)
                                                            for p in method.encoder.parameters() if p.requires_grad}
    assert sum(len(g["params"]) for g in groups) == len({id(p) for g in groups for p in g["params"]})


def test_clustering_sees_both_teachers_and_evaluation_one(world):
    method = pair()
    assert method.embedder() is method.ema.first and method.label_encoder() is method.ema
    assert isinstance(method.ema, Pair)
    plain = pair(average=False)
    assert plain.embedder() is plain.encoder.first and plain.label_encoder() is plain.encoder


def test_resumes_to_the_same_bits(world):
    domain, bank = world
    def train(**kwargs):
        kept = []
        method = adapt(pair(), domain.train.withhold(), bank, BUDGET, progress=False, save=lambda t, row,
                       r: kept.append({k: v.clone() for k, v in t.items()}), **kwargs)
        return method, kept
    whole, states = train()
    again, _ = train(state=states[0], epoch=1)
    assert whole.state_dict().keys() == again.state_dict().keys()
    for name, value in whole.state_dict().items(): assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(whole.ema.first.state_dict()["project.weight"],
                           whole.ema.second.state_dict()["project.weight"])


def test_the_twin_is_pretrained_from_another_seed(tmp_path):
    config = RunConfig("tiny", "plaza", "campus", "mmt", seed=3)
    first, second = pretraining_configs(config)
    assert (first.seed, second.seed) == (3, 1003) and len(pretraining_configs(replace(config, method="dbscan"))) == 1
    run = get_run(config, store=tmp_path, progress=False)
    assert 0 < run.metrics["mAP"] <= 1 and run.encoder().dim == 64
    a, b = (get_run(c, store=tmp_path, progress=False).encoder().state_dict()["project.weight"]
            for c in (first, second))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("images, clusters, want", [(12936, None, 862), (29, None, 2), (16522, 700, 700)])
def test_number_of_clusters(images, clusters, want): assert cluster_count(images, clusters) == want


def test_shares_and_counts_out_of_range():
    with pytest.raises(ConfigError, match="soft_id=1.5"): pair(soft_id=1.5)
    with pytest.raises(ConfigError, match="clusters=1"): pair(clusters=1)
    with pytest.raises(ConfigError, match="no argument 'cluster'"):
        RunConfig("tiny", "plaza", "campus", "mmt", dict(cluster=5))
