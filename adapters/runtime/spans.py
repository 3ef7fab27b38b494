"""What attention reads: the past of decoding rows, and rows with several new tokens each, as kernels take them.

Shape letters: B rows, N blocks, L longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows that are padded to one length: those up to so many times as long as the shortest, or shorter than the floor.
GROUP_SPREAD = 1.5
GROUP_FLOOR = 16
PAST_FLOOR = 64  # the floor of what decoding rows read: another pass costs more than it
BLOCK = 16  # cells that the kernels take at a time, and that the cache hands out; kernels.c has the same number


@dataclass(frozen=True, slots=True)
class Reads:
    """The past of the decoding rows of a pass, their own new token included.

    ``blocks_BN`` and ``lengths_B`` are int32 and serve the kernel; ``cells_BL`` and ``mask_B11L`` (which cells are
    real) serve torch. One pair is None.
    """

    num_rows: int

    blocks_BN: Tensor | None = None
    lengths_B: Tensor | None = None
    cells_BL: Tensor | None = None
    mask_B11L: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """One row: its first new token in the pack, new tokens, those with what came before, its blocks' first cells."""

    first: int
    num_new: int
    num_tokens: int
    cells: Sequence[int]


@dataclass(frozen=True, slots=True)
class Spans:
    """Several rows, for `Kernels.attend_rows`, which says what the tensors hold."""

    rows_B4: Tensor
    cells_N: Tensor
    num_tiles: int


def join_spans(spans: Sequence[Span]) -> Spans | None:
    """Return rows in the kernel's form; None without rows."""
    if not spans:
        return None
    rows, cells = [], list[int]()
    for span in spans:
        rows.append((span.first, span.num_new, span.num_tokens, len(cells)))
        cells += span.cells
    return Spans(
        torch.tensor(rows, dtype=torch.int32),
        torch.tensor(cells, dtype=torch.int32),
        sum(blocks_for(span.num_new) for span in spans),
    )


def alike(
    lengths: Sequence[int], floor: int = GROUP_FLOOR, most: int | None = None
) -> list[tuple[int, int]]:
    """Return ranges of ascending lengths: those that are padded together, to the longest of them.

    Args:
        most: of what a range of several may come to, padding and all.
    """
    ranges, first = [], 0
    for i in range(1, len(lengths) + 1):
        if (
            i == len(lengths)
            or lengths[i] > max(floor, GROUP_SPREAD * lengths[first])
            or (most is not None and (i + 1 - first) * lengths[i] > most)
        ):
            ranges.append((first, i))
            first = i
    return ranges


def blocks_for(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK)
