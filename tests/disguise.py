"""A GPU in disguise: tensors of the CPU that say they lie on ``cuda:0``, and can't be mixed with others.

What a fit does with devices can be tested so where there is no GPU; of its speed and rounding it tells nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
_PARSES = (torch.device, torch._C._nn._parse_to)  # what a device is called, and make nothing
# Numbers in a tensor, and indices, may lie on the CPU.
_TAKES_INDICES = ("aten::index.Tensor", "aten::index_put", "aten::_index_put_impl_")


class Disguise:
    """A context in which tensors made for ``cuda`` are such."""

    def __init__(self) -> None:
        # Storages; a weak reference keeps a number from being given out again.
        self.there: dict[int, StorageWeakRef] = {}
        self.is_moving = False
        self._modes = _Calls(self), _Kernels(self)

    def __enter__(self) -> Disguise:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Give a time in which copies lie on the CPU, whatever they are of."""
        self.is_moving = True
        try:
            yield
        finally:
            self.is_moving = False

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.there

    def place(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.there[storage._cdata] = StorageWeakRef(storage)


class _Calls(TorchFunctionMode):
    """What Python asks for: a device is named, or a tensor is asked where it lies."""

    def __init__(self, disguise: Disguise) -> None:
        super().__init__()
        self._disguise = disguise

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            return GPU if self._disguise.holds(args[0]) else func(*args)
        if func == Tensor.is_cuda.__get__:
            return self._disguise.holds(args[0])
        if func in (Tensor.numpy, Tensor.__array__) and self._disguise.holds(args[0]):
            raise TypeError("can't convert a tensor on cuda:0 to numpy. Use Tensor.cpu() first.")
        if func is Tensor.cpu:
            return self._moved(args[0], on_gpu=False)
        named = [x for x in tree_leaves((args, kwargs)) if _is_device(x)]
        if not named or func in _PARSES:
            return func(*args, **kwargs)
        on_gpu = torch.device(named[0]).type == "cuda"
        args, kwargs = tree_map(lambda x: "cpu" if _is_device(x) else x, (args, kwargs))
        made = func(*args, **kwargs)
        return self._moved(made, on_gpu=on_gpu) if isinstance(made, Tensor) else made

    def _moved(self, tensor: Tensor, *, on_gpu: bool) -> Tensor:
        if self._disguise.holds(tensor) == on_gpu:
            return tensor
        with self._disguise.unseen():
            copy = tensor.clone()
        if on_gpu:
            self._disguise.place(copy)
        return copy


def _is_device(value: object) -> bool:
    kind = value.type if isinstance(value, torch.device) else value
    return isinstance(kind, str) and kind.partition(":")[0] in ("cpu", "cuda")


class _Kernels(TorchDispatchMode):
    """What is computed, in backward passes too: results lie where what they are made of does."""

    def __init__(self, disguise: Disguise) -> None:
        super().__init__()
        self._disguise = disguise

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        places = {self._disguise.holds(x) for x in given if x.dim() or len(given) == 1}
        if len(places) > 1 and not func.name().startswith(_TAKES_INDICES):
            raise RuntimeError(f"{func.name()}: tensors on cuda:0 and on the CPU are mixed.")
        known = {x.untyped_storage()._cdata for x in given}
        made = func(*args, **(kwargs or {}))
        on_gpu = any(self._disguise.holds(x) for x in given)
        for each in tree_leaves(made) if on_gpu and not self._disguise.is_moving else ():
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in known:
                self._disguise.place(each)
        return made
