"""What a process that fits an adapter is told, and what it tells: JSON files, so that systems share no code.

A job is one of `FitJob`; the answer is a `FitOutcome` in ``outcome.json`` and, for the rows to answer, ``outputs.npz``
(logits of all rows one below the other, and how many each has) or ``outputs.json`` (generated token ids).
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

OUTCOME_NAME = "outcome.json"
LOGITS_NAME = "outputs.npz"
TOKENS_NAME = "outputs.json"
_SECONDS_BETWEEN = 0.05


@dataclass(frozen=True, slots=True)
class FitJob:
    """One fit.

    Args:
        folder: the backbone's.
        loss: class, value, tags, span or completion.
        outputs: of the head; 0 for the language head.
        modules: paths of the backbone's linear layers.
        batch_tokens: of a step; who counts rows takes ``batch_rows``.
        num_rows: to train on in all, a row counting once an epoch.
        train: ``token_ids`` and ``labels`` of each row.
        watch_memory: tell ``peak_bytes``; reading it twenty times a second costs a fit a fifth of its time.
        answer: token ids of the rows to answer afterwards; with ``end_ids`` and ``max_new_tokens`` by generating.
    """

    folder: str
    dtype: str
    threads: int
    loss: str
    outputs: int
    pooling: str
    modules: list[str]
    rank: int
    alpha: float
    learning_rate: float
    warmup_share: float
    batch_tokens: int
    batch_rows: int
    num_rows: int
    seed: int
    train: list[dict[str, Any]]
    watch_memory: bool = False
    answer: list[list[int]] = field(default_factory=list)
    max_new_tokens: int = 0
    end_ids: list[int] = field(default_factory=list)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


@dataclass(frozen=True, slots=True)
class FitOutcome:
    """``seconds`` and ``tokens`` are the fit's alone; ``peak_bytes`` the most PSS above that of the loaded backbone.

    It is 0 where nobody watched.
    """

    seconds: float
    tokens: int
    peak_bytes: int
    loss: float

    def save(self, out: Path) -> None:
        (out / OUTCOME_NAME).write_text(json.dumps(asdict(self)))


def load_job(path: Path) -> FitJob:
    return FitJob(**json.loads(path.read_text()))


class PeakMemory:
    """Within it, the most memory (PSS) that this process held above what it held at the start, if it is to watch."""

    def __init__(self, *, is_on: bool) -> None:
        self.peak_bytes = 0
        self._is_on = is_on
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self._is_on:
            self._start = pss_bytes()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_on:
            self._ended.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN):
            self.peak_bytes = max(self.peak_bytes, pss_bytes() - self._start)


def pss_bytes() -> int:
    """Return the proportional set size of this process."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/smaps_rollup has no line 'Pss:'")
