"""Verdicts: every rule against a plain re-computation, the published figures against themselves, and nothing reproduced
by accident."""
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from upl_reid.experiments import published as paper
from upl_reid.core import DataError
from upl_reid.experiments.label_analysis import effective_share
from upl_reid.experiments.runs import Run
from upl_reid.experiments.config import RunConfig
from upl_reid.experiments.claims import (
    CHOICE, CONTRADICTS, FAILED, REPRODUCED, UNTESTABLE, VERDICTS, Claim, Finding, judge_change, compare_only,
    claims_numbers, claims_table, judge_contradiction, judge_correlation, pearson_with_interval, judge_difference,
    judge_speed, measured_value, common_runs, judge_level, percent_readings, rounds_to,
    join_directions, judge_together, most_influential, share_of_epochs_saved, judge_run_by_run, judge_no_difference,
    text_against_table, join_findings, wrong_share)

FORTH, BACK = ("plaza", "campus"), ("campus", "plaza")


def finished(folder, ap, seed=0, direction=FORTH, loss=(), **labels):
    """A run directory with just enough in it to be read."""
    run = Run(RunConfig("tiny", *direction, "direct", {}, seed), folder/f"{len(list(folder.iterdir())):016x}")
    run.path.mkdir()
    metrics = dict(mAP=float(np.mean(ap)), ap=list(map(float, ap)), pids=list(range(len(ap))), rounds=[labels])
    (run.path/"metrics.json").write_text(json.dumps(metrics))
    history = [dict(epoch=i, loss=v) for i, v in enumerate(loss, 1)]
    (run.path/"history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    return run


@pytest.fixture
def rng(): return np.random.default_rng(0)


def rows(folder, rng, shift, seeds=(0,), other_seeds=None, noise=.02):
    """Rows "a" and "b" in both directions; a is better by the direction's shift."""
    out = {}
    for d, by in zip((FORTH, BACK), shift):
        base = rng.uniform(.3, .6, 60)
        out["b", *d] = [finished(folder, base, s, d) for s in other_seeds or seeds]
        out["a", *d] = [finished(folder, base + by + noise*rng.standard_normal(60), s, d) for s in seeds]
    return out


# ---- rule 1

def test_a_difference_needs_both_directions(tmp_path, rng):
    both, one = rows(tmp_path, rng, (.05, .05)), rows(tmp_path, rng, (.05, -.05))
    assert judge_difference(both, "a", "b").verdict == REPRODUCED
    assert judge_difference(both, "b", "a", -1).verdict == REPRODUCED
    assert judge_difference(both, "a", "b", -1).verdict == FAILED == judge_difference(both, "b", "a").verdict
    assert {judge_difference(one, *pair, sign).verdict for pair in ("ab", "ba") for sign in (1, -1)} == {FAILED}


def test_no_difference_is_neither_a_gain_nor_a_loss(tmp_path, rng):
    found = rows(tmp_path, rng, (0., 0.), noise=.1)
    assert judge_difference(found, "a", "b").verdict == judge_difference(found, "a", "b", -1).verdict == FAILED
    assert all(n["low"] < 0 < n["high"] for n in judge_difference(found, "a", "b").numbers)


def test_the_difference_is_the_mean_over_the_seeds_in_common(tmp_path, rng):
    found = rows(tmp_path, rng, (.05, .02), seeds=(0, 1, 2), other_seeds=(2, 0))
    for n, d in zip(judge_difference(found, "a", "b").numbers, (FORTH, BACK)):
        a, b = ({r.config.seed: r.metrics["ap"] for r in found[row, *d]} for row in "ab")
        expected = np.mean([100*(x - y) for s in (0, 2) for x, y in zip(a[s], b[s])])
        assert (n["source"], n["target"]) == d and n["seeds"] == 2
        assert n["value"] == pytest.approx(expected) and n["low"] < expected < n["high"]
        assert set(n["runs"].split()) == {r.id for row in "ab" for r in found[row, *d] if r.config.seed in (0, 2)}
    ours, theirs = common_runs(found, "a", "b")[FORTH]
    assert [r.config.seed for r in theirs] == [r.config.seed for r in ours] == [0, 2]


def test_rows_without_anything_in_common_are_refused(tmp_path, rng):
    found = rows(tmp_path, rng, (.1, .1), seeds=(0,), other_seeds=(1,))
    with pytest.raises(DataError, match="'a' and 'b'"): judge_difference(found, "a", "b")
    with pytest.raises(DataError, match="'c'"): common_runs(found, "a", "c")


def test_a_single_seed_is_marked_and_two_are_not(tmp_path, rng):
    assert "[1 seed]" in judge_difference(rows(tmp_path, rng, (.1, .1)), "a", "b").text
    assert "[1 seed]" not in judge_difference(rows(tmp_path, rng, (.1, .1), seeds=(0, 1)), "a", "b").text


def test_staying_the_same_needs_a_narrow_interval(tmp_path, rng):
    narrow, wide = rows(tmp_path, rng, (.001, -.001), noise=.01), rows(tmp_path, rng, (.001, -.001), noise=.3)
    assert judge_no_difference(narrow, "a", "b").verdict == REPRODUCED
    assert judge_no_difference(wide, "a", "b").verdict == FAILED
    assert judge_difference(wide, "a", "b").verdict == FAILED       # no evidence of a difference is no evidence of none
    sure = rows(tmp_path, rng, (.03, 0.), noise=.001)
    assert judge_no_difference(sure, "a", "b").verdict == FAILED    # a difference of 3, however sure


# ---- rules 2 and 3

@pytest.mark.parametrize("a, b, claimed, verdict", [
    ((3., 4.), (1., 2.), 1, REPRODUCED), ((3., 4.), (1., 2.), -1, FAILED),
    ((3., 1.), (1., 2.), 1, FAILED), ((1., 1.), (1., 1.), 1, FAILED),
    ((1., 1.), (2., 2.), -1, REPRODUCED), ((math.nan, 4.), (1., 2.), 1, FAILED)])
def test_signs_hold_for_every_seed(tmp_path, a, b, claimed, verdict):
    runs = {(row, *FORTH): [finished(tmp_path, [.5], s, v=v) for s, v in enumerate(values)]
            for row, values in (("a", a), ("b", b))}
    found = judge_run_by_run(runs, "a", "b", "v", lambda r: r.labels["v"], claimed)
    assert found.verdict == verdict and found.rows == ("a", "b")
    assert [n["value"] for n in found.numbers] == pytest.approx([np.mean(a), np.mean(b)], nan_ok=True)


def test_changes_compare_a_run_with_itself(tmp_path):
    runs = {("a", *FORTH): [finished(tmp_path, [.5], s, x=1., y=y) for s, y in enumerate((2., 3.))]}
    x, y = (lambda r, k=k: r.labels[k] for k in "xy")
    assert judge_change(runs, "a", "v", x, y).verdict == REPRODUCED
    assert judge_change(runs, "a", "v", y, x).verdict == FAILED
    assert judge_change(runs, "a", "v", y, x, -1).verdict == REPRODUCED
    assert judge_change(runs, "a", "v", x, x).verdict == FAILED
    assert [n["value"] for n in judge_change(runs, "a", "v", x, y, ends=("before", "after")).numbers] == [1., 2.5]


def epochs_until_below(curve, level, fine=20000):
    """The first of many points after which a piecewise linear curve never exceeds the level."""
    x = np.linspace(curve.index[0], curve.index[-1], fine)
    above = np.flatnonzero(np.interp(x, curve.index, curve) > level + 1e-9)
    return x[0] if not len(above) else math.nan if above[-1] == fine - 1 else x[above[-1] + 1]


@given(st.lists(st.integers(0, 8), min_size=3, max_size=6), st.lists(st.integers(0, 8), min_size=6, max_size=6))
def test_saved_epochs_as_seen_on_a_fine_grid(ours, theirs):
    epochs = range(1, len(ours) + 1)
    a, b = pd.Series(ours, epochs, dtype=float), pd.Series(theirs[:len(ours)], epochs, dtype=float)
    level, share = b.iloc[-1], share_of_epochs_saved(a, b)
    if not level < b.iloc[0] or epochs_until_below(a, level) == 1: assert math.isnan(share)
    else:
        expected = 100*(1 - epochs_until_below(a, level)/epochs_until_below(b, level))
        assert share == pytest.approx(expected, abs=.5, nan_ok=True)


def test_faster_needs_a_share_in_every_direction(tmp_path):
    curve = lambda r: pd.Series(r.history["loss"].to_numpy(), r.history["epoch"])
    losses = dict(quick=(4., 1., .5), slow=(4., 3., 1.), flat=(4., 4., 4.))
    runs = {(row, *d): [finished(tmp_path, [.5], 0, d, loss)] for d in (FORTH, BACK) for row, loss in losses.items()}
    assert judge_speed(runs, "quick", "slow", "loss", curve).verdict == REPRODUCED
    assert judge_speed(runs, "slow", "quick", "loss", curve).verdict == FAILED
    # the other does not fall: nothing to be faster to
    assert judge_speed(runs, "quick", "flat", "loss", curve).verdict == FAILED
    runs["quick", *BACK] = [finished(tmp_path, [.5], 0, BACK, (4., 3.5, 2.))]
    assert judge_speed(runs, "quick", "slow", "loss", curve).verdict == FAILED


# ---- rule 4

@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=4, max_size=9))
def test_correlation_by_its_definition(points):
    x, y = zip(*points)
    n, mx, my = len(x), sum(x)/len(x), sum(y)/len(y)
    sxx, syy, sxy = sum((a - mx)**2 for a in x), sum((b - my)**2 for b in y), sum((a - mx)*(b - my) for a, b in points)
    if not sxx or not syy:
        with pytest.raises(DataError): pearson_with_interval(x, y)
        return
    r, low, high = pearson_with_interval(x, y)
    assert r == pytest.approx(sxy/math.sqrt(sxx*syy), abs=1e-9) and -1 <= low <= r + 1e-9 and r - 1e-9 <= high <= 1
    if n > 4 and abs(r) < .99:
        width = .5*math.log((1 + high)/(1 - high)) - .5*math.log((1 + low)/(1 - low))
        assert width == pytest.approx(2*1.959964/math.sqrt(n - 3), rel=1e-4)


def test_three_points_have_no_interval():
    with pytest.raises(DataError, match="3 points"): pearson_with_interval([1, 2, 3], [1, 2, 4])


def test_correlates_over_the_rows_that_count(tmp_path):
    runs = {(f"row {i}", *FORTH): [finished(tmp_path, [i/10 + e], s, v=i) for s, e in enumerate((.01, -.01))]
            for i in range(6)}
    runs["stray", *FORTH] = [finished(tmp_path, [0.], v=99)]
    named = [f"row {i}" for i in range(6)]
    measures = lambda r: r.labels["v"], lambda r: r.metrics["mAP"], "v and mAP"
    found = judge_correlation(runs, named, *measures)
    assert found.verdict == REPRODUCED and found.numbers[0]["value"] == pytest.approx(1.)
    assert len(found.numbers[0]["runs"].split()) == 12
    assert judge_correlation(runs, [*named, "stray"], *measures).verdict == FAILED


def test_a_correlation_is_judged_by_ranks_and_names_the_row_that_moves_it_most(tmp_path):
    "Seven points of which one lies far out: Pearson's r is large, ranks are not; scipy's own ranks are compared."
    x, y = np.array([3, 1, 2, 5, 4, 6, 90.]), np.array([.30, .28, .31, .29, .27, .30, .95])
    runs = {(f"row {i}", *FORTH): [finished(tmp_path, [b], v=a)] for i, (a, b) in enumerate(zip(x, y))}
    read = lambda r: r.labels["v"], lambda r: r.metrics["mAP"]
    found = judge_correlation(runs, [f"row {i}" for i in range(7)], *read, "v")
    rank, r, rest = (n["value"] for n in found.numbers)
    assert rank == pytest.approx(stats.spearmanr(x, y).statistic)
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1]) and r > .9
    assert rest == pytest.approx(np.corrcoef(x[:6], y[:6])[0, 1]) and "without row 6" in found.text
    assert found.verdict == FAILED
    without = [abs(np.corrcoef(np.delete(x, i), np.delete(y, i))[0, 1] - r) for i in range(7)]
    assert most_influential(np.column_stack([x, y]))[0] == int(np.argmax(without)) == 6
    with pytest.raises(DataError, match="needs five or more"): most_influential(np.column_stack([x, y])[:4])


def test_statements_of_one_claim_are_judged_together():
    one, other = Finding("a", REPRODUCED, ("x",)), Finding("b", FAILED, ("y", "x"))
    assert judge_together(one, one).verdict == REPRODUCED and judge_together(one, other).verdict == FAILED
    both = judge_together(one, other)
    assert both.text == "a (holds); b (does not hold)" and both.rows == ("x", "y")


# ---- rule 5

def test_a_contradiction_must_be_shown():
    assert judge_contradiction("so", True, 1 < 2).verdict == CONTRADICTS
    with pytest.raises(DataError, match="fact 2 of 3"): judge_contradiction("so", True, False, True)
    with pytest.raises(DataError, match="of 0"): judge_contradiction("so")


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_readings_undo_each_other(full, without):
    r = percent_readings(full, without)
    assert without + r["points"] == pytest.approx(full)
    assert full*(1 - r["% of the full model"]/100) == pytest.approx(without)
    assert without*(1 + r["% of the model without"]/100) == pytest.approx(full)


@given(st.integers(0, 999), st.integers(0, 9999))
def test_rounding_as_the_printer_does(tenths, hundredths):
    figure, value = tenths/10, hundredths/100
    if hundredths % 10 != 5: assert rounds_to(figure, value) == (round(hundredths/10) == tenths)


@pytest.mark.parametrize("figure, table, row, measure", [
    (12.1, paper.TABLE4, "w/o MoCo memory", "mAP"), (14.2, paper.TABLE4, "w/o MoCo memory", "mAP"),
    (7.8, paper.TABLE4, "w/o MoCo memory", "R-1"), (12.3, paper.TABLE5, "w/o uncertainty mixup", "mAP"),
    (8.3, paper.TABLE6, "w/o entropy regularisation", "mAP")])
def test_text_and_table_that_agree_in_some_reading_are_not_called_a_contradiction(figure, table, row, measure):
    with pytest.raises(DataError, match="not shown"): text_against_table(figure, table, row, measure)


@pytest.mark.parametrize("figure, table, row, measure", [
    (paper.TEXT4["mAP"], paper.TABLE4, "w/o MoCo memory", "mAP"),
    (paper.TEXT4["R-1"], paper.TABLE4, "w/o MoCo memory", "R-1"),
    (paper.TEXT4["R-1 gained"], paper.TABLE4, "w/o MoCo memory", "R-1"),
    (paper.TEXT5["mAP"], paper.TABLE5, "w/o uncertainty mixup", "mAP"),
    (paper.TEXT5["R-1 gained"], paper.TABLE5, "w/o uncertainty mixup", "R-1"),
    (paper.TEXT6["mAP"], paper.TABLE6, "w/o first-order approximation", "mAP")])
def test_the_papers_percentages_are_none_of_six_numbers(figure, table, row, measure):
    for d in (0, 1):
        full, without = table["full model", d, measure], table[row, d, measure]
        readings = full - without, 100*(1 - without/full), 100*(full/without - 1)
        assert {f"{v:.1f}" for v in readings}.isdisjoint({f"{figure:.1f}"})
    assert text_against_table(figure, table, row, measure).verdict == CONTRADICTS


# ---- the published figures

def test_tables_repeat_the_full_model_where_the_paper_does():
    ours = paper.TABLE2.iloc[-1]
    for table, d, m in itertools.product((paper.TABLE4, paper.TABLE5, paper.TABLE6), (0, 1), ("mAP", "R-1")):
        assert table["full model", d, m] == ours[d, m]
    assert {(d, m): ours[d, m] for d, m in paper.TEXT2} == paper.TEXT2
    for d in (0, 1):
        full = paper.TABLE4["full model", d, "SC"]
        assert paper.TABLE3["ours", d, 100, "SC"] == full == paper.TABLE5["full model", d, "SC"]


def test_text_starts_from_the_full_model_of_its_table():
    assert paper.TEXT4["SC"] == (paper.TABLE4["full model", 0, "SC"], paper.TABLE4["w/o MoCo memory", 0, "SC"])
    without = paper.TABLE5["w/o uncertainty mixup", 0, "ECE %"]
    assert paper.TEXT5["ECE %"] == (paper.TABLE5["full model", 0, "ECE %"], without)
    assert paper.TEXT6["ECE %"][0] == paper.TABLE6["full model", 0, "ECE %"]
    for text in (paper.TEXT4, paper.TEXT5):
        assert text["DBI"][0] == paper.TEXT3["DBI"] == paper.TABLE3["ours", 0, 100, "DBI"]
        assert text["SC"][0] == paper.TEXT3["SC"]
    for text in (paper.TEXT4, paper.TEXT5, paper.TEXT6):
        assert text["settles"][0] < text["settles"][1] and 0 < text["faster"] < 100


# ---- rule 6, weights, the list

def test_a_level_is_judged_on_the_papers_data_only(tmp_path):
    runs = {("a", *d): [finished(tmp_path, [.5], 0, d)] for d in (FORTH, BACK)}
    level = lambda r: 100*r.metrics["mAP"]
    assert judge_level(runs, "a", "mAP", level).verdict == UNTESTABLE
    assert judge_level(runs, "a", "mAP", level, {FORTH: 50.9, BACK: 49.1}).verdict == REPRODUCED
    assert judge_level(runs, "a", "mAP", level, {FORTH: 51.1, BACK: 50.}).verdict == FAILED
    assert judge_level(runs, "a", "mAP", level, {FORTH: 51.1, BACK: 50.}, tolerance=2.).verdict == REPRODUCED


@given(st.lists(st.floats(.01, 1.), min_size=1, max_size=20), st.floats(.1, 10.))
def test_effective_share_is_scale_free_and_falls_with_alpha(weights, alpha):
    w = np.array(weights)
    share = effective_share(w)
    by_hand = sum(weights)**2/sum(v*v for v in weights)/len(w)
    assert share == pytest.approx(by_hand) == pytest.approx(effective_share(7*w))
    assert 1/len(w) - 1e-9 <= share <= 1 + 1e-9
    assert effective_share(w**(alpha + 1)) <= effective_share(w**alpha) + 1e-9


def test_wrong_share_by_a_loop():
    weight, right = [.2, .5, .1, .9], [True, False, False, True]
    assert wrong_share(weight, right) == pytest.approx(sum(w for w, ok in zip(weight, right) if not ok)/sum(weight))
    assert wrong_share([1]*4, right) == .5 and wrong_share([1, 0, 0, 1], right) == 0
    for bad in (([0, 0], [True, False]), ([1.], [True, False]), ([], [])):
        with pytest.raises(DataError): wrong_share(*bad)
    with pytest.raises(DataError, match="zero"): effective_share([0., 0.])


def test_together_keeps_the_first_verdict_and_all_numbers(tmp_path, rng):
    a = judge_difference(rows(tmp_path, rng, (.1, .1)), "a", "b")
    b = Finding("other", FAILED, ("b", "c"), (dict(figure="x"),))
    both = join_findings(a, b)
    assert both.verdict == REPRODUCED and both.rows == ("a", "b", "c")
    assert both.numbers == a.numbers + b.numbers and both.text == f"{a.text}; other"
    assert compare_only(a, "with").verdict == CHOICE and compare_only(a, "with").numbers == a.numbers
    assert compare_only(a).text == a.text


def test_every_number_of_the_list_has_its_runs(tmp_path, rng):
    claims = [Claim("4.2", "better", "+12.1", "1", judge_difference(rows(tmp_path, rng, (.1, .1)), "a", "b")),
              Claim("Eq. 18", "balance", "", "5", judge_contradiction("no", True)),
              Claim("4.5", "22 M", "22", "count", Finding("22.08 M", REPRODUCED))]
    frame, text = claims_numbers(claims), claims_table(claims, "two drawn networks", 7)
    has_runs = (frame["runs"] != "").tolist()
    assert frame["claim"].tolist() == [1, 1, 2, 3]
    assert has_runs == frame["value"].notna().tolist() == [True, True, False, False]
    assert frame["verdict"].isin(VERDICTS).all()
    assert list(frame.columns) == ["claim", "where", "verdict", "figure", "source", "target", "value", "low", "high",
                                   "seeds", "runs"]
    assert text["#"].tolist() == [7, 8, 9]
    assert text["verdict"].tolist() == [
        "**reproduced on two drawn networks**", "**contradicts itself**", "**reproduced by counting**"]
    assert text["published"].tolist() == ["*+12.1*", "", "*22*"] and text["rows"].tolist() == ["a, b", "", ""]


def test_a_number_names_each_run_once(tmp_path):
    group = [finished(tmp_path, [.5], s) for s in (0, 1)]
    line = measured_value("v", FORTH, 1, [group, group[:1]], .5, 1.5)
    assert line["runs"].split() == [r.id for r in group] and line["seeds"] == 2 and isinstance(line["value"], float)
    assert join_directions({FORTH: "1", BACK: "2"}, [line]) == "plaza→campus 1, campus→plaza 2"


# ---- the bibliography

def test_references_lead_to_notebooks_and_cover_table_2():
    nbs = Path(__file__).resolve().parents[2]/"nbs"
    cells = json.loads((nbs/"references.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    missing = {link for link in re.findall(r"\]\(([\w/]+\.ipynb)\)", text) if not (nbs/link).exists()}
    assert not missing, f"references.ipynb links to {sorted(missing)}, which do not exist"
    for authors, year in zip(paper.TABLE2["authors"][:-1], paper.SETTINGS["years"]):
        key = re.search(r"\[(\d+)\]", authors)[1]
        entry = rf"^\| \[{key}\] \| .*{authors.split()[0]}.*, {year} \|$"
        assert re.search(entry, text, re.M), f"references.ipynb has no [{key}] {authors} of {year}"
