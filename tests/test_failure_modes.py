"""Interrupted work: killed at random moments, stopped, out of space, without permission, twice at once, another clock.

Each row of the fault matrix has its test here or in test_runs."""
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from upl_reid.core import RunError, write_atomic
from upl_reid.deployment.embedder import Embedder
from upl_reid.experiments.config import RunConfig
from upl_reid.experiments.runs import get_run

KILLS = dict(pretrain=8, adapt=10, index=6, report=6)       # thirty in all


class Server:
    "tests/fork_server.py, and what its children did."
    def __init__(self):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]),
                os.environ.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("fork_server.py"))],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout.readline() == "ready\n"

    def start(self, folder, *arguments, **more):
        folder.mkdir(parents=True, exist_ok=True)
        (folder/"code").unlink(missing_ok=True)
        self.process.stdin.write(json.dumps(dict(arguments=[str(a) for a in arguments], folder=str(folder),
                                                 **more)) + "\n"); self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self, pid, seconds=240):
        "Until the child is gone."
        end = time.monotonic() + seconds
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < end, "it hangs"
            time.sleep(.01)

    def run(self, folder, *arguments, **more):
        "A command from beginning to end: exit code and what it said."
        self.wait(self.start(folder, *arguments, **more))
        said = (folder/"said").read_text()
        code = (folder/"code").read_text()
        assert "Traceback" not in said and code != "traceback", said
        return int(code), said

    def interrupt(self, folder, seconds, how, *arguments):
        "A command, ended after some seconds; True if it had not finished."
        pid = self.start(folder, *arguments)
        time.sleep(seconds)
        try: os.kill(pid, how)
        except ProcessLookupError: pass
        self.wait(pid)
        return not (folder/"code").exists() or not (folder/"code").read_text()


@pytest.fixture(scope="module")
def server():
    s = Server()
    yield s
    s.process.stdin.close(); s.process.wait()


@pytest.fixture(scope="module")
def world(server, tmp_path_factory):
    "Crops, and what every command gives when nobody disturbs it."
    home = tmp_path_factory.mktemp("world")
    assert server.run(home/"calm", "synth", home/"mine", "--preset", "tiny")[0] == 0
    commands = dict(pretrain=["pretrain", "pretrained.safetensors"], adapt=["adapt", home/"mine/crops",
            "model.safetensors"], index=["index", home/"calm/model.safetensors", home/"mine/search",
                                         "gallery.safetensors"])
    taken = {}
    for name, command in commands.items():
        started = time.monotonic()
        code, said = server.run(home/"calm", *complete(command, home/"calm"))
        taken[name] = time.monotonic() - started
        assert code in (0, 3), said
    return home, commands, taken


def complete(command, folder):
    "A command that writes into a folder, with the tiny preset where there is training."
    return [*command[:-1], folder/command[-1], *(["--preset", "tiny", "--device", "cpu"] if command[0] in ("pretrain",
            "adapt") else [])]


def same_files(one, other):
    "Models bit by bit, and the histories without their times."
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys() and all(np.array_equal(a[k].numpy(), b[k].numpy()) for k in a)


def untimed(row):
    "A row of a history without its times."
    return {k: v for k, v in row.items() if "seconds" not in k}


def same_runs(one, other):
    "Compare the runs that both stores have; how many there were."
    compared = 0
    for path in (one/"runs").glob("*/metrics.json"):
        twin = other/"runs"/path.parent.name
        if not twin.exists(): continue
        lines = [(p/"history.jsonl").read_text().splitlines() for p in (path.parent, twin)]
        rows = [[untimed(json.loads(line)) for line in some] for some in lines]
        assert rows[0] == rows[1]
        same_files(path.parent/"model.safetensors", twin/"model.safetensors")
        for f in (path.parent/"rounds").iterdir(): same_files(f, twin/"rounds"/f.name)
        assert not list(twin.rglob(".*.part"))
        compared += 1
    return compared


@pytest.mark.parametrize("name", ["pretrain", "adapt", "index"])
def test_killed_at_random_moments_and_gone_on_is_bit_identical(server, world, tmp_path, name):
    home, commands, taken = world
    draw, done, kills = random.Random(name), 0, 0
    while kills < KILLS[name]:
        folder = tmp_path/str(done)
        while True:
            out = folder/commands[name][-1]
            unfinished = server.interrupt(folder, draw.uniform(0, taken[name]), signal.SIGKILL,
                                          *complete(commands[name],
                                                    folder)) if kills < KILLS[name] else bool(server.run(folder,
                                                        *complete(commands[name], folder))[0] not in (0, 3))
            if out.exists(): same_files(out, home/"calm"/out.name)          # complete, or not there
            if not unfinished: break
            kills += 1
        same_files(folder/commands[name][-1], home/"calm"/commands[name][-1])
        assert same_runs(home/"calm", folder) == {"pretrain": 1, "adapt": 2, "index": 0}[name]
        done += 1
    assert kills >= KILLS[name]


def test_reports_are_never_half_written(server, tmp_path):
    draw, seen, kills, longest = random.Random("report"), set(), 0, 2.
    while kills < KILLS["report"] or len(seen) < 3:         # on a busy machine nothing is written in two seconds
        assert kills < 30
        kills += 1
        server.interrupt(tmp_path, draw.uniform(.2*longest, longest), signal.SIGKILL, "report")
        if not (tmp_path/"t.md").exists(): longest *= 1.5; continue
        text, table = (tmp_path/"t.md").read_text(), (tmp_path/"t.csv").read_text().splitlines()
        picture = (tmp_path/"t.png").read_bytes()
        n = int(re.match(r"# Report (\d+)\n", text)[1])
        assert text == f"# Report {n}\n" + f"row {n}\n"*3000 + "end\n" and len(table) == 3001
        assert len(set(table[1:])) == 1 and picture.endswith(b"IEND\xaeB`\x82")
        if n in seen: longest *= 1.2
        seen.add(n)


@pytest.mark.parametrize("share", [.3, .7])
def test_stopped_by_hand_says_so_and_goes_on(server, world, tmp_path, share):
    home, commands, taken = world
    pid = server.start(tmp_path/"x", *complete(commands["adapt"], tmp_path/"x"))
    time.sleep(share*taken["adapt"])
    with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGINT)    # it may have ended already
    server.wait(pid)
    code, said = (tmp_path/"x/code").read_text(), (tmp_path/"x/said").read_text()
    if code != "0" and code != "3": assert code == "130" and "continues" in said and "Traceback" not in said
    assert server.run(tmp_path/"x", *complete(commands["adapt"], tmp_path/"x"))[0] in (0, 3)
    same_files(tmp_path/"x/model.safetensors", home/"calm/model.safetensors")


@pytest.mark.parametrize("limit", [2_000, 20_000, 200_000])
@pytest.mark.parametrize("name", ["adapt", "index"])
def test_a_full_disk_is_told_and_damages_nothing(server, world, tmp_path, name, limit):
    "A limit on the size of files stands for a disk without space: writing fails in the middle of a file."
    home, commands, _ = world
    code, said = server.run(tmp_path, *complete(commands[name], tmp_path), "--json", file_limit=limit)
    if code in (0, 3): assert name == "index" and limit == 200_000           # it did fit
    else:
        assert code == 1 and "cannot write" in said.splitlines()[-1] and "space" in said.splitlines()[-1]
        assert not (tmp_path/commands[name][-1]).exists()
    assert server.run(tmp_path, *complete(commands[name], tmp_path))[0] in (0, 3)
    same_files(tmp_path/commands[name][-1], home/"calm"/commands[name][-1])


def test_a_folder_that_cannot_be_written_to(server, world, tmp_path):
    home, commands, _ = world
    user = 65534 if os.getuid() == 0 else None                  # root may write anywhere
    locked = tmp_path/"locked"
    (locked/"inner").mkdir(parents=True)
    for folder in (home, home/"calm", home/"mine", tmp_path): folder.chmod(0o755)
    p = tmp_path
    while p != p.parent and os.getuid() == 0 and p.stat().st_uid == 0 and "pytest" in p.as_posix():
        p.chmod(0o755); p = p.parent
    locked.chmod(0o555); (locked/"inner").chmod(0o555)
    os.chmod(home/"calm/model.safetensors", 0o644)
    for arguments, runs in ((complete(commands["index"], locked), locked/"runs"), (complete(commands["adapt"], locked),
            locked/"inner")):
        code, said = server.run(tmp_path/"talk", *arguments, runs=str(runs), **({"user": user} if user else {}))
        assert code == 1 and re.search(r"cannot (write|make|lock)|Permission denied", said.splitlines()[-1]), said
    assert [f.name for f in locked.iterdir()] == ["inner"] and not list((locked/"inner").iterdir())
    locked.chmod(0o755); (locked/"inner").chmod(0o755)


def test_two_processes_on_one_run_give_one(server, world, tmp_path):
    home, commands, _ = world
    pids = []
    for n in "ab":
        folder = tmp_path/n
        pids.append(server.start(folder, *complete(commands["adapt"], folder), runs=str(tmp_path/"runs")))
    for pid in pids: server.wait(pid)
    for n in "ab":
        assert (tmp_path/n/"code").read_text() in ("0", "3")
        same_files(tmp_path/n/"model.safetensors", home/"calm/model.safetensors")
    histories = [p for p in (tmp_path/"runs").glob("*/history.jsonl") if "upl" in (p.parent/"config.json").read_text()]
    history = [json.loads(line)["epoch"] for line in histories[0].read_text().splitlines()]
    assert history == sorted(set(history))


def test_a_clock_that_jumps_changes_nothing(world, tmp_path, monkeypatch):
    "Backwards by a year at every look, except for the monotonic clocks that durations are taken from."
    now = [2e9]
    def jump(): now[0] -= 3e7; return now[0]
    monkeypatch.setattr(time, "time", jump)
    run = get_run(RunConfig("tiny", "plaza"), device="cpu", store=tmp_path, progress=False)
    calm = world[0]/"calm/runs"/run.id
    same_files(run.path/"model.safetensors", calm/"model.safetensors")
    assert all(row >= 0 for row in run.history.seconds) and run.metrics["seconds"] >= 0


def test_a_store_of_another_version_is_refused_or_left_alone(world, tmp_path):
    "`Embedder` refuses a run whose config has unknown names; `get_run` never finds it, by its identifier."
    source = next((world[0]/"calm/runs").glob("*/metrics.json")).parent
    old = tmp_path/source.name
    old.mkdir()
    for f in source.iterdir():
        if f.is_file(): (old/f.name).write_bytes(f.read_bytes())
    for text in (json.dumps({**json.loads((old/"config.json").read_text()), "optimizer": "sgd"}), "[]", "{",
                 '{"preset": "huge", "source": "plaza"}', "\0"):
        (old/"config.json").write_text(text)
        with pytest.raises(ValueError) as e: Embedder.load(old, "cpu")
        assert str(old) in str(e.value) and "\n" not in str(e.value)


def test_what_was_there_stays_when_writing_fails(tmp_path):
    path = tmp_path/"a.txt"
    path.write_text("before")
    def fails(part): part.write_text("half"); raise OSError(28, "No space left on device")
    with pytest.raises(RunError, match="No space left"): write_atomic(path, fails)
    assert path.read_text() == "before" and [f.name for f in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(RunError, match="cannot write"): write_atomic(path/"below", "x")
