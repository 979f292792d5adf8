"""A device that is not there and computes all the same: its tensors say that they lie on torch's "meta" device, and
hold their values on the CPU. An operation that mixes it with the CPU raises where a GPU would raise. Results are those
of the CPU, up to rounding where torch composes an operation of other kernels for another device."""
import contextlib
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
MOVES = {aten.copy_.default, aten._to_copy.default}                         # from one device to another
ZEROS = aten._efficientzerotensor.default
BY_INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class StandIn(torch.Tensor):
    "A tensor on the stand-in device; `value` is on the CPU."
    @staticmethod
    def __new__(cls, value):
        return torch.Tensor._make_wrapper_subclass(cls, value.size(), strides=value.stride(), dtype=value.dtype,
            storage_offset=value.storage_offset(), layout=value.layout, device=DEVICE, requires_grad=False)

    def __init__(self, value): self.value = value

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return run(func, args, kwargs or {})

    def __repr__(self): return f"StandIn({self.value!r})"


def check_devices(func, args, kwargs):
    "Raise as a GPU does for operands on two devices; the CPU's scalars, copies and indices may be anywhere."
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    if any(t.device == DEVICE and not isinstance(t, StandIn) for t in tensors):
        raise NotImplementedError(f"{func}: a tensor without values was made; add what made it to `stand_in_device`")
    if func in MOVES: return
    operands = [args[0], *args[2:]] if func in BY_INDEX else args
    found = [t for t in tree_leaves((operands, kwargs)) if isinstance(t, torch.Tensor)]
    if any(isinstance(t, StandIn) for t in found) and any(t.ndim and not isinstance(t, StandIn) for t in found):
        raise RuntimeError(f"{func}: operands are on two devices, of shapes {[tuple(t.shape) for t in found]}")


def run(func, args, kwargs):
    "One operation on the CPU's values; its results are on the stand-in device if it is asked for or is an operand's."
    check_devices(func, args, kwargs)
    held = {}                                                # address of a value -> its tensor on the stand-in device
    def inner(x):
        if isinstance(x, StandIn): held[id(x.value)] = x
        if isinstance(x, torch.device) and x == DEVICE: return torch.device("cpu")
        return x.value if isinstance(x, StandIn) else x
    values = tree_map(inner, args), tree_map(inner, kwargs)
    if func is ZEROS: func = aten.zeros.default              # forward mode's zeros have no memory to compute with
    out = func(*values[0], **values[1])
    asked = kwargs.get("device")
    here = torch.device(asked) == DEVICE if asked is not None else bool(held)
    if func is aten.copy_.default: return args[0]
    def outer(x):
        if not isinstance(x, torch.Tensor): return x
        return held[id(x)] if id(x) in held else StandIn(x) if here else x
    return tree_map(outer, out)


class Operations(TorchDispatchMode):
    "Every operation, those that make a tensor included."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return run(func, args, kwargs or {})


def patch_factories(monkeypatch):
    "Make tensors of Python's and numpy's values on the CPU first; torch makes them on the device, without dispatch."
    tensor, as_tensor, autocast = torch.tensor, torch.as_tensor, torch.autocast
    def from_values(data, dtype=None, device=None, **kwargs):
        return tensor(data, dtype=dtype, **kwargs).to(device or "cpu")
    def converted(data, dtype=None, device=None):
        x = data if isinstance(data, torch.Tensor) else as_tensor(data)
        return x.to(device or x.device, dtype or x.dtype)
    monkeypatch.setattr(torch, "tensor", from_values)
    monkeypatch.setattr(torch, "as_tensor", converted)
    monkeypatch.setattr(torch, "autocast", lambda device, *args, **kwargs:
                        autocast("cpu" if device == DEVICE.type else device, *args, **kwargs))
    monkeypatch.setattr(torch.Tensor, "new_tensor", lambda x, data, dtype=None, device=None:
                        from_values(data, dtype or x.dtype, device or x.device))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: x.detach().cpu().numpy().tolist()) # torch's refuses classes


@contextlib.contextmanager
def stand_in_device(monkeypatch):
    "The device, for the duration."
    optimiser = sys.modules["torch.optim.optimizer"]         # torch.optim hides the module
    with monkeypatch.context() as patch, Operations():
        patch.setattr(optimiser, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"])
        patch_factories(patch)
        yield DEVICE
