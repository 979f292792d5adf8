"""Signs of a good adaptation against naive loops, and the cases that must be called out."""
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from torch import nn

from upl_reid.core import DataError
from upl_reid.data.image_bank import ImageBank
from upl_reid.deployment.adaptation_check import (CLEARLY_SOURCE, CLEARLY_WEIGHTS, LIMITS, camera_bias,
                                                  copies_found, cross_camera_share, effective_rank, keeps_cluster,
                                                  partition_stability, quality_in_words, quality_of, random_cosine,
                                                  starts_in_words,
                                                  warnings_of)

labels = st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4), st.integers(0, 2)), min_size=2, max_size=14)


def naive_index(a, b):
    "Adjusted Rand index by counting pairs."
    pairs = list(itertools.combinations([i for i in range(len(a)) if a[i] >= 0 and b[i] >= 0], 2))
    if not pairs: return math.nan
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    one, two = (sum(x[i] == x[j] for i, j in pairs) for x in (a, b))
    expected, most = one*two/len(pairs), (one + two)/2
    return 1. if most == expected else (both - expected)/(most - expected)


@given(labels)
def test_stability_counts_pairs(rows):
    a, b, _ = map(list, zip(*rows))
    both = sum(x >= 0 and y >= 0 for x, y in zip(a, b))
    if both < 2: assert math.isnan(partition_stability(a, b))
    else: assert partition_stability(a, b) == pytest.approx(naive_index(a, b), abs=1e-9)


@given(labels)
def test_cross_camera_share_by_hand(rows):
    a, _, cam = map(list, zip(*rows))
    clusters = {x for x in a if x >= 0}
    got = cross_camera_share(a, cam)
    if len(set(cam)) < 2 or not clusters: assert math.isnan(got)
    else:
        assert got == pytest.approx(sum(len({c for x, c in zip(a, cam) if x == k}) > 1 for k in clusters)/len(clusters))


@given(labels)
def test_kept_by_hand(rows):
    a, b, _ = map(list, zip(*rows))
    for i, got in enumerate(keeps_cluster(a, b)):
        mates = [j for j in range(len(a)) if a[j] == a[i]]
        wanted = a[i] >= 0 and b[i] >= 0 and 2*sum(b[j] == b[i] for j in mates) >= len(mates)
        assert got == wanted


def test_effective_rank_is_the_number_of_equal_directions():
    for k in (1, 3, 8):
        x = torch.cat([torch.eye(8)[:k], -torch.eye(8)[:k]])
        assert effective_rank(x) == pytest.approx(k, abs=1e-9)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double()
    c = np.cov(x.numpy().T)
    share = np.linalg.eigvalsh(c)/np.trace(c)
    assert effective_rank(x) == pytest.approx(math.exp(-(share*np.log(share)).sum()), rel=1e-9)
    assert effective_rank(torch.full((9, 4), .3)) == 1


def test_random_cosine_is_the_mean_over_pairs():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)) + 1
    u = torch.nn.functional.normalize(x, dim=1)
    mean = float(((u @ u.T).sum() - 40)/(40*39))
    assert random_cosine(x, 200_000) == pytest.approx(mean, abs=.01)


def round_of(hard, n=120, d=32, soft=None, features=None):
    g = torch.Generator().manual_seed(3)
    hard = torch.as_tensor(hard)
    x = torch.nn.functional.normalize(torch.randn(40, d, generator=g)[torch.arange(n) % 40] + .1*torch.randn(n, d,
            generator=g), dim=1) if features is None else features
    return {"features": x.half(), "labels.hard": hard, **({} if soft is None else {"labels.soft": soft})}


who, cam = np.arange(120) % 40, np.arange(120) // 40
good = round_of(who)


def test_good_rounds_are_left_in_peace():
    q = quality_of([good, good], cam)
    assert warnings_of(q) == []
    assert [q[k] for k in ("stability", "cross_camera", "used", "clusters", "images_a_cluster")] == [1, 1, 1, 40, 3]
    assert "no warnings" in quality_in_words(dict(**q, warnings=[]))


rng = np.random.default_rng(0)
BAD = {"one cluster": (round_of(np.zeros(120, int)), "clusters left: 1"), "all noise": (round_of(np.full(120, -1)),
        "clusters left: 0"), "giant": (round_of(np.where(np.arange(120) < 70, 0, who)), "one cluster has"),
       "mostly noise": (round_of(np.where(np.arange(120) % 40 < 10, who, -1)),
                        "% of the images"),
                        "collapse": (round_of(who, features=torch.ones(120, 32) + .01*torch.randn(120, 32)),
                                     "collapsed"),
       "unstable": (round_of(rng.permutation(who)),
                    "change from round to round"), "by camera": (round_of(cam*100 + who), "two cameras")}


@pytest.mark.parametrize("last, says", BAD.values(), ids=BAD)
def test_bad_rounds_are_called_out(last, says):
    import re
    said = warnings_of(quality_of([good, last], cam))
    assert any(re.search(says, s) for s in said), said


def test_unknown_cameras_are_a_warning():
    said = warnings_of(quality_of([good, good], np.zeros(120, int)))
    assert len(said) == 1 and "count as one camera" in said[0]


def test_confidence_is_measured_against_labels_that_stay():
    soft = torch.nn.functional.one_hot(torch.tensor(who), 40).float()*.5 + .5/40
    first = round_of(who, soft=soft)
    stays = quality_of([first, good], cam)
    assert stays["confidence"] == pytest.approx(.5 + .5/40, abs=1e-6)
    assert stays["confidence_error"] == pytest.approx(.5 - .5/40, abs=1e-6)
    assert math.isnan(quality_of([good, good], cam)["confidence"]) and math.isnan(quality_of([first], cam)["stability"])


FINE = dict(clusters=40, largest=.1, used=1., effective_rank=20., random_cosine=0., stability=1., cross_camera=1.,
            camera_bias=1.)


@pytest.mark.parametrize("sign, worse", dict(stability=-1, cross_camera=-1, used=-1, effective_rank=-1,
                                             random_cosine=1, camera_bias=1).items())
def test_a_limit_warns_on_its_wrong_side_only(sign, worse):
    assert LIMITS == dict(stability=.8, cross_camera=.6, used=.5, effective_rank=8., random_cosine=.8, camera_bias=5.)
    assert warnings_of(FINE) == [] == warnings_of({**FINE, sign: LIMITS[sign]})
    assert len(warnings_of({**FINE, sign: LIMITS[sign] + worse*.01})) == 1


def test_nothing_clustered_has_no_quality():
    with pytest.raises(DataError, match="nothing was clustered"): quality_of([], cam)


def test_camera_bias_is_the_ratio_of_a_double_loop():
    people, two = np.arange(300) % 150, np.arange(300) // 150
    g = torch.Generator().manual_seed(3)
    x = torch.randn(150, 12, generator=g)[people] + .5*torch.randn(2, 12, generator=g)[two]
    x = torch.nn.functional.normalize(x + .3*torch.randn(300, 12, generator=g), dim=1)
    labels = np.where(np.arange(300) < 10, -1, people)
    inside, across, unit = [], [], x.double().numpy()
    for i in range(300):
        for j in range(i):
            if min(labels[i], labels[j]) >= 0 and labels[i] != labels[j]:
                (inside if two[i] == two[j] else across).append(float(unit[i] @ unit[j]))
    threshold = sorted(across)[int(.99*len(across))]
    naive = 100*sum(c > threshold for c in inside)/len(inside)
    assert camera_bias(x, labels, two, rate=.01) == pytest.approx(naive, rel=.05)
    assert naive > 1.5


def test_camera_bias_needs_cameras_and_pairs():
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    for labels, cams in ((np.arange(200), np.zeros(200)), (np.full(200, -1), np.arange(200) % 2),
                         (np.where(np.arange(200) < 30, np.arange(200), -1), np.arange(200) % 2)):
        assert math.isnan(camera_bias(x, labels, cams))
    y = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    assert .3 < camera_bias(y, np.arange(400), np.arange(400) % 2) < 3


def test_a_model_that_compares_cameras_is_warned_of_however_stable():
    people, two = np.arange(400) % 200, np.arange(400) // 200
    g = torch.Generator().manual_seed(1)
    x = torch.randn(200, 32, generator=g)[people] + torch.randn(2, 32, generator=g)[two]
    last = {"features": torch.nn.functional.normalize(x, dim=1), "labels.hard": torch.as_tensor(people)}
    q = quality_of([last, last], two)
    assert q["stability"] == q["cross_camera"] == 1 and q["camera_bias"] > LIMITS["camera_bias"]
    assert [w for w in warnings_of(q) if "light and background" in w] == warnings_of(q)
    assert "times as often in one camera" in quality_in_words(dict(q, warnings=[]))


class Colours(nn.Module):
    "Mean colours of a grid of cells: knows each picture, whatever small thing happens to it."
    def forward(self, x): return nn.functional.normalize(nn.functional.adaptive_avg_pool2d(x, (4, 2)).flatten(1), dim=1)


class Noise(nn.Module):
    "Vectors that have nothing to do with the picture."
    def forward(self, x): return nn.functional.normalize(torch.randn(len(x), 8), dim=1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(60):
        cells = rng.integers(0, 256, (4, 2, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((16, 32), Image.Resampling.NEAREST).save(folder/f"{i:02d}.png")
    return ImageBank(sorted(folder.glob("*.png")), (32, 16))


def test_copies_are_found_by_vectors_that_know_their_picture(pictures):
    good = copies_found(Colours(), pictures)
    assert good > .4 and copies_found(Noise(), pictures) < .15 and good == copies_found(Colours(), pictures)
    seventh = 7*copies_found(Colours(), pictures, most=7)                # of every ninth picture, seven copies
    assert seventh == pytest.approx(round(seventh)) and seventh > 0
    state = torch.get_rng_state()
    copies_found(Colours(), pictures, most=7)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("source, weights, says", [
    (.22, .31, "the weights alone look better"), (.45, .22, "the source looks better"), (.25, .30, "too close to tell"),
    (.31, .22, "too close to tell"),
    (0., 0., "too close to tell"), (0., .1, "the weights alone look better")])
def test_starts_in_words(source, weights, says):
    assert says in starts_in_words(source, weights, "plaza") and (CLEARLY_WEIGHTS, CLEARLY_SOURCE) == (1.25, 2.)
