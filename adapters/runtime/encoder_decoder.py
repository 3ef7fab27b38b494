"""Passes of an encoder-decoder: the encoder once over a new row, then the decoder, a token at a time.

A row's blocks hold the decoder's keys and values of the encoder's output first, a cell for each source token, and
those of the decoder's own tokens behind them; so the cache bounds both. A row that is scored ends with the encoder's
output.
Shape letters: B rows, S source tokens of the longest row, Q new tokens of the decoder, D hidden size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers.cache_utils import EncoderDecoderCache

from adapters.backbone import Backbone
from adapters.runtime.active import Part
from adapters.runtime.bank import Bank
from adapters.runtime.cache import Extent, KeyValueCache, cells_of
from adapters.runtime.forward import Pass
from adapters.runtime.padded import adapters_of, by_length, by_past, pad, spans_of
from adapters.runtime.row_cache import row_cache, window, write_view


class EncoderDecoderForward:
    """Runs parts of an encoder-decoder's rows; the same interface as `PackedForward`."""

    def __init__(self, backbone: Backbone, bank: Bank, cache: KeyValueCache) -> None:
        self._bank = bank
        self._cache = cache
        self._device = backbone.device
        self._start_ids = backbone.start_ids
        self._encoder: Any = backbone.model.get_encoder()  # type: ignore[operator]
        self._decoder: Any = backbone.model.get_decoder()  # type: ignore[operator]
        self._positions = RowPositions(self._decoder)

    def run(self, parts: Sequence[Part]) -> Pass:
        """Return the hidden states of each part: the decoder's newest for a row that generates, else the encoder's."""
        ordered: list[Part] = []
        hidden: list[Tensor] = []
        going_on = [part for part in parts if part.active.num_done]
        for batch in by_past(going_on, self._cache.most_read):
            ordered += batch
            hidden += self._go_on(batch)
        for batch in by_length([part for part in parts if not part.active.num_done]):
            ordered += batch
            hidden += self._begin(batch)
        bounds = [0, *itertools.accumulate(len(hidden_TD) for hidden_TD in hidden)]
        return Pass(ordered, torch.cat(hidden), bounds)

    def close(self) -> None:
        """Give the model its own positions back."""
        self._positions.close()

    def _begin(self, batch: list[Part]) -> list[Tensor]:
        """Run the encoder over new rows, and the decoder over the first tokens of those that generate."""
        ids_BS, mask_BS = pad([part.active.row.token_ids for part in batch], self._device)
        self._bank.route(adapters_of(batch), spans_of([p.num_new for p in batch], ids_BS.shape[1]))
        source_BSD = self._encoder(
            input_ids=ids_BS, attention_mask=mask_BS.long()
        ).last_hidden_state
        hidden: list[Tensor] = [
            row[: part.num_new] for row, part in zip(source_BSD, batch, strict=True)
        ]
        writing = [i for i, part in enumerate(batch) if part.active.row.generation]
        if writing:
            rows = [batch[i] for i in writing]
            started = self._start(rows, source_BSD[writing], mask_BS[writing])
            for i, hidden_D in zip(writing, started, strict=True):
                hidden[i] = hidden_D[None]
        return hidden

    def _start(self, batch: list[Part], source_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Return ``[B, D]``, what the decoder makes of its start tokens; the source's keys are then in the cache."""
        sources = [len(part.active.row.token_ids) for part in batch]
        num_new, width = len(self._start_ids), source_BSD.shape[1]
        digests = adapters_of(batch)
        self._bank.route(digests, spans_of([num_new] * len(batch), num_new))
        self._bank.route_source(digests, spans_of(sources, width))
        own = [Extent(p.active.blocks, s, num_new) for p, s in zip(batch, sources, strict=True)]
        cross = [Extent(p.active.blocks, 0, s) for p, s in zip(batch, sources, strict=True)]
        cache = EncoderDecoderCache(
            row_cache(self._cache, write_view(self._cache, own, num_new), None),
            row_cache(self._cache, write_view(self._cache, cross, width), None),
        )
        ids_BQ = torch.tensor([self._start_ids] * len(batch), device=self._device)
        position_B1 = torch.zeros(len(batch), 1, dtype=torch.long, device=self._device)
        return self._decode(
            ids_BQ, torch.ones_like(ids_BQ), position_B1, source_BSD, mask_BS, cache
        )

    def _go_on(self, batch: list[Part]) -> list[Tensor]:
        """Run the decoder over one more token of each row."""
        sources = [len(part.active.row.token_ids) for part in batch]
        # Its start tokens are the decoder's only, and not counted as done.
        num_done = [p.active.num_done + len(self._start_ids) for p in batch]
        self._bank.route(adapters_of(batch), spans_of([1] * len(batch), 1))
        own = [Extent(p.active.blocks, n, 1) for p, n in zip(batch, num_done, strict=True)]
        past = window(
            [
                cells_of(Extent(e.blocks, 0, e.num_cached), s)
                for e, s in zip(own, sources, strict=True)
            ],
            self._device,
            is_left=True,
        )
        source = window(
            [cells_of(Extent(e.blocks, 0, s)) for e, s in zip(own, sources, strict=True)],
            self._device,
            is_left=False,
        )
        cache = EncoderDecoderCache(
            row_cache(self._cache, write_view(self._cache, own, 1), past),
            row_cache(self._cache, None, source),
        )
        ids_B1 = torch.tensor([[p.active.generated[-1]] for p in batch], device=self._device)
        mask = torch.cat([past.mask_BP.long(), torch.ones_like(ids_B1)], 1)
        position_B1 = torch.tensor(
            [[n - s] for n, s in zip(num_done, sources, strict=True)], device=self._device
        )
        hidden_BD = self._decode(ids_B1, mask, position_B1, None, source.mask_BP, cache)
        return list(hidden_BD[:, None])

    def _decode(
        self,
        ids_BQ: Tensor,
        mask: Tensor,
        position_B1: Tensor,
        source_BSD: Tensor | None,
        source_mask_BS: Tensor,
        cache: EncoderDecoderCache,
    ) -> Tensor:
        """Return ``[B, D]``, the last token's hidden states."""
        if source_BSD is None:  # its keys are cached; the library looks at its shape only
            size = self._decoder.config.hidden_size
            empty = torch.zeros((), dtype=self._cache.keys.dtype, device=self._device)
            source_BSD = empty.expand(*source_mask_BS.shape, size)
        offsets = torch.arange(ids_BQ.shape[1], device=self._device)
        self._positions.set(position_B1 + offsets)
        out = self._decoder(
            input_ids=ids_BQ,
            attention_mask=mask,
            encoder_hidden_states=source_BSD,
            encoder_attention_mask=source_mask_BS.long(),
            past_key_values=cache,
            use_cache=True,
        )
        hidden_BD: Tensor = out.last_hidden_state[:, -1]
        return hidden_BD


class RowPositions:
    """Gives each row of a decoder its own positions, where the library counts one for the whole batch.

    A hook on the position embedding looks them up again; models with relative positions have no such layer.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self._positions_BQ: Tensor | None = None
        layer = getattr(decoder, "embed_positions", None)
        self._handle = None if layer is None else layer.register_forward_hook(self._look_up)

    def set(self, positions_BQ: Tensor) -> None:
        self._positions_BQ = positions_BQ

    def close(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _look_up(self, layer: nn.Embedding, inputs: object, output: Tensor) -> Tensor:
        assert self._positions_BQ is not None
        offset = int(getattr(layer, "offset", 0))
        return embedding(self._positions_BQ + offset, layer.weight)
