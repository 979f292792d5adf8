"""Cluster-Contrast: its loss and its updates against plain loops, CGC without its additions, resuming."""
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
from upl_reid.methods.cgc import CGC, TABLE_1
from upl_reid.methods.cluster_contrast import ClusterContrast, hardest_only
from upl_reid.training.loop import adapt
from upl_reid.training.method import Batch, Budget, PseudoLabels

SIZE = (48, 24)
BUDGET = Budget(2, 4, identities=6, lr=1e-3, stem_lr_factor=1., cluster_every=1, warmup=0)


def unit(x): return torch.nn.functional.normalize(x, dim=1)


@pytest.mark.parametrize("seed", range(10))
def test_hardest_is_the_first_of_the_smallest_cosines(seed):
    rng = np.random.default_rng(seed)
    x = unit(torch.from_numpy(rng.normal(size=(30, 3)).round(1) + 1e-3))
    x[5:10] = x[:5]                                          # equal cosines
    rows, vectors = torch.from_numpy(rng.integers(-1, 6, 30)), unit(torch.from_numpy(rng.normal(size=(6, 3))))
    want = [-1]*30
    for k in range(6):
        own = [i for i in range(30) if rows[i] == k]
        if own: want[min(own, key=lambda i: (float((x[i]*vectors[k]).sum()), i))] = k
    assert hardest_only(x, rows, vectors).tolist() == want


def made(hardest, labels, centroids, momentum=.3):
    method = ClusterContrast(Linear(4, 3), hardest=hardest, memory_momentum=momentum, scale=20.)
    method.start_round(PseudoLabels(labels, None, (labels >= 0).float(), centroids))
    return method


@pytest.mark.parametrize("hardest", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_step_is_that_of_plain_loops(seed, hardest):
    g = torch.Generator().manual_seed(seed)
    labels, index = torch.tensor([0, 0, 1, 1, 2, -1, 0, 2]), torch.tensor([0, 1, 6, 2, 5, 4])
    centroids = unit(torch.randn(3, 3, generator=g, dtype=torch.float64))
    method, images = made(hardest, labels, centroids), torch.randn(6, 8, generator=g, dtype=torch.float64)
    batch = Batch(images, index, torch.zeros(6, dtype=torch.int64), labels[index],
                  one_hot(labels[index], 3), (labels[index] >= 0).double(), 0, 0, 1e-3)
    features = method.features(batch)
    x, phi = features.detach().double().numpy(), centroids.double().numpy().copy()
    terms = [math.log(sum(math.exp(20*float(phi[k] @ f)) for k in range(3))) - 20*float(phi[y] @ f)
             for f, y in zip(x, labels[index].tolist()) if y >= 0]
    assert method.losses(features, batch)["cluster_nce"].item() == pytest.approx(np.mean(terms), rel=1e-5)
    chosen = list(zip(x, labels[index].tolist()))
    if hardest:
        least = {k: min((f for f, y in chosen if y == k), key=lambda f: float(phi[k] @ f)) for k in range(3)}
        chosen = [(f, k) for k, f in least.items()]
    for f, y in chosen:
        if y >= 0: phi[y] = (v := .3*phi[y] + .7*f)/np.linalg.norm(v)
    method.after_step(batch)
    np.testing.assert_allclose(method.memory.centroids.double().numpy(), phi, atol=1e-6)


def one_hot(labels, k): return (labels[:, None] == torch.arange(k)).double()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = write_domain("plaza", tmp_path_factory.mktemp("data"), train_ids=10, test_ids=4, cameras=3, size=SIZE)
    domain = load_domain("plaza", root)
    return domain, ImageBank(domain.train.paths, SIZE)


def trained(make, world, **more):
    domain, bank = world
    kept, rows, method = [], [], make()
    adapt(method, domain.train.withhold(), bank, BUDGET, progress=False, save=lambda state, row, r: (
        kept.append({k: v.clone() for k, v in state.items()}), rows.append(row)), **more)
    return kept, rows


def test_it_is_cgc_without_its_additions(world):
    "The same losses up to rounding: CGC averages centroids in another order."
    how = dict(momentum=.9, k1=8, eps=.6)
    alone = trained(lambda: ClusterContrast(build_encoder("micro", SIZE, 16), **how), world)[1]
    base = trained(lambda: CGC(build_encoder("micro", SIZE, 16), **how, **TABLE_1["Cluster-Contrast"]), world)[1]
    for a, b in zip(alone, base):
        assert a["classes"] == b["classes"] and a["cluster_nce"] == pytest.approx(b["cluster_nce"], rel=1e-3)


@pytest.mark.parametrize("hardest", [False, True])
def test_resumes_to_the_same_bits(world, hardest):
    make = lambda: ClusterContrast(build_encoder("micro", SIZE, 16), momentum=.9, k1=8, eps=.6, hardest=hardest)
    states = trained(make, world)[0]
    end = trained(make, world, state=states[0], epoch=1)[0]
    for name, value in states[-1].items(): assert torch.equal(value, end[-1][name]), name


def test_momentum_out_of_range():
    with pytest.raises(ConfigError, match="memory_momentum"): ClusterContrast(Linear(4, 3), memory_momentum=2.)
