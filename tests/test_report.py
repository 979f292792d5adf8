"""Reports: parameters cannot be misspelt, differences carry their interval, files are whole."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from upl_reid.core import ConfigError
from upl_reid.report import check_parameters, coerce, collect, compare, find_roots, in_words, markdown, provenance, summarise, workplace, write_report
from upl_reid.runs import Run, RunConfig


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
    (run.path/"metrics.json").write_text(json.dumps(dict(mAP=float(np.mean(ap)), ap=list(ap), seconds=1., peak_memory=.5)))
    (run.path/"environment.json").write_text(json.dumps([dict(commit="abc", changed=False, hardware="a machine", python="3.11", packages=dict(torch="2"))]))
    return run


def test_compare_is_the_paired_difference_of_seed_means(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 40))
    d, low, high = compare([finished(tmp_path, x, s) for s, x in enumerate(a)], [finished(tmp_path, x, s) for s, x in enumerate(b)])
    paired = [100*np.mean([a[s][q] - b[s][q] for s in range(3)]) for q in range(40)]
    assert d == pytest.approx(np.mean(paired)) and low < d < high
    half = 1.96*np.std(paired, ddof=1)/np.sqrt(40)                      # the normal interval is near the bootstrap's
    assert low == pytest.approx(d - half, abs=.25*half) and high == pytest.approx(d + half, abs=.25*half)


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
    with pytest.raises(OSError): write_report("t", tmp_path/"reports", "# changed", frame, Bad())
    assert (tmp_path/"reports/t.md").read_text() == "# T\n" and not list((tmp_path/"reports").glob(".*"))


def test_markdown_table():
    assert markdown(pd.DataFrame({"a": ["1"], "b": ["2"]})) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_workplace_leaves_the_project_alone_under_test(monkeypatch, tmp_path):
    monkeypatch.setenv("IN_TEST", "1")
    preset, store, reports = workplace("demo")
    assert preset == "tiny" and "reports" in reports.name and not str(store).startswith(str(Path.cwd()))
    monkeypatch.delenv("IN_TEST"); monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path))
    assert workplace("demo")[:2] == ("demo", tmp_path)


def test_folders_of_real_domains():
    assert find_roots("a", "b", "/x", "") == {"a": "/x"} and find_roots("a", "b", "", "", "w.pth") == {"weights": "w.pth"}


def test_collect_keeps_rows_directions_and_seeds_apart(tmp_path):
    got = collect({"direct transfer": ("direct", {})}, [("plaza", "campus"), ("campus", "plaza")], [0, 1], "tiny", device="cpu", store=tmp_path, progress=False)
    for (row, s, t), runs in got.items():
        assert [r.config for r in runs] == [RunConfig("tiny", s, t, "direct", {}, seed) for seed in (0, 1)]
    assert len(got) == 2
