"""Our blocks of keys and values as the library's own models see them: its cache hook over `KeyValueCache`.

Shape letters: B rows, K key-value heads, Q new tokens of the longest row, P past tokens of the longest row, D head
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from adapters.runtime.cache import CacheView, Extent, KeyValueCache, cells_of


@dataclass(frozen=True, slots=True)
class Window:
    """Cells of each row of a padded batch, ``[B, P]``; where ``mask_BP`` is false, the row's own first one stands in.

    A masked key weighs zero, but zero times memory never written may be NaN.
    """

    cells_BP: Tensor
    mask_BP: Tensor


def window(rows: Sequence[Tensor], device: torch.device, *, is_left: bool) -> Window:
    """Pad rows of cells, on the left if they end together, as a past does that new tokens follow."""
    width = max(len(cells) for cells in rows)
    padded, mask = [], torch.zeros(len(rows), width, dtype=torch.bool)
    for i, cells in enumerate(rows):
        filler = cells[:1].expand(width - len(cells))
        padded.append(torch.cat([filler, cells] if is_left else [cells, filler]))
        start = width - len(cells) if is_left else 0
        mask[i, start : start + len(cells)] = True
    return Window(torch.stack(padded).to(device), mask.to(device))


def write_view(cache: KeyValueCache, extents: Sequence[Extent], width: int) -> CacheView | None:
    """Return where the new tokens of a batch padded on the right to ``width`` go; None if no row keeps any."""
    kept = [(i, extent) for i, extent in enumerate(extents) if extent.blocks]
    if not kept:
        return None
    device = cache.keys.device
    tokens = torch.cat([torch.arange(e.num_new) + i * width for i, e in kept])
    cells = torch.cat([cells_of(extent) for _, extent in kept])
    return CacheView(cache, tokens.to(device), cells.to(device), ())


class RowLayer(CacheLayerMixin):
    """One layer's keys and values of a batch's rows: reads their past from the blocks, writes what is new there."""

    is_sliding = False

    def __init__(
        self, layer: int, cache: KeyValueCache, view: CacheView | None, past: Window | None
    ) -> None:
        self._layer = layer
        self._cache = cache
        self._view = view
        self._past = past
        self.is_initialized = True

    @property
    def keys(self) -> Tensor:
        """The past, ``[B, K, P, D]``; the library reads it of a cross attention whose keys are known."""
        return self._read(self._cache.keys)

    @property
    def values(self) -> Tensor:
        return self._read(self._cache.values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep new keys and values ``[B, K, Q, D]`` and return them behind the past."""
        if self._view is not None:
            key_KTD, value_KTD = (
                x.transpose(0, 1).flatten(1, 2) for x in (key_states, value_states)
            )
            self._view.write(self._layer, key_KTD, value_KTD)
        if self._past is None:
            return key_states, value_states
        return torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)

    def get_seq_length(self) -> int:
        return 0 if self._past is None else self._past.cells_BP.shape[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to be made."""

    def _read(self, store: Tensor) -> Tensor:
        assert self._past is not None
        return store[self._layer][self._past.cells_BP].transpose(1, 2)


def row_cache(cache: KeyValueCache, view: CacheView | None, past: Window | None) -> Cache:
    """Return the library's kind of cache for one pass of a padded batch."""
    num_layers = cache.keys.shape[0]
    return Cache(layers=[RowLayer(layer, cache, view, past) for layer in range(num_layers)])
