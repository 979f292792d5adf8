"""Features that a round of pseudo-labels may meet on somebody's cameras: every method makes labels of them or says in
one sentence why not."""
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from upl_reid.core import DataError, RunError
from upl_reid.experiments.cost import make_benches
from upl_reid.data.benchmarks import LAYOUTS, _parse
from upl_reid.deployment.embedder import Embedder
from upl_reid.experiments.config import load_methods
from upl_reid.core import read_tensors, write_tensors
from upl_reid.training.method import PseudoLabels

CPU = torch.device("cpu")
NAMES = ["upl", "upl_global", "hybrid", "dbscan", "mmt", "p2lr", "inclr", "cgc", "mspl", "votes",
         "cluster_contrast", "spcl", "varied_light", "varied_light_upl"]


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    "Every method that makes pseudo-labels, in its tiny form."
    store = tmp_path_factory.mktemp("runs")
    made = make_benches({n: (n, {}) for n in NAMES}, "tiny", "plaza", "campus", 0, CPU, store=store)
    return {n: (b.method, b.features, b.camids) for n, b in made.items()}


def test_no_method_is_left_out():
    own = {n: c for n, c in load_methods().items() if c.__module__.startswith("upl_reid.")}
    assert set(NAMES) == {n for n, c in own.items() if c.trains and not c.needs_identities}


def directions(n, d, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def people(x, count):
    centres = directions(count, x.shape[1])[torch.arange(len(x)) % count]
    return F.normalize(centres + .05*directions(len(x), x.shape[1], 1), dim=1)


KINDS = {
    "one identity": lambda x, c: (people(x, 1), c),
    "two identities": lambda x, c: (people(x, 2), c),
    "all noise": lambda x, c: (directions(*x.shape), c),
    "one camera": lambda x, c: (people(x, 20), torch.zeros_like(c)),
    "a camera each": lambda x, c: (people(x, 20), torch.arange(len(x))),
    "duplicates only": lambda x, c: (x[:1].expand_as(x).clone(), c),
    "pairs of duplicates": lambda x, c: (x[torch.arange(len(x))//2*2], c),
    "camera tells all": lambda x, c: (F.normalize(directions(int(c.max()) + 1, x.shape[1])[c] + 1e-4*x, dim=1), c)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_labels_or_a_sentence(methods, name, kind):
    method, features, camids = methods[name]
    x, c = KINDS[kind](features, camids)
    try: labels = method.relabel(x, c, 0)
    except ValueError as e:
        assert kind not in ("one camera", "two identities") or "identit" in str(e) or "cluster" in str(e)
        assert "\n" not in str(e) and len(str(e)) > 30, e
        return
    assert isinstance(labels, PseudoLabels) and len(labels.hard) == len(x) and len(labels.centroids) >= 2
    assert torch.isfinite(labels.centroids).all() and torch.isfinite(labels.weight).all()
    assert (labels.weight >= 0).all() and (labels.weight <= 1).all()
    assert labels.soft is None or torch.allclose(labels.soft.sum(1), torch.ones(len(x)), atol=1e-4)
    method.start_round(labels)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers(methods, name, value):
    method, features, camids = methods[name]
    x = features.clone()
    x[3, 0] = value
    with pytest.raises(ValueError) as e: method.relabel(x, camids, 0)
    assert "\n" not in str(e.value)


# ---- names, configurations, checkpoints: fuzzed

names = st.one_of(
    st.text(max_size=30),
    st.from_regex(r"-?[0-9]{0,12}_c[0-9]{0,8}(s[0-9]+_|_f[0-9]+)?.{0,4}\.jpg", fullmatch=True),
    st.from_regex(r"[0-9]{4}_[0-9]{3}_[0-9]{0,8}_.{0,6}", fullmatch=True))


@settings(max_examples=600)
@given(name=names, domain=st.sampled_from(sorted(LAYOUTS)))
def test_any_name_is_parsed_or_refused(name, domain):
    "600 cases: camera from 1 and at most nine digits of identity, or a `DataError`."
    layout = LAYOUTS[domain][0]
    try: m = _parse(Path("folder")/name.replace("/", "-").replace("\0", "-"), layout)
    except DataError as e: assert layout.example in str(e)
    else: assert 1 <= int(m["cam"]) < 10**6 and ("pid" not in m.groupdict() or -1 <= int(m["pid"]) < 10**9)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
nested = lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3)
values = st.recursive(leaves, nested, max_leaves=5)
arguments = st.dictionaries(st.sampled_from(["labels", "tau", "eps", "x"]), values, max_size=2)
fields = {"preset": st.sampled_from(["tiny", "x"]) | values,
          "source": st.just("plaza") | values,
          "target": st.just("campus") | values,
          "method": st.sampled_from(["upl", "dbscan"]) | values,
          "method_args": arguments | values,
          "seed": st.integers() | values}


@settings(max_examples=400)
@given(config=st.one_of(values, st.fixed_dictionaries({}, optional=fields), st.fixed_dictionaries(fields)))
def test_any_configuration_is_one_or_refused(tmp_path_factory, config):
    "400 cases, as the config.json of a run's folder."
    folder = tmp_path_factory.getbasetemp()/"configuration"
    folder.mkdir(exist_ok=True)
    (folder/"metrics.json").write_text("{}")
    (folder/"config.json").write_text(json.dumps(config))
    with pytest.raises(DataError) as e: Embedder.load(folder, "cpu")        # even a right one has no model beside it
    assert str(folder) in str(e.value)


@settings(max_examples=400)
@given(start=st.integers(0, 400), junk=st.binary(max_size=40), cut=st.integers(0, 3000))
def test_any_checkpoint_is_one_or_refused(tmp_path_factory, start, junk, cut):
    "400 cases of a checkpoint with changed and missing bytes."
    folder = tmp_path_factory.getbasetemp()/"checkpoint"
    folder.mkdir(exist_ok=True)
    tensors = {"a.weight": torch.ones(20, 20), "b": torch.arange(9)}
    good = write_tensors(folder/"good.safetensors", tensors, epoch=3).read_bytes()
    content = bytearray(good)
    content[start:start + len(junk)] = junk
    path = folder/"checkpoint.safetensors"
    path.write_bytes(content[:max(0, len(content) - cut)] if cut % 3 else content)
    try: tensors, meta = read_tensors(path)
    except RunError as e: assert str(path) in str(e)
    else: assert all(isinstance(t, torch.Tensor) for t in tensors.values())
