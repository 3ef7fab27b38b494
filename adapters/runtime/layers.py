"""The backbone's linear layer with the low-rank updates of many adapters added, each to its own tokens.

Shape letters: T tokens, I input features, O output features, U adapters present in this pass, R padded rank,
C places in a pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass(frozen=True, slots=True)
class Route:
    """Which adapters of a pool are in this pass, and which token is whose.

    ``places_U`` are the pool's places in use; ``tokens`` the tokens concerned (None: all); ``owner_TU1``
    is true where a token belongs to an adapter (None: one adapter owns them all).
    """

    places_U: Tensor
    tokens: Tensor | None
    owner_TU1: Tensor | None


@dataclass(slots=True)
class Stack:
    """A and B of one module for every place of a pool; alpha / rank is folded into B."""

    a_CRI: Tensor
    b_CRO: Tensor


def lora_delta(x_TI: Tensor, a_URI: Tensor, b_URO: Tensor, owner_TU1: Tensor | None) -> Tensor:
    """Return each token's low-rank update ``B (A x)``, taken from its own adapter.

    All adapters' A are applied in one dense product and the foreign results zeroed (by selection, so
    that another adapter's infinities can't leak), then all B in a second one: two products a module
    whatever the number of adapters. Ranks below R are zero-padded. LoRA: Hu et al., arXiv 2106.09685.

    Args:
        x_TI: inputs, in the dtype of ``a_URI`` and ``b_URO``.
        owner_TU1: bool, one true per token; None when U is 1.

    Returns:
        delta_TO, to be added to the backbone layer's output.
    """
    low = linear(x_TI, a_URI.flatten(0, 1))
    if owner_TU1 is not None:
        low_TUR = low.unflatten(1, a_URI.shape[:2])
        low = torch.where(owner_TU1, low_TUR, low_TUR.new_zeros(())).flatten(1)
    return low @ b_URO.flatten(0, 1)


class LoraLinear(nn.Module):
    """Stands in for a linear layer of the backbone; exact for tokens without an adapter.

    ``stacks`` maps each pool that touches this module to its stacked weights; `Bank` fills it and sets
    ``routes`` (shared by all layers) before each pass.
    """

    def __init__(self, base: nn.Module, routes: dict[int, Route]) -> None:
        super().__init__()
        self.base = base
        self.routes = routes
        self.stacks: dict[int, Stack] = {}

    def forward(self, x_BTI: Tensor) -> Tensor:
        out: Tensor = self.base(x_BTI)
        for pool, stack in self.stacks.items():
            route = self.routes.get(pool)
            if route is not None:
                self._add(x_BTI.flatten(0, -2), out.view(-1, out.shape[-1]), stack, route)
        return out

    @staticmethod
    def _add(x_TI: Tensor, out_TO: Tensor, stack: Stack, route: Route) -> None:
        a_URI, b_URO = stack.a_CRI[route.places_U], stack.b_CRO[route.places_U]
        if route.tokens is None:
            out_TO += lora_delta(x_TI, a_URI, b_URO, route.owner_TU1)
        else:
            delta = lora_delta(x_TI[route.tokens], a_URI, b_URO, route.owner_TU1)
            out_TO.index_add_(0, route.tokens, delta)
