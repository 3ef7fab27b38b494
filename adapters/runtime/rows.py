"""What goes into the engine and what comes out: token ids, digests, outputs; no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.errors import HeadstockError
from adapters.tasks.base import Generation, Pooling, RowOutput, TokenLogprob


@dataclass(frozen=True, slots=True)
class Row:
    """One request to the engine.

    Args:
        row_id: unique among rows in flight.
        adapter: digest of the version that answers; None for the bare backbone.
        generation: how to generate; None for a row that is scored in one pass.
        embed: pool the hidden states into an embedding instead of asking a head; not with ``generation``.
        deadline: `time.monotonic` seconds after which nobody wants the answer; the row then ends with an error.
    """

    row_id: str
    token_ids: Sequence[int]
    adapter: str | None = None
    generation: Generation | None = None
    embed: Pooling | None = None
    deadline: float | None = None

    @property
    def num_reserved_tokens(self) -> int:
        """Tokens it needs in the key-value cache: none to score, prompt and answer to generate."""
        if self.generation is None:
            return 0
        return len(self.token_ids) + self.generation.max_new_tokens


@dataclass(frozen=True, slots=True)
class RowPart:
    """Tokens that a streaming row has made since its last part; its `RowResult` still comes, with all of them."""

    row_id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class RowResult:
    """A finished row: exactly one of ``output`` and ``error`` is set."""

    row_id: str
    output: RowOutput | None = None
    error: HeadstockError | None = None
