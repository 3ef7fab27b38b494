"""One pass of the backbone over parts of rows: packed, without padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.runtime.active import Part
from adapters.runtime.bank import Bank
from adapters.runtime.cache import KeyValueCache, view_cache
from adapters.runtime.graphs import DecodeGraphs
from adapters.runtime.kernels import Kernels
from adapters.runtime.pack import Pack, pack_rows


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass gives: hidden states ``[T, D]`` of the parts' tokens, laid end to end in the order of ``parts``.

    ``bounds`` are the parts' token borders, one more than parts.
    """

    parts: list[Part]
    hidden_TD: Tensor
    bounds: list[int]

    def hidden_of(self, i: int) -> Tensor:
        return self.hidden_TD[self.bounds[i] : self.bounds[i + 1]]


class PackedForward:
    """Runs parts end to end through models whose attention is ours (`attention.py`); ``graphs`` take those they can."""

    def __init__(
        self,
        backbone: Backbone,
        bank: Bank,
        cache: KeyValueCache | None,
        kernels: Kernels | None = None,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._backbone = backbone
        self._bank = bank
        self._cache = cache
        self._kernels = kernels
        self._graphs = graphs

    def run(self, parts: Sequence[Part]) -> Pass:
        """Return the hidden states of each part; the rows' keys and values are then in the cache."""
        decoding = [p for p in parts if p.active.num_done and p.num_new == 1]
        if self._kernels is None:  # torch pads what they read
            decoding.sort(key=lambda part: part.active.num_done)
        continuing = [p for p in parts if p.active.num_done and p.num_new > 1]
        fresh = sorted((p for p in parts if not p.active.num_done), key=lambda p: p.num_new)
        ordered = [*decoding, *continuing, *fresh]
        bounds = list(itertools.accumulate((part.num_new for part in ordered), initial=0))
        spans = list(itertools.pairwise(bounds))
        route = self._bank.route([part.active.row.adapter for part in ordered], spans)
        hidden_TD = self._graphs.run(ordered, route) if self._graphs is not None else None
        if hidden_TD is None:
            token_ids = [token for part in ordered for token in part.active.tokens(part.num_new)]
            hidden_TD = self._backbone.hidden_states(
                torch.tensor(token_ids, device=self._backbone.device),
                self._pack(decoding, continuing, fresh),
            )
        return Pass(ordered, hidden_TD, bounds)

    def close(self) -> None:
        """Take back what was changed in the model: nothing."""

    def _pack(self, decoding: list[Part], continuing: list[Part], fresh: list[Part]) -> Pack:
        extents = [part.extent() for part in (*decoding, *continuing, *fresh)]
        cache = None
        if self._cache is not None:
            cache = view_cache(self._cache, extents, len(decoding), len(continuing))
        return pack_rows(
            [part.num_new for part in fresh],
            [part.active.num_done for part in decoding],
            cache,
            self._backbone.device,
            [(part.active.num_done, part.num_new) for part in continuing],
            self._kernels,
        )
