"""Signs and rates of a run are calculated once, kept in its record, and read there by the study of trust."""
import json, shutil
from pathlib import Path

import numpy as np
import pytest

from upl_reid.cli import main
from upl_reid.core import RunError
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.synthetic import write_domain
from upl_reid.deployment.adaptation_check import run_quality
from upl_reid.deployment.embedder import calibrate_run, Embedder
from upl_reid.deployment.trust import note_trust, stored_quality, stored_rates
from upl_reid.experiments.config import RunConfig
from upl_reid.experiments.label_analysis import pack_store
from upl_reid.experiments.records import ArchivedRun, read_archive, RECORDS, stored_runs, unpack
from upl_reid.experiments.runs import get_run, open_domain

NOTEBOOK = Path(__file__).resolve().parents[2]/"nbs"/"studies"/"label_free_signs.ipynb"
NAMES = {"label-free signs", "stated and true rates"}


def notes_of(store):
    """The notes of each record, as they are stored."""
    return {name: unpack(row["notes"]) for name, row in read_archive(store/RECORDS).items()}


def test_facts_by_loops_and_from_the_record(tmp_path):
    config = RunConfig("tiny", "campus", "plaza", "dbscan")
    run = get_run(config, device="cpu", store=tmp_path, progress=False)
    domain = open_domain("plaza", "tiny", None, tmp_path)
    expected = run_quality(run, domain.train.camids)
    told = calibrate_run(Embedder.load(run, "cpu"), run, domain.train)
    x, hits, pairs = run.test_features(), 0, 0
    for i in range(len(domain.query)):
        for j in range(len(domain.gallery)):
            if domain.query.camids[i] == domain.gallery.camids[j] or domain.gallery.pids[j] < 0: continue
            if domain.query.pids[i] == domain.gallery.pids[j]: continue
            pairs += 1
            hits += float(x["query"][i] @ x["gallery"][j]) >= told.threshold(.01)
    lines = []
    assert pack_store(tmp_path, more=[note_trust], say=lines.append)["without_images"] == []
    assert len(lines) == 1 and run.id in lines[0]                      # the pretraining has nothing to calculate
    shutil.rmtree(run.path)
    light, = stored_runs([config], store=tmp_path)
    assert isinstance(light, ArchivedRun)
    np.testing.assert_equal(stored_quality(light, domain.train.camids), expected)
    assert stored_rates(light, domain)["model, false at 0.01, %"] == pytest.approx(100*hits/pairs, abs=.05)
    assert hits and set(notes_of(tmp_path)[run.id]) > NAMES


def test_an_old_record_says_what_it_lacks_and_gets_it_from_the_folder(tmp_path):
    config = RunConfig("tiny", "plaza", "campus", "dbscan")
    run = get_run(config, device="cpu", store=tmp_path/"runs", progress=False)
    domain, lines = open_domain("campus", "tiny", None, tmp_path/"runs"), []
    pack_store(tmp_path/"runs")
    shutil.move(run.path, tmp_path/run.id)
    light, = stored_runs([config], store=tmp_path/"runs")
    with pytest.raises(RunError, match="no label-free signs; write the record again with `upl-reid records`"):
        stored_quality(light, domain.train.camids)
    before = notes_of(tmp_path/"runs")
    shutil.move(tmp_path/run.id, run.path)
    pack_store(tmp_path/"runs", more=[note_trust], say=lines.append)
    after = notes_of(tmp_path/"runs")
    assert set(after[run.id]) == set(before[run.id]) | NAMES and "2 values" in lines[0] and len(lines) == 1
    content = (tmp_path/"runs"/RECORDS).read_bytes()
    pack_store(tmp_path/"runs", more=[note_trust], say=lines.append)  # nothing is calculated a second time
    assert len(lines) == 1 and (tmp_path/"runs"/RECORDS).read_bytes() == content


def test_runs_on_given_folders_are_recognised_by_their_images(tmp_path, monkeypatch, capsys):
    store, size = tmp_path/"runs", (32, 16)
    monkeypatch.setenv("UPL_REID_RUNS", str(store))
    sizes = dict(train_ids=8, test_ids=6, cameras=3, size=size)
    roots = {name: write_domain(name, tmp_path/"twins", seed=5, **sizes) for name in ("plaza", "campus")}
    write_domain("campus", store/"data"/"other", seed=6, **sizes)      # another network of this name is not taken
    config = RunConfig("tiny", "plaza", "campus", "dbscan")
    run = get_run(config, device="cpu", roots=roots, store=store, progress=False)
    assert run.id.count("-") == 2
    assert main(["records"]) == 0 and run.id in capsys.readouterr().out and notes_of(store)[run.id] == {}
    assert main(["records", "--data", "campus=nowhere"]) == 1 and "campus=nowhere" in capsys.readouterr().err
    assert main(["records", "--data", f"campus={roots['campus']}"]) == 0
    out = capsys.readouterr()
    assert run.id in out.err and run.id not in out.out and set(notes_of(store)[run.id]) > NAMES
    expected = run_quality(run, load_domain("campus", roots["campus"]).train.camids)
    shutil.rmtree(run.path)
    light, = stored_runs([config], roots=roots, store=store)
    np.testing.assert_equal(stored_quality(light, None), expected)


def test_a_run_with_one_given_folder_has_its_own_target(tmp_path):
    root = write_domain("plaza", tmp_path/"twins", train_ids=8, test_ids=6, cameras=3, size=(32, 16), seed=5)
    config = RunConfig("tiny", "plaza", "campus", "direct")
    run = get_run(config, device="cpu", roots={"plaza": root}, store=tmp_path/"runs", progress=False)
    assert pack_store(tmp_path/"runs")["without_images"] == [run.id]   # its mark could be that of a target
    assert pack_store(tmp_path/"runs", roots={"plaza": [root]})["without_images"] == []
    assert notes_of(tmp_path/"runs")[run.id]["scores, plain"]["mAP"] == pytest.approx(run.metrics["mAP"])


def report_of(root):
    """The study's report, with its table of numbers."""
    space = {"__name__": "study"}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code": continue
        exec("".join(cell["source"]), space)
        if "parameters" in cell["metadata"].get("tags", ()): space |= dict(preset="tiny", target="campus", device="cpu")
    made, = root.glob("reports/**/label_free_signs.md")
    lines = made.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("| time |")], made.with_suffix(".csv").read_bytes()


def test_the_report_from_folders_is_the_report_from_records(tmp_path, monkeypatch):
    store = tmp_path/"runs"
    monkeypatch.setenv("UPL_REID_ROOT", str(tmp_path)); monkeypatch.setenv("UPL_REID_RUNS", str(store))
    monkeypatch.delenv("IN_TEST", raising=False)
    first = report_of(tmp_path)
    assert pack_store(store, more=[note_trust])["without_images"] == []
    for path in list(store.glob("*/metrics.json")): shutil.rmtree(path.parent)
    monkeypatch.setattr("upl_reid.experiments.workers.get_run", None)               # nothing is trained
    assert report_of(tmp_path) == first
    assert any("| development | dbscan |" in line for line in first[0])
