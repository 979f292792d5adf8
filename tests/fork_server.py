"""A process with one thread that has imported everything and forks: commands start at once and can be killed any time.

One JSON line in: dict(arguments, folder, and perhaps file_limit, user, delay). One JSON line out: the process id.
The child writes its exit code to `folder/code`, and its output to `folder/said`."""
import json, os, resource, signal, sys
from pathlib import Path

signal.signal(signal.SIGCHLD, signal.SIG_IGN)            # children that ended are gone
import matplotlib
matplotlib.use("Agg")
import faiss  # noqa: F401  loaded before forking, as all that follows
import io, pandas, torch
from PIL import Image
from upl_reid import data, deployment, evaluation, experiments, training
from upl_reid.cli import main
from upl_reid.experiments.config import load_methods

for folder in (data, deployment, evaluation, experiments, training):
    for name in folder.__all__: getattr(folder, name)    # loaded before forking, not when a command needs it
torch.set_num_threads(1)
load_methods()
Image.init()                                             # now: another user may not have access to the files
pandas.DataFrame({"a": [1]}).to_csv(io.StringIO())


def report(folder):
    "A stand-in for a table: numbers, text and a figure, written over and over."
    import matplotlib.pyplot as plt, pandas as pd
    from upl_reid.experiments.tables import write_report
    for n in range(1000):
        fig, ax = plt.subplots(figsize=(3, 2))
        ax.plot(range(n))
        text = f"# Report {n}\n" + f"row {n}\n"*3000 + "end"
        write_report("t", Path(folder), text, pd.DataFrame({"n": [n]*3000}), fig)
        plt.close(fig)
    return 0


def child(task):
    folder = Path(task["folder"])
    said = open(folder/"said", "w")
    os.dup2(said.fileno(), 1); os.dup2(said.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ["UPL_REID_RUNS"] = task.get("runs", str(folder/"runs"))
    if task.get("file_limit"): resource.setrlimit(resource.RLIMIT_FSIZE, (task["file_limit"], resource.RLIM_INFINITY))
    codefile = open(folder/"code", "w")
    if task.get("user"): os.setgid(task["user"]); os.setuid(task["user"])
    try: code = report(folder) if task["arguments"] == ["report"] else main(task["arguments"])
    except SystemExit as e: code = e.code
    except BaseException:
        import traceback
        traceback.print_exc()
        code = "traceback"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    sys.stdout.flush(); sys.stderr.flush()
    codefile.write(str(code)); codefile.close()
    os._exit(0)


print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL); signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdin.close()
        child(json.loads(line))
    print(pid, flush=True)
