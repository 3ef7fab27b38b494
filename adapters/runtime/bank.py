"""The bank: low-rank weights and heads of all resident adapters, stacked so that one pass serves any mix.

Shape letters: I input features, O output features, R padded rank, C places in a pool.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from adapters.backbone import Backbone, adaptable_modules
from adapters.bundle import Bundle
from adapters.errors import InvalidBundle
from adapters.lora import LoraModule
from adapters.runtime.layers import LoraLinear, Route, Stack
from adapters.tasks.heads import Head, build_head
from adapters.tensors import RawTensor

GROWTH = 4  # places that a full pool grows by
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Signature = tuple[tuple[str, ...], int]


@dataclass(slots=True)
class Pool:
    """Adapters of one shape: the same modules and padded rank, so one index finds all their weights."""

    number: int
    modules: tuple[str, ...]
    rank: int
    place_bytes: int
    capacity: int = 0
    free: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Resident:
    """An adapter in the bank. While ``users`` rows run on it, it stays in."""

    task: str
    pool: Pool
    place: int
    head: Head | None
    users: int = 0

    @property
    def head_bytes(self) -> int:
        return 0 if self.head is None else sum(p.nbytes for p in self.head.parameters())


class Bank:
    """Holds adapters by digest, within a bound of bytes; the least recently used one makes room.

    Every adaptable layer of the backbone is wrapped once, here. Rows without an adapter have no route,
    so they get the backbone's own output, exact.

    Args:
        size_bytes: bound of all stacked weights and heads.
    """

    def __init__(self, backbone: Backbone, size_bytes: int) -> None:
        self._backbone = backbone
        self._size_bytes = size_bytes
        self._routes: dict[int, Route] = {}
        self._layers = _wrap_layers(backbone, self._routes)
        self._pools: dict[Signature, Pool] = {}
        self._num_pools_made = 0
        self._residents: OrderedDict[str, Resident] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._residents

    @property
    def used_bytes(self) -> int:
        """Bytes of all stacked weights, free places included, and of the heads."""
        stacks = sum(pool.capacity * pool.place_bytes for pool in self._pools.values())
        return stacks + sum(resident.head_bytes for resident in self._residents.values())

    @property
    def digests(self) -> list[str]:
        """Resident adapters, least recently used first."""
        return list(self._residents)

    def close(self) -> None:
        """Give the backbone its own layers back."""
        for path, layer in self._layers.items():
            _replace(self._backbone.model, path, layer.base)

    def acquire(self, digest: str) -> Resident:
        """Return a resident adapter and keep it in until `release`."""
        resident = self._residents[digest]
        self._residents.move_to_end(digest)
        resident.users += 1
        return resident

    def release(self, digest: str) -> None:
        resident = self._residents[digest]
        assert resident.users > 0, f"'{digest}' was released more often than acquired"
        resident.users -= 1

    def task_of(self, digest: str) -> str:
        return self._residents[digest].task

    def apply_head(self, digest: str, spans_TD: Sequence[Tensor]) -> list[Tensor] | None:
        """Return each row's fp32 logits from its hidden states: ``[O]`` or ``[T, O]``; None without a head."""
        head = self._residents[digest].head
        if head is None:
            return None
        lengths = torch.tensor([0] + [len(span) for span in spans_TD], device=spans_TD[0].device)
        bounds = lengths.cumsum(0)
        logits: Tensor = head(torch.cat(list(spans_TD)), bounds)
        if head.spec.kind == "sequence":
            return list(logits)
        return list(logits.split(lengths[1:].tolist()))

    def check_size(self, bundle: Bundle) -> None:
        """Raise `InvalidBundle` if an adapter would not fit even alone."""
        size = self._bytes_of(bundle)
        if size > self._size_bytes:
            raise InvalidBundle(
                f"The adapter takes '{size}' bytes; the bank has {self._size_bytes}. Lower its rank, or "
                "raise HEADSTOCK_BANK_BYTES."
            )

    def can_install(self, bundle: Bundle) -> bool:
        """Tell whether there is room, or would be once adapters that nobody uses are gone."""
        return self._lacking(bundle) <= 0

    def must_end(self, bundle: Bundle) -> list[str]:
        """Return the adapters in use that would have to fall out of use to make room, least recently used first."""
        lacking, ending = self._lacking(bundle), []
        for digest, resident in self._residents.items():
            if lacking > 0 and resident.users:
                ending.append(digest)
                lacking -= resident.pool.place_bytes + resident.head_bytes
        return ending

    def _lacking(self, bundle: Bundle) -> int:
        """Return how many bytes are too few for an adapter beside those in use."""
        in_use = (r.pool.place_bytes + r.head_bytes for r in self._residents.values() if r.users)
        return self._bytes_of(bundle) + sum(in_use) - self._size_bytes

    def _bytes_of(self, bundle: Bundle) -> int:
        return self._place_bytes(bundle.modules) + _head_bytes(bundle)

    def install(self, digest: str, bundle: Bundle) -> None:
        """Copy an adapter's weights into a free place, making room if need be; ask `can_install` first."""
        assert digest not in self._residents, f"'{digest}' is in the bank already"
        assert self.can_install(bundle)
        head = self._head_of(bundle)
        pool = self._pool_with_room(bundle)
        place = pool.free[-1]
        for name, module in bundle.modules.items():
            self._write(self._layers[name].stacks[pool.number], place, module)
        pool.free.pop()
        self._residents[digest] = Resident(bundle.manifest.task, pool, place, head)

    def evict(self, digest: str) -> None:
        """Forget an adapter; its place goes to the next one of its shape."""
        resident = self._residents.pop(digest)
        assert not resident.users, f"'{digest}' is in use"
        resident.pool.free.append(resident.place)

    def route(self, digests: Sequence[str | None], bounds: Tensor) -> None:
        """Tell the layers which adapter each row of the next pass uses.

        Args:
            digests: one per row; None for the bare backbone.
            bounds: the rows' token borders, int64, one more than rows.
        """
        self._routes.clear()
        places: dict[int, list[int]] = {}
        for row, digest in enumerate(digests):
            if digest is not None:
                resident = self._residents[digest]
                of_pool = places.setdefault(resident.pool.number, [-1] * len(digests))
                of_pool[row] = resident.place
        for number, row_places in places.items():
            self._routes[number] = _route(torch.tensor(row_places, device=bounds.device), bounds)

    def _place_bytes(self, modules: Mapping[str, LoraModule]) -> int:
        rank = padded_rank(modules)
        sizes = sum(sum(self._backbone.spec.modules[name]) for name in modules)
        return rank * sizes * self._backbone.dtype.itemsize

    def _pool_with_room(self, bundle: Bundle) -> Pool:
        """Return the pool for an adapter's shape, with a free place and the bound kept."""
        signature = (tuple(sorted(bundle.modules)), padded_rank(bundle.modules))
        if signature not in self._pools:
            self._num_pools_made += 1
            self._pools[signature] = Pool(
                self._num_pools_made, *signature, place_bytes=self._place_bytes(bundle.modules)
            )
        pool = self._pools[signature]
        while self._room_after(pool, bundle) < 0:
            # Its own pool keeps one free place, for this adapter; all others give theirs back.
            spare = {id(p): len(p.free) - (p is pool) for p in self._pools.values()}
            shrink = next((p for p in self._pools.values() if spare[id(p)] > 0), None)
            if shrink is not None:
                self._resize(shrink, shrink.capacity - spare[id(shrink)])
            else:
                self.evict(next(d for d, r in self._residents.items() if not r.users))
        if not pool.free:
            # The place it needs is in the count already; what else fits spares later copies.
            more = self._room_after(pool, bundle) // pool.place_bytes
            self._resize(pool, pool.capacity + min(GROWTH, 1 + more))
        return pool

    def _room_after(self, pool: Pool, bundle: Bundle) -> int:
        """Return how many bytes of the bound would be left with one more adapter in a pool."""
        need = _head_bytes(bundle) + (0 if pool.free else pool.place_bytes)
        return self._size_bytes - self.used_bytes - need

    def _resize(self, pool: Pool, capacity: int) -> None:
        """Give a pool so many places; when it shrinks, residents move together and free places go."""
        residents = [r for r in self._residents.values() if r.pool is pool]
        kept = (
            list(range(pool.capacity)) if capacity > pool.capacity else [r.place for r in residents]
        )
        for name in pool.modules:
            self._layers[name].stacks[pool.number] = self._moved(name, pool, kept, capacity)
        if capacity < pool.capacity:
            for place, resident in enumerate(residents):
                resident.place = place
        pool.free = list(range(capacity - 1, len(kept) - 1, -1)) + (
            pool.free if capacity > pool.capacity else []
        )
        pool.capacity = capacity
        if not capacity:
            self._forget(pool)

    def _moved(self, name: str, pool: Pool, kept: list[int], capacity: int) -> Stack:
        """Return a module's stack of a new size, with the kept places' weights first."""
        inputs, outputs = self._backbone.spec.modules[name]
        dtype, device = self._backbone.dtype, self._backbone.device
        a = torch.zeros(capacity, pool.rank, inputs, dtype=dtype, device=device)
        b = torch.zeros(capacity, pool.rank, outputs, dtype=dtype, device=device)
        old = self._layers[name].stacks.get(pool.number)
        if old is not None and kept:
            a[: len(kept)], b[: len(kept)] = old.a_CRI[kept], old.b_CRO[kept]
        return Stack(a, b)

    def _forget(self, pool: Pool) -> None:
        for name in pool.modules:
            del self._layers[name].stacks[pool.number]
        self._pools = {k: p for k, p in self._pools.items() if p is not pool}

    def _write(self, stack: Stack, place: int, module: LoraModule) -> None:
        a_RI, b_OR = to_torch(module.a), to_torch(module.b).float() * module.scale
        # Zeroed first: the place may hold a former adapter of higher rank.
        stack.a_CRI[place].zero_()[: module.rank].copy_(a_RI)
        stack.b_CRO[place].zero_()[: module.rank].copy_(b_OR.T)

    def _head_of(self, bundle: Bundle) -> Head | None:
        if bundle.manifest.head is None:
            return None
        head = build_head(bundle.manifest.head, self._backbone.spec.hidden_size)
        head.load_state_dict({name: to_torch(raw) for name, raw in bundle.head.items()})
        return head.requires_grad_(False).to(self._backbone.device)


def _wrap_layers(backbone: Backbone, routes: dict[int, Route]) -> dict[str, LoraLinear]:
    layers = {}
    for path, module in adaptable_modules(backbone.model).items():
        layers[path] = LoraLinear(module, routes)
        _replace(backbone.model, path, layers[path])
    return layers


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _route(place_B: Tensor, bounds: Tensor) -> Route:
    place_T = torch.repeat_interleave(place_B, bounds.diff())
    places_U = place_B[place_B >= 0].unique()
    tokens = None
    if bool((place_T < 0).any()):
        tokens = (place_T >= 0).nonzero().flatten()
        place_T = place_T[tokens]
    owner = place_T[:, None, None] == places_U[None, :, None] if len(places_U) > 1 else None
    return Route(places_U, tokens, owner)


def padded_rank(modules: Mapping[str, LoraModule]) -> int:
    """Return the rank that a pool keeps an adapter at: its largest, up to the next power of two, at least 4."""
    largest = max(module.rank for module in modules.values())
    return max(4, 1 << (largest - 1).bit_length())


def _head_bytes(bundle: Bundle) -> int:
    return sum(4 * math.prod(raw.shape) for raw in bundle.head.values())  # heads are kept in fp32


def to_torch(raw: RawTensor) -> Tensor:
    """Return a raw tensor as a torch tensor of its own dtype."""
    return torch.frombuffer(bytearray(raw.data), dtype=_DTYPES[raw.dtype]).reshape(raw.shape)
