"""The bank: the adapters that the device holds now, by digest, and which of them each token of a pass uses.

Three tiers: slots on the device (here), host memory (`HostTier`), disk (the blob store, behind the engine's ``fetch``).
On a CPU the first two share their tensors, so moving between them costs nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters.backbone import Backbone, adaptable_modules
from adapters.errors import InvalidBundle
from adapters.runtime.linears import unwrap_linears, wrap_linears
from adapters.runtime.route import KernelRoute, LoraKernels, Route, Routes, Span, TorchRoute
from adapters.runtime.weights import AdapterWeights
from adapters.tasks.heads import Head


@dataclass(slots=True)
class Resident:
    """An adapter in the bank. While ``users`` rows run on it, or it is pinned, it stays in.

    ``table`` holds int64 ``[sites, modules, 3]``: address of A, address of B, rank.
    """

    weights: AdapterWeights
    table: Tensor
    users: int = 0
    is_pinned: bool = False

    @property
    def is_held(self) -> bool:
        return self.users > 0 or self.is_pinned


class Bank:
    """Holds adapters by digest, within bounds of bytes and of slots; the least recently used one makes room.

    Every adaptable layer of the backbone is wrapped once, here. Tokens without an adapter are left alone,
    so they get the backbone's own output, exact.

    Args:
        size_bytes: bound of all weights and heads.
        num_slots: bound of adapters; None for no bound but that of bytes.
        kernels: compiled kernels; None computes with torch alone.
    """

    def __init__(
        self,
        backbone: Backbone,
        size_bytes: int,
        num_slots: int | None = None,
        kernels: LoraKernels | None = None,
    ) -> None:
        self._backbone = backbone
        self._size_bytes = size_bytes
        self._num_slots = num_slots
        self._kernels = kernels
        self._groups = backbone.groups or wrap_linears(
            backbone.model, adaptable_modules(backbone.model), fuse=False
        )
        self._routes = Routes()
        for group in self._groups:
            group.routes = self._routes
        self._residents: OrderedDict[str, Resident] = OrderedDict()
        self._last_route: tuple[Any, Route | None] = (None, None)

    def __contains__(self, digest: str) -> bool:
        return digest in self._residents

    @property
    def names(self) -> list[str]:
        """All adaptable modules' paths, in the order that a pass computes them."""
        return [name for group in self._groups for name in group.site.names]

    @property
    def used_bytes(self) -> int:
        return sum(resident.weights.size_bytes for resident in self._residents.values())

    @property
    def digests(self) -> list[str]:
        """Resident adapters, least recently used first."""
        return list(self._residents)

    def close(self) -> None:
        """Give the backbone its own layers back."""
        unwrap_linears(self._backbone.model, self._groups)

    def acquire(self, digest: str) -> None:
        """Keep a resident adapter in until `release`."""
        self._residents.move_to_end(digest)
        self._residents[digest].users += 1

    def release(self, digest: str) -> None:
        resident = self._residents[digest]
        assert resident.users > 0, f"'{digest}' was released more often than acquired"
        resident.users -= 1

    def pin(self, digest: str, *, pinned: bool) -> None:
        """Keep a resident adapter in although nobody uses it, or no longer."""
        self._residents[digest].is_pinned = pinned

    def task_of(self, digest: str) -> str:
        return self._residents[digest].weights.task

    def apply_head(self, digest: str, hidden_TD: Tensor) -> Tensor | None:
        """Return a row's fp32 logits from its hidden states: ``[O]`` or ``[T, O]``; None without a head."""
        head = self._residents[digest].weights.head
        return None if head is None else _logits(head, hidden_TD)

    def check_size(self, size_bytes: int) -> None:
        """Raise `InvalidBundle` if an adapter would not fit even alone."""
        if size_bytes > self._size_bytes:
            raise InvalidBundle(
                f"The adapter takes '{size_bytes}' bytes; the bank has {self._size_bytes}. Lower its rank, or "
                "raise HEADSTOCK_BANK_BYTES."
            )

    def can_install(self, size_bytes: int) -> bool:
        """Tell whether there is room, or would be once adapters that nobody holds are gone."""
        held = [r.weights.size_bytes for r in self._residents.values() if r.is_held]
        return self._fits(sum(held) + size_bytes, len(held) + 1)

    def must_end(self, size_bytes: int) -> list[str]:
        """Return the adapters in use that would have to fall out of use to make room, least recently used first."""
        held = OrderedDict((d, r) for d, r in self._residents.items() if r.is_held)
        total = sum(r.weights.size_bytes for r in held.values())
        ending: list[str] = []
        for digest, resident in held.items():
            if self._fits(total + size_bytes, len(held) - len(ending) + 1):
                break
            if resident.users and not resident.is_pinned:
                ending.append(digest)
                total -= resident.weights.size_bytes
        return ending if self._fits(total + size_bytes, len(held) - len(ending) + 1) else []

    def fits_beside_pins(self, size_bytes: int) -> bool:
        """Tell whether there could ever be room while what is pinned stays."""
        pinned = [r.weights.size_bytes for r in self._residents.values() if r.is_pinned]
        return self._fits(sum(pinned) + size_bytes, len(pinned) + 1)

    def install(self, digest: str, weights: AdapterWeights) -> None:
        """Take an adapter in, making room if need be; ask `can_install` first."""
        assert digest not in self._residents, f"'{digest}' is in the bank already"
        assert self.can_install(weights.size_bytes)
        while not self._fits(self.used_bytes + weights.size_bytes, len(self._residents) + 1):
            self.evict(next(d for d, r in self._residents.items() if not r.is_held))
        weights = weights.to(self._backbone.device)
        self._residents[digest] = Resident(weights, self._table_of(weights))

    def evict(self, digest: str) -> None:
        """Forget an adapter."""
        resident = self._residents.pop(digest)
        assert not resident.users, f"'{digest}' is in use"
        self._last_route = (None, None)  # it may hold addresses of what is now gone
        self._routes.main = self._routes.source = None

    def route(self, digests: Sequence[str | None], spans: Sequence[Span]) -> Route | None:
        """Tell the layers which adapter each token of the next pass uses, and return what they were told.

        Args:
            digests: one per row; None for the bare backbone.
            spans: the rows' first token and the one after their last, in ascending order.
        """
        key = (tuple(digests), tuple(spans))
        if self._last_route[0] != key:
            self._last_route = key, self.route_for(digests, spans)
        self.use(self._last_route[1])
        return self._last_route[1]

    def use(self, route: Route | None) -> None:
        """Have the layers use a route in the next pass; None for the bare backbone."""
        self._routes.main, self._routes.source = route, None

    def route_source(self, digests: Sequence[str | None], spans: Sequence[Span]) -> None:
        """Tell the layers of an encoder-decoder which adapter each of the encoder's tokens uses in the next pass."""
        self._routes.source = self.route_for(digests, spans)

    def route_for(self, digests: Sequence[str | None], spans: Sequence[Span]) -> Route | None:
        present = list(dict.fromkeys(d for d in digests if d is not None))
        if not present:
            return None
        joins = self._kernels is None or self._kernels.joins_rows
        number = {digest: i for i, digest in enumerate(present)}
        merged = _merge(digests, spans) if joins else list(zip(digests, spans, strict=True))
        residents = [self._residents[digest] for digest in present]
        if self._kernels is not None:
            table = torch.stack([resident.table for resident in residents])
            owned = [(span, number[d]) for d, span in merged if d is not None]
            return KernelRoute.over(
                self._kernels, [s for s, _ in owned], [o for _, o in owned], table
            )
        owner_T = torch.full((spans[-1][1],), -1)
        for digest, (start, stop) in merged:
            if digest is not None:
                owner_T[start:stop] = number[digest]
        owner_T = owner_T.to(self._backbone.device)
        return TorchRoute(owner_T, [resident.weights.modules for resident in residents])

    def _fits(self, size_bytes: int, num_adapters: int) -> bool:
        within_slots = self._num_slots is None or num_adapters <= self._num_slots
        return size_bytes <= self._size_bytes and within_slots

    def _table_of(self, weights: AdapterWeights) -> Tensor:
        most = max(len(group.site.names) for group in self._groups)
        rows = []
        for group in self._groups:
            pairs = [weights.modules.get(name) for name in group.site.names]
            cells = [
                (p[0].data_ptr(), p[1].data_ptr(), p[0].shape[0]) if p else (0, 0, 0) for p in pairs
            ]
            rows.append(cells + [(0, 0, 0)] * (most - len(cells)))
        return torch.tensor(rows, dtype=torch.int64, device=self._backbone.device)


def _logits(head: Head, hidden_TD: Tensor) -> Tensor:
    """Return one row's logits: by itself, for a product over several rows may round a row in another way."""
    logits: Tensor = head(hidden_TD, torch.tensor([0, len(hidden_TD)], device=hidden_TD.device))
    return logits[0] if head.spec.kind == "sequence" else logits


def _merge(digests: Sequence[str | None], spans: Sequence[Span]) -> list[tuple[str | None, Span]]:
    """Join neighbouring rows of one adapter, so that they share its reads."""
    merged: list[tuple[str | None, Span]] = []
    for digest, (start, stop) in zip(digests, spans, strict=True):
        if merged and merged[-1][0] == digest and merged[-1][1][1] == start:
            merged[-1] = (digest, (merged[-1][1][0], stop))
        else:
            merged.append((digest, (start, stop)))
    return merged
