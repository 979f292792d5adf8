"""Entropy, weights and mixture posteriors against term-by-term formulas, and against scikit-learn."""
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.mixture import GaussianMixture

from upl_reid.core import ConfigError, DataError
from upl_reid.components.uncertainty import (Mixture, centroid_log_probabilities, effective_dimension, entropy,
                                             fit_components, fit_mixture, hard_labels, m_step, soft_labels,
                                             uncertainty_weight)


def simplex(seed, *shape):
    return np.random.default_rng(seed).dirichlet(np.full(shape[-1], .5), shape[:-1])


def data(seed, m=80, d=4, k=5, spread=.6):
    rng = np.random.default_rng(seed)
    ids = np.arange(m) % k
    return 2*rng.normal(size=(k, d))[ids] + spread*rng.normal(size=(m, d)), ids


def random_mixture(seed, kind, k=4, d=3):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(k, d, d) if kind == "full" else (d, d))
    return Mixture(rng.dirichlet(np.ones(k)), rng.normal(size=(k, d)), a @ np.swapaxes(a, -1, -2) + .3*np.eye(d))


def test_entropy_and_weight_term_by_term():
    p = simplex(0, 3, 4, 6)
    p[0, 0] = [0, 0, 1, 0, 0, 0]
    p[0, 1] = [.5, 0, 0, .5, 0, 0]
    u = np.empty((3, 4))
    for i in range(3):
        for j in range(4): u[i, j] = -sum(q*math.log(q) for q in p[i, j] if q > 0)
    np.testing.assert_allclose(entropy(p), u, atol=1e-14)
    for alpha in (.5, 1, 3):
        np.testing.assert_allclose(uncertainty_weight(p, alpha), [[math.exp(-alpha*v) for v in row] for row in u],
                                   rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_entropy_bounds_and_symmetry(seed, k):
    p = simplex(seed, 3, k)
    u = entropy(p)
    assert (u >= 0).all() and (u <= math.log(k) + 1e-12).all()
    np.testing.assert_allclose(entropy(p[:, ::-1].copy()), u, atol=1e-12)
    # mixing with the uniform label never makes it surer
    assert (entropy((p + 1/k)/2) >= u - 1e-12).all()
    w = uncertainty_weight(p, 2.)
    assert (w > 0).all() and (w <= 1).all() and (uncertainty_weight(p, 3.) <= w).all()


def test_entropy_kinds():
    p = simplex(1, 5, 7)
    assert entropy(torch.tensor(p)).dtype == torch.float64 and isinstance(entropy(p), np.ndarray)
    assert entropy(p.astype(np.float32)).dtype == np.float32
    t = torch.tensor(p, requires_grad=True)
    uncertainty_weight(t, 1.).sum().backward()
    expected = -np.exp(-entropy(p))[:, None]*(-np.log(p) - 1)             # d exp(-U) / d p = -exp(-U) (-log p - 1)
    np.testing.assert_allclose(t.grad, expected, rtol=1e-9)
    assert entropy([1, 0, 0]) == 0
    # what rounding leaves below zero counts as zero
    assert np.isclose(entropy(np.array([.5, .50001, -1e-5])), math.log(2), atol=1e-4)


@pytest.mark.parametrize("bad", [[.5, .6], [1.2, -.2], [math.nan, 1], [[.5, .5], [.1, .1]], [2., 3.], []])
def test_entropy_refuses_what_is_no_probability(bad):
    with pytest.raises(DataError): entropy(np.array(bad, float))


@pytest.mark.parametrize("alpha", [0, -1, math.nan, math.inf])
def test_weight_refuses_alpha(alpha):
    with pytest.raises(ConfigError, match="alpha"): uncertainty_weight(np.array([.5, .5]), alpha)


def slow_posterior(x, mixture, temperature):
    k, d = mixture.means.shape
    each = [mixture.covariance if mixture.covariance.ndim == 2 else mixture.covariance[j] for j in range(k)]
    s = 1.
    if temperature is not None:
        mean = sum(w*c for w, c in zip(mixture.weights, each))
        values = np.linalg.eigvalsh(mean)
        s = temperature*d/(values.sum()**2/(values**2).sum())
    out = []
    for f in x:
        p = []
        for w, mu, c in zip(mixture.weights, mixture.means, each):
            density = math.exp(-.5*(f - mu) @ np.linalg.inv(c) @ (f - mu))/math.sqrt((2*math.pi)**d*np.linalg.det(c))
            p.append(w*density**(1/s))
        out.append([v/sum(p) for v in p])
    return np.array(out)


@pytest.mark.parametrize("kind", ["tied", "full"])
@pytest.mark.parametrize("temperature", [None, 1., 3., .7])
def test_posterior_equals_densities(kind, temperature):
    for seed in range(3):
        m, x = random_mixture(seed, kind), np.random.default_rng(seed + 9).normal(size=(20, 3))
        np.testing.assert_allclose(soft_labels(x, m, temperature), slow_posterior(x, m, temperature), rtol=1e-9,
                                   atol=1e-14)


@pytest.mark.parametrize("kind", ["tied", "full"])
def test_fit_and_posterior_equal_scikit_learn(kind):
    x, ids = data(3)
    k = ids.max() + 1
    means = np.stack([x[ids == j].mean(0) for j in range(k)])
    scatter = np.stack([np.cov(x[ids == j].T, bias=True) for j in range(k)])
    start = scatter.mean(0) if kind == "tied" else scatter                # groups are of equal size
    start = start + 1e-3*np.eye(x.shape[1])
    theirs = GaussianMixture(k, covariance_type=kind, reg_covar=1e-3, tol=1e-12, max_iter=500, means_init=means,
                             weights_init=np.full(k, 1/k), precisions_init=np.linalg.inv(start)).fit(x)
    ours = fit_mixture(x, ids, kind, reg_covar=1e-3, max_iter=500, tol=1e-12)
    np.testing.assert_allclose(ours.weights, theirs.weights_, atol=1e-5)
    np.testing.assert_allclose(ours.means, theirs.means_, atol=1e-4)
    np.testing.assert_allclose(ours.covariance, theirs.covariances_, atol=1e-4)
    exact = Mixture(theirs.weights_, theirs.means_, theirs.covariances_)
    np.testing.assert_allclose(soft_labels(x, exact, None), theirs.predict_proba(x), atol=1e-9)


@pytest.mark.parametrize("kind", ["tied", "full"])
def test_no_em_step_keeps_the_groups(kind):
    x, _ = data(5, m=30)
    ids = np.random.default_rng(0).permutation(np.arange(30) % 4)
    m = fit_mixture(x, ids, kind, reg_covar=.01, max_iter=0)
    each = []
    for j in range(4):
        own = x[ids == j]
        np.testing.assert_allclose(m.means[j], own.mean(0))
        assert math.isclose(m.weights[j], len(own)/30)
        each.append(sum(np.outer(f - own.mean(0), f - own.mean(0)) for f in own)/len(own))
    expected = sum(c*w for c, w in zip(each, m.weights)) if kind == "tied" else np.stack(each)
    np.testing.assert_allclose(m.covariance, expected + .01*np.eye(x.shape[1]), atol=1e-12)


def test_em_never_lowers_the_likelihood():
    x, ids = data(7, spread=1.5)
    ids = np.random.default_rng(1).permutation(ids)                       # a start that EM has to repair

    def likelihood(m):
        inverse, scale = np.linalg.inv(m.covariance), math.sqrt(np.linalg.det(m.covariance))
        dense = [[w*math.exp(-.5*(f - mu) @ inverse @ (f - mu))/scale for w, mu in zip(m.weights, m.means)]
                 for f in x]
        return np.log(np.sum(dense, 1)).mean()
    steps = [likelihood(fit_mixture(x, ids, reg_covar=0., max_iter=i, tol=-math.inf)) for i in range(8)]
    assert all(b >= a - 1e-10 for a, b in zip(steps, steps[1:])) and steps[-1] > steps[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["tied", "full"]), st.sampled_from([None, .5, 3.]), st.floats(.1, 1e4))
def test_posteriors_stay_on_the_simplex_far_away(seed, kind, temperature, scale):
    p = soft_labels(scale*np.random.default_rng(seed).normal(size=(6, 3)), random_mixture(seed, kind), temperature)
    assert np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(1), 1)
    entropy(p)


def test_temperature_moves_between_one_hot_and_the_prior():
    m, x = random_mixture(2, "tied"), np.random.default_rng(3).normal(size=(10, 3))
    even = Mixture(np.full(4, .25), m.means, m.covariance)
    u = np.stack([entropy(soft_labels(x, even, t)) for t in (.01, .3, 1., 3., 30.)])
    assert (np.diff(u, axis=0) >= 0).all() and (u[-1] > u[0] + 1e-3).all()
    np.testing.assert_allclose(soft_labels(x, m, 1e12), np.tile(m.weights, (10, 1)), atol=1e-9)
    assert (soft_labels(x, m, 1e-6).max(1) > .999).all()


def test_isotropic_covariance_needs_no_dimension_correction():
    m = Mixture(np.array([.5, .5]), np.eye(2, 6), .3*np.eye(6))
    x = np.random.default_rng(0).normal(size=(5, 6))
    assert math.isclose(effective_dimension(m.covariance), 6)
    np.testing.assert_allclose(soft_labels(x, m, 1.), soft_labels(x, m, None), rtol=1e-12)


@pytest.mark.parametrize("kind", ["tied", "full"])
def test_kinds_and_precision(kind):
    x, ids = data(4)
    a = fit_mixture(x, ids, kind)
    t = fit_mixture(torch.tensor(x, requires_grad=True), torch.tensor(ids), kind)
    assert isinstance(t.means, torch.Tensor) and isinstance(a.means, np.ndarray)
    assert np.allclose(a.covariance, t.covariance)
    p = soft_labels(torch.tensor(x).float(), t)
    assert p.dtype == torch.float32 and not p.requires_grad and np.allclose(p, soft_labels(x, a), atol=1e-4)
    # a mixture of tensors, features an array
    assert soft_labels(x.astype(np.float32), t).dtype == np.float32
    assert isinstance(hard_labels(p), torch.Tensor) and hard_labels(p).tolist() == soft_labels(x, a).argmax(1).tolist()


def test_one_point_copies_and_lone_groups():
    one = fit_mixture(np.ones((1, 3)), np.array([0]))
    assert soft_labels(np.zeros((2, 3)), one).tolist() == [[1.], [1.]] and np.allclose(one.covariance, 1e-3*np.eye(3))
    copies = fit_mixture(np.ones((6, 3)), np.array([0, 0, 0, 1, 1, 1]))
    assert np.allclose(soft_labels(np.ones((1, 3)), copies), .5)
    alone = fit_mixture(np.eye(4), np.arange(4))                          # a cluster per group: nothing but the ridge
    assert hard_labels(soft_labels(np.eye(4), alone)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["tied", "full"])
def test_a_component_without_points_keeps_its_mean(kind):
    x = torch.tensor([[0., 0], [2, 0], [0, 4]]).double()
    share = torch.tensor([[1., 0], [1, 0], [1, 0]]).double()
    pi, means, sigma = m_step(x, share, torch.tensor([[5., 5], [7, 7]]).double(), kind, .1)
    assert pi.tolist() == [1, 0] and means[1].tolist() == [7, 7] and torch.allclose(means[0], x.mean(0))
    assert torch.allclose(sigma if kind == "tied" else sigma[0], torch.cov(x.T, correction=0) + .1*torch.eye(2))
    if kind == "full": assert torch.allclose(sigma[1], .1*torch.eye(2).double())
    p = soft_labels(np.array([[7., 7]]), Mixture(pi, means, sigma))
    assert p.tolist() == [[1, 0]]


def test_components_as_written():
    x, _ = data(6, m=120, d=3, k=12)
    m = fit_components(x, seed=1)
    assert m.means.shape == (50, 3) and m.covariance.shape == (50, 3, 3)
    assert len(fit_components(x[:20]).weights) == 20                      # no more components than points
    again = fit_components(torch.tensor(x), seed=1)
    assert isinstance(again.means, torch.Tensor) and np.allclose(again.means, m.means)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(fit_components(np.ones((9, 2))).weights) == 1          # nor than distinct points


def test_faults_are_named():
    x, ids = data(0)
    m = fit_mixture(x, ids)
    nan = x.copy()
    nan[2, 0] = np.nan
    for call in (lambda: fit_mixture(nan, ids), lambda: fit_components(nan), lambda: soft_labels(nan, m)):
        with pytest.raises(DataError, match="NaN"): call()
    with pytest.raises(DataError, match="renumber"): fit_mixture(x, ids*2)
    with pytest.raises(DataError, match="renumber"): fit_mixture(x, ids - 1)
    with pytest.raises(DataError, match="pass"): fit_mixture(x, ids[:-1])
    with pytest.raises(DataError, match=r"\(N, 4\)"): soft_labels(x[:, :3], m)
    with pytest.raises(DataError, match="positive definite"): fit_mixture(np.eye(4), np.arange(4), reg_covar=0.)
    with pytest.raises(ConfigError, match="diagonal"): fit_mixture(x, ids, "diagonal")
    with pytest.raises(ConfigError, match="reg_covar"): fit_mixture(x, ids, reg_covar=-1.)
    with pytest.raises(ConfigError, match="components=0"): fit_components(x, 0)
    for bad in (0, -1., math.nan):
        with pytest.raises(ConfigError, match="temperature"): soft_labels(x, m, bad)


@pytest.mark.parametrize("kind, tolerance",
                         [(np.float64, 1e-12), (np.float32, 1e-4), (torch.float64, 1e-12), (torch.float16, 2e-2)])
def test_probabilities_from_centroids_in_plain_loops(kind, tolerance):
    """P2LR Eq. 2, one image and one centroid at a time."""
    rng = np.random.default_rng(3)
    x, w = 5*rng.normal(size=(9, 6)), .1*rng.normal(size=(4, 6))
    x[2] = 0                                                            # no direction: every cluster is as likely
    want = np.empty((9, 4))
    for i in range(9):
        scores = []
        for k in range(4):
            dot = sum(a*b for a, b in zip(x[i], w[k]))
            lengths = math.sqrt(sum(a*a for a in x[i]))*math.sqrt(sum(b*b for b in w[k]))
            scores.append(20*dot/lengths if lengths else 0.)
        total = sum(math.exp(s) for s in scores)
        want[i] = [s - math.log(total) for s in scores]
    is_torch = isinstance(kind, torch.dtype)
    got = centroid_log_probabilities(*((torch.tensor(v, dtype=kind) if is_torch else v.astype(kind)) for v in (x, w)))
    assert isinstance(got, torch.Tensor if is_torch else np.ndarray)
    np.testing.assert_allclose(np.asarray(got, dtype=float), want, atol=tolerance*20)


def test_faults_of_centroid_probabilities_are_named():
    for bad in (0, -1., math.nan, math.inf):
        with pytest.raises(ConfigError, match="temperature"): centroid_log_probabilities(np.eye(2), np.eye(2), bad)
    with pytest.raises(DataError, match="2 dimensions and centroids of 3"):
        centroid_log_probabilities(np.eye(2), np.eye(3))
    with pytest.raises(DataError, match="NaN"): centroid_log_probabilities(np.eye(2), np.full((2, 2), np.nan))
