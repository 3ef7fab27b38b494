"""Bounds of one engine."""

from __future__ import annotations

from dataclasses import dataclass

_ON_GPU = {"step_tokens": 8192, "chunk_tokens": 2048, "fair_tokens": 512}


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens of one step: at most ``step`` in all.

    ``chunk``: of prompts, while other rows generate, so that a long prompt does not stall them. ``fair``: in all, while
    an adapter has been served two chunks less than another, which prompts of usual length don't bring about but a
    flood does; steps are then short, and it catches up.
    """

    step: int
    chunk: int
    fair: int


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one engine, in tokens, rows and bytes.

    ``step_tokens`` bounds what one pass takes (and so its activations), ``chunk_tokens`` what it takes of prompts
    while other rows generate, ``fair_tokens`` what it takes while an adapter is far behind another. ``max_running``
    rows hold a place at once. ``cache_bytes`` are for keys and values, of which ``prefix_bytes`` at most are kept for
    rows to come that begin alike. ``bank_bytes`` and ``bank_slots`` bound the adapters on the device, ``host_bytes``
    those in memory.
    """

    step_tokens: int = 2048
    chunk_tokens: int = 256
    fair_tokens: int = 48
    max_running: int = 64
    cache_bytes: int = 512 * 2**20
    prefix_bytes: int = 128 * 2**20
    bank_bytes: int = 1024 * 2**20
    bank_slots: int | None = None
    host_bytes: int = 1024 * 2**20

    @classmethod
    def for_device(cls, device_type: str, **given: int | None) -> EngineLimits:
        """Return the bounds that suit a device's type (``cpu``, ``cuda``), those ``given`` (and not None) kept.

        A GPU is done with some thousand tokens before a CPU has launched the pass.
        """
        suited = _ON_GPU if device_type == "cuda" else {}
        return cls(**{**suited, **{name: x for name, x in given.items() if x is not None}})

    @property
    def budget(self) -> Budget:
        return Budget(self.step_tokens, self.chunk_tokens, self.fair_tokens)
