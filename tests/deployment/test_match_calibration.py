"""Calibration of cosines: pairs and curves against naive counts, and labels that cannot calibrate."""
import math

import numpy as np
import pytest

from faults import fault
from upl_reid.core import ConfigError
from upl_reid.deployment.match_calibration import RATES, Calibration, draw_pairs, fit_calibration


def unit(x): return (x/np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("cameras", [1, 3])
def test_share_of_pairs_is_counted(cameras):
    rng = np.random.default_rng(0)
    y, c = rng.integers(-1, 6, 60), rng.integers(0, cameras, 60)
    same, apart, inside, outside = draw_pairs(y, c, 4000)
    pairs = [(i, j) for i in range(60) for j in range(i) if y[i] >= 0 and y[j] >= 0 and (c[i] != c[j] or cameras == 1)]
    assert inside == sum(y[i] == y[j] for i, j in pairs) and inside + outside == len(pairs)
    for p, equal in ((same, True), (apart, False)):
        assert ((y[p[0]] == y[p[1]]) == equal).all() and (y[p] >= 0).all() and (p[0] != p[1]).all()
        assert (cameras == 1 or (c[p[0]] != c[p[1]]).all())


def test_pairs_of_a_cluster_are_drawn_evenly():
    y, c = np.array([0]*2 + [1]*5), np.arange(7)
    same = draw_pairs(y, c, 220_000)[0]
    found, count = np.unique(np.sort(same, axis=0), axis=1, return_counts=True)
    assert found.shape[1] == 1 + 10 and count.min() > .95*count.mean() and count.max() < 1.05*count.mean()


def test_curve_and_thresholds_are_those_of_the_pairs():
    "Logistic regression by Newton's method on the same weighted pairs; the threshold by sorting."
    g = np.random.default_rng(1)
    y, c = np.arange(300) % 30, np.arange(300) // 30 % 5
    x = unit(g.normal(size=(30, 16))[y] + .8*g.normal(size=(300, 16)))
    told = fit_calibration(x, y, c, 20_000)
    same, apart, inside, outside = draw_pairs(y, c, 20_000)
    share = inside/(inside + outside)
    a, b = ((x[p[0]]*x[p[1]]).sum(1).astype(float) for p in (same, apart))
    s, t, w = np.r_[a, b], np.r_[np.ones(len(a)), np.zeros(len(b))], np.r_[np.full(len(a), share/len(a)),
            np.full(len(b), (1 - share)/len(b))]
    theta, X = np.zeros(2), np.stack([s, np.ones_like(s)], 1)
    for _ in range(60):
        p = 1/(1 + np.exp(-X @ theta))
        theta += np.linalg.solve((X.T*(w*p*(1 - p))) @ X, X.T @ (w*(t - p)))
    assert (told.slope, told.offset) == pytest.approx(tuple(theta), rel=2e-3)
    assert len(told.thresholds) == 3                                 # 14,000 pairs cannot tell one in 10,000
    fault(told.threshold, 1e-4, error=ConfigError)
    for rate, threshold in zip(RATES[:3], told.thresholds):
        assert (b > threshold).mean() == pytest.approx(rate, rel=.02, abs=1.5/len(b))
    assert told.threshold(1e-2) == told.thresholds[1] and told.thresholds[1] < told.threshold(3e-3) < told.thresholds[2]
    # on average as many as there are
    assert (w*told.probability(s)).sum() == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("labels, cams", [([-1]*6, [0, 1]*3), ([0]*6, [0, 1]*3), ([0, 1, 2, 3, 4, 5], [0, 1]*3),
                                          ([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1])])
def test_labels_without_pairs_cannot_calibrate(labels, cams):
    fault(fit_calibration, np.eye(6), np.array(labels), np.array(cams))


def test_what_a_calibration_cannot_be():
    for slope, offset, t in ((math.nan, 0, [0]*5), (1, math.inf, [0]*5), (1, 0, []), (1, 0, [0]*6),
                             (1, 0, [5, 4, 3, 2, 1]), (-1, 0, [0]*5), (0, 0, [0]*5)):
        fault(Calibration, slope, offset, t)
    for rate in (0, .5, 1e-7, -1): fault(Calibration(1, 0, range(5)).threshold, rate, error=ConfigError)
    assert Calibration(1e9, 0, range(5)).probability(np.array([-1e9, 1e9])).tolist() == pytest.approx([0, 1])
