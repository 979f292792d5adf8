"""Reports: parameters cannot be misspelt, differences carry their interval, files are whole."""
import json, platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from upl_reid.core import ConfigError, RunError
from upl_reid.report import check_parameters, coerce, collect, compare, in_words, markdown, open_table, provenance, started_from, summarise, write_report
from upl_reid.runs import Run, RunConfig, pretrainings


def space(**injected):
    """What globals() looks like after a parameters cell and, below it, papermill's own."""
    return {"__name__": "__main__", "_i1": "", "In": [], "Out": {}, "np": np, **dict(preset="demo", seeds="0", scale=1.5, both=True), **injected}


TYPES = dict(preset=("tiny", "demo"), seeds=[int], scale=float, both=bool)


def test_parameters_pass_and_are_coerced():
    assert check_parameters(space(), {"np"}, **TYPES) == dict(preset="demo", seeds=[0], scale=1.5, both=True)
    assert check_parameters(space(seeds="0,1, 2", scale="1e-3"), {"np"}, **TYPES)["seeds"] == [0, 1, 2]
    assert check_parameters(space(scale="1e-3"), {"np"}, **TYPES)["scale"] == .001       # papermill's YAML makes a string of 1e-3
    assert check_parameters(space(scale=1), {"np"}, **TYPES)["scale"] == 1.               # and an int of 1


@pytest.mark.parametrize("injected, said", [(dict(sedes=3), "sedes"), (dict(preset="dmeo"), "dmeo"), (dict(preset=3), "3"), (dict(seeds="zero"), "zero"), (dict(seeds=1.5), "1.5"),
                                            (dict(seeds=True), "True"), (dict(seeds=""), "seeds"), (dict(seeds=[]), "seeds"), (dict(scale="wide"), "wide"), (dict(scale=None), "None"), (dict(both="yes"), "yes"), (dict(both=1), "1")])
def test_a_wrong_name_or_value_stops_at_once(injected, said):
    with pytest.raises(ConfigError, match=said): check_parameters(space(**injected), {"np"}, **TYPES)


def test_text_stays_text():
    assert coerce("source", "plaza", str) == "plaza"
    with pytest.raises(ConfigError, match="str"): coerce("source", 3, str)


def finished(folder, ap, seed=0):
    """A run directory with just enough in it to be read."""
    run = Run(RunConfig("tiny", "plaza", "campus", "direct", {}, seed), folder/f"run{seed}-{len(list(folder.iterdir()))}")
    run.path.mkdir()
    (run.path/"metrics.json").write_text(json.dumps(dict(mAP=float(np.mean(ap)), ap=list(ap), pids=list(range(len(ap))), seconds=1., peak_memory=.5)))
    (run.path/"environment.json").write_text(json.dumps([dict(commit="abc", changed=False, hardware="a machine", python="3.11", packages=dict(torch="2"))]))
    return run


def test_compare_is_the_paired_difference_over_runs_and_people(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 40))
    d, low, high = compare([finished(tmp_path, x, s) for s, x in enumerate(a)], [finished(tmp_path, x, s) for s, x in enumerate(b)])
    apart = 100*(a - b)
    assert d == pytest.approx(np.mean(apart)) and low < d < high
    drawn = [apart[np.ix_(rng.integers(0, 3, 3), rng.integers(0, 40, 40))].mean() for _ in range(4000)]     # runs and people with replacement
    expected = np.quantile(drawn, [.025, .975])
    assert [low, high] == pytest.approx(expected.tolist(), abs=.06*(expected[1] - expected[0]))


def test_words_follow_the_interval():
    assert ": evidence of a difference between these two trained models; another seed" in in_words("a", "b", (3., 1., 5.), 1) and "above" in in_words("a", "b", (3., 1., 5.), 1)
    assert in_words("a", "b", (-3., -5., -1.), 3).endswith(": evidence of a difference.") and "3 seeds" in in_words("a", "b", (-3., -5., -1.), 3)
    assert in_words("a", "b", (1., -1., 3.), 2).endswith(": no evidence of a difference.")


def test_summaries():
    values = [81.25, 79., 80.]
    mean = sum(values)/3
    deviation = (sum((v - mean)**2 for v in values)/2)**.5
    assert summarise(values) == f"{mean:.1f} ± {deviation:.1f}" and summarise([.3384], 3) == "0.338" and summarise([float("nan")]) == "-"


def test_provenance_names_every_run_and_a_single_seed(tmp_path):
    runs = [finished(tmp_path, [.5], 0)]
    text = provenance(runs, 12.)
    assert runs[0].id in text and "a single run a cell" in text and "abc" in text and "a machine" in text and "torch 2" in text
    assert "a single run" not in provenance([*runs, finished(tmp_path, [.6], 1)], 1.)
    assert provenance(runs, 12., "paper") == text                      # runs know their own preset


def test_provenance_of_a_report_without_runs_says_where_it_was_made():
    rows = dict(line.strip("| ").split(" | ", 1) for line in provenance([], 7., "demo").splitlines()[2:])
    assert list(rows) == ["preset", "commit", "hardware", "packages", "time", "runs"]      # no seeds, no memory: there was no training
    assert rows["preset"] == "demo" and rows["time"] == "this notebook took 7 s" and rows["runs"].startswith("none")
    assert rows["packages"].startswith(f"python {platform.python_version()}, torch {version('torch')}")


def test_reports_are_whole_or_not_there(tmp_path):
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots()
    frame = pd.DataFrame(dict(a=[1, 2], b=["x", "y"]))
    write_report("t", tmp_path/"reports", "# T", frame, fig)
    assert sorted(p.name for p in (tmp_path/"reports").iterdir()) == ["t.csv", "t.md", "t.png"]
    assert pd.read_csv(tmp_path/"reports/t.csv").equals(frame) and (tmp_path/"reports/t.md").read_text() == "# T\n"
    first = (tmp_path/"reports/t.png").read_bytes()
    write_report("t", tmp_path/"reports", "# T", frame, fig)
    assert (tmp_path/"reports/t.png").read_bytes() == first             # byte-stable, so a rerun leaves git quiet
    class Bad:
        def savefig(self, *a, **k): raise OSError("disk full")
    with pytest.raises(RunError, match="disk full"): write_report("t", tmp_path/"reports", "# changed", frame, Bad())
    assert (tmp_path/"reports/t.md").read_text() == "# T\n" and not list((tmp_path/"reports").glob(".*"))


def test_markdown_table():
    assert markdown(pd.DataFrame({"a": ["1"], "b": ["2"]})) == "| a | b |\n|---|---|\n| 1 | 2 |"


GIVEN = dict(preset="demo", source="a", target="b", source_root="", target_root="", weights="", seeds="0,1", device="cpu")


def test_tables_leave_the_project_alone_under_test(monkeypatch, tmp_path):
    monkeypatch.setenv("IN_TEST", "1")
    table = open_table(dict(GIVEN), set())
    assert table.preset == "tiny" and table.reports.name == "reports" and not any(str(p).startswith(str(Path.cwd())) for p in (table.store, table.reports))
    monkeypatch.delenv("IN_TEST"); monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path))
    table = open_table(dict(GIVEN), set())
    assert (table.preset, table.store, table.seeds, table.directions) == ("demo", tmp_path, [0, 1], [("a", "b"), ("b", "a")])


def test_folders_of_real_domains():
    assert open_table({**GIVEN, "source_root": "/x"}, set()).roots == {"a": "/x"} and open_table({**GIVEN, "weights": "w.pth"}, set()).roots == {"weights": "w.pth"}


def test_collect_keeps_rows_directions_and_seeds_apart(tmp_path):
    got = collect({"direct transfer": ("direct", {})}, [("plaza", "campus"), ("campus", "plaza")], [0, 1], "tiny", device="cpu", store=tmp_path, progress=False)
    for (row, s, t), runs in got.items():
        assert [r.config for r in runs] == [RunConfig("tiny", s, t, "direct", {}, seed) for seed in (0, 1)]
    assert len(got) == 2


def test_pretraining_is_that_of_the_same_folders(tmp_path):
    adapted = RunConfig("tiny", "plaza", "campus", "dbscan")
    first = pretrainings(adapted)[0]
    def run(name): (tmp_path/name).mkdir(exist_ok=True); (tmp_path/name/"metrics.json").write_text("{}"); return Run(adapted, tmp_path/name)
    for name in (first.id, f"{first.id}-aaaa", f"{first.id}-cccc"): run(name)
    def found(name): return [r.path.name for r in started_from([run(name)])]
    assert found(adapted.id) == found(f"{adapted.id}-bbbb") == [first.id]                     # a folder for the target alone: the embedded source
    assert found(f"{adapted.id}-aaaa-bbbb") == [f"{first.id}-aaaa"]
    assert found(f"{adapted.id}-cccc-bbbb") == [f"{first.id}-cccc"]
