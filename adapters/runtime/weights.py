"""An adapter as the engine computes with it: A and B in the backbone's dtype, the scale folded into B, and its head.

Shape letters: R rank, I input features, O output features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.bundle import Bundle
from adapters.errors import InvalidBundle
from adapters.lora import LoraModule
from adapters.tasks.heads import Head, build_head
from adapters.tensors import RawTensor

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Pair = tuple[Tensor, Tensor]
_ALIGNMENT = 16  # numbers that each tensor's place is a multiple of: what a GPU loads at once


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """One version's weights. ``modules`` are views of one buffer, so that it takes hardly more than the bytes it has.

    ``modules`` maps a module's path to A ``[R, I]`` and B ``[R, O]``; ranks may differ between modules.
    """

    task: str
    modules: dict[str, Pair]
    head: Head | None
    size_bytes: int

    def to(self, device: torch.device) -> AdapterWeights:
        """Return the weights on a device; the very same ones if they are there already."""
        if all(a.device == device for a, _ in self.modules.values()):
            return self
        shapes = {name: (a.shape, b.shape) for name, (a, b) in self.modules.items()}
        flat = torch.empty(_num_cells(shapes), dtype=next(iter(self.modules.values()))[0].dtype)
        for name, views in _views(flat, shapes).items():
            for view, own in zip(views, self.modules[name], strict=True):
                view.copy_(own)
        # A copy: moving a module moves the very one that the host tier keeps.
        head = None if self.head is None else copy.deepcopy(self.head).to(device)
        return AdapterWeights(self.task, _views(flat.to(device), shapes), head, self.size_bytes)


def weights_bytes(bundle: Bundle, dtype: torch.dtype) -> int:
    """Return the bytes that a bundle's weights take in a dtype, its head in fp32 included."""
    lora = sum(math.prod(m.a.shape) + math.prod(m.b.shape) for m in bundle.modules.values())
    return lora * dtype.itemsize + sum(4 * math.prod(raw.shape) for raw in bundle.head.values())


def prepare_weights(
    bundle: Bundle, dtype: torch.dtype, hidden_size: int, order: Sequence[str] = ()
) -> AdapterWeights:
    """Return a bundle's weights on the CPU, ready to compute with; called on the loader's thread.

    Args:
        order: modules' paths as a pass computes them: weights lie in that order, so that memory is read ahead.

    Raises:
        InvalidBundle: a weight is not finite any more, once scaled and in the backbone's dtype.
    """
    names = [name for name in order if name in bundle.modules]
    given = {name: bundle.modules[name] for name in dict.fromkeys([*names, *bundle.modules])}
    shapes = {name: (torch.Size(m.a.shape), _transposed(m)) for name, m in given.items()}
    flat = torch.zeros(_num_cells(shapes), dtype=dtype)
    modules = _views(flat, shapes)
    for name, (a_RI, b_RO) in modules.items():
        a_RI.copy_(to_torch(bundle.modules[name].a))
        torch.mul(to_torch(bundle.modules[name].b).float().T, bundle.modules[name].scale, out=b_RO)
    if not all(bound.isfinite() for bound in flat.aminmax()):
        raise InvalidBundle(
            f"With its scale, or in '{dtype}', a weight is beyond what numbers can hold. Train the adapter again "
            "with a lower learning rate."
        )
    head = _head_of(bundle, hidden_size)
    return AdapterWeights(bundle.manifest.task, modules, head, weights_bytes(bundle, dtype))


def _transposed(module: LoraModule) -> torch.Size:
    outputs, rank = module.b.shape
    return torch.Size((rank, outputs))


def _num_cells(shapes: Mapping[str, tuple[torch.Size, torch.Size]]) -> int:
    return sum(_aligned(shape.numel()) for pair in shapes.values() for shape in pair)


def _aligned(num: int) -> int:
    return -(-num // _ALIGNMENT) * _ALIGNMENT


def _views(flat: Tensor, shapes: Mapping[str, tuple[torch.Size, torch.Size]]) -> dict[str, Pair]:
    """Cut a buffer into A and B of each module, one after the other."""
    modules, start = {}, 0
    for name, pair in shapes.items():
        views = []
        for shape in pair:
            views.append(flat[start : start + shape.numel()].view(shape))
            start += _aligned(shape.numel())
        modules[name] = (views[0], views[1])
    return modules


def _head_of(bundle: Bundle, hidden_size: int) -> Head | None:
    if bundle.manifest.head is None:
        return None
    head = build_head(bundle.manifest.head, hidden_size)
    for name, parameter in head.named_parameters():
        parameter.data.copy_(to_torch(bundle.head[name]))
    frozen: nn.Module = head.requires_grad_(False)
    assert isinstance(frozen, Head)
    return frozen


def to_torch(raw: RawTensor) -> Tensor:
    """Return a raw tensor as a torch tensor of its own dtype, on the same memory if that can be written to."""
    data = raw.data if isinstance(raw.data, bytearray) else bytearray(raw.data)
    return torch.frombuffer(data, dtype=_DTYPES[raw.dtype]).reshape(raw.shape)
