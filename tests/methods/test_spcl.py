"""Self-paced clusters: both tests against plain loops over sets, the memory with single images, resuming."""
import math

import numpy as np
import pytest
import torch

from small import Linear
from upl_reid.components.encoder import build_encoder
from upl_reid.core import ConfigError
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.image_bank import ImageBank
from upl_reid.data.synthetic import write_domain
from upl_reid.methods.spcl import cluster_independence, cluster_overlap, confirmed_clusters, SpCL
from upl_reid.training.loop import adapt, check_answering
from upl_reid.training.method import Batch, Budget

SIZE = (48, 24)
BUDGET = Budget(2, 4, identities=6, lr=1e-3, stem_lr_factor=1., cluster_every=1, warmup=0)


def together(labels, i):
    """The set of images in the cluster of one image; noise is alone."""
    return {j for j, y in enumerate(labels) if j == i or y == labels[i] >= 0}


def overlap(labels, other):
    sets = [(together(labels, i), together(other, i)) for i in range(len(labels))]
    return [len(a & b)/len(a | b) for a, b in sets]


def confirmed(labels, looser, tighter, least):
    """The same by loops; clusters are numbered in the order of their first images."""
    independent, compact, kept = overlap(labels, looser), overlap(labels, tighter), []
    for k in range(max(labels) + 1):
        own = [i for i, y in enumerate(labels) if y == k]
        if sum(independent[i] for i in own)/len(own) < least: continue
        best = [i for i in own if compact[i] == max(compact[j] for j in own)]
        if len(best) > 1: kept.append(best)
    out = [-1]*len(labels)
    for number, images in enumerate(sorted(kept, key=min)):
        for i in images: out[i] = number
    return out


@pytest.mark.parametrize("seed", range(20))
def test_both_tests_are_those_of_sets(seed):
    rng = np.random.default_rng(seed)
    fine = rng.integers(-1, 9, 50)                           # the smaller radius; larger ones join its clusters
    labels, looser = np.where(fine < 0, -1, fine//2), np.where(fine < 0, -1, fine//4)
    labels[rng.integers(0, 50, 4)] = -1
    labels = np.unique(labels, return_inverse=True)[1] - 1
    given = [torch.from_numpy(x.astype(np.int64)) for x in (labels, looser, fine)]
    np.testing.assert_allclose(cluster_overlap(*given[:2]).numpy(), overlap(labels.tolist(), looser.tolist()))
    independence = cluster_independence(*given[:2])
    for k, value in enumerate(independence.tolist()):
        own = [v for v, y in zip(overlap(labels.tolist(), looser.tolist()), labels) if y == k]
        assert value == pytest.approx(sum(own)/len(own))
    least = float(independence.median())
    want = confirmed(labels.tolist(), looser.tolist(), fine.tolist(), least)
    assert confirmed_clusters(*given, least).tolist() == want


def test_clusters_that_no_radius_changes_all_stay():
    labels = torch.tensor([0, 0, 1, 1, 1, -1])
    assert confirmed_clusters(labels, labels, labels, 1.).tolist() == labels.tolist()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = write_domain("plaza", tmp_path_factory.mktemp("data"), train_ids=10, test_ids=4, cameras=3, size=SIZE)
    domain = load_domain("plaza", root)
    return domain, ImageBank(domain.train.paths, SIZE)


def make(): return SpCL(build_encoder("micro", SIZE, 16), momentum=.9, k1=8, eps=.6, apart=.1)


def test_the_memory_has_clusters_and_single_images(world):
    "The loss is a cross-entropy over all of them, by loops."
    method = make()
    n, g = len(world[0].train), torch.Generator().manual_seed(0)
    people = torch.randn(n//10 + 1, 16, generator=g).repeat_interleave(10, 0)[:n]
    people[-15:] = torch.randn(15, 16, generator=g)          # images that belong to nobody
    features = torch.nn.functional.normalize(people + .15*torch.randn(n, 16, generator=g), dim=1)
    labels = method.relabel(features, torch.zeros(n, dtype=torch.int64), 0)
    method.start_round(labels)
    k, noise = len(labels.centroids), features[labels.hard < 0]
    assert 0 < len(noise) < n and 0 < float(method.least) <= 1
    vectors = method.memory.centroids
    assert len(vectors) == k + len(noise) and torch.allclose(vectors[k:], noise, atol=1e-6)
    index = torch.nonzero(labels.hard >= 0).flatten()[:6]
    hard = labels.hard[index]
    batch = Batch(None, index, torch.zeros(6, dtype=torch.int64), hard, torch.nn.functional.one_hot(hard, k).float(),
                  torch.ones(6), 0, 0, 1e-3)
    x = torch.nn.functional.normalize(features[index] + .4*torch.randn(6, 16, generator=g), dim=1)
    cosines = (x.double() @ vectors.double().T*method.scale).tolist()
    terms = [math.log(sum(map(math.exp, row))) - row[y] for row, y in zip(cosines, hard.tolist())]
    assert method.losses(x, batch)["cluster_nce"].item() == pytest.approx(np.mean(terms), rel=1e-4)
    first = float(method.least)
    method.relabel(torch.roll(features, 1, 0), torch.zeros(n, dtype=torch.int64), 1)
    assert float(method.least) == first                      # the threshold is that of the first round


def trained(world, **more):
    domain, bank = world
    kept = []
    adapt(make(), domain.train.withhold(), bank, BUDGET, progress=False, save=lambda state, row, r: (
        kept.append({k: v.clone() for k, v in state.items()})), **more)
    return kept


def test_spcl_resumes_to_the_same_bits(world):
    states = trained(world)
    end = trained(world, state=states[0], epoch=1)
    for name, value in states[-1].items(): assert torch.equal(value, end[-1][name]), name


@pytest.mark.parametrize("arguments, words", [(dict(apart=0.), "apart=0.0"), (dict(apart=.6), "eps=0.5"),
                                              (dict(share=0.), "share=0.0"), (dict(share=1.1), "share=1.1")])
def test_numbers_out_of_range(arguments, words):
    with pytest.raises(ConfigError, match=words): SpCL(Linear(4, 3), **arguments)


def test_it_promises_nothing_about_confirmed_pairs():
    with pytest.raises(ConfigError, match="does not keep to answers"): check_answering(SpCL, SpCL.keeps_answers)
