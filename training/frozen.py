"""The layers below the first adapted one, computed once a row: they are frozen and give the same in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.tasks.base import Labelled

_Compute = Callable[[], tuple[Tensor, Tensor]]


class FrozenLayers:
    """Keeps what comes out of a backbone's frozen lower layers for each row, up to a number of bytes.

    A batch whose rows are all kept begins at the first adapted layer. What lies below that runs without dropout, or
    there would be nothing to keep.

    Args:
        layers: the frozen ones, lowest first.
        below: what else is computed before the first adapted layer, such as embeddings.
    """

    def __init__(
        self, layers: Sequence[nn.Module], max_bytes: int, below: Sequence[nn.Module] = ()
    ) -> None:
        self._layers = layers
        self._below = below
        self._room = max_bytes
        self._kept: dict[tuple[int, ...], Tensor] = {}

    def run(self, rows: Sequence[Labelled], compute: _Compute) -> tuple[Tensor, Tensor]:
        """Return what ``compute`` does, from the kept outputs of the frozen layers if all rows have them."""
        kept = [self._kept.get(tuple(row.token_ids)) for row in rows]
        known = [each for each in kept if each is not None]
        for module in (*self._below, *self._layers):
            module.eval()
        if len(known) == len(rows):
            return self._above(torch.cat(known), compute)
        found: list[Tensor] = []
        handle = self._layers[-1].register_forward_hook(
            lambda module, inputs, output: found.append(_hidden(output).detach())
        )
        try:
            result = compute()
        finally:
            handle.remove()
        self._keep(rows, found[0])
        return result

    def _keep(self, rows: Sequence[Labelled], hidden_1TD: Tensor) -> None:
        lengths = [len(row.token_ids) for row in rows]
        for row, hidden_ND in zip(rows, hidden_1TD[0].split(lengths), strict=True):
            key, size = tuple(row.token_ids), hidden_ND.numel() * hidden_ND.element_size()
            if key not in self._kept and size <= self._room:
                self._kept[key] = hidden_ND.clone()
                self._room -= size

    def _above(self, hidden_TD: Tensor, compute: _Compute) -> tuple[Tensor, Tensor]:
        *lower, last = self._layers
        replaced: list[Any] = [*lower, last]
        for layer in replaced[:-1]:
            layer.forward = _pass_on
        replaced[-1].forward = lambda *inputs, **more: hidden_TD[None]
        try:
            return compute()
        finally:
            for layer in replaced:
                del layer.forward


def frozen_layers(model: nn.Module, adapted: Iterable[str]) -> list[nn.Module]:
    """Return a model's layers below the first one with an adapted module, lowest first; none if it is the lowest.

    Args:
        adapted: paths of the adapted modules; the first number in a path is that of its layer.
    """
    paths = [path.split(".") for path in adapted]
    numbers = {next((i for i, part in enumerate(p) if part.isdigit()), None) for p in paths}
    if len(numbers) != 1 or None in numbers:
        return []
    place = numbers.pop()
    assert place is not None
    parents = {".".join(p[:place]) for p in paths}
    if len(parents) != 1:
        return []
    layers = model.get_submodule(parents.pop())
    first = min(int(p[place]) for p in paths)
    return list(layers.children())[:first]


def dropouts_below(model: nn.Module, frozen: Sequence[nn.Module]) -> list[nn.Module]:
    """Return a model's dropouts outside of its layers: they follow its embeddings."""
    stack = next(module for module in model.modules() if frozen[0] in module.children())
    inside = set(stack.modules())
    return [m for m in model.modules() if isinstance(m, nn.Dropout) and m not in inside]


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _pass_on(hidden: Tensor, *inputs: Any, **more: Any) -> Tensor:
    return hidden
