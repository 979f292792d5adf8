"""Check and time the package on one GPU in at most eight minutes; needs no notebooks, no faiss and no network.

usage: python .ci/gpu_check.py [--device cuda] [--minutes 8] [--only correctness,step,kernels,table4] [--out FOLDER]
       python .ci/gpu_check.py --device cpu --small --minutes 2        (a rehearsal on the CPU, with small sizes)

Sections: `correctness` trains every registered method in the preset `tiny` on the device and on the CPU and compares
the losses; `step` times training steps of the preset `gpu`; `kernels` times clustering, evaluation and re-ranking at
the sizes of Market-1501 and MSMT17; `table4` trains rows of Table 4 with a shortened budget in the time that is left.

Each measurement is written to FOLDER/gpu.json and FOLDER/gpu.md as soon as it is made, so a run that is stopped keeps
what it has measured. FOLDER is reports/ for a full run on a GPU, and reports/local/gpu_check/ (not committed) else.
"""
import argparse, contextlib, json, math, os, signal, sys, tempfile, threading, time, traceback, warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

STARTED = time.perf_counter()
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")                 # weights are random; nothing may be downloaded

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

from upl_reid.components import encoder as encoder_module
from upl_reid.components.clustering import dbscan
from upl_reid.components.encoder import build_encoder, compute_dtype, low_precision
from upl_reid.components.neighbours import jaccard_distance
from upl_reid.core import ConfigError, pick_device, write_atomic
from upl_reid.data.benchmarks import split_identities
from upl_reid.data.image_bank import ImageBank, make_augmenter
from upl_reid.evaluation.reranking import rerank
from upl_reid.evaluation.retrieval import evaluate_retrieval
from upl_reid.experiments.config import load_methods, PRESETS, RunConfig
from upl_reid.experiments.cost import Bench, count_flops, peak_bytes, synchronise_device
from upl_reid.experiments.runs import (describe_environment, get_run, labelled_images, make_method, open_domain,
    pretraining_configs, Workplace)
from upl_reid.methods.upl import hybrid_labels
from upl_reid.training import loop
from upl_reid.training.loop import adapt, embed_bank, make_round_optimiser
from upl_reid.training.method import METHODS, PseudoLabels

SHARES = dict(correctness=.25, step=.35, kernels=.2, table4=1.)  # of the minutes; the last takes all that is left
TOLERANCE = {"float32": (.01, .05), "bfloat16": (.05, .2)}       # of the losses in the first and second epoch
EPOCH_IMAGES, EPOCH_AIM, EPOCH_PAPER = 16_522, 6., 960.          # images; seconds: our aim, and Table 7 of the paper
PEAK = {"H100": 989.4, "H200": 989.4, "A100": 312.}              # TFLOP/s, dense bfloat16, by the data sheets

# ---- Report ---------------------------------------------------------------------------------------------------------

class OutOfTime(BaseException):
    "The time of a section is over. No `Exception`, so that no library takes it for a fault of its own."

@contextlib.contextmanager
def time_limit(seconds):
    "Raise `OutOfTime` in a block that runs longer; a single call into C finishes first."
    def stop(*_): raise OutOfTime
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, .01))
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

def plain(value):
    "A value as JSON can hold it: numbers of numpy and torch as Python's, NaN and infinity as None."
    if isinstance(value, dict): return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)): return [plain(v) for v in value]
    if isinstance(value, (np.generic, torch.Tensor)): value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

class Report:
    "What was measured, on disk after every measurement."
    def __init__(self, folder, **facts):
        self.folder, self.facts = Path(folder), plain(dict(format=1, **facts, sections={}))

    def save(self):
        write_atomic(self.folder/"gpu.json", json.dumps(self.facts, indent=1, allow_nan=False) + "\n")
        write_atomic(self.folder/"gpu.md", page(self.facts))

    def run(self, name, work, seconds):
        "Run one section for so many seconds at most. A fault ends the section, not the report."
        section = dict(budget_s=round(seconds, 1), state="running", rows=[])
        self.facts["sections"][name] = section
        self.save()
        begun = time.perf_counter()
        def add(**row):
            section["rows"].append(plain(row))
            section["seconds"] = round(time.perf_counter() - begun, 1)
            self.save()
            print(f"{time.perf_counter() - STARTED:6.1f} s  {name}: " + json.dumps(section["rows"][-1]), flush=True)
        try:
            with time_limit(seconds): work(add)
            section["state"] = "done"
        except OutOfTime: section["state"] = "out of time"
        except Exception as e:                               # whatever the device or its driver raises
            section["state"] = f"failed: {type(e).__name__}: {first_line(e)} {place(e)}".strip()
            traceback.print_exc()
        section["seconds"] = round(time.perf_counter() - begun, 1)
        self.save()

def first_line(error): return (str(error).strip().splitlines() or [""])[0][:300]

def place(error):
    "The innermost line of this project that an error came through, as file:line."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename]
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else ""

def guarded(add, facts, work):
    "What a measurement gives; None if it raises, which is reported: one fault does not end the section."
    try: return work()
    except Exception as e:                                   # whatever the device, its driver or a compiler raises
        traceback.print_exc()
        add(**facts, error=f"{type(e).__name__}: {first_line(e)}", at=place(e))
        return None

def cell(value):
    "A value in a table of the page."
    if value is None: return ""
    if isinstance(value, bool): return "yes" if value else "**no**"
    if isinstance(value, float): return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)

def table(rows):
    "Rows of a section as a table; a column for every key that occurs."
    keys = list(dict.fromkeys(k for row in rows for k in row))
    lines = [keys, ["---"]*len(keys), *([cell(row.get(k)) for k in keys] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

TITLES = dict(
    correctness="Losses beside the CPU's",
    step="Training step of the preset `gpu`",
    kernels="Clustering, evaluation and re-ranking",
    table4="Table 4 with a shortened budget")
WORDS = dict(
    correctness="Every registered method, two epochs of the preset `tiny`, from the same pretrained weights, with the "
        "same augmented images (augmented on the CPU for both), clustering the CPU's features: a last digit of a "
        "feature can move an image to another cluster. `features` is the largest difference of a feature before it "
        "is replaced by the CPU's, `equal_labels` the share of images with the CPU's label. `difference` is the "
        "largest difference of a loss's mean over the epoch, divided by the CPU's value where that is above 1. A row "
        "is judged against its tolerance while all labels are equal.",
    step="Images of random bytes and invented labels at the size of the larger embedded network. `epoch_s` is the "
        "projected epoch of all its training images: its steps, and embedding and clustering divided by the epochs "
        "between two clusterings. `bound_s` is the epoch's arithmetic at the measured rate of a matrix product. "
        f"The aim is {EPOCH_AIM:g} s; the paper states {EPOCH_PAPER:g} s.",
    kernels="Unit features of people in cameras, drawn at random. `where` says what runs on the device and what on "
        "the host. `same` compares a smaller problem with the CPU.",
    table4="The pretraining and the rows of Table 4 in one direction, with the epochs and identities that the rows "
        "state. The scores show that everything works together; they are not those of the preset's own budget.")

def page(report):
    "The report in Markdown, from the contents of gpu.json."
    e, a = report["environment"], report["arguments"]
    packages = ", ".join(f"{k} {v}" for k, v in e["packages"].items())
    parts = ["# On a GPU", f"{e['hardware']}; Python {e['python']}; {packages}; commit {e['commit']}"
             f"{', changed' if e['changed'] else ''}; {e['time']}. `python .ci/gpu_check.py`, "
             f"{a['minutes']:g} minutes{', small sizes' if a['small'] else ''}."]
    for name, section in report["sections"].items():
        state = f"{section['state']}, {section.get('seconds', 0):g} s of {section['budget_s']:g} s"
        parts += [f"## {TITLES[name]}", f"{WORDS[name]} ({state})"]
        groups = {}
        for row in section["rows"]: groups.setdefault(row.get("what"), []).append(row)
        parts += [table([{k: v for k, v in row.items() if k != "what"} for row in rows]) for rows in groups.values()]
    return "\n\n".join(parts) + "\n"

# ---- (a) Correctness ------------------------------------------------------------------------------------------------

class HostAugmenter(nn.Module):
    "Augment on the CPU, so that every device trains on the same pixels."
    def __init__(self, size, **kwargs):
        super().__init__()
        self.held = (make_augmenter(size, **kwargs),)        # in a tuple: `to` does not move it

    def forward(self, images): return self.held[0](images.cpu()).to(images.device)

@contextlib.contextmanager
def precision(name):
    "Train in float32, without TensorFloat-32, or as the package does by itself."
    if name != "float32":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with mock.patch.object(encoder_module, "compute_dtype", lambda device: torch.float32): yield
    finally: torch.backends.cudnn.allow_tf32 = before

NOT_LOSSES = ("epoch", "lr", "classes", "unused", "seconds", "relabel_seconds", "meta_snr", "agreement")

def watch_labels(method, features):
    """Keep what a method clusters and finds, a round each; cluster the features of another run if they are given.

    Returns the list of (features, largest difference to those of the other run, labels)."""
    rounds, own = [], method.relabel
    def relabel(found, camids, round):
        given = found if features is None else features[round].to(found)
        labels = own(given, camids, round)
        rounds.append((found.cpu(), float((found - given).abs().max()), labels.hard.cpu()))
        return labels
    method.relabel = relabel
    return rounds

def adaptation(name, device, store, features=None):
    """A method's two epochs in the preset `tiny`: rows of the history, and the rounds of `watch_labels`.

    `features` are those that are clustered in each round; None: the method's own."""
    config, preset = RunConfig("tiny", "plaza", "campus", name), PRESETS["tiny"]
    source, target = (open_domain(n, "tiny", None, store) for n in ("plaza", "campus"))
    _, held = split_identities(labelled_images(source), preset.held, config.seed)
    for c in pretraining_configs(config): get_run(c, device="cpu", store=store, progress=False)
    method = make_method(config, held, target, Workplace(device, None, store, False))
    bank, rows = ImageBank(target.train.paths, preset.size, device), []
    if not method.trains:
        found = embed_bank(method.to(device).embedder(), bank).cpu()
        return [dict(features=found)], [(found, 0., torch.zeros(0))]
    rounds = watch_labels(method, features)
    with mock.patch.object(loop, "make_augmenter", HostAugmenter):
        adapt(method, target.train.withhold(), bank, preset.adapt, config.seed, "check",
              save=lambda tensors, row, round: rows.append(row), progress=False)
    return rows, rounds

def loss_difference(ours, theirs):
    "The largest difference of a loss in two rows of a history, relative where the second is above 1; and its name."
    found = {}
    for k in theirs:
        if k in NOT_LOSSES or k.startswith("weight_"): continue
        one, other = (torch.as_tensor(row[k]).double() for row in (ours, theirs))
        found[k] = float((one - other).abs().max()/other.abs().max().clamp(min=1))
    worst = max(found, key=lambda k: found[k] if math.isfinite(found[k]) else math.inf)
    return found[worst], worst

def compared(ours, theirs, tolerances):
    "Rows of the report from two runs of `adaptation`, one an epoch."
    share = 1.
    pairs = zip(ours[0], theirs[0], ours[1], theirs[1], strict=True)
    for epoch, (row, expected, made, wanted) in enumerate(pairs):
        share = min(share, float((made[2] == wanted[2]).double().mean()) if len(wanted[2]) else 1.)
        difference, worst = loss_difference(row, expected)
        yield dict(epoch=epoch + 1, clusters=row.get("classes"), features=made[1], equal_labels=share,
                   difference=difference, of=worst, tolerance=tolerances[epoch],
                   holds=bool(difference <= tolerances[epoch]) if share == 1 else None)

def host_adaptation(name, store):
    "A method's two epochs on one thread of the CPU; the networks are tiny."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: return adaptation(name, torch.device("cpu"), store)
    finally: torch.set_num_threads(threads)

def correctness(device, small, store):
    "Section (a): every method on the device and on the CPU; three of them if small."
    kinds = ["float32"] if compute_dtype(device) == torch.float32 else ["float32", "bfloat16"]
    def work(add):
        for name in ("dbscan", "upl", "mmt") if small else METHODS:
            theirs = guarded(add, dict(method=name, precision="on the CPU"), lambda: host_adaptation(name, store))
            for kind in kinds if theirs else ():
                facts = dict(method=name, precision=kind)
                with precision(kind):
                    features = [r[0] for r in theirs[1]]
                    ours = guarded(add, facts, lambda: adaptation(name, device, store, features))
                for row in compared(ours, theirs, TOLERANCE[kind]) if ours else (): add(**facts, **row)
    return work

# ---- (b) Step -------------------------------------------------------------------------------------------------------

class RandomImages(ImageBank):
    "Random bytes in the place of decoded images."
    def __init__(self, count, size, device, classes):
        self.paths, self.size, self.device = tuple(Path(f"{i}.jpg") for i in range(count)), tuple(size), device
        self.home, self.classes = device, classes
        self.images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, device=device)

def invented_labels(count, classes, dim, soft, device):
    "Labels of a round as a clustering could have given them: every twentieth image is noise."
    hard = torch.arange(count, device=device) % classes
    rows = .9*F.one_hot(hard, classes).float() + .1/classes if soft else None
    hard[::20] = -1
    weight = torch.rand(count, device=device)*(hard >= 0)
    return PseudoLabels(hard, rows, weight, F.normalize(torch.randn(classes, dim, device=device), dim=1))

class StepBench(Bench):
    "A method ready to be timed, with invented labels because random images have no clusters."
    def cluster(self):
        soft = hasattr(self.method, "label_args") and hasattr(self.method, "srmo")
        classes, dim = self.bank.classes, self.method.encoder.dim
        self.labels = invented_labels(len(self.bank), classes, dim, soft, self.bank.device)
        self.head = make_round_optimiser(self.method, self.labels, self.budget)

def matmul_rate(device, small):
    "TFLOP/s of a large matrix product in the type that training uses: the bound for every model."
    n = 512 if small else 8192
    a, b = (torch.randn(n, n, device=device, dtype=compute_dtype(device)) for _ in range(2))
    best = math.inf
    for _ in range(5):
        synchronise_device(device)
        begun = time.perf_counter()
        for _ in range(10): a @ b
        synchronise_device(device)
        best = min(best, (time.perf_counter() - begun)/10)
    return 2*n**3/best/1e12

def timed(work, device, repeats):
    "Seconds of each of some repetitions; the device finishes each before its time is taken."
    out = []
    for _ in range(repeats):
        synchronise_device(device)
        begun = time.perf_counter()
        work()
        synchronise_device(device)
        out.append(time.perf_counter() - begun)
    return out

def host_waits(bench):
    "How often a training step waits for the device (CUDA only)."
    if bench.bank.device.type != "cuda": return math.nan
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try: bench.train()
        finally: torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(w.message) for w in found)/bench.block

def compiled(method, **how):
    "Let a method's forward pass use a compiled body; everything else, SRMO's passes too, uses the module as it is."
    encoder, body = method.encoder, torch.compile(method.encoder.body, **how)
    def features(batch):
        torch.compiler.cudagraph_mark_step_begin()
        with low_precision(batch.images.device): v = encoder.project(body(batch.images))
        return F.normalize(encoder.neck(v), dim=1)
    method.features = features

def step_variants(device):
    "How the encoder's body is run: name -> arguments of torch.compile, or None."
    if device.type != "cuda": return {"eager": None, "captured": dict(backend="eager")}
    return {"eager": None, "torch.compile": {}, "torch.compile and CUDA graphs": dict(mode="reduce-overhead")}

def step_bench(row, device, small):
    "The bench of a row of Table 7: its baseline or the full model."
    preset = PRESETS["tiny" if small else "gpu"]
    count, classes = (160, 16) if small else (EPOCH_IMAGES, 702)
    encoder = build_encoder(preset.backbone, preset.size, preset.dim, "none")
    extras = {}
    if METHODS[row].needs_meta:
        people = np.arange(64 if small else 2560) % (8 if small else 150)
        extras = dict(meta=(RandomImages(len(people), preset.size, device, 8), people, people//8 % 6))
    method = METHODS[row](encoder, momentum=preset.momentum, **extras)
    bank = RandomImages(count, preset.size, device, classes)
    return StepBench(method, bank, np.arange(count)//classes % 8, preset.adapt)

def real_clustering(bench, device):
    "Seconds of the method's own clustering, of drawn people as many as the bench has images."
    features, pids, camids = people_features(bench.bank.classes, len(bench.bank), 8, bench.method.encoder.dim, device)
    return timed(lambda: bench.method.relabel(features, camids, 0), device, 1)[0]

def measure_variant(bench, device, how, repeats):
    "Warm up one variant and time its steps: seconds of the warm-up, of a step, and the most memory of a step."
    if how is not None: compiled(bench.method, **how)
    warm = timed(bench.train, device, 2)
    blocks = timed(bench.train, device, repeats)
    bench.forget_gradients()
    peak = peak_bytes(lambda: bench.train(2), device)
    return sum(warm), float(np.median(blocks))/bench.block, min(blocks)/bench.block, peak

def step(device, small):
    "Section (b): the baseline's and the full model's step, with and without compilation."
    def work(add):
        rate, name = matmul_rate(device, small), describe_environment(device)["hardware"]
        add(what="rate", matrix_product_TFLOPS=rate, type=str(compute_dtype(device)).removeprefix("torch."),
            data_sheet_TFLOPS=next((v for k, v in PEAK.items() if k in name), None))
        benches, costs = {}, {}
        for variant, how in step_variants(device).items():
            for row, method in dict(baseline="dbscan", full="upl").items():
                if row not in benches:
                    benches[row] = bench = step_bench(method, device, small)
                    costs[row] = fixed_costs(bench, device, row, add)
                add_variant(add, benches[row], costs[row], row, variant, how, rate, device, small)
    return work

def fixed_costs(bench, device, row, add):
    "What does not depend on the variant: arithmetic, embedding, augmentation, clustering, waits."
    images, facts = bench.budget.identities*bench.budget.images, dict(what="faults", row=row)
    index = torch.arange(images, device=device) % len(bench.bank)
    two = torch.zeros(2, 3, *bench.bank.size, device=device)
    bench.train()                                            # the first steps choose kernels
    works = dict(
        flop=lambda: count_flops(bench.train)/bench.block,
        embedding_flop=lambda: count_flops(lambda: bench.method.label_encoder()(two))/2*len(bench.bank),
        augment=lambda: float(np.median(timed(lambda: bench.augment(bench.bank[index]), device, 20))),
        embedding=lambda: min(timed(bench.embed, device, 2)), waits=lambda: host_waits(bench),
        clustering=lambda: real_clustering(bench, device))
    measured = {name: guarded(add, dict(facts, measurement=name), work) for name, work in works.items()}
    cost = {name: math.nan if value is None else value for name, value in measured.items()}
    add(what="parts", row=row, batch=images, step_GFLOP=cost["flop"]/1e9, augment_ms=1e3*cost["augment"],
        embed_all_s=cost["embedding"], cluster_all_s=cost["clustering"], waits_a_step=cost["waits"],
        stored_MiB=kept_memory(device))
    return cost

def kept_memory(device): return torch.cuda.memory_allocated(device)/2**20 if device.type == "cuda" else None

def add_variant(add, bench, cost, row, variant, how, rate, device, small):
    "Measure and report one variant of one row; a variant that cannot run is reported with its error."
    facts = dict(what="variants", row=row, variant=variant)
    try: found = guarded(add, facts, lambda: measure_variant(bench, device, how, 2 if small else 6))
    finally:
        vars(bench.method).pop("features", None)
        torch.compiler.reset()
    if found is None: return
    warm, median, least, peak = found
    images, every = bench.budget.identities*bench.budget.images, bench.budget.cluster_every
    bound = (bench.steps*cost["flop"] + cost["embedding_flop"]/every)/rate/1e12
    epoch = bench.steps*median + (cost["embedding"] + cost["clustering"])/every
    add(**facts, step_ms=1e3*median, least_ms=1e3*least, images_per_s=images/median, working_MiB=peak/2**20,
        flop_utilisation=cost["flop"]/median/rate/1e12, warm_up_s=warm, epoch_s=epoch, bound_s=bound,
        within_aim=None if small else bool(epoch <= EPOCH_AIM), paper_over_ours=None if small else EPOCH_PAPER/epoch)

# ---- (c) Kernels ----------------------------------------------------------------------------------------------------

def people_features(people, images, cameras, dim, device, seed=0):
    "Unit features of people seen by cameras, each camera adding a vector of its own; pids and camids."
    g = torch.Generator().manual_seed(seed)
    pids, camids = torch.arange(images) % people, torch.randint(cameras, (images,), generator=g)
    def directions(n): return F.normalize(torch.randn(n, dim, generator=g), dim=1)
    x = directions(people)[pids] + .4*directions(cameras)[camids] + .8*directions(images)
    return F.normalize(x, dim=1).to(device), pids, camids.to(device)

SIZES = dict(                # training identities, images, cameras; test identities, queries, gallery
    Market_1501=(751, 12_936, 6, 750, 3_368, 15_913), MSMT17=(1_041, 32_621, 15, 3_060, 11_659, 82_161))
REDUCED = (40, 600, 4, 30, 120, 500)
WHERE = dict(
    global_dbscan="device: neighbour search, distances; host: sets, Jaccard minima, DBSCAN (scipy, numpy)",
    hybrid_labels="device: neighbour search, mixture; host: sets, Jaccard minima, DBSCAN, merging (scipy, numpy)",
    evaluate_retrieval="device: distances, ranks; host: one read a block of queries",
    rerank="device: distances; host: sets, weights, Jaccard distances (scipy, numpy)")

def kernel_problems(size, device, dim):
    "The four pieces of work at one size, as functions without arguments that return arrays."
    people, images, cameras, test_people, queries, gallery = size
    x, _, camids = people_features(people, images, cameras, dim, device)
    y, pids, cams = people_features(test_people, queries + gallery, cameras, dim, device, 1)
    ids = {f"{part}_{k}": v[s] for part, s in dict(query=slice(queries), gallery=slice(queries, None)).items()
           for k, v in dict(pids=pids.numpy(), camids=cams.cpu().numpy()).items()}
    def labels(values): return torch.as_tensor(values).cpu().numpy()
    def scores():
        found = evaluate_retrieval(y[:queries], y[queries:], **ids)
        return np.array([found.mAP, found.mINP, *found.cmc.values()])
    return dict(global_dbscan=lambda: labels(dbscan(jaccard_distance(x, 20, 6, .5 + 1e-9), .5, 4)),
                hybrid_labels=lambda: labels(hybrid_labels(x, camids).hard), evaluate_retrieval=scores,
                rerank=lambda: torch.as_tensor(rerank(y[:queries], y[queries:])).cpu().numpy())

def kernels(device, small):
    "Section (c): clustering, evaluation and re-ranking at the sizes of two data sets."
    dim = 32 if small else PRESETS["gpu"].dim
    def work(add):
        ours, theirs = (kernel_problems(REDUCED, d, dim) for d in (device, torch.device("cpu")))
        for name in ours:
            facts = dict(what="agreement", work=name)
            found = guarded(add, facts, lambda: agreement(ours[name](), theirs[name]()))
            if found: add(**facts, **found)
        for data, size in dict(reduced=REDUCED).items() if small else SIZES.items():
            for name, run in kernel_problems(size, device, dim).items():
                facts = dict(what="times", data=data.replace("_", "-"), work=name)
                if device.type == "cuda": torch.cuda.reset_peak_memory_stats(device)
                worked = time.process_time()
                seconds = guarded(add, facts, lambda: timed(run, device, 1)[0])
                if seconds is None: continue
                worked = time.process_time() - worked
                peak = torch.cuda.max_memory_allocated(device)/2**20 if device.type == "cuda" else None
                add(**facts, seconds=seconds, processor_s=worked, device_MiB=peak, where=WHERE[name])
    return work

def agreement(ours, theirs):
    "Labels: the share of images with the CPU's label; numbers: the largest difference. And whether that will do."
    if ours.dtype.kind == "i":
        share = float((ours == theirs).mean())
        return dict(equal_share=share, same=share > .98)
    difference = float(np.abs(ours - theirs).max())
    return dict(difference=difference, same=difference < 1e-5)

# ---- (d) Table 4 ----------------------------------------------------------------------------------------------------

TABLE4 = {"full model": ("upl", {}), "w/o MoCo memory": ("upl", dict(moco=False)), "direct transfer": ("direct", {}),
          "oracle (true labels)": ("oracle", {})}

def short_preset(small, epochs):
    "The preset of section (d): that of `gpu` with fewer identities and epochs."
    if small:
        tiny = PRESETS["tiny"]
        return replace(tiny, pretrain=replace(tiny.pretrain, epochs=1), adapt=replace(tiny.adapt, epochs=1))
    whole = PRESETS["gpu"]
    networks = dict(plaza=(375, 150, 6), campus=(375, 150, 8))
    return replace(whole, networks=networks, pretrain=replace(whole.pretrain, epochs=epochs[0], warmup=1),
                   adapt=replace(whole.adapt, epochs=epochs[1]))

def table4(device, small, store, epochs):
    "Section (d): rows of Table 4, one after the other, as far as the time goes."
    preset = short_preset(small, epochs)
    PRESETS["gpu_short"] = preset
    facts = dict(source="plaza", target="campus", identities=f"{preset.networks['plaza'][0]} and "
                 f"{preset.networks['campus'][0]}", epochs=f"{preset.pretrain.epochs} and {preset.adapt.epochs}")
    def work(add):
        begun = time.perf_counter()
        for n in ("plaza", "campus"): open_domain(n, "gpu_short", None, store)
        add(row="networks drawn", **facts, seconds=time.perf_counter() - begun)
        rows = {"pretraining (on the source)": ("pretrain", {}), **TABLE4}
        for row, (method, arguments) in rows.items():
            begun = time.perf_counter()
            config = RunConfig("gpu_short", "plaza", "" if method == "pretrain" else "campus", method, arguments)
            scores = guarded(add, dict(row=row), lambda: get_run(config, device=device, store=store,
                                                                 progress=False).metrics)
            if scores is None: continue
            add(row=row, **facts, seconds=time.perf_counter() - begun, training_s=scores["seconds"], run=config.id,
                mAP=100*scores["mAP"], R1=100*scores["cmc"]["1"], mINP=100*scores["mINP"])
    return work

# ---- Command line ---------------------------------------------------------------------------------------------------

def parse(arguments):
    "The command line. Raises `SystemExit` with a sentence for what cannot be."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--minutes", type=float, default=8., help="for all sections together")
    parser.add_argument("--only", default=",".join(SHARES), help="sections, separated by commas")
    parser.add_argument("--out", default="", help="folder for gpu.json and gpu.md")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script itself")
    parser.add_argument("--epochs", default="6,6", help="of pretraining and adaptation in section table4")
    asked = parser.parse_args(arguments)
    asked.only = [name for name in asked.only.split(",") if name]
    unknown = [name for name in asked.only if name not in SHARES]
    if unknown or not asked.only: parser.error(f"no section {', '.join(unknown)!r}; there are {', '.join(SHARES)}")
    if not asked.minutes > 0: parser.error(f"--minutes {asked.minutes:g}: give a time above 0")
    try: asked.epochs = tuple(max(1, int(n)) for n in asked.epochs.split(","))
    except ValueError: asked.epochs = ()
    if len(asked.epochs) != 2: parser.error("--epochs takes two numbers, as in 6,6")
    return asked

def check_packages():
    "Raises `ConfigError` naming a package that training needs and that is missing."
    try: import kornia.augmentation # noqa: F401 - only tried
    except ImportError as e:
        raise ConfigError(f"kornia cannot be imported ({e}); install it, or carry its wheels: kornia and kornia_rs") \
            from None

def failed(report):
    "Sections that failed, and measurements that do not hold."
    found = [f"{name}: {section['state']}" for name, section in report["sections"].items()
             if section["state"].startswith("failed")]
    for name, section in report["sections"].items():
        for row in section["rows"]:
            if row.get("holds") is False or row.get("same") is False or row.get("error"):
                found.append(f"{name}: {json.dumps(row)}")
    return found

def main(arguments=None):
    "Run the sections that are asked for; the number of faults, at most 1, is the exit status."
    asked = parse(arguments)
    try:
        device = pick_device(asked.device)
        check_packages()
    except ConfigError as e:
        print(f"gpu_check: {e}", file=sys.stderr)
        return 2
    real = device.type == "cuda" and not asked.small
    folder = Path(asked.out) if asked.out else ROOT/"reports" if real else ROOT/"reports"/"local"/"gpu_check"
    load_methods()
    facts = {name: value for name, value in vars(asked).items() if name != "out"}
    report = Report(folder, environment=describe_environment(device), arguments=facts)
    end = STARTED + 60*asked.minutes
    watch = threading.Timer(max(1., end - time.perf_counter()) + 20, lambda: os._exit(3))    # if C code does not return
    watch.daemon = True
    watch.start()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as store:
        run_sections(asked, device, Path(store), report, end)
    watch.cancel()
    faults = failed(report.facts)
    for fault in faults: print(f"gpu_check: {fault}", file=sys.stderr)
    print(f"{time.perf_counter() - STARTED:6.1f} s  {folder/'gpu.json'}, {folder/'gpu.md'}")
    return min(1, len(faults))

def run_sections(asked, device, store, report, end):
    "The sections in their order, each with its share of the minutes; unused time goes to those that follow."
    works = dict(correctness=lambda: correctness(device, asked.small, store), step=lambda: step(device, asked.small),
                 kernels=lambda: kernels(device, asked.small),
                 table4=lambda: table4(device, asked.small, store, asked.epochs))
    saved = 0.
    for name in [n for n in SHARES if n in asked.only]:
        left = end - time.perf_counter()
        seconds = min(left, 60*asked.minutes*SHARES[name] + saved)
        if seconds < 1:
            report.facts["sections"][name] = dict(budget_s=0., state="no time left", rows=[])
            report.save()
            continue
        begun = time.perf_counter()
        report.run(name, works[name](), seconds)
        saved = max(0., seconds - (time.perf_counter() - begun))
        if device.type == "cuda": torch.cuda.empty_cache()

if __name__ == "__main__": sys.exit(main())
