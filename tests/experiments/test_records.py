"""Committed reports are replaced by equal or larger experiments only, and their runs can be read without the store."""
import json, re, shutil, sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from upl_reid.cli import main
from upl_reid.core import RunError
from upl_reid.experiments.config import RunConfig
from upl_reid.experiments.label_analysis import camera_rate, finished_runs, pack_store
from upl_reid.experiments.records import (archived_runs, ArchivedRun, keep_records, local_folder, may_replace,
    merge_rows, noted, pack, read_archive, read_setting, record_of, RECORDS, report_folder, ReportSetting,
    setting_in_text, stored_runs, unpack, write_setting)
from upl_reid.experiments.runs import (features_to_rank, get_run, open_domain, plain_scores, present_code, Run,
    score_retrieval, WAYS_TO_RANK)
from upl_reid.experiments.tables import (add_differences, open_table, provenance_table, rank_again,
    tabulate_runs, write_report)
from upl_reid.training.method import Method, METHODS, register

ROOT = Path(__file__).resolve().parents[2]
FRAME = pd.DataFrame(dict(a=[1]))


def setting(preset="demo", seeds=(0, 1, 2), domains=("plaza", "campus"), data="", **extra):
    return ReportSetting(preset, list(seeds), list(domains), data, extra)


@pytest.mark.parametrize("new, replaced", [
    (setting(), True), (setting(seeds=(2, 1, 0, 7)), True),
    (setting(seeds=(0, 1)), False), (setting(seeds=(0, 1, 3)), False),
    (setting("tiny"), False), (setting(domains=("campus", "plaza")), False), (setting(data="0123abcd"), False),
    (setting(repeats=3), True), (setting(repeats=4), False), (None, False)])
def test_a_report_is_replaced_by_the_same_experiment_or_more_seeds(tmp_path, new, replaced):
    write_report("t", tmp_path, "# old", FRAME, made=setting(repeats=3))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    if new == setting(): new = setting(repeats=3)
    path = write_report("t", tmp_path, "# new", FRAME, made=new)
    assert path.read_text() == "# new\n" and (path.parent == tmp_path) == replaced
    if not replaced:
        assert path.is_relative_to(tmp_path/"local")
        assert {name: (tmp_path/name).read_bytes() for name in before} == before
    else: assert read_setting(tmp_path/"t.md") == new


def test_a_report_of_another_size_is_replaced_by_the_same_one(tmp_path):
    for text in ("# old", "# new"):
        path = write_report("t", tmp_path, text, FRAME, made=setting(size=(128, 64)))
        assert path == tmp_path/"t.md" and path.read_text() == f"{text}\n"
    assert write_report("t", tmp_path, "# other", FRAME, made=setting(size=(64, 32))) != tmp_path/"t.md"


def test_a_report_in_a_folder_keeps_its_runs_in_the_same_archive(tmp_path):
    runs = {name: finished(tmp_path, seed=seed) for seed, name in enumerate(("t", "p2lr/table1"))}
    for name, run in runs.items():
        path = write_report(name, tmp_path/"reports", "# new", FRAME, made=setting(seeds=[run.config.seed]), runs=[run])
        assert path == tmp_path/"reports"/f"{name}.md" and path.with_suffix(".csv").exists()
    assert set(read_archive(tmp_path/"reports"/RECORDS)) == {run.id for run in runs.values()}
    small = write_report("p2lr/table1", tmp_path/"reports", "# small", FRAME, made=setting("tiny", [0]))
    assert small == tmp_path/"reports"/"local"/"tiny-seeds-0"/"p2lr"/"table1.md"
    assert set(read_archive(tmp_path/"reports"/RECORDS)) == {run.id for run in runs.values()}


def test_the_line_says_where_and_what_stays(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("UPL_REID_ROOT", str(tmp_path))
    write_report("t", tmp_path/"reports", "# old", FRAME, made=setting())
    write_report("t", tmp_path/"reports", "# new", FRAME, made=setting("tiny", [0]))
    first, second = capsys.readouterr().out.splitlines()
    assert first == "report: reports/t.md"
    assert second == ("report: reports/local/tiny-seeds-0/t.md "
                      "(reports/t.md has preset demo and seeds 0, 1, 2, and stays as it is)")


@pytest.mark.parametrize("path", sorted((ROOT/"reports").glob("*.md")), ids=lambda p: p.stem)
def test_every_committed_report_says_what_it_was_made_with(path, tmp_path):
    made = read_setting(path)
    assert made is not None and made.preset != "tiny"
    smaller = setting("tiny", [0])
    assert report_folder(path.stem, path.parent, smaller) == path.parent/"local"/"tiny-seeds-0"
    assert report_folder(path.stem, path.parent, made) == path.parent


def test_seeds_of_second_networks_do_not_count():
    text = "| preset | demo |\n| seeds | 0, 2, 1000, 1002 |\n"
    assert setting_in_text(text).seeds == [0, 2] and setting_in_text("| preset | demo |\n").seeds == []
    assert setting_in_text("| seeds | 0 (a single run a cell) |") is None
    assert setting_in_text("| preset | demo |\n| seeds | 0 (a single run a cell) |").seeds == [0]


def test_names_of_local_folders_can_be_paths(tmp_path):
    made = setting("paper", [0], ("market1501", "my own"), "1a2b-3c4d", sizes=[10, 20])
    assert re.fullmatch("paper-seeds-0-market1501-my-own-1a2b-3c4d-[0-9a-f]{8}", local_folder(tmp_path, made).name)
    other = local_folder(tmp_path, made, setting(sizes=[10]))
    assert re.fullmatch("paper-seeds-0-market1501-my-own-sizes-10-20-1a2b-3c4d-[0-9a-f]{8}", other.name)
    assert len(local_folder(tmp_path, setting(seeds=range(200))).name) <= 120
    assert local_folder(tmp_path, setting(), archived=True).name == "demo-seeds-0-1-2-from-records"


def test_two_settings_never_share_a_local_folder(tmp_path):
    long = [setting(seeds=range(60), data=data) for data in ("d"*8, "e"*8)]
    signs = [setting(alpha=alpha) for alpha in (-.5, .5)]
    for pair in (long, signs):
        names = {local_folder(tmp_path, made, setting(alpha=1), kept) for made in pair for kept in (False, True)}
        assert len(names) == 4 and all(len(folder.name) <= 120 for folder in names)


@pytest.mark.parametrize("one, other", [
    (setting(), setting(backbone="micro")), (setting(), setting(outside=["mine"])),
    (setting(dim=32), setting(dim=64)), (setting(backbone="micro"), setting(dim=32))],
    ids=["network", "plugin", "dim", "fields"])
def test_a_report_of_another_network_or_with_further_methods_is_another_one(tmp_path, one, other):
    for first, second in ((one, other), (other, one)):
        assert may_replace(first, first) and not may_replace(second, first)
        write_report("t", tmp_path/str(first.extra), "# old", FRAME, made=first)
        path = write_report("t", tmp_path/str(first.extra), "# new", FRAME, made=second)
        assert path.parent.parent.name == "local"


# ---- the archive

GIVEN = dict(preset="tiny", source="plaza", target="campus", source_root="", target_root="", weights="", seeds="0,1",
             device="cpu")
ENVIRONMENT = dict(commit="abc", changed=False, hardware="a machine", python="3.11", packages=dict(torch="2"))
RNG = np.random.default_rng(0)         # one for all runs, so each has other values


def finished(store, method="direct", seed=0, source="plaza", target="campus", rng=RNG, tracks=False, **args):
    """A run directory with all that a table reads."""
    config = RunConfig("tiny", source, target, method, args, seed, tracks=tracks)
    run, ap = Run(config, store/config.id), rng.random(30)
    run.path.mkdir(parents=True)
    rounds = [dict(epoch=e, silhouette=rng.random(), noise_ratio=rng.random(), ece=float("nan")) for e in (1, 2)]
    metrics = dict(mAP=float(ap.mean()), mINP=rng.random(), cmc={str(k): rng.random() for k in (1, 5, 10)}, skipped=0,
                   ap=ap.tolist(), pids=(np.arange(30)//3).tolist(), rounds=rounds, seconds=1.5, peak_memory=.5)
    (run.path/"metrics.json").write_text(json.dumps(metrics))
    (run.path/"history.jsonl").write_text("".join(json.dumps(dict(epoch=e, loss=rng.random())) + "\n" for e in (1, 2)))
    (run.path/"environment.json").write_text(json.dumps([ENVIRONMENT]))
    (run.path/"config.json").write_text(json.dumps(config.stated))
    return run


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with two rows of finished runs in its store."""
    monkeypatch.setenv("UPL_REID_ROOT", str(tmp_path)); monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path/"runs"))
    monkeypatch.delenv("IN_TEST", raising=False)
    for method in ("direct", "dbscan"):
        for s, t in (("plaza", "campus"), ("campus", "plaza")):
            for seed in (0, 1): finished(tmp_path/"runs", method, seed, s, t)
    for source in ("plaza", "campus"):
        for seed in (0, 1):
            config = RunConfig("tiny", source, seed=seed)
            shutil.copytree(next((tmp_path/"runs").iterdir()), tmp_path/"runs"/config.id)
    return tmp_path


ROWS = {"full model": ("dbscan", {}), "direct transfer": ("direct", {})}


def report_of(table):
    """Table, differences and intervals as a notebook makes them, and the provenance."""
    runs = table.runs(ROWS)
    text, numbers = tabulate_runs(runs, ["mAP", "R-1", "mINP", "SC", "noise %", "ECE %"])
    text, words = add_differences(text, runs)
    return text, numbers, words, table.write("t", "T", [*words], numbers, [r for g in runs.values() for r in g])


def test_a_table_from_records_equals_the_table_from_the_store(project, monkeypatch):
    text, numbers, words, origin = report_of(open_table(dict(GIVEN), set()))
    assert (project/"reports"/RECORDS).exists() and read_setting(project/"reports/t.md") == setting("tiny", (0, 1))
    shutil.rmtree(project/"runs")
    committed = {p.name: p.read_bytes() for p in (project/"reports").iterdir() if p.is_file()}
    monkeypatch.setattr("upl_reid.experiments.workers.get_run", None)              # nothing can be trained
    again = report_of(open_table({**GIVEN, "records": True}, set()))
    pd.testing.assert_frame_equal(again[0], text)
    pd.testing.assert_frame_equal(again[1], numbers)                               # exact: every float64 comes back
    assert again[2] == words
    local = project/"reports/local/tiny-seeds-0-1-from-records/t.md"
    assert "runs from records (reports/records.sqlite), none trained here" in again[3] and again[3] in local.read_text()
    ids = lambda table: next(line for line in table.splitlines() if line.startswith("| runs |"))
    assert ids(again[3]) == ids(origin) and len(ids(origin).split(",")) == 12        # eight runs and four pretrainings
    assert {p.name: p.read_bytes() for p in (project/"reports").iterdir() if p.is_file()} == committed


def test_local_reports_have_records_of_their_own(project):
    report_of(open_table({**GIVEN, "preset": "tiny"}, set()))
    report_of(open_table({**GIVEN, "seeds": "1"}, set()))
    assert len(read_archive(project/"reports"/RECORDS)) == 12
    assert len(read_archive(project/"reports/local/tiny-seeds-1"/RECORDS)) == 6


def test_missing_records_end_the_table(project):
    with pytest.raises(RunError, match="8 of 8 runs are not in reports/records.sqlite or reports/local/tiny-seeds-0-1"):
        open_table({**GIVEN, "records": True}, set()).runs(ROWS)


def test_an_archived_run_is_the_run(tmp_path):
    run = finished(tmp_path/"runs", "upl", queue=512)
    write_setting(tmp_path/"t.json", setting(), [run.id])
    keep_records(tmp_path/RECORDS, [run])
    archived, = archived_runs([run.config], [tmp_path/"none.sqlite", tmp_path/RECORDS], None, tmp_path)
    assert (archived.id, archived.config, archived.environments) == (run.id, run.config, run.environments)
    assert json.dumps(archived.metrics) == json.dumps(run.metrics)
    assert json.dumps(archived.labels) == json.dumps(run.labels)
    pd.testing.assert_frame_equal(archived.history, run.history)
    for ask in (archived.rounds, archived.test_features, archived.encoder):
        with pytest.raises(RunError, match="without -p records true"): ask()
    assert [r.id for r in finished_runs([archived])[0]] == [run.id]


def test_archived_runs_with_tracks_are_told_from_those_without(tmp_path):
    runs = [finished(tmp_path/"runs", "dbscan", tracks=tracks) for tracks in (False, True)]
    write_setting(tmp_path/"t.json", setting(), [r.id for r in runs])
    keep_records(tmp_path/RECORDS, runs)
    archived = archived_runs([r.config for r in runs], [tmp_path/RECORDS], None, tmp_path)
    found, left_out = finished_runs(archived)
    assert {r.id: r.config.tracks for r in found} == {runs[0].id: False, runs[1].id: True} and left_out == []


def test_values_from_features_are_calculated_once_and_archived(tmp_path):
    run, calls = finished(tmp_path/"runs"), []
    def work(): calls.append(1); return dict(mAP=np.float64(.1), ap=(.25, 1/3))
    first = noted(run, "centred", work)
    assert noted(run, "centred", work) == first == dict(mAP=.1, ap=[.25, 1/3]) and len(calls) == 1
    write_setting(tmp_path/"t.json", setting(), [run.id])
    keep_records(tmp_path/RECORDS, [run])
    keep_records(tmp_path/RECORDS, [Run(run.config, run.path)])             # another report, which did not need it
    archived, = archived_runs([run.config], [tmp_path/RECORDS], None, tmp_path)
    assert noted(archived, "centred", work) == first and len(calls) == 1
    with pytest.raises(RunError, match="no reranked"): noted(archived, "reranked", work)


def test_the_archive_holds_the_runs_of_the_reports_beside_it(tmp_path):
    one, two = finished(tmp_path/"runs"), finished(tmp_path/"runs", "dbscan")
    def report(name, *runs): write_report(name, tmp_path/"reports", "# T", FRAME, made=setting(), runs=runs)
    archive = tmp_path/"reports"/RECORDS
    report("a", one, two); report("b", two)
    assert set(read_archive(archive)) == {one.id, two.id}
    content = archive.read_bytes()
    report("b", two)
    assert archive.read_bytes() == content                                         # nothing new: git stays quiet
    report("a", two)
    assert set(read_archive(archive)) == {two.id}
    with sqlite3.connect(archive) as base:                                         # plain columns for a reader with SQL
        assert base.execute("SELECT method, mAP FROM runs").fetchall() == [("dbscan", two.metrics["mAP"])]


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path/RECORDS).write_text("no database, however long this text may be " * 20)
    with pytest.raises(RunError, match="restore it from git"): read_archive(tmp_path/RECORDS)


def test_committed_records_stay_small():
    assert sum(p.stat().st_size for p in (ROOT/"reports").glob("*.sqlite")) < 20e6


def test_provenance_of_archived_runs_names_the_archive(tmp_path, monkeypatch):
    monkeypatch.setenv("UPL_REID_ROOT", str(tmp_path))
    run = finished(tmp_path/"runs")
    write_setting(tmp_path/"reports/t.json", setting(), [run.id]); keep_records(tmp_path/"reports"/RECORDS, [run])
    archived = archived_runs([run.config], [tmp_path/"reports"/RECORDS], None, tmp_path)
    assert isinstance(archived[0], ArchivedRun)
    assert "all runs from records (reports/records.sqlite)" in provenance_table(archived, 1.)
    assert "from records" not in provenance_table([run], 1.)


@pytest.mark.parametrize("change, folder", [(dict(preset="tiny", seeds="0"), "tiny-seeds-0"),
                                            (dict(preset="demo", seeds="0"), "demo-seeds-0"),
                                            (dict(preset="demo", seeds="0,1,2"), None)])
def test_the_committed_table_4_and_smaller_runs(tmp_path, monkeypatch, change, folder):
    shutil.copytree(ROOT/"reports", tmp_path/"reports", ignore=shutil.ignore_patterns("local", "*.ipynb", ".*"))
    monkeypatch.setenv("UPL_REID_ROOT", str(tmp_path)); monkeypatch.delenv("IN_TEST", raising=False)
    (tmp_path/"elsewhere").mkdir(); monkeypatch.chdir(tmp_path/"elsewhere")        # another working directory
    before = {p.name: p.read_bytes() for p in (tmp_path/"reports").iterdir() if p.is_file()}
    run = finished(tmp_path/"runs")
    open_table({**GIVEN, **change}, set()).write("table4", "Table 4", [], FRAME, [run])
    reports = [p for p in (tmp_path/"reports").iterdir() if p.is_file() and not p.name.startswith(".")]
    after = {p.name: p.read_bytes() for p in reports}
    if folder:
        assert after == before and (tmp_path/"reports/local"/folder/"table4.md").exists()
        assert set(read_archive(tmp_path/"reports/local"/folder/RECORDS)) == {run.id}
    else: assert after["table4.md"] != before["table4.md"] and run.id in after["table4.json"].decode()
    assert not list((tmp_path/"elsewhere").iterdir())


def test_local_reports_are_ignored_by_git():
    assert "/reports/local/" in (ROOT/".gitignore").read_text().splitlines()


# ---- records in a store

def test_a_table_goes_on_from_the_records_in_its_store(project, monkeypatch):
    text, numbers, *_ = report_of(open_table(dict(GIVEN), set()))
    store, reports = project/"runs", project/"reports"
    shutil.move(reports/RECORDS, store/RECORDS)
    for path in reports.iterdir(): path.unlink()
    some = sorted(p.parent for p in store.glob("*/metrics.json"))[:5]
    for path in some: shutil.rmtree(path)
    monkeypatch.setattr("upl_reid.experiments.workers.get_run", None)              # nothing is trained
    again = report_of(open_table(dict(GIVEN), set()))
    pd.testing.assert_frame_equal(again[0], text)
    pd.testing.assert_frame_equal(again[1], numbers)
    assert "5 of 12 runs from records (runs/records.sqlite) |" in again[3]         # seven folders are there
    assert (reports/"t.md").exists() and len(read_archive(reports/RECORDS)) == 12  # a full report, with all its records
    (store/RECORDS).unlink()
    with pytest.raises(TypeError): report_of(open_table(dict(GIVEN), set()))       # now the five would be trained


def test_records_of_stores_are_merged(tmp_path):
    one, two = tmp_path/"one", tmp_path/"two"
    configs = [RunConfig("tiny", "plaza", "campus", "direct", seed=seed) for seed in (0, 1)]
    runs = [get_run(c, device="cpu", store=s, progress=False) for c, s in zip(configs, (one, two))]
    score = runs[0].metrics["mAP"]
    (two/"odd").mkdir()
    (two/"odd"/"metrics.json").write_text("{}")
    assert pack_store(one) == dict(records=2, left_out=[], without_images=[])      # the run and its pretraining
    assert pack_store(two, [one/RECORDS]) == dict(records=4, left_out=["odd"], without_images=[])
    content = (two/RECORDS).read_bytes()
    assert pack_store(two)["records"] == 4 and (two/RECORDS).read_bytes() == content
    rate = camera_rate(runs[0], open_domain("campus", "tiny", None, one).train)
    shutil.rmtree(one)
    light = stored_runs(configs, store=two)
    assert [type(r) for r in light] == [ArchivedRun, Run] and light[0].metrics["mAP"] == score
    domain = open_domain("campus", "tiny", None, two)
    assert camera_rate(light[0], domain.train) == rate
    for how in WAYS_TO_RANK:                                                        # the record has what needs features
        kept = rank_again(light[0], domain, how).metrics
        if how == "plain": assert kept["mAP"] == score
    features = score_retrieval(features_to_rank(runs[1], domain, "reranked"), domain, "reranked")
    expected = plain_scores(features, domain)["mAP"]
    packed, = archived_runs(configs[1:], [two/RECORDS], None, two)
    assert rank_again(packed, domain, "reranked").metrics["mAP"] == expected


def test_records_and_notes_are_of_the_last_training(tmp_path):
    run = finished(tmp_path)
    row = {**record_of(run), "notes": pack(dict(a=1, b=1))}
    merge_rows(tmp_path/RECORDS, [row])
    merge_rows(tmp_path/RECORDS, [{**row, "notes": pack(dict(b=2))}])                  # the same training: joined
    assert unpack(read_archive(tmp_path/RECORDS)[run.id]["notes"]) == dict(a=1, b=2)
    shutil.rmtree(run.path)
    anew = finished(tmp_path)                                                          # as after again=True
    merge_rows(tmp_path/RECORDS, [{**record_of(anew), "notes": pack(dict(b=3))}])
    assert unpack(read_archive(tmp_path/RECORDS)[run.id]["notes"]) == dict(b=3)
    shutil.rmtree(anew.path)
    pretrained = finished(tmp_path, "pretrain", target="")
    assert pack_store(tmp_path)["records"] == 2
    shutil.rmtree(pretrained.path)
    again = finished(tmp_path, "pretrain", target="")
    assert pack_store(tmp_path)["records"] == 2                                        # after it was trained anew
    assert unpack(read_archive(tmp_path/RECORDS)[again.id]["metrics"])["mAP"] == again.metrics["mAP"]


def test_the_command_merges_files_and_names_a_missing_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path/"runs"))
    run = finished(tmp_path/"other")
    keep = tmp_path/"other"/RECORDS
    merge_rows(keep, [record_of(run)])
    assert main(["records", str(keep)]) == 0 and "1 run in" in capsys.readouterr().out
    assert set(read_archive(tmp_path/"runs"/RECORDS)) == {run.id}
    assert main(["records", str(tmp_path/"none.sqlite")]) == 1 and "none.sqlite" in capsys.readouterr().err


def test_changed_code_is_told_of_runs_from_records_and_in_the_report(tmp_path, capsys):
    store = tmp_path/"runs"
    make = lambda version: type("Outside", (Method,), dict(trains=False, __module__="somewhere", version=version))
    config = lambda: RunConfig("tiny", "plaza", "campus", "outside")
    try:
        register("outside")(make(1))
        run = get_run(config(), store=store, device="cpu", progress=False)
        merge_rows(tmp_path/RECORDS, [record_of(run)])
        read = lambda: archived_runs([config()], [tmp_path/RECORDS], None, store)[0]
        capsys.readouterr()
        told = provenance_table([read()], 1.)
        assert capsys.readouterr().err == "" and f"| code of outside | {run.code_digests[0]} |" in told
        METHODS["outside"] = make(2)
        changed = read()
        assert "the code of method 'outside' has changed since" in capsys.readouterr().err
        now = present_code(config())["digest"]
        assert f"| code of outside | {run.code_digests[0]}; now it is {now} |" in provenance_table([changed], 1.)
        changed.row["environments"] = json.dumps([{k: v for k, v in at.items() if k != "code"}
                                                  for at in changed.environments])
        assert f"| code of outside | not stored; now it is {now} |" in provenance_table([changed], 1.)
    finally: METHODS.pop("outside", None)
