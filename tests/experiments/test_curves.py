"""Curves: read at the right epoch, compared as defined, and what they say about a queue and a meta-gradient agrees with
the parts themselves."""
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st

from upl_reid.core import DataError
from upl_reid.experiments.curves import (
    convergence_in_words, curve_frame, draw_curves, epoch_curve, label_confidence, mean_curve, meta_steps, noise_level,
    queue_use, ranking_curve, round_curve, settling_epoch, steps_an_epoch)
from upl_reid.components.memory import MemoryBank
from upl_reid.evaluation.calibration import pseudo_label_ece, expected_calibration_error
from upl_reid.experiments.config import PRESETS, RunConfig
from upl_reid.experiments.runs import Run
from upl_reid.core import write_tensors
from upl_reid.components.srmo import SRMO


def pretend(folder, rows=(), rounds=(), method="upl", seed=0, preset="tiny", **args):
    """A run directory with just enough in it to be read."""
    run = Run(RunConfig(preset, "plaza", "campus", method, args, seed), folder/f"run{len(list(folder.iterdir()))}")
    run.path.mkdir()
    (run.path/"history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.path/"metrics.json").write_text(json.dumps(dict(rounds=list(rounds))))
    return run


def line(values, epochs=None):
    return pd.Series(list(map(float, values)), range(len(values)) if epochs is None else epochs)


# ---- reading

def test_the_two_figures_of_one_name_are_told_apart(tmp_path):
    rows, rounds = [dict(epoch=e, nce=e/10) for e in (1, 2, 3, 4)], [dict(epoch=1, nce=5.), dict(epoch=3, nce=4.)]
    run = pretend(tmp_path, rows, rounds)
    assert epoch_curve(run, "nce").to_dict() == {1: .1, 2: .2, 3: .3, 4: .4}
    assert round_curve(run, "nce").to_dict() == {0: 5., 2: 4.}      # the second clustering saw two epochs of training
    assert epoch_curve(run, "nce").index.name == round_curve(run, "nce").index.name == "epochs"


def test_what_a_run_does_not_note_is_named(tmp_path):
    run = pretend(tmp_path, [dict(epoch=1, loss=1.)], [dict(epoch=1, ari=.5)])
    with pytest.raises(DataError, match="'mix' in its history; it has epoch, loss"): epoch_curve(run, "mix")
    with pytest.raises(DataError, match="'mix' in its clusterings; it has epoch, ari"): round_curve(run, "mix")
    with pytest.raises(DataError, match="it has none"): round_curve(pretend(tmp_path, method="direct"), "ari")


@pytest.mark.parametrize("epochs", [[], [0, 2], [0, 1]])
def test_a_run_without_the_test_of_each_round_is_named(tmp_path, epochs):
    run = pretend(tmp_path)
    (run.path/"metrics.json").write_text(json.dumps(dict(tests=[dict(epoch=e, mAP=.5, rank1=.5) for e in epochs])))
    with pytest.raises(DataError, match="did not keep the test mAP of its rounds.*again=True"): ranking_curve(run)


def test_mean_curve_is_the_mean_at_each_epoch_of_the_same_epochs_only():
    rng = np.random.default_rng(0)
    values = rng.random((3, 5))
    mean = mean_curve([line(v, range(1, 6)) for v in values])
    assert list(mean.index) == [1, 2, 3, 4, 5]
    assert mean.tolist() == pytest.approx([sum(values[s][e] for s in range(3))/3 for e in range(5)])
    with pytest.raises(DataError, match="same epochs"): mean_curve([line([1, 2]), line([1, 2], [1, 2])])
    with pytest.raises(DataError, match="same epochs"): mean_curve([line([1, 2]), line([1, 2, 3])])


def test_a_band_spans_the_seeds_and_a_single_seed_has_none():
    fig, (one, three) = plt.subplots(1, 2)
    draw_curves(one, [line([3, 2, 1])], label="alone")
    draw_curves(three, [line([3, 2, 1]), line([5, 1, 1]), line([4, 3, 0])], color="red")
    assert len(one.collections) == 0 and one.lines[0].get_label() == "alone"
    assert three.lines[0].get_ydata().tolist() == pytest.approx([4, 2, 2/3]) and three.lines[0].get_color() == "red"
    corners = three.collections[0].get_paths()[0].vertices
    for x, low, high in ((0, 3, 5), (1, 1, 3), (2, 0, 1)):
        heights = corners[corners[:, 0] == x][:, 1]
        assert (heights.min(), heights.max()) == (low, high)
    plt.close(fig)


def test_every_point_of_a_frame_names_its_run(tmp_path):
    run_of = lambda seed: pretend(tmp_path, [dict(epoch=e, loss=e + 10*seed) for e in (1, 2)], seed=seed)
    keys = ("a", "plaza", "campus"), ("b", "campus", "plaza")
    runs = {key: [run_of(seed) for seed in (0, 1)] for key in keys}
    frame = curve_frame(runs, lambda r: epoch_curve(r, "loss"), "training loss")
    columns = ["configuration", "source", "target", "measure", "epoch", "seed", "value", "run"]
    assert list(frame.columns) == columns and len(frame) == 8
    for point in frame.itertuples():
        run = next(r for r in runs[point.configuration, point.source, point.target] if r.id == point.run)
        assert run.config.seed == point.seed and point.measure == "training loss"
        assert point.value == point.epoch + 10*point.seed


# ---- faster

def settles_naively(curve, level):
    """Walk from the end to the front, one point at a time."""
    points = list(curve.items())
    if math.isnan(points[-1][1]) or points[-1][1] > level: return math.nan
    i = len(points) - 1
    while i > 0 and points[i - 1][1] <= level: i -= 1
    if i == 0: return float(points[0][0])
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    return x0 + (x1 - x0)*(y0 - level)/(y0 - y1)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.floats(-5, 5), st.integers(1, 4))
def test_settles_agrees_with_a_walk_from_the_end(values, level, step):
    curve = line(values, range(0, step*len(values), step))
    assert settling_epoch(curve, level) == pytest.approx(settles_naively(curve, level), nan_ok=True)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.floats(-5, 5), st.floats(0, 5))
def test_a_higher_level_is_never_reached_later(values, level, more):
    low, high = settling_epoch(line(values), level), settling_epoch(line(values), level + more)
    assert math.isnan(low) or high <= low


def test_a_curve_settles_at_its_own_end_and_a_level_on_a_point_counts():
    assert settling_epoch(line([4, 3, 2, 1]), 1.) == 3. and settling_epoch(line([4, 3, 2, 1]), 3.) == 1.
    assert settling_epoch(line([4, 1, 5, 2], [1, 3, 5, 7]), 2.) == 7.
    assert math.isnan(settling_epoch(line([1, math.nan]), 2.))


def test_the_sentence_gives_the_share_of_epochs_saved_or_lost():
    sooner = convergence_in_words("Loss", "with", "without", line([4, 1, 1, 1, 1]), line([4, 3.5, 3, 2.5, 2]))
    assert sooner == ("Loss goes from 4.00 to 1.00 with and from 4.00 to 2.00 without: it stays at or below 2.00 after "
                      "0.7 epochs with and after 4.0 without, 83 % fewer.")
    later = convergence_in_words("Loss", "with", "without", line([4, 4, 4, 4, 1]), line([4, 2, 2, 2, 2]))
    # without, the loss had settled after 1 epoch, not at its end
    assert "after 3.7 epochs with and after 1.0 without, 267 % more." in later


@pytest.mark.parametrize("ours, theirs, said", [
    ([4, 3, 3], [4, 3, 2], "never comes to stay at or below 2.00"),
    ([4, 1, 3], [4, 3, 2], "never"),
    ([2, 1, 0], [2, 3, 4], "does not fall without"),
    ([2, 2], [2, 2], "does not fall"),
    ([1, .5, .2], [4, 3, 2], "from its first point on")])
def test_no_percentage_where_it_would_be_an_accident(ours, theirs, said):
    sentence = convergence_in_words("Loss", "with", "without", line(ours), line(theirs))
    assert said in sentence and "%" not in sentence


# ---- the queue

@pytest.mark.parametrize("images, args", [
    (200, {}), (200, dict(queue=40)), (200, dict(queue=512, max_queue_share=1e6)),
    (90, dict(max_queue_share=.001)), (40, dict(max_queue_share=3.))])
def test_queue_use_is_what_a_memory_has_after_the_same_batches(tmp_path, images, args):
    budget, classes = PRESETS["tiny"].adapt, [20, 5]
    run = pretend(tmp_path, [dict(epoch=e + 1, classes=c) for e, c in enumerate(classes)], **args)
    size = max(1, min(args.get("queue", 8192), int(args.get("max_queue_share", .5)*images)))
    memory, full = MemoryBank(size, 2), False
    for c in classes:
        for _ in range(max(1, images//(budget.identities*budget.images))):
            n = min(budget.identities, c)*budget.images
            memory.enqueue(torch.zeros(n, 2), torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long))
            full = full or len(memory) == size
    expected = dict(size=size, seen=memory.stored, held=len(memory), full=full, ages=len(memory)/images)
    assert queue_use(run, images) == expected


def test_a_run_without_memory_has_no_queue(tmp_path):
    for options in (dict(moco=False), dict(method="direct")):
        run = pretend(tmp_path, [dict(epoch=1, classes=9)], **options)
        with pytest.raises(DataError, match="no memory"): queue_use(run, 100)


def test_steps_follow_the_preset(tmp_path):
    assert steps_an_epoch(pretend(tmp_path, preset="demo"), 10**6) == PRESETS["demo"].adapt.steps
    assert steps_an_epoch(pretend(tmp_path, preset="gpu"), 12936) == 12936//64
    assert steps_an_epoch(pretend(tmp_path), 31) == 1               # fewer images than a batch: one step all the same


# ---- the meta-gradient

@pytest.mark.parametrize("every", [1, 3, 10])
def test_meta_steps_are_those_that_are_due(tmp_path, every):
    run = pretend(tmp_path, [dict(epoch=e) for e in (1, 2, 3, 4, 5)], meta_every=every)
    srmo = SRMO(("ce", "triplet"), every=every)
    steps = steps_an_epoch(run, 200)
    due = {e: sum(srmo.due(step) for step in range(e*steps)) for e in (1, 2, 3, 4, 5)}
    assert meta_steps(run, 200).to_dict() == due


def test_noise_level_is_the_ratio_that_random_directions_give():
    rng, k = np.random.default_rng(1), 40
    ratios = []
    for _ in range(400):
        srmo = SRMO(("a", "b", "c", "d"))
        for g in rng.standard_normal((k, 4)): srmo.update(torch.from_numpy(g))
        ratios.append(float(srmo.signal_to_noise()))
    level, limit = (noise_level(pd.Series([k]), f).iloc[0] for f in (1., 1.96))
    assert np.sqrt(np.mean(np.square(ratios))) == pytest.approx(level, rel=.1)
    assert np.mean(np.array(ratios) > limit) < .05


def test_too_few_meta_steps_have_no_level():
    assert noise_level(pd.Series([0, 1, 2])).isna().tolist() == [True, True, False]
    assert noise_level(pd.Series([3, 4]), 1.96).isna().tolist() == [True, False]


# ---- calibration

def labelled(tmp_path, **tensors):
    run = pretend(tmp_path)
    first = dict(hard=torch.zeros(4, dtype=torch.long), weight=torch.ones(4), centroids=torch.zeros(1, 3))
    for name, labels in (("001", first), ("003", tensors)):
        write_tensors(run.path/"rounds"/f"{name}.safetensors", {f"labels.{k}": v for k, v in labels.items()})
    return run


def test_confidence_and_truth_are_those_of_the_last_round(tmp_path):
    rng, n, k = np.random.default_rng(2), 60, 6
    soft, hard, pids = rng.dirichlet(np.ones(k), n).astype(np.float32), rng.integers(-1, k, n), rng.integers(0, 9, n)
    run = labelled(tmp_path, hard=torch.from_numpy(hard), soft=torch.from_numpy(soft), weight=torch.ones(n),
                   centroids=torch.zeros(k, 3))
    sure, right = label_confidence(run, pids)
    used = [i for i in range(n) if hard[i] >= 0]
    assert sure.tolist() == [float(soft[i, hard[i]]) for i in used]
    for i, r in zip(used, right):
        members = [pids[j] for j in used if hard[j] == hard[i]]
        assert r == (pids[i] == min(set(members), key=lambda p: (-members.count(p), p)))
    assert expected_calibration_error(sure, right) == pytest.approx(pseudo_label_ece(soft, hard, pids), abs=1e-6)


def test_labels_that_are_not_soft_have_no_confidence(tmp_path):
    hard = labelled(tmp_path, hard=torch.tensor([0, 0, 1, 1]), weight=torch.ones(4), centroids=torch.zeros(2, 3))
    with pytest.raises(DataError, match="no soft labels"): label_confidence(hard, np.arange(4))
    direct = pretend(tmp_path, method="direct")
    with pytest.raises(DataError, match="no soft labels"): label_confidence(direct, np.arange(4))
