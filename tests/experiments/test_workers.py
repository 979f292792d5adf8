"Runs in worker processes: the same results, methods from outside the package, failures and interrupts."
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from test_runs import same_result
from upl_reid.core import ConfigError, RunError
from upl_reid.data.synthetic import write_domain
from upl_reid.experiments import config as configuration
from upl_reid.experiments.config import load_plugins, method_sources, RunConfig
from upl_reid.experiments.runs import get_run
from upl_reid.experiments.workers import get_runs, pack_method, send_to_worker, WorkQueue
from upl_reid.training.method import Method, register

ROOT = Path(configuration.__file__).parents[2]
PLUGIN = """
    import torch
    from upl_reid.methods.baseline import Direct
    from upl_reid.training.method import register
    print("imported", __name__)

    @register("{name}")
    class Mine(Direct):
        def log_values(self): return dict(mine=1)
"""


@pytest.fixture
def plugins():
    "The modules of plugins that a test loads are unloaded afterwards."
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith(("plugin_", "my_")): del sys.modules[name]


def direct(seed=3, method="direct", **args): return RunConfig("tiny", "plaza", "campus", method, args, seed)


def test_workers_give_the_same_runs_as_one_process(tmp_path):
    upl = direct(0, "upl", meta_every=2)
    made = get_runs([direct(0), upl], store=tmp_path/"workers", device="cpu", jobs=2, progress=False)
    same_result(made[1], get_run(upl, store=tmp_path/"alone", device="cpu", progress=False))
    assert [r.config for r in made] == [direct(0), upl] and not list((tmp_path/"workers").glob("*.log"))


def test_equal_runs_are_done_once_and_folders_may_be_paths(tmp_path):
    where = dict(train_ids=8, test_ids=4, cameras=3, size=(48, 24))
    roots = {name: write_domain(name, tmp_path/name, **where) for name in ("plaza", "campus")}
    same = [direct(0), direct(0, scale=20.), direct(1)]
    assert same[0] == same[1] != same[2] and all(isinstance(root, Path) for root in roots.values())
    made = get_runs(same, roots=roots, store=tmp_path/"runs", device="cpu", jobs=2, progress=False)
    assert made[0] is made[1] and made[2].metrics["mAP"]


def test_a_worker_that_is_killed_is_told_from_one_that_fails(tmp_path):
    log = tmp_path/"log"
    log.write_text("note: ten crops are small\n")
    worker = subprocess.Popen(["sh", "-c", "kill -9 $$"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    worker.wait()
    with pytest.raises(RunError, match=r"ended by signal 9 \(not enough memory"): send_to_worker(worker, log, direct())


def test_a_run_waits_for_its_own_pretraining_only():
    first, other = RunConfig("tiny", "plaza", seed=3), RunConfig("tiny", "campus", seed=3)
    back = RunConfig("tiny", "campus", "plaza", "direct", seed=3)
    todo = [first, other, direct(3), back]
    queue = WorkQueue(list(todo), {c: Path(c.id) for c in todo}, set(), {})
    assert [queue.take(), queue.take(), queue.take()] == [first, other, None]
    del queue.running[other.id]                                 # its worker is done
    assert [queue.take(), queue.take(), queue.todo] == [back, None, [direct(3)]]
    del queue.running[first.id]
    assert queue.take() == direct(3) and queue.todo == []


def test_a_worker_that_fails_says_why(tmp_path):
    bad = [RunConfig("tiny", "plaza", "campus", "upl", {"labels": {"min_samples": k}}) for k in (500, 501)]
    said = r"upl plaza->campus tiny .*min_samples.* failed: .*lower min_samples.*worker-.*log"
    with pytest.raises(RunError, match=said):
        get_runs(bad, store=tmp_path, device="cpu", jobs=2, progress=False)


def test_methods_of_a_plugin_and_of_a_notebook_run_in_workers(tmp_path, plugins, monkeypatch, capfd):
    """A module beside the caller, a .py file, and a class that exists in this process only."""
    (tmp_path/"plugin_module.py").write_text(textwrap.dedent(PLUGIN.format(name="from_module")))
    (tmp_path/"my_file.py").write_text(textwrap.dedent(PLUGIN.format(name="from_file")))
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins(f"plugin_module, {tmp_path/'my_file.py'}")
    load_plugins(f"plugin_module, {tmp_path/'my_file.py'}")                    # a second time changes nothing

    @register("homemade")
    class Homemade(Method):
        trains = False
        def log_values(self): print("a notebook's class is in process", os.getpid())

        def embedder(self):
            print("embedded in process", os.getpid())
            return super().embedder()

    configs = [direct(3, m) for m in ("from_module", "from_file", "homemade")]
    runs = get_runs(configs, store=tmp_path/"store", device="cpu", jobs=2, progress=False)
    assert len({r.metrics["mAP"] for r in runs}) == 1 and [r.config for r in runs] == configs
    said = capfd.readouterr()
    assert "embedded in process" in said.err and f"embedded in process {os.getpid()}" not in said.err + said.out
    names = [list(json.loads((r.path/"code.json").read_text())[0]["classes"])[0] for r in runs]
    assert names[:2] == ["plugin_module.Mine", "my_file.Mine"] and names[2].endswith("Homemade")
    again = get_runs(configs, store=tmp_path/"store", device="cpu", jobs=2, progress=False)
    assert [r.metrics for r in again] == [r.metrics for r in runs] and "has changed" not in capfd.readouterr().err


def test_again_trains_in_workers_too(tmp_path):
    configs = [direct(3), direct(3, "direct", scale=10.)]
    get = lambda **more: get_runs(configs, store=tmp_path, device="cpu", jobs=2, progress=False, **more)
    finished = lambda: [r.metrics["finished"] for r in get()]
    get()
    first = finished()
    assert finished() == first
    get(again=True)
    assert all(new > old for new, old in zip(finished(), first, strict=True)) and not list((tmp_path/"again").iterdir())


def test_a_class_that_cannot_be_sent_runs_in_its_process(tmp_path, plugins, capfd):
    lock = threading.Lock()

    @register("homemade")
    class Homemade(Method):
        trains = False
        def log_values(self): return lock

    with pytest.raises(TypeError): pack_method("homemade")
    configs = [direct(3, "homemade", scale=float(k)) for k in (1, 2)]
    assert len(get_runs(configs, store=tmp_path, device="cpu", jobs=2, progress=False)) == 2
    assert "trained in this process" in capfd.readouterr().err


@pytest.mark.parametrize("text, message", [
    ("import no_such_module_at_all", "cannot be imported .*no_such_module_at_all"), ("x = 1", "registers no method"),
    ("1/0", "ZeroDivisionError")])
def test_a_plugin_that_brings_no_method_is_refused(tmp_path, plugins, text, message):
    (tmp_path/"plugin_bad.py").write_text(text)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"plugin .*plugin_bad.py.*{message}"):
            load_plugins([tmp_path/"plugin_bad.py"])
    with pytest.raises(ConfigError, match="plugin 'no_module_of_this_name' cannot be imported"):
        load_plugins("no_module_of_this_name")


def test_a_file_must_not_have_the_name_of_another_module(tmp_path, plugins):
    for name in ("json.py", "tabnanny.py", "upl_reid.py"):
        (tmp_path/name).write_text(textwrap.dedent(PLUGIN.format(name="taken")))
        with pytest.raises(ConfigError, match="name of another module"): load_plugins(str(tmp_path/name))


def test_plugins_of_the_environment_and_of_installed_packages_are_known_everywhere(tmp_path):
    """In a process that was told nothing else: `$UPL_REID_PLUGINS` and the entry points in `upl_reid.methods`."""
    for name in ("env", "entry"): (tmp_path/f"plugin_{name}.py").write_text(textwrap.dedent(PLUGIN.format(name=name)))
    info = tmp_path/"plugin_entry-1.0.dist-info"
    info.mkdir()
    (info/"METADATA").write_text("Metadata-Version: 2.1\nName: plugin-entry\nVersion: 1.0\n")
    (info/"entry_points.txt").write_text("[upl_reid.methods]\nentry = plugin_entry\nbroken = no_module_of_this_name\n")
    env = dict(os.environ, UPL_REID_PLUGINS="plugin_env", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    code = ("from upl_reid.experiments.config import RunConfig, METHODS; "
            "print(*RunConfig('tiny', 'plaza', 'campus', 'env').arguments, 'entry' in METHODS)")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip().endswith("True"), done.stderr
    assert "method 'broken' of an installed package, no_module_of_this_name, cannot be loaded" in done.stderr


def test_the_code_of_a_plugin_is_that_which_was_imported(tmp_path, plugins):
    """Also if the file is edited afterwards: what runs is what is stored."""
    file = tmp_path/"my_method.py"
    file.write_text(textwrap.dedent(PLUGIN.format(name="edited")))
    load_plugins([file])
    file.write_text(textwrap.dedent(PLUGIN.format(name="edited")).replace("mine=1", "mine=2"))
    text, = method_sources("edited").values()
    assert "mine=1" in text and "@register" in text
    assert method_sources("upl") == method_sources("pretrain") == {}


def test_an_interrupt_ends_the_workers(tmp_path):
    """Ctrl-C reaches the calling process; its workers end with it, and nothing of a run is lost."""
    code = textwrap.dedent(f"""
        import os, signal, upl_reid.experiments.workers as w
        signal.signal(signal.SIGINT, signal.default_int_handler)       # a shell's background job ignores it
        from upl_reid.experiments.config import RunConfig
        start = w.start_worker
        def noted(log):
            process = start(log)
            open({str(tmp_path/'pids')!r}, "a").write(f"{{process.pid}}\\n")
            return process
        w.start_worker = noted
        configs = [RunConfig("tiny", "plaza", seed=s) for s in range(8)]
        w.get_runs(configs, device="cpu", store={str(tmp_path/'store')!r}, jobs=2, progress=False)
    """)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE,
                               text=True)
    until = time.monotonic() + 240
    while len(list((tmp_path/"store").glob("*/history.jsonl"))) < 1 and time.monotonic() < until: time.sleep(.1)
    process.send_signal(signal.SIGINT)                          # to this process alone, as from Jupyter
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in said
    for pid in map(int, (tmp_path/"pids").read_text().split()):
        with pytest.raises(ProcessLookupError): os.kill(pid, 0)



def test_the_code_of_a_method_has_the_functions_that_it_uses(tmp_path, plugins):
    file = tmp_path/"my_helped.py"
    own = textwrap.dedent(PLUGIN.format(name="helped")).replace("mine=1", "mine=outer(1)")
    file.write_text(own + "def outer(x): return inner(x)\ndef inner(x): return x + 1\ndef stranger(x): return x - 1\n")
    load_plugins([file])
    code, = method_sources("helped").values()
    assert "def outer" in code and "def inner" in code and "def stranger" not in code


def test_a_notebook_is_no_plugin_until_it_is_exported():
    with pytest.raises(ConfigError, match="is a notebook; export it"): load_plugins("mine.ipynb")
