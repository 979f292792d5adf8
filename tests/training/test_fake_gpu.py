"""One step of every method on a GPU that is not there: torch's fake tensors have a device and a shape, but no values.

An operation on tensors of different devices raises, as it does on a GPU. What depends on values cannot be run so: a
value that is read is 0, and a mask selects every row. The backward pass needs a driver, so gradients are zeros."""
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from upl_reid.components.encoder import build_encoder
from upl_reid.components.neighbours import unit_rows
from upl_reid.data.image_bank import ImageBank
from upl_reid.experiments.config import load_methods
from upl_reid.training.loop import embed_bank, make_batch, make_round_optimiser, pack_state, train_step
from upl_reid.training.method import METHODS, Budget, PseudoLabels

load_methods()
SIZE, PEOPLE, CLASSES, DIM = (48, 24), 24, 6, 16
BUDGET = Budget(4, identities=4, images=2)
aten = torch.ops.aten
READ, INDEX, CAST = aten._local_scalar_dense.default, aten.index.Tensor, aten._to_copy.default


class FakeGPU(FakeTensorMode):
    "Fake tensors whose values, where they are read, are 0, and whose masks select every row."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is READ: return {torch.bool: False}.get(args[0].dtype, 0. if args[0].is_floating_point() else 0)
        if func is INDEX: args = args[0], [self.every_row(i) for i in args[1]]
        return super().__torch_dispatch__(func, types, args, kwargs)

    def every_row(self, index):
        "A mask as the positions of all rows, on the mask's device."
        if index is None or index.dtype != torch.bool: return index
        return super().__torch_dispatch__(CAST, (), (index,), dict(dtype=torch.int64))


def zero_gradients(leaves):
    def backward(total):
        assert total.requires_grad and not total.ndim
        for p in leaves:
            if p.requires_grad: p.grad = torch.zeros_like(p)
    return backward


@pytest.fixture
def gpu(monkeypatch):
    "A fake GPU that computes in bfloat16."
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.autograd.grad", lambda value, inputs, **_: [torch.zeros_like(p) for p in inputs])
    with FakeGPU(allow_non_fake_inputs=True): yield torch.device("cuda:0")


def to_fake(module, device):
    "Replace a module's parameters and buffers by fake ones, which `Module.to` refuses to do."
    for m in module.modules():
        for k, p in m._parameters.items():
            if p is not None: m._parameters[k] = torch.nn.Parameter(torch.empty_like(p, device=device), p.requires_grad)
        for k, b in m._buffers.items():
            if b is not None: m._buffers[k] = torch.empty_like(b, device=device)
    return module


class FakeBank(ImageBank):
    "Images without pixels."
    def __init__(self, count, device):
        self.paths, self.size, self.device, self.home = (None,)*count, SIZE, device, device
        self.images = torch.zeros(count, 3, *SIZE, dtype=torch.uint8, device=device)


def make(name, device):
    "A method whose networks lie on the fake device."
    cls, extras = METHODS[name], {}
    ids = np.arange(PEOPLE) % CLASSES, np.arange(PEOPLE)//CLASSES
    if cls.needs_meta: extras["meta"] = (FakeBank(PEOPLE, device), *ids)
    if cls.needs_identities: extras["pids"] = ids[0]
    with unset_fake_temporarily():
        if cls.needs_twin: extras["twin"] = build_encoder("micro", SIZE, DIM, seed=1)
        method = cls(build_encoder("micro", SIZE, DIM), **extras)
    return to_fake(method, device)


def fake_labels(device, soft, width):
    "Labels of a round, without the checks of `PseudoLabels`, which read values."
    labels = object.__new__(PseudoLabels)
    zeros = lambda *shape, **kwargs: torch.zeros(*shape, device=device, **kwargs)
    vars(labels).update(hard=zeros(PEOPLE, dtype=torch.int64), soft=zeros(PEOPLE, CLASSES) if soft else None,
                        weight=zeros(PEOPLE), centroids=zeros(CLASSES, width))
    return labels


def begin(name, device, soft=False):
    "A method at the beginning of a round, with all that a step needs."
    method, bank = make(name, device), FakeBank(PEOPLE, device)
    method.start(BUDGET, PEOPLE)
    labels = fake_labels(device, soft, embed_bank(method.label_encoder(), bank).shape[1])
    body = torch.optim.Adam(method.parameter_groups(BUDGET), fused=True)
    return method, bank, labels, (body, make_round_optimiser(method, labels, BUDGET))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, cls in METHODS.items() if cls.trains])
def test_a_step_mixes_no_devices(gpu, monkeypatch, name):
    method, bank, labels, optimisers = begin(name, gpu, soft=name == "upl")
    monkeypatch.setattr(torch.Tensor, "backward", zero_gradients(list(method.parameters())))
    camids = torch.zeros(PEOPLE, dtype=torch.int64, device=gpu)
    method.encoder.train()
    for step in (0, 10):                                     # SRMO's meta step comes after ten steps
        index = torch.arange(8, device=gpu)
        batch = make_batch(index, bank, camids, labels, torch.Tensor.float, method.views, seed=step, step=step, lr=.1)
        values = train_step(method, batch, optimisers, 5.)
        assert values["loss"].device == gpu
    method.log_values()
    elsewhere = {k for k, v in pack_state(method, *optimisers, labels).items() if v.ndim and v.device != gpu}
    assert not elsewhere, f"{elsewhere} of the state lie on another device"


def test_tensors_of_two_devices_are_found(gpu):
    with pytest.raises(RuntimeError, match="device"): torch.zeros(3, device=gpu) + torch.zeros(3)
    assert unit_rows(torch.zeros(3, 2, device=gpu)).device == gpu


def test_products_of_a_step_are_bfloat16(gpu):
    method = make("dbscan", gpu)
    seen = []
    method.encoder.project.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert method.encoder(torch.zeros(4, 3, *SIZE, device=gpu)).dtype == torch.float32 and seen == [torch.bfloat16]
