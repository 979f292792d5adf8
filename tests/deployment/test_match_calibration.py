"""Calibration of cosines: pairs and curves against naive counts, and labels that cannot calibrate."""
import math

import numpy as np
import pytest

from faults import fault
from upl_reid.core import ConfigError
from upl_reid.deployment.match_calibration import (RATES, Calibration, cluster_images, draw_pairs, fit_calibration,
                                                 measure_thresholds, rate_in_words, rate_interval)


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
    for second in ((.1,), (.1, .2, .3, .4, .5, .6), (2., .1, .1, .1, .1)): fault(Calibration, 1, 0, range(5), second)
    fault(rate_interval, Calibration(1, 0, range(5), (.1,)*5), 3e-3, error=ConfigError)


def people_of(count, images, seed, noise=.4):
    "Unit vectors of some people with that many images each, half of them in each of two cameras."
    who = np.arange(count*images) % count
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=(count, 32))[who] + noise*rng.normal(size=(len(who), 32))), who, np.arange(
            len(who)) // count % 2


def test_a_second_clustering_gives_the_share_of_its_own_pairs():
    x, who, cam = people_of(60, 4, 0)
    merged = who // 2                                                # pairs of people are taken for one
    told = fit_calibration(x, who, cam, 200_000, second=merged)
    for threshold, share in zip(told.thresholds, told.second):
        pairs = [x[i] @ x[j] > threshold for i in range(240) for j in range(i)
                 if cam[i] != cam[j] and merged[i] != merged[j]]
        assert share == pytest.approx(np.mean(pairs), abs=3*math.sqrt(share/2e5) + 1e-9)
    low, high = rate_interval(told, 1e-2)
    assert (low, high) == (min(1e-2, told.second[1]), max(1e-2, told.second[1]))
    assert fit_calibration(x, who, cam, 1000, second=np.full(240, -1)).second == ()


def test_clusters_of_two_images_could_all_be_wrong():
    x, who, cam = people_of(150, 2, 0)
    who[[0, 150 + 1]] = -1                                           # two images are in no cluster
    told = fit_calibration(x, who, cam, 400_000, second=who)
    for threshold, share in zip(told.thresholds, told.second):       # all pairs count as different people
        pairs = [x[i] @ x[j] > threshold for i in range(300) for j in range(i)
                 if cam[i] != cam[j] and min(who[i], who[j]) >= 0]
        assert share == pytest.approx(np.mean(pairs), abs=4*math.sqrt(share/2e5) + 1e-9)
    assert "cannot be told" in rate_in_words(told, 1e-3) and "cannot be told" not in rate_in_words(told, 1e-1)
    x, who, cam = people_of(150, 4, 0)                               # a third image could contradict
    told = fit_calibration(x, who, cam, 400_000, second=who)
    assert told.second == pytest.approx([1e-1, 1e-2, 1e-3, 1e-4][:len(told.second)], rel=.7)


def test_doubt_is_said_where_two_clusterings_differ():
    seconds = (.1, .01, .0012), (.1, .01, .004)
    sure, unsure = (rate_in_words(Calibration(9, -5, (.6, .7, .8), s), 1e-3) for s in seconds)
    assert "0.001 to 0.0012" in sure and "cannot be told" not in sure
    assert "cannot be told" in unsure and "0.004" in unsure
    assert "two estimates" in unsure and "two estimates" not in rate_in_words(Calibration(9, -5, (.6, .7, .8)), 1e-3)


def test_people_are_clustered_as_they_are():
    from sklearn.metrics import adjusted_rand_score
    x, who, cam = people_of(100, 6, 2)
    for size in (6, None):
        labels = cluster_images(x, cam, size)
        used = labels >= 0
        assert used.mean() > .95 and adjusted_rand_score(who[used], labels[used]) > .95


def test_a_gallery_raises_thresholds_that_are_too_low_and_keeps_high_ones():
    x, who, cam = people_of(300, 4, 3)
    true = fit_calibration(x, who, cam).thresholds[:3]
    low, high = Calibration(9, -5, (-.2, -.1, 0)), Calibration(9, -5, (.9, .95, .99))
    raised = measure_thresholds(low, x, cam)
    assert raised.thresholds == pytest.approx(true, abs=.03) and (raised.slope, raised.offset) == (9, -5)
    assert measure_thresholds(high, x, cam).thresholds == high.thresholds
    assert len(raised.second) == 3 and raised.second[2] == pytest.approx(1e-3, rel=.6)


@pytest.mark.parametrize("case", ["few", "one camera", "no clusters"])
def test_a_gallery_that_cannot_measure_keeps_the_models(case):
    x, who, cam = people_of(300, 4, 4)
    if case == "few": x, cam = x[:400], cam[:400]
    if case == "one camera": cam = cam*0
    if case == "no clusters": x, cam = unit(np.random.default_rng(0).normal(size=(600, 300))), np.arange(600) % 2
    assert measure_thresholds(Calibration(9, -5, (.1, .2, .3)), x, cam) is None


def test_a_gallery_has_the_thresholds_that_it_measured(tmp_path):
    from types import SimpleNamespace

    from upl_reid.cli import measure_gallery
    from upl_reid.deployment import open_gallery
    x, who, cam = people_of(300, 4, 5)
    model = SimpleNamespace(calibration=Calibration(9, -5, (-.2, -.1, 0)))
    with open_gallery(tmp_path/"g.safetensors", dim=32, calibration=model.calibration, change=True) as gallery:
        gallery.add(x, [f"p{i}" for i in range(len(x))], [f"c{c}" for c in cam]).commit()
        measure_gallery(gallery, model)
        kept = gallery.calibration
        measure_gallery(gallery, model)
    assert gallery.calibration == kept
    assert kept.thresholds == pytest.approx(fit_calibration(x, who, cam).thresholds[:3], abs=.03)
