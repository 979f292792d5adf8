"Equation 11 against scalar loops, and the random choices around it."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from upl_reid.core import ConfigError, DataError
from upl_reid.components.mixup import choose_partners, mix, mixed_weight, sample_lambda

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def naive_mix(f_i, f_j, y_i, y_j, w_i, w_j, lam):
    "Equation 11, one number at a time."
    f, y = np.zeros_like(f_i), np.zeros_like(y_i)
    for n in range(len(f_i)):
        for d in range(f_i.shape[1]): f[n, d] = lam[n]*f_i[n, d] + (1 - lam[n])*f_j[n, d]
        bottom = lam[n]*w_i[n] + (1 - lam[n])*w_j[n]
        for k in range(y_i.shape[1]):
            if bottom > 0: y[n, k] = (lam[n]*w_i[n]*y_i[n, k] + (1 - lam[n])*w_j[n]*y_j[n, k])/bottom
            else: y[n, k] = lam[n]*y_i[n, k] + (1 - lam[n])*y_j[n, k]
    return f, y


def case(seed, n=7, d=4, k=3):
    r = np.random.default_rng(seed)
    labels = r.dirichlet(np.ones(k), (2, n))
    weights = r.random((2, n))*(r.random((2, n)) > .3)  # some exact zeros
    lam = r.choice([0., 1., .25, .6, r.random()], n)
    return [*r.normal(size=(2, n, d)), *labels, *weights, lam]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("device", DEVICES)
def test_mix_is_equation_11(seed, dtype, device):
    args = case(seed)
    got = mix(*(torch.tensor(a, dtype=dtype, device=device) for a in args))
    for mine, naive in zip(got, naive_mix(*args)):
        assert mine.dtype == dtype and mine.device.type == device
        np.testing.assert_allclose(mine.cpu().numpy(), naive, atol=1e-12 if dtype == torch.float64 else 1e-6)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_mixed_label_stays_on_the_simplex(w_i, w_j, lam):
    y_i, y_j = np.array([[.2, .8, 0.]]), np.array([[.5, 0., .5]])
    _, y = mix(np.zeros((1, 2)), np.zeros((1, 2)), y_i, y_j, np.array([w_i]), np.array([w_j]), lam)
    assert np.all(y >= 0) and abs(y.sum() - 1) < 1e-9
    assert np.all(y <= np.maximum(y_i, y_j) + 1e-9) and np.all(y >= np.minimum(y_i, y_j) - 1e-9)


def test_one_label_of_weight_zero_is_ignored():
    f, y = torch.eye(2), torch.eye(2)
    _, label = mix(f[:1], f[1:], y[:1], y[1:], torch.zeros(1), torch.tensor([.3]), .9)
    assert label.tolist() == [[0., 1.]]


def test_swapping_the_pair_and_the_share_changes_nothing():
    f_i, f_j, y_i, y_j, w_i, w_j, lam = case(3)
    for a, b in zip(mix(f_i, f_j, y_i, y_j, w_i, w_j, lam), mix(f_j, f_i, y_j, y_i, w_j, w_i, 1 - lam)):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_a_single_pair_and_a_share_for_all():
    f_i, f_j, y_i, y_j, w_i, w_j, _ = case(4)
    batch = mix(f_i, f_j, y_i, y_j, w_i, w_j, .3)
    single = mix(f_i[2], f_j[2], y_i[2], y_j[2], w_i[2], w_j[2], .3)
    for a, b in zip(batch, single): np.testing.assert_allclose(a[2], b, atol=1e-12)


def test_gradient_of_both_ends_in_both_modes():
    f_i, f_j, y_i, y_j, w_i, w_j, lam = (torch.tensor(a) for a in case(5))
    w_i[:2] = w_j[:2] = 0
    def fn(a, b): return mix(a, b, y_i, y_j, w_i, w_j, lam)[0]
    assert torch.autograd.gradcheck(fn, (f_i.requires_grad_(), f_j.requires_grad_()), check_forward_ad=True)
    f_i.grad = None
    fn(f_i, f_j).sum().backward()
    torch.testing.assert_close(f_i.grad, lam[:, None].expand_as(f_i))


def test_inputs_are_left_alone():
    args = case(6)
    before = [a.copy() for a in args]
    mix(*args)
    for a, b in zip(args, before): np.testing.assert_array_equal(a, b)


def test_mixed_weight_is_the_divisor():
    assert mixed_weight(np.array([.2, 0.]), np.array([.6, 0.]), np.array([.5, .1])) == pytest.approx([.4, 0.])


@pytest.mark.parametrize("beta", [.4, 1., 3.])
def test_shares_have_the_moments_of_beta(beta):
    x = sample_lambda(40_000, beta, seed=1).double()
    assert x.min() >= 0 and x.max() <= 1
    assert abs(x.mean() - .5) < .01 and abs(x.var() - 1/(4*(2*beta + 1))) < .005


def test_shares_follow_the_seed_and_no_global_state():
    torch.manual_seed(0); np.random.seed(0)
    a = sample_lambda(5, seed=3)
    torch.manual_seed(9); np.random.seed(9)
    assert torch.equal(a, sample_lambda(5, seed=3)) and not torch.equal(a, sample_lambda(5, seed=4))
    assert a.dtype == torch.float32 and sample_lambda(0).shape == (0,)


@pytest.mark.parametrize("beta", [0., -1., float("nan")])
def test_bad_beta(beta):
    with pytest.raises(ConfigError, match="beta"): sample_lambda(3, beta)


@pytest.mark.parametrize("k", [1, 3, 5, 50])
@pytest.mark.parametrize("device", DEVICES)
def test_partners_are_among_the_k_nearest_and_reach_all_of_them(k, device):
    features = np.random.default_rng(0).normal(size=(9, 6))*np.arange(1, 10)[:, None]  # lengths must not matter
    allowed = []
    for i in range(9):
        cosine = [(features[i] @ features[j])/np.linalg.norm(features[i])/np.linalg.norm(features[j]) for j in range(9)]
        allowed.append(set(sorted((j for j in range(9) if j != i), key=lambda j: -cosine[j])[:k]))
    seen = [set() for _ in range(9)]
    for seed in range(150):
        partners = choose_partners(torch.tensor(features, device=device), k, seed)
        assert partners.dtype == torch.int64 and partners.device.type == device
        for i, j in enumerate(partners.tolist()): seen[i].add(j)
    assert seen == allowed


def test_partners_are_equally_likely():
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    ranks = (features/features.norm(dim=1, keepdim=True)) @ (features[0]/features[0].norm())
    nearest = ranks.argsort(descending=True)[1:5].tolist()
    drawn = [choose_partners(features, 4, seed)[0].item() for seed in range(800)]
    for j in nearest: assert 150 < drawn.count(j) < 250


def test_identical_images_still_never_partner_themselves():
    same = torch.ones(6, 3)
    for seed in range(20): assert (choose_partners(same, 2, seed) != torch.arange(6)).all()


def test_partners_of_half_a_dozen_arrays_come_as_an_array():
    features = np.random.default_rng(0).normal(size=(6, 3))
    partners = choose_partners(features)
    assert isinstance(partners, np.ndarray) and partners.shape == (6,)


@pytest.mark.parametrize("n", [0, 1])
def test_batch_without_a_partner(n):
    with pytest.raises(DataError, match="at least 2"): choose_partners(torch.zeros(n, 3))


def test_bad_k():
    with pytest.raises(ConfigError, match="k is 0"): choose_partners(torch.eye(3), k=0)
