"""Passes for models that can't take packed rows: rows side by side, padded, through the library's own attention.

Correct first: rows that decode share a pass with rows of similar past, new rows with rows of similar length, a row that
goes on with several tokens has one of its own. Shape letters: B rows, Q new tokens of the longest row, D hidden size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.runtime.active import Part
from adapters.runtime.bank import Bank
from adapters.runtime.cache import Extent, KeyValueCache, cells_of
from adapters.runtime.forward import Pass
from adapters.runtime.route import Span
from adapters.runtime.row_cache import row_cache, window, write_view
from adapters.runtime.spans import PAST_FLOOR, alike


class PaddedForward:
    """Runs parts of an encoder's or decoder's rows; the same interface as `PackedForward`."""

    def __init__(self, backbone: Backbone, bank: Bank, cache: KeyValueCache | None) -> None:
        self._backbone = backbone
        self._bank = bank
        self._cache = cache
        self._device = backbone.device

    def run(self, parts: Sequence[Part]) -> Pass:
        """Return the hidden states of each part; the rows' keys and values are then in the cache."""
        ordered: list[Part] = []
        hidden: list[Tensor] = []
        for batch in batches(parts, self._cache.most_read if self._cache is not None else None):
            ordered += batch
            hidden += self._run(batch)
        bounds = [0, *itertools.accumulate(len(hidden_TD) for hidden_TD in hidden)]
        return Pass(ordered, torch.cat(hidden), bounds)

    def close(self) -> None:
        """Take back what was changed in the model: nothing."""

    def _run(self, batch: list[Part]) -> list[Tensor]:
        ids_BQ, mask_BQ = pad([part.active.tokens(part.num_new) for part in batch], self._device)
        self._bank.route(adapters_of(batch), spans_of([p.num_new for p in batch], ids_BQ.shape[1]))
        hidden_BQD = (
            self._encode(ids_BQ, mask_BQ)
            if self._cache is None
            else self._decode(batch, ids_BQ, mask_BQ, self._cache)
        )
        return [row[: part.num_new] for row, part in zip(hidden_BQD, batch, strict=True)]

    def _encode(self, ids_BQ: Tensor, mask_BQ: Tensor) -> Tensor:
        positions_BQ = self._backbone.first_position + torch.arange(
            ids_BQ.shape[1], device=self._device
        ).expand_as(ids_BQ)
        out = self._backbone.base(
            input_ids=ids_BQ, attention_mask=mask_BQ.long(), position_ids=positions_BQ
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _decode(
        self, batch: list[Part], ids_BQ: Tensor, mask_BQ: Tensor, cache: KeyValueCache
    ) -> Tensor:
        past, mask = None, mask_BQ
        if batch[0].active.num_done:
            rows = [cells_of(_past(part), 0) for part in batch]
            past = window(rows, self._device, is_left=True)
            mask = torch.cat([past.mask_BP, mask_BQ], 1)
        view = write_view(cache, [part.extent() for part in batch], ids_BQ.shape[1])
        num_done_B1 = torch.tensor([[part.active.num_done] for part in batch], device=self._device)
        out = self._backbone.base(
            input_ids=ids_BQ,
            attention_mask=mask.long(),
            position_ids=num_done_B1 + torch.arange(ids_BQ.shape[1], device=self._device),
            past_key_values=row_cache(cache, view, past),
            use_cache=True,
        )
        hidden: Tensor = out.last_hidden_state
        return hidden


def _past(part: Part) -> Extent:
    """Return a row's extent as if all it has done came anew."""
    return Extent(part.active.blocks, 0, part.active.num_done)


def batches(parts: Sequence[Part], most_read: int | None) -> Iterator[list[Part]]:
    """Yield parts that may share a padded batch: no gap may come between a row's past and its new tokens."""
    decoding = [part for part in parts if part.active.num_done and part.num_new == 1]
    yield from by_past(decoding, most_read)
    for part in parts:
        if part.active.num_done and part.num_new > 1:
            yield [part]
    yield from by_length([part for part in parts if not part.active.num_done])


def by_length(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Yield new rows, those of similar length together, shortest first."""
    ordered = sorted(parts, key=lambda part: part.num_new)
    for first, stop in alike([part.num_new for part in ordered]):
        yield ordered[first:stop]


def by_past(parts: Sequence[Part], most_read: int | None) -> Iterator[list[Part]]:
    """Yield decoding rows, those of similar past together: all would read as much as the longest of them.

    Args:
        most_read: cells that several rows may read at a time; no bound if None.
    """
    ordered = sorted(parts, key=lambda part: part.active.num_done)
    for first, stop in alike([part.active.num_done for part in ordered], PAST_FLOOR, most_read):
        yield ordered[first:stop]


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids ``[B, Q]``, padded on the right with a token that is masked, and which of them are real."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) < lengths[:, None]


def spans_of(lengths: Sequence[int], width: int) -> list[Span]:
    """Return each row's tokens as a range of a padded batch laid flat."""
    return [(i * width, i * width + length) for i, length in enumerate(lengths)]


def adapters_of(parts: Sequence[Part]) -> list[str | None]:
    return [part.active.row.adapter for part in parts]
