"""Passes on a CPU as recordings: the kernels that a pass called, called again by one function of C.

Between its kernels the library's model code makes views and outputs and walks its modules, which takes a third as long
as the kernels of a small backbone do. A recording keeps their calls with all addresses, as a CUDA graph does, and what
of torch's own operators computes something.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapters.runtime.kernels import RECORDABLE, Kernels, log_calls
from adapters.runtime.room import Buffer, Room, place_buffers

Compute = Callable[[], Tensor]
_WORDS = 16  # numbers of a call; CALL in kernels.c
_HEAD = 2  # of them before its arguments: kernel and type
_ALLOCATIONS = ("aten::new_empty", "aten::empty", "aten::empty_like", "aten::empty_strided")


class NotRecordable(Exception):
    """A computation does what a recording can't repeat."""


class CallRecorder:
    """Records computations made of kernels, whose results lie in one room: only one is replayed at a time."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._room = Room()

    def __call__(self, compute: Compute) -> Compute:
        """Run a computation and return what repeats it, reading its inputs where they lie and writing the same output.

        Raises:
            NotRecordable: here, or later when the first other inputs show that they are not all that decides.
        """
        trace = _Trace(self._kernels)
        with log_calls(trace.log), trace:
            out = compute()
        return _Replay(self._kernels, self._room, trace, out, compute)


@dataclass(frozen=True, slots=True)
class _Call:
    kernel: str
    dtype: torch.dtype
    arguments: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class _Operator:
    """One of torch's own; a replay puts its results where they were the first time."""

    function: Any
    arguments: Sequence[Any]
    keywords: dict[str, Any]
    outputs: list[Tensor]

    def __call__(self) -> None:
        made = self.function(*self.arguments, **self.keywords)
        if not self.function._schema.is_mutable:
            for output, new in zip(self.outputs, tree_leaves(made), strict=True):
                output.copy_(new)

    @property
    def tensors(self) -> Iterator[Tensor]:
        leaves = tree_leaves((self.arguments, self.keywords))
        yield from (x for x in (*leaves, *self.outputs) if isinstance(x, Tensor))


class _Trace(TorchDispatchMode):
    """Writes down what a computation does, and keeps all that it makes, so that no address means two things."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self.steps: list[_Call | _Operator] = []
        self.made: list[Tensor] = []
        self.buffers: dict[int, Tensor] = {}  # made for a kernel to write, by storage
        self._kernels = kernels

    def log(self, kernel: str, dtype: torch.dtype, arguments: tuple[float | None, ...]) -> None:
        if kernel not in RECORDABLE:
            raise NotRecordable(f"kernel '{kernel}'")
        self.steps.append(_Call(kernel, dtype, arguments))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if func is torch.ops.aten.add.Tensor and _are_alike(args) and not keywords:
            made = self._kernels.add(*args)
            self.made.append(made)
            self.buffers[_storage_of(made)] = made
            return made
        made = func(*args, **keywords)
        outputs = tree_leaves(made)
        if not all(isinstance(output, Tensor) for output in outputs):
            raise NotRecordable(f"{func} gives '{made}', which Python may decide by")
        self.made += outputs
        if func._schema.name in _ALLOCATIONS:
            self.buffers[_storage_of(made)] = made
        elif func._schema.is_mutable or not _are_views(outputs, (args, keywords)):
            self.steps.append(_Operator(func, args, keywords, outputs))
        return made


class _Replay:
    """Calls it all again.

    The first replay has the inputs that were recorded. The second has others, and is compared with what the model
    itself makes of them.
    """

    def __init__(
        self, kernels: Kernels, room: Room, trace: _Trace, out: Tensor, compute: Compute
    ) -> None:
        self._room = room
        self._out = out
        self._compute = compute
        self.num_replays = 0
        calls = [step for step in trace.steps if isinstance(step, _Call)]
        self._words = np.array([_words_of(call) for call in calls], dtype=np.int64)
        self._plan = _Plan.of(trace, calls, out)
        self._base = -1
        self._steps = list(self._join(kernels, trace.steps))
        # Kept, for the calls hold their addresses.
        self._made = [x for x in trace.made if _storage_of(x) not in self._plan.moved]

    def __call__(self) -> Tensor:
        self.num_replays += 1
        if self.num_replays != 2:
            return self._run()
        expected = self._compute()
        actual = self._run()
        if not torch.equal(expected.nan_to_num(), actual.nan_to_num()):
            raise NotRecordable("the recording gives something else than the model")
        return actual

    def _run(self) -> Tensor:
        self._move_in()
        for step in self._steps:
            step()
        return self._out

    def _move_in(self) -> None:
        """Have the kernels' addresses point to where the room is now."""
        plan, base = self._plan, self._room.reserve(self._plan.num_bytes)
        if base == self._base:
            return
        self._base = base
        self._words[plan.rows, plan.columns] = base + plan.offsets
        if plan.out_offset is not None:
            self._out = self._room.view(plan.out_offset, self._out)

    def _join(
        self, kernels: Kernels, steps: Sequence[_Call | _Operator]
    ) -> Iterator[Callable[[], None]]:
        """Return operators, and as one each the calls between them."""
        first = 0
        for is_call, group in itertools.groupby(steps, lambda step: isinstance(step, _Call)):
            here = list(group)
            if not is_call:
                yield from (step for step in here if isinstance(step, _Operator))
                continue
            address = self._words.ctypes.data + first * self._words.strides[0]
            yield functools.partial(kernels.replay, address, len(here))
            first += len(here)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which of the calls' words are addresses in the room (``rows``, ``columns``), and at what ``offsets`` there.

    ``out_offset``: where the output begins; None if it lies elsewhere. ``moved``: storages that the room stands for.
    """

    rows: Any
    columns: Any
    offsets: Any
    num_bytes: int
    out_offset: int | None
    moved: set[int]

    @classmethod
    def of(cls, trace: _Trace, calls: Sequence[_Call], out: Tensor) -> _Plan:
        """Give each buffer that no operator touches a place, those of different times the same."""
        moved = _movable(trace)
        buffers = [Buffer(x.data_ptr(), x.nbytes(), len(calls), -1) for x in moved.values()]
        buffers.sort(key=lambda buffer: buffer.address)
        uses = list(_uses(calls, buffers))
        found = _find(buffers, out.data_ptr())
        if found is not None:
            found[0].last = len(calls)
        num_bytes = place_buffers(sorted(buffers, key=lambda buffer: -buffer.size))
        places = [(i, j, buffer.offset + rest) for i, j, buffer, rest in uses]
        rows, columns, offsets = np.array(places, dtype=np.int64).reshape(-1, 3).T
        out_offset = None if found is None else found[0].offset + found[1]
        return cls(rows, columns, offsets, num_bytes, out_offset, set(moved))


def _movable(trace: _Trace) -> dict[int, torch.UntypedStorage]:
    """Return the buffers that kernels alone read and write, by storage."""
    operators = (step for step in trace.steps if isinstance(step, _Operator))
    fixed = {_storage_of(x) for operator in operators for x in operator.tensors}
    return {key: x.untyped_storage() for key, x in trace.buffers.items() if key not in fixed}


def _uses(
    calls: Sequence[_Call], buffers: Sequence[Buffer]
) -> Iterator[tuple[int, int, Buffer, int]]:
    """Yield call, word, buffer and offset in it for each address in a buffer, and set when buffers are used."""
    for i, call in enumerate(calls):
        for j, (kind, value) in enumerate(
            zip(RECORDABLE[call.kernel], call.arguments, strict=True)
        ):
            found = _find(buffers, int(value)) if kind == "p" and value else None
            if found is not None:
                buffer, rest = found
                buffer.first, buffer.last = min(buffer.first, i), i
                yield i, j + _HEAD, buffer, rest


def _find(buffers: Sequence[Buffer], address: int) -> tuple[Buffer, int] | None:
    """Return the buffer of ascending ones that an address lies in, and how far."""
    k = bisect.bisect_right(buffers, address, key=lambda buffer: buffer.address) - 1
    if k < 0 or address >= buffers[k].address + buffers[k].size:
        return None
    return buffers[k], address - buffers[k].address


def _words_of(call: _Call) -> list[int]:
    """Return a call as `replay` of kernels.c reads it."""
    kinds = RECORDABLE[call.kernel]
    words = [_number(kind, value) for kind, value in zip(kinds, call.arguments, strict=True)]
    head = [list(RECORDABLE).index(call.kernel), int(call.dtype == torch.float32)]
    return head + words + [0] * (_WORDS - _HEAD - len(words))


def _number(kind: str, value: float | None) -> int:
    if kind == "f":
        return int(struct.unpack("<i", struct.pack("<f", value))[0])
    return 0 if value is None else int(value)


def _are_alike(args: Sequence[Any]) -> bool:
    """Tell whether the two summands are what `Kernels.add` takes."""
    x, y = args[:2]
    return (
        isinstance(y, Tensor)
        and x.shape == y.shape
        and x.dtype == y.dtype
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.is_contiguous()
        and y.is_contiguous()
    )


def _are_views(outputs: Sequence[Tensor], given: Any) -> bool:
    inputs = {_storage_of(x) for x in tree_leaves(given) if isinstance(x, Tensor)}
    return all(_storage_of(output) in inputs for output in outputs)


def _storage_of(x: Tensor) -> int:
    """Return what tells one memory from another; oneDNN's weights have one that nobody else can use."""
    return int(x.untyped_storage()._cdata) if x.layout == torch.strided else -id(x)
