"""Reports: parameters cannot be misspelt, differences carry their interval, files are whole."""
import json, platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import papermill
import pytest

from upl_reid.core import ConfigError, DataError, RunError
from upl_reid.data.synthetic import write_domain
from upl_reid.experiments import tables
from upl_reid.experiments.tables import (
    check_parameters, coerce_parameter, collect_runs, compare_map, draw_seeds, in_words, to_markdown, open_table,
    provenance_table, seeds_in_words, session_rows, started_from, mean_and_std, write_report)
from upl_reid.experiments.runs import Run, pretraining_configs
from upl_reid.experiments.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]


def space(**injected):
    """What globals() looks like after a parameters cell and, below it, papermill's own."""
    return {"__name__": "__main__", "_i1": "", "In": [], "Out": {}, "np": np,
            **dict(preset="demo", seeds="0", scale=1.5, both=True), **injected}


TYPES = dict(preset=("tiny", "demo"), seeds=[int], scale=float, both=bool)


def test_parameters_pass_and_are_coerced():
    assert check_parameters(space(), {"np"}, **TYPES) == dict(preset="demo", seeds=[0], scale=1.5, both=True)
    assert check_parameters(space(seeds="0,1, 2", scale="1e-3"), {"np"}, **TYPES)["seeds"] == [0, 1, 2]
    # papermill's YAML makes a string of 1e-3, and an int of 1
    assert check_parameters(space(scale="1e-3"), {"np"}, **TYPES)["scale"] == .001
    assert check_parameters(space(scale=1), {"np"}, **TYPES)["scale"] == 1.


@pytest.mark.parametrize("injected, said", [
    (dict(sedes=3), "sedes"),
    (dict(preset="dmeo"), "dmeo"), (dict(preset=3), "3"),
    (dict(seeds="zero"), "zero"), (dict(seeds=1.5), "1.5"), (dict(seeds=True), "True"),
    (dict(seeds=""), "seeds"), (dict(seeds=[]), "seeds"),
    (dict(scale="wide"), "wide"), (dict(scale=None), "None"),
    (dict(both="yes"), "yes"), (dict(both=1), "1")])
def test_a_wrong_name_or_value_stops_at_once(injected, said):
    with pytest.raises(ConfigError, match=said): check_parameters(space(**injected), {"np"}, **TYPES)


def test_text_stays_text():
    assert coerce_parameter("source", "plaza", str) == "plaza"
    with pytest.raises(ConfigError, match="str"): coerce_parameter("source", 3, str)


def finished(folder, ap, seed=0):
    """A run directory with just enough in it to be read."""
    config = RunConfig("tiny", "plaza", "campus", "direct", {}, seed)
    run = Run(config, folder/f"run{seed}-{len(list(folder.iterdir()))}")
    run.path.mkdir()
    metrics = dict(mAP=float(np.mean(ap)), ap=list(ap), pids=list(range(len(ap))), seconds=1., peak_memory=.5)
    (run.path/"metrics.json").write_text(json.dumps(metrics))
    environment = dict(commit="abc", changed=False, hardware="a machine", python="3.11", packages=dict(torch="2"))
    (run.path/"environment.json").write_text(json.dumps([environment]))
    return run


def test_compare_is_the_paired_difference_over_runs_and_people(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 40))
    ours, theirs = ([finished(tmp_path, x, s) for s, x in enumerate(values)] for values in (a, b))
    d, low, high = compare_map(ours, theirs)
    apart = 100*(a - b)
    assert d == pytest.approx(np.mean(apart)) and low < d < high
    drawn = [apart[np.ix_(rng.integers(0, 3, 3), rng.integers(0, 40, 40))].mean()  # runs and people with replacement
             for _ in range(4000)]
    expected = np.quantile(drawn, [.025, .975])
    assert [low, high] == pytest.approx(expected.tolist(), abs=.06*(expected[1] - expected[0]))


def test_words_follow_the_interval():
    one_seed = in_words("a", "b", (3., 1., 5.), 1)
    assert ": evidence of a difference between these two models; another seed" in one_seed
    assert "above" in one_seed
    three_seeds = in_words("a", "b", (-3., -5., -1.), 3)
    assert three_seeds.endswith(": evidence of a difference.") and "3 seeds" in three_seeds
    assert in_words("a", "b", (1., -1., 3.), 2).endswith(": no evidence of a difference.")


def test_summaries():
    values = [81.25, 79., 80.]
    mean = sum(values)/3
    deviation = (sum((v - mean)**2 for v in values)/2)**.5
    assert mean_and_std(values) == f"{mean:.1f} ± {deviation:.1f}"
    assert mean_and_std([.3384], 3) == "0.338" and mean_and_std([float("nan")]) == "-"


def test_provenance_names_every_run_and_a_single_seed(tmp_path):
    runs = [finished(tmp_path, [.5], 0)]
    text = provenance_table(runs, 12.)
    assert runs[0].id in text and "a single run a cell" in text
    assert "abc" in text and "a machine" in text and "torch 2" in text
    assert "a single run" not in provenance_table([*runs, finished(tmp_path, [.6], 1)], 1.)
    assert provenance_table(runs, 12., "paper") == text                      # runs know their own preset


def test_seeds_of_second_networks_are_not_those_of_the_cells(monkeypatch):
    def run(seed, method="mmt"): return SimpleNamespace(config=SimpleNamespace(seed=seed), id=f"{method}{seed}")
    second = [run(1000, "pretrain"), run(0, "pretrain")]
    monkeypatch.setattr(tables, "started_from", lambda runs: second)
    assert seeds_in_words([run(0)]) == "0 (a single run a cell; second networks: 1000)"
    second += [run(1001, "pretrain"), run(1, "pretrain")]
    assert seeds_in_words([run(0), run(1)]) == "0, 1 (second networks: 1000, 1001)"
    second[:] = [run(0, "pretrain"), run(1, "pretrain")]
    assert seeds_in_words([run(1), run(0)]) == "0, 1"


def test_provenance_of_a_report_without_runs_says_where_it_was_made():
    rows = dict(line.strip("| ").split(" | ", 1) for line in provenance_table([], 7., "demo").splitlines()[2:])
    # no seeds, no memory: there was no training
    assert list(rows) == ["preset", "commit", "hardware", "packages", "time", "runs"]
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
    assert to_markdown(pd.DataFrame({"a": ["1"], "b": ["2"]})) == "| a | b |\n|---|---|\n| 1 | 2 |"


GIVEN = dict(preset="demo", source="a", target="b", source_root="", target_root="", weights="", seeds="0,1",
             device="cpu")


def test_tables_leave_the_project_alone_under_test(monkeypatch, tmp_path):
    monkeypatch.setenv("IN_TEST", "1")
    table = open_table(dict(GIVEN), set())
    assert table.preset == "tiny" and table.reports.name == "reports"
    assert not any(str(p).startswith(str(Path.cwd())) for p in (table.store, table.reports))
    monkeypatch.delenv("IN_TEST"); monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path))
    table = open_table(dict(GIVEN), set())
    assert (table.preset, table.store, table.seeds) == ("demo", tmp_path, [0, 1])
    assert table.directions == [("a", "b"), ("b", "a")]


def test_folders_of_real_domains():
    assert open_table({**GIVEN, "source_root": "/x"}, set()).roots == {"a": "/x"}
    assert open_table({**GIVEN, "weights": "w.pth"}, set()).roots == {"weights": "w.pth"}


def test_development_networks_have_other_pictures(tmp_path):
    own = write_domain("campus", tmp_path/"own", train_ids=4, test_ids=2, cameras=2, size=(48, 24), seed=5)
    named = {**GIVEN, "source": "plaza", "target": "campus,station", "target_root": f"{own},"}
    table = replace(open_table(named, set()), preset="tiny", store=tmp_path)
    other = table.with_development(["campus", "station", "elsewhere", "station"])
    assert set(table.roots) == {"campus"} and set(other.roots) == {"campus", "station"}
    assert other.roots["campus"] == str(own) and other.directions == table.directions
    pictures = lambda t: {path.read_bytes() for path in t.domain("station").train.paths}
    first, second = pictures(table), pictures(other)
    assert len(first) == len(table.domain("station").train) and not first & second
    assert table.with_development([]).roots == table.roots


def test_further_targets():
    more = {**GIVEN, "target": "b,c"}
    table = open_table(dict(more), set())
    assert table.directions == [("a", "b"), ("b", "a"), ("a", "c"), ("b", "c")] and table.roots == {}
    assert table.from_source == [("a", "b"), ("a", "c")]
    assert open_table({**more, "target_root": "/b,/c"}, set()).roots == {"b": "/b", "c": "/c"}
    assert open_table({**more, "target_root": ",/c"}, set()).roots == {"c": "/c"}
    assert open_table({**GIVEN, "target_root": "/x,y"}, set()).roots == {"b": "/x,y"}
    with pytest.raises(ConfigError, match="1 folders for 2 targets"): open_table({**more, "target_root": "/b"}, set())


@pytest.mark.parametrize("given, says", [
    (dict(seeds="0,0"), "seeds='0,0' has a number twice"), (dict(source="b"), "'b' and target='b' name a domain twice"),
    (dict(target="b,b"), "name a domain twice"), (dict(target="b, a"), "name a domain twice")],
    ids=["seeds", "source", "targets", "space"])
def test_seeds_and_domains_are_given_once(given, says):
    with pytest.raises(ConfigError, match=says): open_table({**GIVEN, **given}, set())
    assert open_table({**GIVEN, "target": "b, c"}, set()).directions[2:] == [("a", "c"), ("b", "c")]
    with pytest.raises(ConfigError, match="inf"): coerce_parameter("n", float("inf"), int)


def test_packages_are_those_of_all_sessions():
    one = dict(commit="a", changed=False, hardware="x", python="3.11")
    rows = session_rows([{**one, "packages": dict(torch="2.1", timm="1")}, {**one, "packages": dict(torch="2.9")}])
    assert rows["packages"] == "python 3.11, torch 2.1 and 2.9, timm 1"


def test_a_target_without_queries_stops_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path/"runs"))
    root = write_domain("campus", tmp_path, train_ids=4, test_ids=2, cameras=2, size=(48, 24))
    for path in (root/"query").iterdir(): path.unlink()
    given = dict(preset="tiny", source="plaza", target="campus", target_root=str(root))
    table = open_table({**GIVEN, **given}, set())
    with pytest.raises((ConfigError, DataError), match="quer"): table.runs({"row": ("direct", {})})


def test_a_report_names_all_its_domains():
    four = open_table({**GIVEN, "source": "plaza", "target": "campus,station"}, set())
    assert four.made.domains == ["plaza", "campus", "station"] and four.made.data == ""


def test_collect_keeps_rows_directions_and_seeds_apart(tmp_path):
    directions = [("plaza", "campus"), ("campus", "plaza")]
    got = collect_runs({"direct transfer": ("direct", {})}, directions, [0, 1], "tiny", device="cpu", store=tmp_path,
                       progress=False)
    for (row, s, t), runs in got.items():
        assert [r.config for r in runs] == [RunConfig("tiny", s, t, "direct", {}, seed) for seed in (0, 1)]
    assert len(got) == 2


def test_a_table_asks_for_runs_with_tracks(tmp_path, monkeypatch):
    monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path))
    monkeypatch.setattr("upl_reid.experiments.tables.stored_runs", lambda configs, **kwargs: configs)
    table = open_table({**GIVEN, "source": "plaza", "target": "campus", "seeds": "3"}, set())
    config = RunConfig("demo", "plaza", "campus", "dbscan", {}, 3)
    rows, key = {"one": ("dbscan", {})}, ("one", "plaza", "campus")
    assert table.runs(rows)[key] == [config] and table.runs(rows, tracks=True)[key] == [replace(config, tracks=True)]


def test_pretraining_is_that_of_the_same_folders(tmp_path):
    adapted = RunConfig("tiny", "plaza", "campus", "dbscan")
    first = pretraining_configs(adapted)[0]
    def run(name):
        (tmp_path/name).mkdir(exist_ok=True)
        (tmp_path/name/"metrics.json").write_text("{}")
        return Run(adapted, tmp_path/name)
    for name in (first.id, f"{first.id}-aaaa", f"{first.id}-cccc"): run(name)
    def found(name): return [r.path.name for r in started_from([run(name)])]
    # a folder for the target alone: the embedded source
    assert found(adapted.id) == found(f"{adapted.id}-bbbb") == [first.id]
    assert found(f"{adapted.id}-aaaa-bbbb") == [f"{first.id}-aaaa"]
    assert found(f"{adapted.id}-cccc-bbbb") == [f"{first.id}-cccc"]


@pytest.mark.parametrize("value, says", [(2024, "as in -r source_root 2024"), (True, "as in -r source_root True"),
                                         (1.5, "as in -r source_root 1.5")])
def test_a_number_where_text_is_needed_names_papermill_s_raw_option(value, says):
    with pytest.raises(ConfigError, match=f"{says}$"): open_table({**GIVEN, "source_root": value}, set())
    with pytest.raises(ConfigError, match="as in -p seeds 3$"): open_table({**GIVEN, "seeds": "x"}, set())


def test_plugins_and_records_are_parameters_of_every_table(monkeypatch):
    loaded = []
    monkeypatch.setattr("upl_reid.experiments.tables.load_plugins", loaded.append)
    assert open_table({**GIVEN, "plugins": "one,two"}, set()).records is False and loaded == ["one,two"]
    assert open_table({**GIVEN, "records": True, "plugins": ""}, set()).records is True and len(loaded) == 1
    with pytest.raises(ConfigError, match="records='yes' should be of type bool"):
        open_table({**GIVEN, "records": "yes"}, set())
    monkeypatch.setenv("IN_TEST", "1")
    assert open_table({**GIVEN, "records": True}, set()).records is False            # the archive is of other presets


PLUGIN = """
from upl_reid.methods.baseline import GlobalDBSCAN
from upl_reid.training.method import register

@register("mine_too")
class MineToo(GlobalDBSCAN):
    "DBSCAN with a method's own name."
"""


@pytest.mark.parametrize("table", ["table3", "table6"])     # all of them were run by hand; two forms, to keep CI short
def test_a_plugin_is_a_row_of_the_tables(table, tmp_path, monkeypatch):
    (tmp_path/"mine_too.py").write_text(PLUGIN)
    monkeypatch.setenv("IN_TEST", "1")
    out = tmp_path/"out.ipynb"
    papermill.execute_notebook(ROOT/f"nbs/{table}.ipynb", out, dict(plugins=str(tmp_path/"mine_too.py")),
                               kernel_name="python3", cwd=tmp_path, progress_bar=False)
    cells = [c for c in json.loads(out.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    shown = "".join(str(o.get("data", "")) for c in cells for o in c["outputs"])
    assert "| mine_too |" in shown


def test_every_run_of_a_row_is_drawn():
    lines = [dict(configuration=row, source=s, target=t, measure=m, seed=seed, value=seed + 1., run="r")
             for row in ("a", "b") for s, t in (("x", "y"), ("y", "x")) for m in ("mAP", "SC") for seed in range(3)]
    figure = draw_seeds(pd.DataFrame(lines), "mAP")
    assert [ax.get_title() for ax in figure.axes] == ["x → y", "y → x"]
    for ax in figure.axes:
        dots = np.concatenate([c.get_offsets() for c in ax.collections])
        assert sorted(dots[:, 0].tolist()) == [1, 1, 2, 2, 3, 3] and ax.get_xlabel() == "mAP"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_a_report_says_which_methods_of_ones_own_it_has_no_row_of(monkeypatch):
    monkeypatch.setattr(tables, "outside_rows", lambda: {"mine": ("mine", {}), "yours": ("yours", {})})
    run = lambda method: SimpleNamespace(config=SimpleNamespace(method=method))
    assert tables.rows_missing([run("dbscan"), run("mine"), run("yours")]) == []
    assert tables.rows_missing([run("mine")]) == ["No row here is of yours: this report shows a fixed list of methods."]
    assert "mine, yours:" in tables.rows_missing([])[0]
    monkeypatch.setattr(tables, "outside_rows", dict)
    assert tables.rows_missing([run("dbscan")]) == []


@pytest.mark.parametrize("text, message", [("[1]", r"grid='\[1\]' is no JSON object"), ("{a: 1}", r"is no JSON \("),
                                           ("3", "no JSON object")])
def test_a_parameter_that_is_an_object(text, message):
    assert tables.parse_object("grid", "") == {} and tables.parse_object("grid", '{"a": [1, 2.5]}') == {"a": [1, 2.5]}
    with pytest.raises(ConfigError, match=message): tables.parse_object("grid", text)
