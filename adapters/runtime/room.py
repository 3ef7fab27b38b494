"""Memory for what a recorded pass makes between its first kernel and its last, used again and again within the pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_ALIGNMENT = 64


class Room:
    """Memory for the intermediate results of whatever is replayed."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def reserve(self, num_bytes: int) -> int:
        """Have at least so many bytes, and return where they begin."""
        if num_bytes > len(self._bytes) - _ALIGNMENT:
            self._bytes = torch.empty(num_bytes + _ALIGNMENT, dtype=torch.uint8)
        return -(-self._bytes.data_ptr() // _ALIGNMENT) * _ALIGNMENT

    def view(self, offset: int, like: Tensor) -> Tensor:
        """Return a tensor of the form of another, at an offset."""
        start = self.reserve(0) - self._bytes.data_ptr() + offset
        storage = self._bytes.untyped_storage()
        empty = torch.empty(0, dtype=like.dtype)
        return empty.set_(storage, start // like.element_size(), like.shape, like.stride())


@dataclass(slots=True)
class Buffer:
    """Memory that calls ``first`` to ``last`` read or write."""

    address: int
    size: int
    first: int
    last: int
    offset: int = 0


def place_buffers(buffers: Iterable[Buffer]) -> int:
    """Give each buffer the lowest offset that no buffer of the same time has; return the bytes of all."""
    placed: list[Buffer] = []
    for buffer in buffers:
        beside = [b for b in placed if b.first <= buffer.last and buffer.first <= b.last]
        for other in sorted(beside, key=lambda b: b.offset):
            if (
                other.offset < buffer.offset + buffer.size
                and buffer.offset < other.offset + other.size
            ):
                buffer.offset = -(-(other.offset + other.size) // _ALIGNMENT) * _ALIGNMENT
        placed.append(buffer)
    return max((buffer.offset + buffer.size for buffer in placed), default=0)
