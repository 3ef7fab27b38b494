"""Keys and values of running rows, in fixed blocks of one byte-bounded pool.

Shape letters: C cells (one token's keys or values each), K key-value heads, D head size, B rows, L longest row,
N blocks of the longest row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.runtime.kernels import Kernels
from adapters.runtime.spans import (
    BLOCK,
    PAST_FLOOR,
    Reads,
    Span,
    Spans,
    alike,
    blocks_for,
    join_spans,
)

# That reading the past by torch may take at a time on a CPU, unless a row alone takes more.
READ_BYTES = 64 * 2**20


class KeyValueCache:
    """A pool of blocks per layer. A row reserves every block it can ever need, so it never runs dry midway.

    Blocks are counted, for rows that begin alike may share them (see `prefix.py`): a block is free once nobody
    holds it.

    Args:
        size_bytes: bound of all layers together; memory is touched only where rows write.
        kernels: compiled kernels, for attention to the past; None uses torch alone.
        most_read: cells that torch gathers at a time, of several rows; no bound if None.
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        head_size: int,
        *,
        size_bytes: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        kernels: Kernels | None = None,
        most_read: int | None = None,
    ) -> None:
        self.block_bytes = 2 * num_layers * num_heads * head_size * dtype.itemsize * BLOCK
        self.num_blocks = max(1, size_bytes // self.block_bytes)
        # One block more than is handed out: rows that only pad a recorded pass write there.
        self.scratch_block = self.num_blocks
        shape = (num_layers, (self.num_blocks + 1) * BLOCK, num_heads, head_size)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.kernels = kernels
        self.most_read = most_read
        self._free = list(range(self.num_blocks - 1, -1, -1))
        self._holders = [0] * self.num_blocks

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def num_holders(self, block: int) -> int:
        return self._holders[block]

    def reserve(self, num_blocks: int) -> list[int]:
        """Take blocks and return them; the caller gives them to `release`."""
        assert num_blocks <= len(self._free), "look at num_free_blocks first"
        blocks = [self._free.pop() for _ in range(num_blocks)]
        self.share(blocks)
        return blocks

    def share(self, blocks: list[int]) -> None:
        """Hold blocks once more."""
        for block in blocks:
            self._holders[block] += 1

    def release(self, blocks: list[int]) -> None:
        for block in blocks:
            assert self._holders[block] > 0, f"block {block} was released more often than held"
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free.append(block)


def build_cache(
    backbone: Backbone, size_bytes: int, kernels: Kernels | None = None
) -> KeyValueCache | None:
    """Return a cache for a backbone's decoder layers; None for an encoder, which has no past."""
    if backbone.spec.family == "encoder":
        return None
    config = backbone.config
    _, num_kv_heads, head_size = head_shape(config)
    return KeyValueCache(
        _first_of(config, "num_decoder_layers", "decoder_layers", "num_hidden_layers"),
        num_kv_heads,
        head_size,
        size_bytes=size_bytes,
        dtype=backbone.dtype,
        device=backbone.device,
        kernels=kernels,
        # A GPU's memory is not shared with anything, and it does with a large batch what a small one takes.
        most_read=READ_BYTES // read_cell_bytes(backbone)
        if backbone.device.type == "cpu"
        else None,
    )


def read_cell_bytes(backbone: Backbone) -> int:
    """Return the bytes that a cell takes as torch reads it, of one layer: keys and values are gathered, the library's
    own attention puts new ones behind them, and repeats them for all query heads.
    """
    num_heads, num_kv_heads, head_size = head_shape(backbone.config)
    return 2 * (2 * num_kv_heads + num_heads) * head_size * backbone.dtype.itemsize


def head_shape(config: Any) -> tuple[int, int, int]:
    """Return a backbone's query heads, key-value heads and head size, a decoder's where it has both sides."""
    num_heads = _first_of(config, "decoder_attention_heads", "num_attention_heads")
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return num_heads, num_kv_heads, head_size


def _first_of(config: Any, *names: str) -> int:
    """Return the first of some fields that a config has: an encoder-decoder tells its decoder's apart."""
    return int(next(value for name in names if (value := getattr(config, name, None))))


@dataclass(frozen=True, slots=True)
class Extent:
    """A row's part in one pass: its blocks (none if it keeps nothing), tokens cached before, tokens new."""

    blocks: list[int]
    num_cached: int
    num_new: int

    @property
    def num_tokens(self) -> int:
        return self.num_cached + self.num_new


def cells_of(extent: Extent, start: int | None = None) -> Tensor:
    """Return the cells, int64, of a row's tokens from ``start`` on (None: of its new tokens)."""
    if start is None and extent.num_new == 1:  # a decoding row, of which a pass has many
        block, rest = divmod(extent.num_cached, BLOCK)
        return torch.tensor([extent.blocks[block] * BLOCK + rest])
    token = torch.arange(extent.num_cached if start is None else start, extent.num_tokens)
    return torch.tensor(extent.blocks, dtype=torch.long)[token // BLOCK] * BLOCK + token % BLOCK


@dataclass(frozen=True, slots=True)
class CacheView:
    """What one pass writes to the cache and reads from it.

    ``write_tokens`` of the pack (None: all) go to ``write_cells``. ``reads`` are for decoding rows, in their order: one
    for the kernel, for torch one for each group of rows of similar past. Rows that go on with several tokens are in
    ``spans`` for the kernel, or else ``continued`` holds all cells of each.
    """

    cache: KeyValueCache
    write_tokens: Tensor | None
    write_cells: Tensor
    reads: tuple[Reads, ...]
    continued: tuple[Tensor, ...] = ()
    spans: Spans | None = None

    def write(self, layer: int, key_KTD: Tensor, value_KTD: Tensor) -> None:
        cache = self.cache
        for store, new_KTD in ((cache.keys[layer], key_KTD), (cache.values[layer], value_KTD)):
            if cache.kernels is not None:
                cache.kernels.keep(new_KTD, self.write_tokens, self.write_cells, store)
                continue
            new_TKD = new_KTD.transpose(0, 1)
            if self.write_tokens is not None:
                new_TKD = new_TKD[self.write_tokens]
            store.index_copy_(0, self.write_cells, new_TKD)

    def read(self, layer: int, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of cells, each ``[*cells, K, D]``."""
        return self.cache.keys[layer][cells], self.cache.values[layer][cells]


def view_cache(
    cache: KeyValueCache, extents: list[Extent], num_decoding: int, num_continuing: int = 0
) -> CacheView | None:
    """Return what a pass writes and reads, rows in pack order, or None if no row keeps anything."""
    tokens, cells, start = [], [], 0
    for extent in extents:
        if extent.blocks:
            tokens.append(torch.arange(start, start + extent.num_new))
            cells.append(cells_of(extent))
        start += extent.num_new
    if not cells:
        return None
    device = cache.keys.device
    write_cells = torch.cat(cells).to(device)
    decoding, rest = extents[:num_decoding], extents[num_decoding:]
    continuing = rest[:num_continuing]
    by_kernel = cache.kernels is not None
    return CacheView(
        cache,
        None if len(write_cells) == start else torch.cat(tokens).to(device),
        write_cells,
        tuple(_reads(cache, decoding)),
        () if by_kernel else tuple(cells_of(extent, 0).to(device) for extent in continuing),
        _spans(continuing, num_decoding) if by_kernel else None,
    )


def _spans(continuing: list[Extent], first: int) -> Spans | None:
    spans = []
    for extent in continuing:
        blocks = extent.blocks[: blocks_for(extent.num_tokens)]
        cells = [block * BLOCK for block in blocks]
        spans.append(Span(first, extent.num_new, extent.num_tokens, cells))
        first += extent.num_new
    return join_spans(spans)


def _reads(cache: KeyValueCache, decoding: list[Extent]) -> Iterator[Reads]:
    lengths = [extent.num_tokens for extent in decoding]
    if cache.kernels is not None and decoding:
        blocks_BN = _table(decoding, torch.int32)
        yield Reads(len(decoding), blocks_BN, torch.tensor(lengths, dtype=torch.int32))
    elif cache.kernels is None:
        for first, stop in alike(lengths, PAST_FLOOR, cache.most_read):
            yield _padded_reads(cache, decoding[first:stop])


def _table(decoding: list[Extent], dtype: torch.dtype) -> Tensor:
    """Return ``[B, N]``, the blocks of each row."""
    width = blocks_for(max(extent.num_tokens for extent in decoding))
    return torch.tensor([(e.blocks + [0] * width)[:width] for e in decoding], dtype=dtype)


def _padded_reads(cache: KeyValueCache, decoding: list[Extent]) -> Reads:
    lengths = [extent.num_tokens for extent in decoding]
    blocks_BN = _table(decoding, torch.long)
    cells_BL = (blocks_BN[:, :, None] * BLOCK + torch.arange(BLOCK)).flatten(1)[:, : max(lengths)]
    mask_BL = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    # Padding reads the row's own first cell: a masked key weighs zero, but zero times another row's NaN,
    # or times memory never written, is NaN.
    cells_BL = torch.where(mask_BL, cells_BL, cells_BL[:, :1])
    device = cache.keys.device
    mask_B11L = mask_BL[:, None, None, :].to(device)
    return Reads(len(decoding), cells_BL=cells_BL.to(device), mask_B11L=mask_B11L)
