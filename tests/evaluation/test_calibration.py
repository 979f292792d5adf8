"Calibration error and correctness of pseudo-labels against counting, plus edge cases and faults."
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from upl_reid.core import ConfigError, DataError
from upl_reid.evaluation.calibration import (expected_calibration_error, pseudo_label_correct, pseudo_label_ece,
                                             reliability_bins)

def naive_ece(confidence, correct, n_bins):
    total = 0
    for b in range(n_bins):
        inside = [i for i, c in enumerate(confidence) if b/n_bins < c <= (b + 1)/n_bins or (b == 0 and c == 0)]
        if not inside: continue
        gap = np.mean([correct[i] for i in inside]) - np.mean([confidence[i] for i in inside])
        total += len(inside)/len(confidence)*abs(gap)
    return total

confidences = st.one_of(st.floats(0, 1), st.integers(0, 30).map(lambda k: k/30))

@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(confidences, st.booleans()), min_size=1, max_size=60), st.integers(1, 30))
def test_ece_equals_naive_loop(pairs, n_bins):
    confidence, correct = zip(*pairs)
    wanted = naive_ece(confidence, correct, n_bins)
    assert expected_calibration_error(confidence, correct, n_bins) == pytest.approx(wanted, abs=1e-12)

def test_bins_close_at_their_upper_edge_in_every_precision():
    for kind in (np.float32, np.float64):
        for n_bins in (10, 15, 20):
            edges = np.array([float(f"{k/n_bins:.17g}") for k in range(1, n_bins + 1)]).astype(kind)
            count, mean, accuracy = reliability_bins(edges, np.ones(n_bins, bool), n_bins)
            assert count.tolist() == [1]*n_bins and np.allclose(mean, edges) and (accuracy == 1).all()
    count, mean, accuracy = reliability_bins(torch.tensor([0., 1e-9]), torch.tensor([0, 1]), 4)
    assert count.tolist() == [2, 0, 0, 0] and accuracy[0] == .5
    assert np.isnan(mean[1:]).all() and np.isnan(accuracy[1:]).all()

def test_ece_extremes():
    assert expected_calibration_error([1., 1.], [True, True]) == 0
    assert expected_calibration_error([1., 1.], [False, False]) == 1
    rounded_up = torch.full((3,), 1 + 1e-7, dtype=torch.float64)        # as a softmax may give
    assert expected_calibration_error(rounded_up, [1, 1, 1]) == 0

@pytest.mark.parametrize("confidence, correct", [
    ([], []), ([.5], [1, 0]), ([1.2], [1]), ([-.1], [1]), ([float("nan")], [1]), ([.5], [2]), ([[.5]], [[1]]),
    (["a"], [1]), ([.5], ["no"]), ([[.5], [.5, .5]], [1, 1])])
def test_bad_calibration_input_is_refused(confidence, correct):
    with pytest.raises(DataError): expected_calibration_error(confidence, correct)

def test_no_bins_are_refused():
    for bins in (0, 2.5, "10", True):
        with pytest.raises(ConfigError, match="whole number of at least 1"): expected_calibration_error([.5], [1], bins)

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(1, 4)), min_size=1, max_size=40))
def test_pseudo_label_correct_equals_counting(pairs):
    votes = {}
    for k, pid in pairs: votes.setdefault(k, Counter())[pid] += 1
    majority = {k: min(c, key=lambda pid: (-c[pid], pid)) for k, c in votes.items()}
    hard, pids = map(np.array, zip(*pairs))
    assert pseudo_label_correct(hard, pids).tolist() == [majority[k] == pid for k, pid in pairs if k >= 0]

def test_pseudo_label_ece_reads_the_mass_on_the_hard_label():
    rng = np.random.default_rng(0)
    hard, pids = rng.integers(-1, 5, 80), rng.integers(1, 7, 80)
    soft = rng.dirichlet(np.ones(5), 80)
    used = [i for i in range(80) if hard[i] >= 0]
    confidence = [soft[i, hard[i]] for i in used]
    expected = naive_ece(confidence, pseudo_label_correct(hard, pids).tolist(), 10)
    assert pseudo_label_ece(soft, hard, pids, 10) == pytest.approx(expected)
    alone = np.array([soft[i, hard[i]] if hard[i] >= 0 else np.nan for i in range(80)]) # noise is not read
    assert pseudo_label_ece(*map(torch.from_numpy, (alone, hard, pids)), 10) == pytest.approx(expected)
    assert math.isnan(pseudo_label_ece(soft, np.full(80, -1), pids))
    with pytest.raises(DataError, match="no column"): pseudo_label_ece(soft[:, :3], hard, pids)
    with pytest.raises(DataError, match="pids"): pseudo_label_ece(soft, hard, pids[1:])

def test_unknown_people_are_neither_right_nor_wrong():
    hard, pids = np.array([0, 0, 0, 1, 1, 1]), np.array([-1, -1, -1, 5, 5, 6])
    assert pseudo_label_correct(hard, pids).tolist() == [True, True, False]
    confidence = np.array([.1, .1, .1, .9, .8, .7])
    assert pseudo_label_ece(confidence, hard, pids) == pseudo_label_ece(confidence[3:], hard[3:], pids[3:])
