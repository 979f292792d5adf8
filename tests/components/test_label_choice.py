"""The choice among ways to cluster, against naive loops over all pairs of images."""
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from small import people_in_cameras
from upl_reid.components.clustering import camera_center, dbscan
from upl_reid.components.label_choice import (choose_clustering, cross_camera_agreement, split_dimensions,
                                              view_agreement)
from upl_reid.components.neighbours import jaccard_distance
from upl_reid.core import DataError


def naive_agreement(a, b, cams):
    "The definition, pair by pair."
    in_a = in_b = both = possible = 0
    for i, j in itertools.combinations(range(len(a)), 2):
        if cams[i] == cams[j]: continue
        one, other = a[i] == a[j] >= 0, b[i] == b[j] >= 0
        possible, in_a, in_b, both = possible + 1, in_a + one, in_b + other, both + (one and other)
    if not possible: return 0.
    chance = in_a*in_b/possible
    top = (in_a + in_b)/2 - chance
    return (both - chance)/top if top > 0 else 0.


labellings = st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4), st.integers(0, 3)), min_size=1, max_size=30)


@settings(deadline=None, max_examples=200)
@given(labellings)
def test_agreement_is_that_of_all_pairs(rows):
    a, b, cams = np.array(rows).T
    found = cross_camera_agreement(a, b, cams*7 - 3)
    assert found == pytest.approx(naive_agreement(a, b, cams), abs=1e-12) and found <= 1 + 1e-12
    assert cross_camera_agreement(torch.tensor(b), torch.tensor(a), torch.tensor(cams)) == pytest.approx(found)


def test_labels_that_say_nothing_agree_by_chance_only():
    cams = np.arange(40) % 4
    one, none = np.zeros(40, int), np.full(40, -1)
    for a, b in itertools.product((one, none), repeat=2): assert cross_camera_agreement(a, b, cams) == 0
    rng = np.random.default_rng(0)
    drawn = [cross_camera_agreement(*rng.integers(0, 5, (2, 400)), np.arange(400) % 4) for _ in range(30)]
    assert abs(np.mean(drawn)) < .01
    assert cross_camera_agreement(np.arange(40)//4, np.arange(40)//4, cams) == 1


def test_the_two_views_share_no_dimension_and_leave_none_out():
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = split_dimensions(x)
    assert a.shape == (50, 3) and b.shape == (50, 4)
    assert torch.allclose(a.norm(dim=1), torch.ones(50).double()) and torch.allclose(b.norm(dim=1), a.norm(dim=1))
    columns = []                               # each column of a view is one of x, times the rows' lengths
    for half in (a, b):
        for column in half.T:
            columns += [k for k in range(7) if torch.equal(torch.sign(column), torch.sign(x[:, k]))]
    assert sorted(columns) == list(range(7))
    again, other = split_dimensions(x), split_dimensions(x, 1)
    assert torch.equal(a, again[0]) and not torch.equal(a.sign(), other[0].sign())
    assert isinstance(split_dimensions(x.numpy())[0], np.ndarray)


def one_dbscan(k1, min_samples=2):
    def cluster(x, cams): return dbscan(jaccard_distance(camera_center(x, cams), k1, 2), .5, min_samples)
    return cluster


def test_the_way_that_finds_people_is_chosen():
    x, pid, cam = people_in_cameras(40, 4, 8, .6, dim=64)
    def truth(x, cams): return pid
    def half_right(x, cams): return torch.where(torch.arange(len(pid)) % 2 == 0, pid, pid[torch.arange(len(pid)) - 32])
    def noise(x, cams): return x[:, :5].argmax(1)
    best, found = choose_clustering([noise, one_dbscan(4), one_dbscan(30)], x, cam)
    assert best == 2 and found[2] > .5 > found[1] and abs(found[0]) < .2
    assert choose_clustering([half_right, truth], x, cam) == (0, [1., 1.])     # equal: the first
    assert found[2] == view_agreement(one_dbscan(30), x, cam)
    each = [cross_camera_agreement(*(one_dbscan(30)(h, cam) for h in split_dimensions(x, s)), cam) for s in range(3)]
    assert found[2] == pytest.approx(np.mean(each)) and len(set(each)) > 1


def test_one_camera_leaves_the_first_way():
    x, pid, cam = people_in_cameras(10, 2, 4, .3)
    def never(x, cams): raise AssertionError("must not be called")
    assert choose_clustering([never, never], x, torch.zeros_like(cam)) == (0, [0., 0.])


def test_a_way_that_fails_is_never_preferred():
    x, pid, cam = people_in_cameras(20, 3, 4, .3)
    def fails(x, cams): raise DataError("too few clusters")
    best, found = choose_clustering([fails, one_dbscan(6)], x, cam)
    assert best == 1 and found[0] == 0 < found[1]
    assert choose_clustering([fails, fails], x, cam)[0] == 0


def test_what_cannot_be_compared_is_refused():
    x, pid, cam = people_in_cameras(4, 2, 2, .3)
    with pytest.raises(DataError, match="at least one"): choose_clustering([], x, cam)
    with pytest.raises(DataError, match="cannot be split"): split_dimensions(x[:, :1])
    with pytest.raises(DataError, match="camids"): cross_camera_agreement(pid, pid, cam[1:])
    with pytest.raises(DataError, match="shapes"): cross_camera_agreement(pid, pid[1:], cam)
