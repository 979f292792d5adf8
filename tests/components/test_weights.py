"""Checkpoints as people have them: nested, under prefixes, under another library's names, damaged."""
import io
import itertools
import warnings

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from upl_reid.components.encoder import build_encoder
from upl_reid.components.weights import (fit_order, fit_prefix, is_safetensors, load_named, misfits_in_words,
                                         named_tensors, read_weights)
from upl_reid.core import DataError, seeded_torch


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def trained(name="resnet18", classes=0):
    "A network whose every tensor has a value of its own."
    with seeded_torch("trained", name): net = timm.create_model(name, num_classes=classes)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for t in net.state_dict().values():
            if t.is_floating_point(): t.copy_(torch.rand(t.shape, generator=g) + .5)
    return net


STATE = {"a.weight": torch.arange(6.).view(2, 3), "b": torch.tensor([1, 2])}
NESTED = {"model": {"model": STATE}, "state_dict": {"state_dict": STATE, "epoch": 3}, "beside": {**STATE, "epoch": 3},
          "deep": {"a": {"b": {"c": STATE}}}, "optimiser": {"optimizer": {"state": {0: {"exp_avg": torch.zeros(2)},
          1: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": .1}]}, "net": STATE}}


@pytest.mark.parametrize("how", NESTED)
def test_weights_are_found_wherever_they_lie(tmp_path, how):
    torch.save(NESTED[how], tmp_path/"w.pth")
    assert same(read_weights(tmp_path/"w.pth"), STATE)


@pytest.mark.parametrize("content", [{"epoch": 3, "args": {"lr": .1}}, [torch.zeros(2)], {"model": [torch.zeros(2)]},
                                     {1: torch.zeros(2)}, {"a": {"b": {"c": {"d": STATE}}}}, 7])
def test_files_without_named_tensors_are_refused_by_what_they_hold(tmp_path, content):
    torch.save(content, tmp_path/"w.pth")
    assert named_tensors(content) == {}
    with pytest.raises(DataError, match="no named tensors; save a plain") as e: read_weights(tmp_path/"w.pth")
    if isinstance(content, dict): assert all(str(k) in str(e.value) for k in content)


@pytest.mark.parametrize("name", ["w.SAFETENSORS", "w.bin", "w", "w.pth"])
def test_safetensors_are_known_by_their_content(tmp_path, name):
    safetensors.torch.save_file(STATE, tmp_path/name)
    assert is_safetensors(tmp_path/name) and same(read_weights(tmp_path/name), STATE)
    torch.save(STATE, tmp_path/"t.safetensors")
    assert not is_safetensors(tmp_path/"t.safetensors") and same(read_weights(tmp_path/"t.safetensors"), STATE)


@pytest.mark.parametrize("prefix", ["", "module.", "base.", "model.backbone.", "module.base.", "_orig_mod."])
def test_any_prefix_is_removed_and_other_parts_stay_out(prefix):
    body, source = timm.create_model("resnet18", num_classes=0), trained()
    state = {f"{prefix}{k}": v for k, v in source.state_dict().items()}
    state |= {"bottleneck.weight": torch.ones(512), f"{prefix}fc.weight": torch.ones(9, 512)}
    found = fit_prefix(body.state_dict(), state)
    load_named(body, found)
    assert same(body.state_dict(), source.state_dict())


def test_the_prefix_with_most_fitting_names_wins():
    own = {"a.weight": torch.ones(2), "b.weight": torch.ones(3)}
    state = {"x.a.weight": torch.zeros(2), "y.a.weight": torch.full((2,), 7.), "y.b.weight": torch.full((3,), 7.),
             "x.b.weight": torch.zeros(4)}
    assert same(fit_prefix(own, state), {"a.weight": torch.full((2,), 7.), "b.weight": torch.full((3,), 7.)})


def naive_order(own, state):
    names = [k for k in own if "num_batches_tracked" not in k]
    theirs = [k for k in state if "num_batches_tracked" not in k]
    out = {}
    for i, name in enumerate(names):
        if i >= len(theirs): return None
        other = theirs[i]
        if list(own[name].shape) != list(state[other].shape): return None
        if name.split(".")[-1] != other.split(".")[-1]: return None
        out[name] = state[other]
    return out


def test_order_agrees_with_a_loop():
    "Names of one layer, x, come in the network's order of `weight` and `bias`, whatever their order in the file is."
    own = {"a.weight": torch.ones(2), "a.bias": torch.ones(2), "n.num_batches_tracked": torch.tensor(0)}
    choices = [("x.weight", 2), ("x.bias", 2), ("y.weight", 3), ("x.num_batches_tracked", 1), ("z.bias", 2)]
    for some in itertools.permutations(choices, 3):
        state = {k: torch.full((n,), float(i)) for i, (k, n) in enumerate(some)}
        layers = {x: {k: v for k, v in sorted(state.items(), reverse=True) if k[0] == x} for x in "xyz"}
        orders = [naive_order(own, names) for names in (state, *layers.values())]
        expected, found = next((o for o in orders if o is not None), None), fit_order(own, state)
        assert found is state if expected is None else same(found, expected)


def torchvision_names(state):
    "The tensors of a MobileNetV2 in the same order under other names, with a classifier after them."
    layers, out = {}, {}
    for k, v in state.items():
        head, _, last = k.rpartition(".")
        if last == "num_batches_tracked": continue
        out[f"features.{layers.setdefault(head, len(layers))}.{last}"] = v
    return {**out, "classifier.1.weight": torch.ones(1000, 1280), "classifier.1.bias": torch.ones(1000)}


def test_another_librarys_names_and_missing_counters(tmp_path):
    source = trained("mobilenetv2_050")
    torch.save({"state_dict": {f"module.{k}": v for k, v in torchvision_names(source.state_dict()).items()}},
               tmp_path/"w.pth")
    # without one of the network's names in the file, the prefix cannot be told and need not be
    encoder = build_encoder("mobilenetv2_050", (64, 32), 8, str(tmp_path/"w.pth"))
    own = encoder.body.state_dict()
    assert all(torch.equal(own[k], v) for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked"))


def test_names_in_the_order_of_the_alphabet_are_put_back_by_their_numbers(tmp_path):
    "As in a safetensors file, where features.10 comes before features.2, and the classifier before both."
    source, body = trained("mobilenetv2_050"), timm.create_model("mobilenetv2_050", num_classes=0)
    safetensors.torch.save_file(torchvision_names(source.state_dict()), tmp_path/"w.safetensors")
    state = read_weights(tmp_path/"w.safetensors")
    assert list(state) != list(torchvision_names(source.state_dict()))
    load_named(body, state)
    assert all(torch.equal(body.state_dict()[k], v) for k, v in source.state_dict().items() if v.is_floating_point())


def test_layers_that_words_tell_apart_keep_the_files_order():
    "The alphabet has k before q before v, and nothing says which of equal shapes is which."
    own = {f"{k}.weight": torch.ones(2) for k in ("qq", "kk", "vv")}
    state = {f"l1.{k}.weight": torch.full((2,), float(i)) for i, k in enumerate("kqv")}
    assert same(fit_order(own, state), dict(zip(own, state.values())))          # the given order, as ever
    state = {"head.weight": torch.ones(3), **state}
    assert fit_order(own, state) is state
    numbered = {"a.weight": torch.ones(3), "l.10.weight": torch.full((2,), 3.), "l.2.weight": torch.full((2,), 2.),
                "l.1.weight": torch.ones(2)}
    assert [float(v[0]) for v in fit_order(own, numbered).values()] == [1, 2, 3]
    between = {**numbered, "l.1.gamma": torch.ones(2)}                          # a tensor that the network lacks
    assert fit_order(own, between) is between


def test_what_does_not_fit_is_named_with_its_shapes_and_nothing_is_loaded():
    body = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    before = {k: v.clone() for k, v in body.state_dict().items()}
    state = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(5), "1.weight": torch.zeros(4, 3)}
    with pytest.raises(DataError) as e: load_named(body, state)
    wrong = "0.bias ((5,) in the file, (3,) in the network), 1.bias (missing in the file, (4,) in the network)"
    assert wrong in str(e.value)
    assert same(body.state_dict(), before)
    many = {f"l{i:02d}": torch.zeros(1) for i in range(14)}
    assert misfits_in_words(many, {}, list(many)).endswith(", and 4 more")


def test_a_buffer_is_no_file(tmp_path):
    with pytest.raises(TypeError): read_weights(io.BytesIO())


def test_a_checkpoint_of_several_networks_says_which_is_taken(tmp_path):
    "As timm keeps a moving average beside the weights, and as MoCo keeps two encoders; equal copies are one network."
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    one, two = body.state_dict(), {k: v + 1 for k, v in body.state_dict().items()}
    with pytest.warns(UserWarning, match="'state_dict', 'state_dict_ema'; 'state_dict' is taken"):
        assert same(named_tensors(dict(state_dict=one, state_dict_ema=two, epoch=3)), one)
    both = {f"encoder_{x}.{k}": v for x, group in (("q", one), ("k", two)) for k, v in group.items()}
    with pytest.warns(UserWarning, match="'encoder_q.', 'encoder_k.'; 'encoder_q.' is taken"):
        fit_prefix(one, both)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(named_tensors(dict(a=one, b=dict(one))), one)
        fit_prefix(one, {f"{x}.{k}": v for x in "ab" for k, v in one.items()})
        fit_prefix(one, {f"module.{k}": v for k, v in one.items()} | {"head.weight": torch.zeros(3)})


def test_of_several_networks_the_one_that_fits_is_taken(tmp_path):
    body, small = timm.create_model("resnet18", num_classes=0), trained().state_dict()
    own, file = body.state_dict(), tmp_path/"w.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(dict(student=small, teacher=trained("resnet50").state_dict()), file)
        assert same(read_weights(file, own), small)
        assert same(build_encoder("resnet18", (64, 32), 8, str(file)).body.state_dict(), small)
        torchvisions = torchvision_names(trained("mobilenetv2_050").state_dict())
        other = timm.create_model("mobilenetv2_050", num_classes=0).state_dict()
        assert same(named_tensors(dict(a=torchvisions, b=trained("resnet50").state_dict()), other), torchvisions)
    teacher = {f"module.{k}": v + 1 for k, v in small.items()} | {"module.center": torch.zeros(9)}
    with pytest.warns(UserWarning, match="'teacher', 'student'; 'teacher' is taken"):
        assert same(named_tensors(dict(student=small, teacher=teacher), own), teacher)


def test_weights_of_another_network_get_a_remedy():
    with pytest.raises(DataError, match="--backbone names another network, and --start takes a model"):
        load_named(nn.Conv2d(3, 4, 1), nn.Linear(3, 4).state_dict())


def test_equal_layers_in_the_order_of_the_alphabet_are_put_back_by_their_numbers():
    own = {f"blocks.{i}.weight": torch.zeros(2) for i in range(12)}
    names = sorted(f"layer.{i}.weight" for i in range(12))
    by_name = {name: torch.full((2,), float(name.split(".")[1])) for name in names}
    assert [float(v[0]) for v in fit_order(own, by_name).values()] == list(range(12))
    backwards = {f"layer.{i}.weight": torch.full((2,), float(i)) for i in range(11, -1, -1)}  # a file's own order
    assert [float(v[0]) for v in fit_order(own, backwards).values()] == list(range(11, -1, -1))
