"""Which adapter each token of a pass uses, and the low-rank updates of a mixed batch, by kernel or by torch.

Shape letters: T tokens, I input features, O output features, R rank, U adapters in this pass, N tiles, K columns
(the ranks of all adapters of a module side by side).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from adapters.runtime.weights import Pair

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Site:
    """One group of modules that read the same input: its number, its modules' paths and output widths."""

    number: int
    names: tuple[str, ...]
    widths: Tensor  # int64, on the CPU


class LoraKernels(Protocol):
    """A compiled kernel for updates: `Kernels` on a CPU, `TritonKernels` on a GPU."""

    tile: int  # tokens of one adapter that a tile takes at most
    joins_rows: (
        bool  # neighbouring rows of one adapter may share tiles: the same numbers, read once
    )

    def add_lora(
        self,
        x_TI: Tensor,
        out_TO: Tensor,
        tiles_N3: Tensor,
        table: Tensor,
        group: int,
        widths: Tensor,
    ) -> None:
        """Add each tile's updates to ``out_TO``."""


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """Updates by a compiled kernel: each tile of tokens reads A and B of its own adapter where they lie.

    Args:
        tiles_N3: int32, on the device; first token, number of tokens (none: nothing is done), adapter of the table.
        table: int64 ``[U, sites, modules, 3]``, addresses and ranks as `Kernels.add_lora` wants them; on the device.
        num_tokens: tokens up to the last that has an adapter.
    """

    kernels: LoraKernels
    tiles_N3: Tensor
    table: Tensor
    num_tokens: int = 0

    @classmethod
    def over(
        cls, kernels: LoraKernels, spans: Sequence[Span], owners: Sequence[int], table: Tensor
    ) -> KernelRoute:
        """Return the route of some spans of tokens, each with its adapter of the table."""
        tiles = [
            (first, min(kernels.tile, stop - first), owner)
            for (start, stop), owner in zip(spans, owners, strict=True)
            for first in range(start, stop, kernels.tile)
        ]
        tiles_N3 = torch.tensor(tiles, dtype=torch.int32, device=table.device)
        return cls(kernels, tiles_N3, table, spans[-1][1])

    def add(self, x_TI: Tensor, out_TO: Tensor, site: Site) -> None:
        # The kernel would write beyond the output: a layer was fed something else than the pass's tokens.
        assert len(x_TI) >= self.num_tokens, f"'{site.names[0]}' got {len(x_TI)} tokens"
        self.kernels.add_lora(x_TI, out_TO, self.tiles_N3, self.table, site.number, site.widths)


@dataclass(slots=True)
class TorchRoute:
    """Updates by dense products of torch's own, on any device: correct everywhere, and the kernels' reference.

    Args:
        owner_T: int64, the adapter of each token, counted as in ``modules_U``; -1 for none.
    """

    owner_T: Tensor
    modules_U: Sequence[dict[str, Pair]]
    _selections: dict[tuple[tuple[int, int], ...], tuple[Tensor, Tensor]] = field(
        default_factory=dict
    )

    def add(self, x_TI: Tensor, out_TO: Tensor, site: Site) -> None:
        start = 0
        for name, width in zip(site.names, site.widths.tolist(), strict=True):
            pairs = {u: m[name] for u, m in enumerate(self.modules_U) if name in m}
            if pairs:
                self._add(x_TI, out_TO[:, start : start + width], pairs)
            start += width

    def _add(self, x_TI: Tensor, out_TO: Tensor, pairs: dict[int, Pair]) -> None:
        tokens, own_TK = self._select(tuple((u, a.shape[0]) for u, (a, _) in pairs.items()))
        a_KI, b_KO = (torch.cat([pair[i] for pair in pairs.values()]) for i in (0, 1))
        out_TO.index_add_(0, tokens, lora_delta(x_TI[tokens], a_KI, b_KO, own_TK))

    def _select(self, ranks: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
        """Return the tokens of these adapters, and which columns are each token's own."""
        if ranks not in self._selections:
            owners = [owner for owner, rank in ranks for _ in range(rank)]
            column_K = torch.tensor(owners, device=self.owner_T.device)
            tokens = torch.isin(self.owner_T, column_K).nonzero().flatten()
            self._selections[ranks] = tokens, self.owner_T[tokens][:, None] == column_K
        return self._selections[ranks]


def lora_delta(x_TI: Tensor, a_KI: Tensor, b_KO: Tensor, own_TK: Tensor) -> Tensor:
    """Return each token's low-rank update ``B (A x)``, taken from its own adapter.

    All adapters' A are applied in one dense product and the foreign results zeroed (by selection, so
    that another adapter's infinities can't leak), then all B in a second one: two products a module
    whatever the number of adapters and their ranks. LoRA: Hu et al., arXiv 2106.09685.

    Args:
        x_TI: inputs, in the dtype of ``a_KI`` and ``b_KO``, whose rows are the adapters' side by side.
        own_TK: bool, which columns belong to the token's own adapter.

    Returns:
        delta_TO, to be added to the backbone layer's output.
    """
    low_TK = linear(x_TI, a_KI)
    return torch.where(own_TK, low_TK, low_TK.new_zeros(())) @ b_KO


Route = KernelRoute | TorchRoute


@dataclass(slots=True)
class Routes:
    """The routes of the current pass, shared by all layers; None where no token has an adapter.

    ``main`` is for the tokens that the pass computes; ``source`` for an encoder's tokens that a decoder reads.
    """

    main: Route | None = None
    source: Route | None = None
