"""Ideas: every pair is a valid comparison, and what a cell and a sentence say is what the runs say."""
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from upl_reid.experiments.config import load_methods, RunConfig
from upl_reid.experiments.ideas import draw_ideas, Idea, idea_rows, idea_worth, IDEAS, ideas_of, worth_in_words
from upl_reid.experiments.runs import Run
from upl_reid.experiments.tables import compare_map


@pytest.mark.parametrize("idea", IDEAS, ids=lambda idea: f"{idea.paper}-{idea.name}".replace(" ", "-"))
def test_an_idea_is_two_runs_that_differ(idea):
    given, base = (RunConfig("demo", "plaza", "station", *setting) for setting in (idea.given, idea.base))
    assert given.id != base.id
    if given.method != base.method:                          # two methods: one is made from the other, or is its base
        methods = load_methods()
        given, base = methods[given.method], methods[base.method]
        assert issubclass(given, base) or {given.__module__, base.__module__} & {"upl_reid.methods.cluster_contrast",
                                                                                 "upl_reid.methods.upl"}


def test_rows_hold_each_setting_once():
    rows = idea_rows(IDEAS)
    assert len({RunConfig("demo", "plaza", "campus", *setting).id for setting in rows.values()}) == len(rows)
    assert ideas_of("X", "upl", {"mixup": dict(mixup=False)}, tau=.1) == [
        Idea("X", "mixup", ("upl", dict(tau=.1)), ("upl", dict(tau=.1, mixup=False)))]


def pretend(folder, name, ap):
    run = Run(RunConfig("tiny", "plaza", "campus", "upl"), folder/name)
    run.path.mkdir()
    (run.path/"metrics.json").write_text(json.dumps(dict(ap=list(ap), pids=list(range(len(ap))))))
    return run


def test_worth_is_the_paired_difference_and_sentences_follow_the_interval(tmp_path):
    rng = np.random.default_rng(0)
    low, high = rng.random(40)*.4, rng.random(40)*.05 + .5
    idea = Idea("A", "one", ("upl", {}), ("upl", dict(mixup=False)))
    groups = {"upl": [pretend(tmp_path, "a", high)], "upl, mixup=False": [pretend(tmp_path, "b", low)]}
    runs = {(row, "plaza", t): group for row, group in groups.items() for t in ("campus", "station")}
    worth = idea_worth(runs, [idea])
    assert len(worth) == 2 and worth["value"].tolist() == pytest.approx([100*(high - low).mean()]*2)
    assert tuple(worth.loc[0, ["value", "low", "high"]]) == pytest.approx(compare_map(*groups.values()))
    assert worth_in_words(worth) == [
        *(f"**plaza→{t}.** Helps by more than the interval: A: one. Harms: none." for t in ("campus", "station")),
        "**Everywhere.** Helps in every transfer: A: one."]


def test_a_cell_is_bold_where_its_interval_excludes_zero():
    worth = pd.DataFrame([dict(paper="A", idea=i, source="s", target="t", value=v, low=v - 1, high=v + 1)
                          for i, v in (("one", 3.), ("two", .5), ("three", -2.))])
    figure = draw_ideas(worth)
    texts = {t.get_text(): t.get_weight() for t in figure.axes[0].texts}
    assert texts == {"+3.0  (+2.0 to +4.0)": "bold", "+0.5  (-0.5 to +1.5)": "normal", "-2.0  (-3.0 to -1.0)": "bold"}
    assert worth_in_words(worth)[0] == "**s→t.** Helps by more than the interval: A: one. Harms: A: three."
    plt.close(figure)
