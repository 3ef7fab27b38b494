"""What the engine counts, at the very call of the backbone."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class MixedBatch:
    """What one call of the backbone held."""

    rows: int
    adapters: int
    tasks: tuple[str, ...]


@dataclass(slots=True)
class EngineStats:
    """Counted where the backbone is called. ``largest`` is the call with most tasks, then most rows.

    ``waiting_rows`` are those submitted and not yet finished, ``resident_adapters`` the digests on the device, least
    recently used first, ``prefix_hit_tokens`` the prompt tokens that were not computed again.
    """

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    waiting_rows: int = 0
    resident_adapters: tuple[str, ...] = ()
    bank_bytes: int = 0
    prefix_hit_tokens: int = 0
    largest: MixedBatch = field(default_factory=lambda: MixedBatch(0, 0, ()))

    def count(self, batch: MixedBatch, num_tokens: int) -> None:
        self.steps += 1
        self.rows += batch.rows
        self.tokens += num_tokens
        self.largest = max(self.largest, batch, key=lambda b: (len(b.tasks), b.rows))
