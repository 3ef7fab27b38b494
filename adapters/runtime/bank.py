"""The bank: low-rank weights and heads of all resident adapters, stacked so that one pass serves any mix.

Shape letters: I input features, O output features, R padded rank, C places in a pool.
"""

from __future__ import annotations

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
    """An adapter in the bank. While ``users`` rows run on it, its place is not taken."""

    task: str
    pool: Pool
    place: int
    head: Head | None
    users: int = 0


class Bank:
    """Holds adapters by digest, within a bound of bytes; the least recently used one makes room.

    Every adaptable layer of the backbone is wrapped once, here. Rows without an adapter have no route,
    so they get the backbone's own output, exact.

    Args:
        size_bytes: bound of the stacked weights of adapters that are in.
    """

    def __init__(self, backbone: Backbone, size_bytes: int) -> None:
        self._backbone = backbone
        self._size_bytes = size_bytes
        self._routes: dict[int, Route] = {}
        self._layers = _wrap_layers(backbone, self._routes)
        self._pools: dict[Signature, Pool] = {}
        self._residents: OrderedDict[str, Resident] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._residents

    @property
    def used_bytes(self) -> int:
        """Bytes of the stacked weights of all resident adapters."""
        return sum(resident.pool.place_bytes for resident in self._residents.values())

    @property
    def digests(self) -> list[str]:
        """Resident adapters, least recently used first."""
        return list(self._residents)

    def close(self) -> None:
        """Give the backbone its own layers back."""
        for path, layer in self._layers.items():
            _replace(self._backbone.model, path, layer.base)

    def acquire(self, digest: str) -> Resident:
        """Return a resident adapter and keep it in place until `release`."""
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
        size = self._place_bytes(bundle.modules)
        if size > self._size_bytes:
            raise InvalidBundle(
                f"The adapter takes '{size}' bytes; the bank has {self._size_bytes}. Lower its rank, or "
                "raise HEADSTOCK_BANK_BYTES."
            )

    def can_install(self, bundle: Bundle) -> bool:
        """Tell whether there is room, or would be once adapters that nobody uses are gone."""
        in_use = sum(r.pool.place_bytes for r in self._residents.values() if r.users)
        return in_use + self._place_bytes(bundle.modules) <= self._size_bytes

    def install(self, digest: str, bundle: Bundle) -> None:
        """Copy an adapter's weights into a free place, making room if need be; ask `can_install` first."""
        assert digest not in self._residents, f"'{digest}' is in the bank already"
        assert self.can_install(bundle)
        while self.used_bytes + self._place_bytes(bundle.modules) > self._size_bytes:
            self.evict(next(d for d, r in self._residents.items() if not r.users))
        pool = self._pool_for(bundle.modules)
        if not pool.free:
            self._grow(pool)
        resident = Resident(bundle.manifest.task, pool, pool.free.pop(), self._head_of(bundle))
        for name, module in bundle.modules.items():
            self._write(self._layers[name].stacks[pool.number], resident.place, module)
        self._residents[digest] = resident

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

    def _pool_for(self, modules: Mapping[str, LoraModule]) -> Pool:
        signature = (tuple(sorted(modules)), padded_rank(modules))
        if signature not in self._pools:
            self._pools[signature] = Pool(
                len(self._pools) + 1, *signature, place_bytes=self._place_bytes(modules)
            )
        return self._pools[signature]

    def _grow(self, pool: Pool) -> None:
        for name in pool.modules:
            layer, (inputs, outputs) = self._layers[name], self._backbone.spec.modules[name]
            dtype, device = self._backbone.dtype, self._backbone.device
            a = torch.zeros(GROWTH, pool.rank, inputs, dtype=dtype, device=device)
            b = torch.zeros(GROWTH, pool.rank, outputs, dtype=dtype, device=device)
            old = layer.stacks.get(pool.number)
            if old is not None:
                a, b = torch.cat([old.a_CRI, a]), torch.cat([old.b_CRO, b])
            layer.stacks[pool.number] = Stack(a, b)
        pool.free.extend(reversed(range(pool.capacity, pool.capacity + GROWTH)))
        pool.capacity += GROWTH

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


def to_torch(raw: RawTensor) -> Tensor:
    """Return a raw tensor as a torch tensor of its own dtype."""
    return torch.frombuffer(bytearray(raw.data), dtype=_DTYPES[raw.dtype]).reshape(raw.shape)
