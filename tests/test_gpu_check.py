"""The script that checks and times the package on a GPU: its report, its limits, and a rehearsal on the CPU."""
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stand_in import DEVICE, stand_in_device

from upl_reid.experiments.config import load_methods
from upl_reid.experiments.runs import describe_environment

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT/".ci"/"gpu_check.py"
# not on a bare GPU machine; only notebooks, drawing and large clusterings on a CPU need them
ABSENT = ("faiss", "papermill", "nbdev", "execnb", "fastcore", "nbformat", "nbclient", "nbconvert", "jupyter_core",
          "jupyter_client", "IPython", "ipykernel", "ipywidgets", "accelerate", "matplotlib", "seaborn", "onnx")


@pytest.fixture(scope="module")
def script():
    "The script as a module."
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(script, folder):
    facts = dict(hardware="none", python="3", packages=dict(torch="2"), commit="abc", changed=False, time="now")
    return script.Report(folder, environment=facts, arguments=dict(minutes=8, small=True))


def test_every_measurement_is_on_disk_when_it_is_made(script, tmp_path):
    report = made(script, tmp_path)
    def work(add):
        add(method="a", difference=np.float32(.5), holds=np.bool_(True))
        stored = json.loads((tmp_path/"gpu.json").read_text())["sections"]["correctness"]
        assert stored["state"] == "running" and stored["rows"] == [dict(method="a", difference=.5, holds=True)]
        add(method="b", difference=float("nan"), holds=None)
    report.run("correctness", work, 60)
    stored = json.loads((tmp_path/"gpu.json").read_text())
    assert stored["sections"]["correctness"]["state"] == "done"
    assert stored["sections"]["correctness"]["rows"][1] == dict(method="b", difference=None, holds=None)
    text = (tmp_path/"gpu.md").read_text()
    assert text == script.page(stored)
    assert "| method | difference | holds |\n| --- | --- | --- |\n| a | 0.5 | yes |\n| b |  |  |" in text


def test_a_section_that_takes_too_long_keeps_what_it_has(script, tmp_path):
    report = made(script, tmp_path)
    def work(add):
        add(row="first")
        try: time.sleep(30)
        except Exception: pytest.fail("a library's `except Exception` would take the end of the time for a fault")
    report.run("step", work, .2)
    section = json.loads((tmp_path/"gpu.json").read_text())["sections"]["step"]
    assert section["state"] == "out of time" and section["rows"] == [dict(row="first")] and section["seconds"] < 10
    assert script.failed(report.facts) == []


def test_a_fault_ends_its_section_only(script, tmp_path):
    report = made(script, tmp_path)
    def work(add): raise RuntimeError("CUDA error: out of memory\nand more")
    report.run("kernels", work, 60)
    report.run("table4", lambda add: add(row="a"), 60)
    states = [section["state"] for section in report.facts["sections"].values()]
    assert states[0].startswith("failed: RuntimeError: CUDA error: out of memory tests/test_gpu_check.py:")
    assert states[1] == "done" and script.failed(report.facts) == [f"kernels: {states[0]}"]


@pytest.mark.parametrize("row", [dict(holds=False), dict(same=False), dict(error="no compiler")])
def test_what_does_not_hold_is_a_fault(script, tmp_path, row):
    report = made(script, tmp_path)
    report.run("kernels", lambda add: (add(holds=True, same=True), add(holds=None), add(**row)), 60)
    assert len(script.failed(report.facts)) == 1


@pytest.mark.parametrize("arguments, said", [
    (["--only", "steps"], "no section 'steps'"), (["--only", ""], "there are"), (["--minutes", "0"], "above 0"),
    (["--epochs", "6"], "two numbers")])
def test_arguments_are_checked(script, capsys, arguments, said):
    with pytest.raises(SystemExit): script.main(arguments)
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named(script, capsys):
    assert script.main([]) == 2 and "'cuda' is not available" in capsys.readouterr().err


def test_a_machine_without_git_is_described(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = describe_environment(torch.device("cpu"))
    assert found["commit"] == "not a git checkout" and found["changed"] is False


def test_one_fault_does_not_end_a_section(script, tmp_path, capsys):
    report = made(script, tmp_path)
    def broken(): script.loss_difference(dict(loss=1.), dict(loss=torch.zeros(2, 2) @ torch.zeros(3)))
    def work(add):
        assert script.guarded(add, dict(work="a"), broken) is None and script.guarded(add, {}, lambda: 5) == 5
        add(work="b")
    report.run("kernels", work, 60)
    first, second = report.facts["sections"]["kernels"]["rows"]
    assert first["error"].startswith("RuntimeError: ") and first["at"].startswith("tests/test_gpu_check.py:")
    assert second == dict(work="b") and "Traceback" in capsys.readouterr().err


def test_differences_are_relative_above_one(script):
    ours, theirs = dict(loss=11., ce=.5, lr=1., classes=3), dict(loss=10., ce=.3, lr=2., classes=4)
    assert script.loss_difference(ours, theirs) == (pytest.approx(.2), "ce")
    assert script.loss_difference(dict(ours, ce=.3), theirs) == (pytest.approx(.1), "loss")
    assert np.isnan(script.loss_difference(dict(ours, loss=float("nan")), theirs)[0])
    rounds = [(None, 0., torch.tensor([0, 1]))], [(None, 0., torch.tensor([0, 1]))]
    def holds(row, labels=rounds):
        return next(script.compared(([row], labels[0]), ([theirs], labels[1]), (.15,)))["holds"]
    assert holds(ours) is False and holds(dict(ours, ce=.3)) is True and holds(dict(ours, loss=float("nan"))) is False
    assert holds(ours, ([(None, 0., torch.tensor([1, 1]))], rounds[1])) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", load_methods())
def test_every_method_trains_on_another_device(script, store, monkeypatch, name):
    theirs = script.adaptation(name, torch.device("cpu"), store)
    with stand_in_device(monkeypatch): ours = script.adaptation(name, DEVICE, store, [r[0] for r in theirs[1]])
    for row in script.compared(ours, theirs, (1e-3, 1e-2)): assert row["holds"] and row["features"] < 1e-3, row


@pytest.fixture(scope="module")
def store(tmp_path_factory): return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("work", ["global_dbscan", "hybrid_labels", "evaluate_retrieval", "rerank"])
def test_clustering_and_evaluation_work_on_another_device(script, monkeypatch, work):
    theirs = script.kernel_problems(script.REDUCED, torch.device("cpu"), 32)[work]()
    with stand_in_device(monkeypatch): ours = script.kernel_problems(script.REDUCED, DEVICE, 32)[work]()
    assert script.agreement(ours, theirs)["same"]
    assert work != "global_dbscan" or len(np.unique(theirs)) > 10       # the problem is no trivial one


def test_the_stand_in_finds_tensors_of_two_devices(monkeypatch):
    with stand_in_device(monkeypatch):
        x = torch.arange(3., device=DEVICE)
        assert x.device == DEVICE and (2*x).tolist() == [0, 2, 4] and x[torch.tensor([2])].cpu().tolist() == [2]
        with pytest.raises(RuntimeError, match="two devices"): x + torch.zeros(3)
        with pytest.raises(RuntimeError, match="two devices"): x[0] + torch.zeros(3)


@pytest.mark.slow
def test_a_rehearsal_needs_no_notebooks(tmp_path):
    start = f"import sys\nfor name in {ABSENT!r}: sys.modules[name] = None\n"
    code = start + f"import runpy; sys.argv[0] = 'gpu_check.py'; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code, "--device", "cpu", "--small", "--minutes", "30", "--out",
                             str(tmp_path)], capture_output=True, text=True, cwd=tmp_path,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})          # two threads add in another order
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads((tmp_path/"gpu.json").read_text())
    assert {k: v["state"] for k, v in report["sections"].items()} == dict.fromkeys(
        ("correctness", "step", "kernels", "table4"), "done")
    rows = report["sections"]["correctness"]["rows"]
    assert len(rows) == 6 and all(r["holds"] and r["difference"] == 0 for r in rows)     # the CPU beside itself
    variants = [r for r in report["sections"]["step"]["rows"] if r["what"] == "variants"]
    assert len(variants) == 4 and all(r["epoch_s"] > r["bound_s"] > 0 for r in variants)
    assert [r["row"] for r in report["sections"]["table4"]["rows"]][-1] == "oracle (true labels)"
