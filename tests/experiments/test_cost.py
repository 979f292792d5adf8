"""Cost: arithmetic counted against loops, memory against torch's profiler and by hand, turns in order,
overheads against the definition."""
import gc, json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile

import upl_reid.experiments.cost as module
from upl_reid.core import ConfigError, DataError
from upl_reid.experiments.cost import (
    Bench, Reads, Watch, make_benches, count_cost, count_flops, in_turns, kept_bytes, measure_rows, measured_overheads,
    overhead_in_words, row_overheads, peak_bytes, per_epoch, stored_measurements)
from upl_reid.data.image_bank import normalise_images
from upl_reid.experiments.config import PRESETS
from upl_reid.experiments.published import TABLE7, TEXT7
from upl_reid.experiments.runs import limit_threads
from upl_reid.components.srmo import loss_slopes
from upl_reid.training.method import Budget

CPU = torch.device("cpu")


# ---- arithmetic

def convolution_products(x, w, stride, padding):
    """Multiply-accumulates of a convolution, padding included, counted one by one."""
    (n, c, h, width), (out, _, kh, kw), count = x, w, 0
    for _ in range(n*out):
        for top in range(0, h + 2*padding - kh + 1, stride):
            for left in range(0, width + 2*padding - kw + 1, stride): count += c*kh*kw
    return count


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
def test_a_linear_layer_counts_exactly(batch, inputs, outputs):
    layer, x = nn.Linear(inputs, outputs), torch.zeros(batch, inputs)
    assert count_flops(lambda: layer(x)) == 2*batch*inputs*outputs
    leaf = x.clone().requires_grad_()
    backward_too = count_flops(lambda: layer(leaf).sum().backward())
    assert backward_too == 3*2*batch*inputs*outputs                 # forward, by weight, by input


@pytest.mark.parametrize("stride, padding", [(1, 0), (1, 1), (2, 1)])
def test_a_convolution_counts_exactly(stride, padding):
    layer = nn.Conv2d(3, 4, 3, stride, padding, bias=False)
    products = convolution_products((2, 3, 9, 7), (4, 3, 3, 3), stride, padding)
    assert count_flops(lambda: layer(torch.zeros(2, 3, 9, 7))) == 2*products


def test_attention_counts_its_two_products_whatever_the_kernel():
    q = torch.zeros(2, 3, 10, 8, requires_grad=True)
    attend = lambda: nn.functional.scaled_dot_product_attention(q, q, q)
    forward = 2*(2*2*3*10*10*8)                                  # queries by keys, and weights by values
    assert count_flops(attend) == forward
    assert count_flops(lambda: attend().sum().backward()) == 3*forward


def test_forward_mode_is_seen():
    w, x = torch.randn(7, 5), torch.randn(3, 7)
    once = 2*3*7*5
    counted = count_flops(lambda: loss_slopes(lambda p: x @ p["w"], dict(w=w), dict(w=w)))
    # the value and its slope; torch may multiply by a constant's zero slope too
    assert counted >= 2*once and counted % once == 0


def test_elementwise_work_is_not_arithmetic_here():
    assert count_flops(lambda: torch.ones(1000).exp().softmax(0).sum()) == 0


# ---- memory

def test_memory_is_freed_when_the_last_tensor_goes():
    with Watch() as watch:
        a = torch.zeros(1000)
        view = a[:10]
        del a
        assert watch.held == 4000                               # the view keeps all of it
        del view
        assert watch.held == 0
    assert watch.peak == 4000


def test_earlier_memory_does_not_count_nor_does_freeing_it():
    old = torch.zeros(10_000)
    with Watch() as watch:
        old.add_(1); part = old[5:].view(-1); new = part*2
        del old, part
        assert watch.held == new.numel()*4
    assert watch.peak == new.numel()*4


def test_what_a_graph_saves_counts_until_backward():
    x, w = torch.zeros(50, 40), torch.zeros(40, 40, requires_grad=True)
    with Watch() as watch:
        y = ((x @ w).exp() @ w).sum()
        saved = watch.held
        y.backward()
        del y
    assert saved >= 4*50*40                                      # exp keeps its result, which no name holds
    assert watch.held == 4*40*40                                 # the gradient remains
    assert watch.peak > saved


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=12))
def test_peak_follows_any_order_of_making_and_dropping(plan):
    alive, held, peak = [], 0, 0
    with Watch() as watch:
        for size, drop in plan:
            alive.append(torch.empty(size)); held += 4*size; peak = max(peak, held)
            if drop: held -= 4*len(alive.pop(0))
    assert (watch.held, watch.peak) == (held, peak)


def test_an_operation_that_fails_leaves_nothing_behind():
    with Watch() as watch:
        with pytest.raises(RuntimeError): torch.ones(3) @ torch.ones(4)
        gc.collect()
        assert watch.held == 0


def test_kept_bytes_follow_the_type():
    tensors = torch.zeros(3, dtype=torch.float64), torch.zeros(5, dtype=torch.uint8), None, torch.zeros(2, 2).half()
    assert kept_bytes(*tensors) == 24 + 5 + 8
    assert kept_bytes() == 0


# ---- turns

class Clock:
    """A clock that only tasks move."""
    def __init__(self): self.now = 0.
    def __call__(self): return self.now


def test_turns_are_taken_in_order_and_timed_alone(monkeypatch):
    clock, calls = Clock(), []
    monkeypatch.setattr(module.time, "perf_counter", clock)
    monkeypatch.setattr(module.time, "process_time", lambda: clock.now/2)
    def task(name, seconds):
        def work(): calls.append(name); clock.now += seconds + len(calls)
        return work
    times = in_turns({("a", "x"): task("ax", 10), ("a", "y"): task("ay", 20), ("b", "x"): task("bx", 30)}, 2, CPU)
    assert calls == ["ax", "ay", "bx"]*2
    assert times[["row", "part", "repeat"]].values.tolist() == [
        ["a", "x", 0], ["a", "y", 0], ["b", "x", 0], ["a", "x", 1], ["a", "y", 1], ["b", "x", 1]]
    assert times["seconds"].tolist() == [11, 22, 33, 14, 25, 36]
    assert times["processor"].tolist() == [5.5, 11, 16.5, 7, 12.5, 18]


def test_garbage_collection_is_as_before_even_after_a_failure():
    def fail(): raise KeyError("task")
    with pytest.raises(KeyError): in_turns({("a", "x"): fail}, 1, CPU)
    assert gc.get_freeze_count() == 0
    with pytest.raises(ConfigError, match="repeats=0"): in_turns({}, 0, CPU)


def test_threads_return_after_a_block_and_after_a_failure():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with limit_threads(1): assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), limit_threads(1): raise KeyError
        assert torch.get_num_threads() == 2
        with limit_threads(None): assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(before)


# ---- an epoch, and percentages

def frame(seconds, every=2, steps=20, block=10):
    """(rounds, rows, 3) seconds as `measure` gives them."""
    parts = dict(embedding=1/every, clustering=1/every, steps=steps/block)
    rounds, rows, _ = seconds.shape
    return pd.DataFrame([dict(row=f"row {9 - i}", part=p, repeat=r, seconds=float(seconds[r, i, j]), processor=0.,
                              share=parts[p])
                         for r in range(rounds) for i in range(rows) for j, p in enumerate(parts)])


def test_an_epoch_is_made_of_medians():
    seconds = np.random.default_rng(0).random((5, 3, 3)) + .1
    got = per_epoch(frame(seconds, every=4, steps=36, block=10))
    assert list(got.index) == ["row 9", "row 8", "row 7"]                        # in the order given, not sorted
    for i in range(3):
        e, c, s = (sorted(seconds[:, i, j])[2] for j in range(3))
        assert got.iloc[i].tolist() == pytest.approx([e/4, c/4, s*36/10])


def test_processor_time_is_read_where_asked():
    times = frame(np.random.default_rng(2).random((3, 2, 3)) + .1, 1, 10, 10)
    times = times.assign(processor=times["seconds"]*np.where(times["row"] == "row 8", .5, 1.))
    halves = per_epoch(times).loc["row 8"]/2
    assert per_epoch(times, "processor").loc["row 8"].tolist() == pytest.approx(halves.tolist())
    wall, worked = (measured_overheads(times, clock=c).loc["row 8"] for c in ("seconds", "processor"))
    assert (1 + worked/100).tolist() == pytest.approx(((1 + wall/100)/2).tolist())


def test_one_slow_round_changes_nothing():
    seconds = np.ones((5, 2, 3)); seconds[:, 1] = 1.5
    calm = frame(seconds)
    seconds[3] *= 40
    pd.testing.assert_frame_equal(per_epoch(frame(seconds)), per_epoch(calm))
    pd.testing.assert_frame_equal(measured_overheads(frame(seconds)), measured_overheads(calm))


@pytest.mark.parametrize("parts", [("embedding", "clustering", "steps"), ("clustering",)])
def test_overheads_are_taken_within_rounds(parts):
    seconds = np.random.default_rng(1).random((3, 4, 3)) + .2
    got = measured_overheads(frame(seconds, 2, 7, 10), parts)
    share = dict(embedding=1/2, clustering=1/2, steps=7/10)
    for i in range(4):
        columns = [(j, p) for j, p in enumerate(("embedding", "clustering", "steps")) if p in parts]
        cost = lambda r, row: sum(seconds[r, row, j]*share[p] for j, p in columns)
        assert got["first"].iloc[i] == pytest.approx(sorted(100*(cost(r, i)/cost(r, 0) - 1) for r in range(3))[1])
        if i == 0: assert got.iloc[0][["before", "low", "high"]].isna().all()
        else:
            each = sorted(100*(cost(r, i)/cost(r, i - 1) - 1) for r in range(3))
            assert got.iloc[i][["low", "before", "high"]].tolist() == pytest.approx(each)


@given(st.lists(st.floats(.01, 1e6), min_size=2, max_size=8))
def test_overheads_over_the_row_before_multiply_to_the_one_over_the_first(costs):
    got = row_overheads(pd.Series(costs))
    assert np.prod(1 + got["before"].iloc[1:]/100) == pytest.approx(1 + got["first"].iloc[-1]/100, rel=1e-6, abs=1e-9)
    assert np.isnan(got["before"].iloc[0]) and got["first"].iloc[0] == 0


def test_a_cost_of_zero_is_refused():
    with pytest.raises(DataError, match="cost of 0"): row_overheads(pd.Series([0., 1.]))
    with pytest.raises(DataError): row_overheads(pd.Series([1., np.nan]))


def test_the_published_rows_and_text_disagree_as_stated():
    minutes = TABLE7.set_index("configuration")["minutes an epoch"]
    rows = row_overheads(minutes)["before"].round()
    assert [rows[r] for r in TEXT7] == [9, 14, 3, 14] and sorted(TEXT7.values()) == [1.8, 3., 4.2, 5.4]
    assert minutes.iloc[-2] == 12. and minutes.iloc[-1] == 16.


@pytest.mark.parametrize("measured, said", [
    ((12., 10., 14.), "the table is nearer"), ((5., 4., 6.), "the text is nearer"),
    ((9., 8., 10.), "equally far"), ((-3., -5., 1.), "not distinguishable")])
def test_words_follow_the_measurement(measured, said):
    line = pd.Series(dict(before=measured[0], low=measured[1], high=measured[2]))
    words = overhead_in_words("+ part", line, 4., 14.)
    assert said in words and f"{measured[0]:+.1f} %" in words
    assert ("not distinguishable" in words) == (measured[1] <= 0 <= measured[2])
    of = overhead_in_words("+ part", line, 3., 9., "the clustering")
    assert of.endswith("Published: +3.0 % of the clustering in the text, +9.0 % of the epoch by the rows of the table.")


# ---- whole rows

ROWS = {"dbscan": ("dbscan", {}), "hybrid": ("hybrid", {}), "memory": ("upl", dict(mixup=False, srmo=False)),
        "mixup": ("upl", dict(srmo=False)), "full": ("upl", {})}


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    store = tmp_path_factory.mktemp("runs")
    with limit_threads(1): yield make_benches(ROWS, "tiny", "plaza", "campus", 0, CPU, store=store)


@pytest.fixture(scope="module")
def counted(ready):
    return pd.DataFrame({row: count_cost(b) for row, b in ready.items()}).T


def test_all_rows_start_from_the_same_model_on_the_same_images(ready):
    first = ready["dbscan"]
    for b in ready.values():
        assert b.bank is first.bank and torch.equal(b.features, first.features)


def test_a_bench_has_the_network_and_the_budget_of_the_run(tmp_path, monkeypatch):
    longer = replace(PRESETS["tiny"], longer=dict(campus=Budget(2, steps=7, identities=8)))
    monkeypatch.setitem(PRESETS, "tiny", longer)
    where = CPU, None, tmp_path, dict(dim=32, size="40x24")
    bench = make_benches({"row": ("dbscan", {})}, "tiny", "plaza", "campus", 0, *where)["row"]
    assert bench.steps == 7 and bench.bank.size == (40, 24) and bench.features.shape[1] == 32


def test_a_block_has_its_share_of_meta_steps(ready):
    full = ready["full"]
    before, head = int(full.method.srmo.updates), full.method.head
    full.train()
    assert int(full.method.srmo.updates) == before + full.block//full.method.srmo.every == before + 1
    full.train(1)
    assert int(full.method.srmo.updates) == before + 2                  # the first step of a block is the meta step
    assert full.method.head is head
    full.cluster()
    assert full.method.head is not head
    with pytest.raises(ConfigError, match="multiple of 10"):
        Bench(full.method, full.bank, full.camids, full.budget, block=15)


def test_the_memory_is_full_and_holds_the_images_it_says(ready):
    memory, b = ready["memory"].method.memory, ready["memory"]
    fresh = Bench(b.method, b.bank, b.camids.numpy(), b.budget).method.memory
    assert len(memory) == memory.size and fresh is memory
    assert (memory.camids == b.camids[memory.index]).all() and len(memory.index.unique()) == memory.size


def test_batches_are_equally_large_in_all_rows(ready, monkeypatch):
    seen = {}
    real = module.run_epoch
    def watch(method, *args): seen.setdefault(row, []).append(args[3].shape); return real(method, *args)
    monkeypatch.setattr(module, "run_epoch", watch)
    for row in ready: ready[row].train(2)
    budget = ready["full"].budget
    assert set(map(tuple, seen.values())) == {((2, budget.identities*budget.images),)}


def test_counts_by_hand(ready, counted):
    for row, b in ready.items():
        line, method = counted.loc[row], b.method
        floating = [p for p in method.encoder.state_dict().values() if p.is_floating_point()]
        assert line.parameters == sum(np.prod(p.shape) for p in floating) - running(method.encoder)
        assert line.step_GFLOP == 2*line.step_GMAC and line.forward_GFLOP == pytest.approx(2*line.forward_GMAC)
        assert line.classes == len(method.head)
        floats = 2*line.parameters + 2*running(method.encoder) + len(method.head)*method.encoder.dim
        moments = 2*4*(line.parameters - method.encoder.dim)            # Adam's two
        assert line.kept_MiB*2**20 > 4*floats + moments
    assert set(counted.extra_parameters) == {0, 4} and counted.extra_parameters["full"] == 4
    memory = ready["full"].method.memory
    assert counted.memory_numbers.tolist() == [0, 0, *[memory.size*(ready["full"].method.encoder.dim + 2)]*3]
    assert counted.forward_GMAC.nunique() == 1


def running(encoder):
    """Numbers of the batch-norm statistics, which are no parameters."""
    return sum(b.numel() for b in encoder.buffers() if b.is_floating_point())


def test_the_memory_costs_one_forward_pass_of_the_key_encoder(counted):
    added = counted.step_GMAC["memory"] - counted.step_GMAC["hybrid"]
    assert counted.forward_GMAC["memory"] < added < 1.1*counted.forward_GMAC["memory"]


def test_watching_agrees_with_the_profiler_on_a_meta_step(ready, counted, tmp_path):
    full = ready["full"]
    full.train(1); full.forget_gradients()
    watched = peak_bytes(lambda: full.train(2), CPU)
    full.forget_gradients()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler: full.train(2)
    profiler.export_chrome_trace(str(tmp_path/"trace.json"))
    events = [e for e in json.loads((tmp_path/"trace.json").read_text())["traceEvents"] if e["name"] == "[memory]"]
    alive, held, peak = {}, 0, 0
    for e in sorted(events, key=lambda e: e["ts"]):
        address, size = e["args"]["Addr"], e["args"]["Bytes"]
        if size > 0: alive[address] = size; held += size
        elif address in alive: held -= alive.pop(address)
        peak = max(peak, held)
    assert watched == pytest.approx(peak, rel=.02) and watched <= peak      # the profiler sees inside operations too


def test_measuring_visits_every_row_and_part(ready):
    two = {row: ready[row] for row in ("hybrid", "dbscan")}
    counted, times = measure_rows(two, 1, 1)
    assert list(counted.index) == ["hybrid", "dbscan"]
    visited = [[row, part] for row in two for part in ("embedding", "clustering", "steps")]
    assert times[["row", "part"]].values.tolist() == visited
    assert (times["seconds"] > 0).all()


# ---- kept figures

def test_figures_are_read_only_where_nothing_has_changed(tmp_path, monkeypatch):
    place = dict(time="t0", commit="0a1b2c", changed=False, hardware="one", packages=dict(torch="1"))
    monkeypatch.setattr(module, "describe_environment", lambda device: dict(place))
    asked, path = [], tmp_path/"cost"/"a.json"
    def work():
        asked.append(1)
        return pd.DataFrame(dict(a=[.1 + len(asked), 1/3]), index=["x", "y"]), pd.DataFrame(dict(row=["x"], n=[2]))
    def ask(**setting): return stored_measurements(path, dict(device="cpu", **setting), work)
    first, again = ask(repeats=3), ask(repeats=3)
    assert len(asked) == 1
    for a, b in zip(first, again): pd.testing.assert_frame_equal(a, b, check_exact=True)
    place["time"] = "t1"; ask(repeats=3)
    assert len(asked) == 1
    for change in (dict(commit="ff"), dict(hardware="two"), dict(packages=dict(torch="2"))):
        place.update(change); before = len(asked); ask(repeats=3); ask(repeats=3)
        assert len(asked) == before + 1
    before = len(asked); ask(repeats=4); assert len(asked) == before + 1


@pytest.mark.parametrize("place", [
    dict(commit="0a1b2c", changed=True), dict(commit="not a git checkout", changed=False)])
def test_figures_of_unknown_code_are_not_kept(tmp_path, monkeypatch, place):
    monkeypatch.setattr(module, "describe_environment", lambda device: place)
    asked = []
    def work(): asked.append(1); return (pd.DataFrame(dict(a=[1])),)
    for _ in range(2): stored_measurements(tmp_path/"a.json", dict(device="cpu"), work)
    assert len(asked) == 2 and not (tmp_path/"a.json").exists()


# ---- synchronisation and memory traffic

@pytest.mark.parametrize("read", [
    lambda x: float(x[0]), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.nonzero(),
    lambda x: x.tolist() and x.max().item(), lambda x: torch.equal(x, x),
    lambda x: x.clone().index_put_((x > 0,), torch.tensor(1.)), lambda x: x.unique()])
def test_reading_a_result_is_a_wait(read):
    x = torch.arange(5.)
    with Reads() as reads: read(x)
    assert sum(reads.waits.values()) >= 1


def test_what_stays_on_the_device_is_no_wait():
    x, index = torch.arange(5.), torch.tensor([1, 2])
    with Reads() as reads: (x[index] + x.max()).softmax(0).masked_fill(index > 1, 0.).index_add(0, index - 1, x[:2])
    assert not reads.waits


def test_bytes_moved_are_arguments_and_results():
    a, w = torch.ones(6, 4), torch.ones(4, 3, dtype=torch.float64)
    with Reads() as reads: b = a.double() @ w
    assert reads.moved == (24*4 + 24*8) + (24*8 + 12*8 + 18*8) and b.shape == (6, 3)
    with Reads() as reads: a.T.reshape(2, 12)                   # the transpose is a view, its reshape a copy
    assert reads.moved == 2*24*4


@pytest.mark.parametrize("name", ["upl", "dbscan", "mmt", "p2lr", "oracle"])
def test_a_step_waits_for_nothing(tmp_path, name):
    bench = make_benches({"row": (name, {})}, "tiny", "plaza", "campus", 0, CPU, store=tmp_path)["row"]
    bench.augment = normalise_images                            # kornia's transforms read some of their parameters back
    waits = []
    for steps in (1, 4):                                        # the first has UPL's meta step
        with Reads() as reads: bench.train(steps)
        waits.append(dict(reads.waits))
    # one read a mean, at the end of the epoch
    assert waits[0] == waits[1] and set(waits[0]) == {"aten::_local_scalar_dense"}
