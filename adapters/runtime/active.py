"""A row that the engine has let in, and its part in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from adapters.runtime.cache import Extent
from adapters.runtime.rows import Row
from adapters.tasks.base import TokenLogprob


@dataclass(slots=True, eq=False)
class Active:
    """What a row holds and how far it is.

    ``num_done`` of its tokens (prompt, then answer) have been through the backbone. ``blocks`` are its cache blocks,
    none if it keeps nothing; ``keys`` the chain keys of its prompt's full blocks (see `prefix.py`). ``hidden`` collects
    the hidden states of a scoring row that goes through in several parts. ``is_whole``: its prompt must go through at
    once, for each token reads all others, as in the encoder of an encoder-decoder.
    """

    row: Row
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    num_done: int = 0
    generated: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    is_whole: bool = False
    is_done: bool = False

    @property
    def num_pending(self) -> int:
        """Tokens that must go through the backbone before the row can go on."""
        return len(self.row.token_ids) + len(self.generated) - self.num_done

    @property
    def is_divisible(self) -> bool:
        """Tell whether its tokens may be spread over several passes: what it computed before stays in the cache."""
        return bool(self.blocks) and not self.is_whole

    @property
    def is_decoding(self) -> bool:
        return bool(self.generated)

    def tokens(self, num_new: int) -> Sequence[int]:
        """Return the next tokens to compute."""
        num_prompt = len(self.row.token_ids)
        if self.num_done >= num_prompt:
            return self.generated[self.num_done - num_prompt :][:num_new]
        return self.row.token_ids[self.num_done : self.num_done + num_new]


@dataclass(frozen=True, slots=True)
class Part:
    """So many tokens of a row, in one pass."""

    active: Active
    num_new: int

    def extent(self) -> Extent:
        return Extent(self.active.blocks, self.active.num_done, self.num_new)
