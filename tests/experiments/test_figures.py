"""Figures of two methods: what is drawn is what naive code finds in the stored clusterings."""
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from sklearn import metrics

from small import people_in_cameras
from upl_reid.core import DataError, write_tensors
from upl_reid.data.splits import Split
from upl_reid.experiments import figures
from upl_reid.experiments.config import RunConfig
from upl_reid.experiments.figures import (
    arranged_probabilities, best_round, clusters_of, consistency_curve, draw_clusters, draw_panels, draw_parameters,
    draw_silhouettes, draw_uncertainties, FIGURES, map_within, mean_uncertainty, parameter_rows, people_part,
    ranking_reader, repeated_best, separation, silhouettes_of, SILHOUETTE_BINS, spread_rows, stored_round,
    training_curve, typical_images, uncertainties_of)
from upl_reid.experiments.runs import Run


class Place:
    """A target with these training images."""
    def __init__(self, train): self.train = train


@pytest.fixture
def split(tmp_path):
    """Twelve people in three cameras, with pictures."""
    _, pid, cam = people_in_cameras(12, 3, 2, .3)
    Image.new("RGB", (8, 16), (90, 20, 20)).save(tmp_path/"a.png")
    return Split((tmp_path/"a.png",)*len(pid), pid.numpy(), cam.numpy())


@pytest.fixture
def run(tmp_path, split):
    """A run with two clusterings of these people: one with swaps and noise, one that is right."""
    x, pid, _ = people_in_cameras(12, 3, 2, .3)
    run = Run(RunConfig("tiny", "plaza", "campus", "dbscan"), tmp_path/"run")
    (run.path/"rounds").mkdir(parents=True)
    wrong = pid.clone()
    wrong[::5], wrong[::7] = (wrong[::5] + 1) % 12, -1
    for i, y in enumerate((wrong, pid)):
        write_tensors(run.path/"rounds"/f"{i + 1:03d}.safetensors", {"features": x.half(), "labels.hard": y})
    (run.path/"metrics.json").write_text(json.dumps(dict(rounds=[dict(epoch=1), dict(epoch=3)])))
    return run


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def of(run): return {("one", "plaza", "campus"): [run]}


@pytest.mark.parametrize("at", [2, -3])
def test_a_clustering_that_is_not_there_is_named(run, at):
    with pytest.raises(DataError, match=f"has 2 clusterings, so none at {at}"): stored_round(run, at)


def test_silhouettes_are_those_of_scikit_learn(run):
    found = silhouettes_of(run)
    assert list(found) == [0, 2]
    for at, each in enumerate(found.values()):
        x, y = stored_round(run, at)
        x = torch.nn.functional.normalize(x.double(), dim=1).numpy()
        s = metrics.silhouette_samples(x[y >= 0], y[y >= 0])
        assert each["mean"] == pytest.approx(s.mean(), abs=1e-4) and sum(each["counts"]) == (y >= 0).sum()
        assert np.abs(np.array(each["counts"]) - np.histogram(s, SILHOUETTE_BINS)[0]).sum() <= 2      # at an edge
    drawn = draw_silhouettes(of(run))
    assert drawn.numbers["images"].sum() == sum(sum(each["counts"]) for each in found.values())
    assert len(drawn.words) == 1 and "after 2 epochs 72 images" in drawn.words[0]


def test_uncertainties_are_divergences_from_one_peak(run, split):
    u, right = uncertainties_of(run, split.pids, 0)
    x, y = stored_round(run, 0)
    x = torch.nn.functional.normalize(x.double(), dim=1).numpy()
    centroids = np.stack([x[y == k].mean(0) for k in range(y.max() + 1)])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    expected, truth = [], []
    for i in np.flatnonzero(y >= 0):
        p = np.exp(20*x[i] @ centroids.T)
        p /= p.sum()
        q = np.full(len(p), .01/(len(p) - 1))
        q[y[i]] = .99
        expected.append((q*np.log(q/p)).sum())
        same = split.pids[y == y[i]]
        truth.append((same == split.pids[i]).sum() == max((same == who).sum() for who in same))
    assert u == pytest.approx(expected, abs=2e-3) and (right == truth).mean() > .98        # ties go to the lower pid
    assert mean_uncertainty(run).loc[0] == pytest.approx(np.mean(expected), abs=2e-3)
    drawn = draw_uncertainties(of(run), lambda name: Place(split))
    counted = drawn.numbers.groupby("label")["images"].sum()
    assert counted["right"] == right.sum() and counted["wrong"] == (~right).sum()


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=25))
def test_separation_is_the_share_of_pairs(pairs):
    u, right = (np.array(column) for column in zip(*pairs))
    wins = [(a > b) + .5*(a == b) for a in u[~right] for b in u[right]]
    assert separation(u, right) == pytest.approx(np.mean(wins)) if wins else np.isnan(separation(u, right))


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=9, unique=True), st.data())
def test_probabilities_fall_to_both_sides_of_the_label(numbers, data):
    p, label = np.array(numbers)/sum(numbers), data.draw(st.integers(0, len(numbers) - 1))
    out, middle = arranged_probabilities(p, label), len(p)//2
    assert sorted(out) == sorted(p) and out[middle] == p[label]
    assert all(np.diff(out[middle + 1:]) < 0) and all(np.diff(out[:middle]) > 0)


def test_typical_images_are_nearest_to_the_median_of_their_kind():
    u, right = np.array([5., 1., 2., 3., 9., 4.]), np.array([False, True, True, True, False, False])
    assert typical_images(u, right) == dict(wrong=0, right=2)
    assert typical_images(u[:5], np.ones(5, bool)) == dict(right=3)


def test_people_of_two_parts_are_apart_and_too_many_parts_are_named(split):
    parts = [people_part(split, .25, n) for n in range(4)]
    assert np.stack(parts).sum(0).tolist() == [1]*len(split.pids)
    assert all(len(set(split.pids[part])) == 3 for part in parts)
    with pytest.raises(DataError, match="there are 12 people; take a smaller share"): people_part(split, .25, 4)


def test_map_within_a_part_is_the_mean_over_images_by_loops(run, split):
    x = stored_round(run)[0].double()
    x = torch.nn.functional.normalize(x, dim=1)
    found = []
    for i in range(len(x)):
        own = (split.pids == split.pids[i]) & (split.camids == split.camids[i])
        order = [j for j in np.argsort(-(x @ x[i]).numpy(), kind="stable") if not own[j]]
        hits = np.array([split.pids[j] == split.pids[i] for j in order])
        found.append(np.mean([hits[:r + 1].mean() for r in np.flatnonzero(hits)]))
    assert map_within(x, split) == pytest.approx(100*np.mean(found), abs=1e-6)
    curve = training_curve(run, split)
    assert list(curve.index) == [0, 2] and curve.loc[0] == curve.loc[2]          # the features are the same


def test_curves_of_old_runs_are_of_training_people_and_say_so(run, split):
    label, read, note = ranking_reader(of(run), lambda name: Place(split))
    assert label == figures.MADE and note.startswith("1 of 1 runs kept no test mAP") and len(read(run)) == 2
    rows = [dict(epoch=e, mAP=.1*e, rank1=.5) for e in (0, 1, 2)]
    (run.path/"metrics.json").write_text(json.dumps(dict(rounds=[], tests=rows)))
    label, read, note = ranking_reader(of(run), None)
    assert label == figures.KEPT and not note and read(run).tolist() == pytest.approx([0, 10, 20])


def test_panels_have_a_line_for_each_row_and_state_its_ends(run):
    read = lambda run: pd.Series([1., 4.], pd.Index([0, 2], name="epochs"))
    drawn = draw_panels({**of(run), ("two", "plaza", "campus"): [run]}, {"score": read, "other": read})
    assert [len(ax.lines) for ax in drawn.figure.axes] == [2, 2] and len(drawn.numbers) == 8
    assert drawn.words[0] == "**plaza→campus, score.** one from 1 to 4; two from 1 to 4."


def test_identity_consistency_of_a_right_clustering_is_whole(run, split):
    curve = consistency_curve(run, split.pids, min_size=3)
    assert curve.loc[2] == 100 and curve.loc[0] < 100
    assert consistency_curve(run, split.pids, min_size=100).isna().all()


def test_parameters_are_drawn_with_mean_range_and_best():
    found = {("mAP", "a", "b"): {1: [3., 5.], 2: [6., 6.]}, ("R-1", "a", "b"): {1: [9.], 2: [8.]}}
    drawn = draw_parameters(found, "x")
    assert drawn.figure.axes[0].lines[0].get_ydata().tolist() == [4, 6] and len(drawn.numbers) == 6
    assert "mAP is highest at x = 2 (6.0) and lowest at 1 (4.0); the numbers at one value differ by up to 2.0" \
        in drawn.words[0] and drawn.words[1].endswith("R-1 is highest at x = 1 (9.0) and lowest at 2 (8.0).")
    assert parameter_rows("p2lr", "p0", (.1, .3), h=2.) == {
        "p0=0.1": ("p2lr", dict(h=2., p0=.1)), "p0=0.3": ("p2lr", dict(h=2., p0=.3))}


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_the_best_round_gains_what_the_maximum_has_more_than_the_last(values):
    curve = pd.Series(values, range(len(values)))
    found = best_round(curve)
    assert found["score"] == max(values) and found["gain"] == max(values) - values[-1] >= 0
    fall = next((i for i in range(1, len(values)) if values[i] <= values[i - 1]), None)
    expected = values if fall is None else [*values[:fall], *[values[fall - 1]]*(len(values) - fall)]
    assert repeated_best(curve).tolist() == expected


def test_clusters_are_followed_by_their_person_and_pictures_rise(run, split):
    drawn = draw_clusters(run, split, lambda x, y: np.arange(len(y)), clusters=2, shown=2, wide=3)
    said = r"dbscan, cluster \d+ after 2 epochs: 6 images, 100 % of one person, \d+ % of one camera\."
    assert re.fullmatch(said, drawn.words[2]) and len(drawn.words) == 4
    _, y = stored_round(run, 0)
    largest = np.argsort(-np.bincount(y[y >= 0]), kind="stable")[:2]
    assert set(drawn.numbers.query("epoch == 0")["cluster"]) == set(largest)
    assert clusters_of(np.array([2, 2, 1, -1]), np.array([5, 5, 5, 6]), [5, 6]) == [2]
    assert spread_rows(np.array([4., 3., 2., 1.]), 2).tolist() == [3, 0]


def test_every_figure_of_the_papers_is_drawn_or_has_a_reason():
    assert {paper: sorted(found) for paper, found in FIGURES.items()} == dict(
        p2lr=[1, 2, 3, 4, 5, 6], inclr=[1, 2, 3, 4], cgc=list(range(1, 11)), mspl=[1, 2])
    for found in FIGURES.values():
        assert all(bool(figure.why) or figure.says for figure in found.values())
    folder = Path(figures.__file__).parents[2]/"nbs"
    for paper, found in FIGURES.items():
        text = (folder/paper/"figures.ipynb").read_text(encoding="utf-8")
        for n, figure in found.items():
            if not figure.why: assert f'\\"{n}' in text, f"{paper}/figures.ipynb does not draw Figure {n}"
