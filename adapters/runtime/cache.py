"""Keys and values of running rows, in fixed blocks of one byte-bounded pool.

Shape letters: C cells (one token's keys or values each), K key-value heads, D head size, B rows, L longest row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.backbone import Backbone

BLOCK = 16  # cells handed out at a time


class KeyValueCache:
    """A pool of blocks per layer. A row reserves every block it can ever need, so it never runs dry midway.

    Args:
        size_bytes: bound of all layers together; memory is touched only where rows write.
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
    ) -> None:
        cell_bytes = 2 * num_layers * num_heads * head_size * dtype.itemsize
        self.num_blocks = max(1, size_bytes // (cell_bytes * BLOCK))
        shape = (num_layers, self.num_blocks * BLOCK, num_heads, head_size)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self._free = list(range(self.num_blocks - 1, -1, -1))

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def can_reserve(self, num_tokens: int) -> bool:
        return blocks_for(num_tokens) <= len(self._free)

    def reserve(self, num_tokens: int) -> list[int]:
        """Take enough blocks for ``num_tokens`` and return them; the caller gives them to `release`."""
        assert self.can_reserve(num_tokens), "ask can_reserve first"
        return [self._free.pop() for _ in range(blocks_for(num_tokens))]

    def release(self, blocks: list[int]) -> None:
        self._free.extend(blocks)


def build_cache(backbone: Backbone, size_bytes: int) -> KeyValueCache | None:
    """Return a cache for a backbone's layers; None for an encoder, which has no past."""
    if backbone.spec.family == "encoder":
        return None
    config = backbone.config
    head_size = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return KeyValueCache(
        config.num_hidden_layers,
        getattr(config, "num_key_value_heads", config.num_attention_heads),
        head_size,
        size_bytes=size_bytes,
        dtype=backbone.dtype,
        device=backbone.device,
    )


def blocks_for(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK)


@dataclass(frozen=True, slots=True)
class Extent:
    """A row's part in one pass: its blocks (none if it keeps nothing), tokens cached before, tokens new."""

    blocks: list[int]
    num_cached: int
    num_new: int


def cells_of(extent: Extent) -> Tensor:
    """Return the cells, int64, that a row's new tokens go to."""
    token = torch.arange(extent.num_cached, extent.num_cached + extent.num_new)
    return torch.tensor(extent.blocks, dtype=torch.long)[token // BLOCK] * BLOCK + token % BLOCK


@dataclass(frozen=True, slots=True)
class CacheView:
    """What one pass writes to the cache and what its decoding rows read from it.

    ``write_tokens`` of the pack go to ``write_cells``. ``read_BL`` are the cells of each decoding row,
    its own new token included, and ``mask_B11L`` tells which of them are real.
    """

    cache: KeyValueCache
    write_tokens: Tensor
    write_cells: Tensor
    read_BL: Tensor | None
    mask_B11L: Tensor | None

    def write(self, layer: int, key_KTD: Tensor, value_KTD: Tensor) -> None:
        self.cache.keys[layer][self.write_cells] = key_KTD.transpose(0, 1)[self.write_tokens]
        self.cache.values[layer][self.write_cells] = value_KTD.transpose(0, 1)[self.write_tokens]

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the decoding rows' keys and values, each ``[B, K, L, D]``."""
        assert self.read_BL is not None
        key_BLKD = self.cache.keys[layer][self.read_BL]
        value_BLKD = self.cache.values[layer][self.read_BL]
        return key_BLKD.transpose(1, 2), value_BLKD.transpose(1, 2)


def view_cache(cache: KeyValueCache, extents: list[Extent], num_decoding: int) -> CacheView | None:
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
    read_BL, mask_B11L = _reads(extents[:num_decoding])
    return CacheView(
        cache,
        torch.cat(tokens).to(device),
        torch.cat(cells).to(device),
        None if read_BL is None else read_BL.to(device),
        None if mask_B11L is None else mask_B11L.to(device),
    )


def _reads(decoding: list[Extent]) -> tuple[Tensor | None, Tensor | None]:
    if not decoding:
        return None, None
    lengths = torch.tensor([extent.num_cached + extent.num_new for extent in decoding])
    longest = int(lengths.max())
    width = blocks_for(longest)
    table = torch.tensor([(e.blocks + [0] * width)[:width] for e in decoding], dtype=torch.long)
    cells_BL = (table[:, :, None] * BLOCK + torch.arange(BLOCK)).flatten(1)[:, :longest]
    mask_BL = torch.arange(longest) < lengths[:, None]
    # Padding reads the row's own first cell: a masked key weighs zero, but zero times another row's NaN,
    # or times memory never written, is NaN.
    return torch.where(mask_BL, cells_BL, cells_BL[:, :1]), mask_BL[:, None, None, :]
