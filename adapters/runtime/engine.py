"""The engine: rows of any adapter and any task through one shared backbone, one mixed pass a step.

It knows token ids, digests and heads; it knows no HTTP and no database, and of text only how to find stop strings.
One thread drives it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from adapters.backbone import Backbone
from adapters.errors import (
    DeadlineExceeded,
    HeadstockError,
    InvalidRequest,
    PredictionFailed,
    RunPaused,
    TextTooLong,
)
from adapters.runtime.active import Active, Part
from adapters.runtime.answers import Answers, out_of_memory
from adapters.runtime.bank import Bank
from adapters.runtime.cache import build_cache, head_shape
from adapters.runtime.choice import choose_gpu_kernels
from adapters.runtime.families import build_forward
from adapters.runtime.forward import Pass
from adapters.runtime.host import HostTier
from adapters.runtime.kernels import fits, fits_attention, load_kernels
from adapters.runtime.limits import EngineLimits
from adapters.runtime.places import Places
from adapters.runtime.rows import Row, RowPart, RowResult
from adapters.runtime.scheduler import Scheduler
from adapters.runtime.spans import blocks_for
from adapters.runtime.stats import EngineStats, MixedBatch
from adapters.runtime.tiers import Tiers
from adapters.tasks.base import RowOutput

_STALLED_SECONDS = 0.002


class Engine:
    """Runs rows in steps; each step takes running rows on and lets new rows in.

    Args:
        fetch: gives the folder of a bundle by digest; called on threads of its own, several at once.
        decode: text of token ids, to find stop strings; rows with stop strings are refused without it.
        use_kernels: run compiled kernels where they can be had, rather than torch alone.
    """

    def __init__(
        self,
        backbone: Backbone,
        fetch: Callable[[str], Path],
        limits: EngineLimits | None = None,
        *,
        decode: Callable[[Sequence[int]], str] | None = None,
        use_kernels: bool = True,
    ) -> None:
        self.backbone = backbone
        self.limits = limits or EngineLimits()
        self.stats = EngineStats()
        usable = use_kernels and fits(backbone.dtype, backbone.device)
        kernels = load_kernels() if usable else None
        updates = kernels or (choose_gpu_kernels(backbone) if use_kernels else None)
        self._num_tokens = int(backbone.config.vocab_size)
        self._bank = Bank(backbone, self.limits.bank_bytes, self.limits.bank_slots, updates)
        self._tiers = Tiers(backbone, self._bank, HostTier(self.limits.host_bytes), fetch)
        attention = kernels if fits_attention(*head_shape(backbone.config)) else None
        self._cache = build_cache(backbone, self.limits.cache_bytes, attention)
        self._places = Places(
            self._cache,
            self.limits,
            is_causal=backbone.spec.family != "encoder-decoder",
            num_start=len(backbone.start_ids),
        )
        self._forward = build_forward(
            backbone, self._bank, self._cache, attention, use_graphs=use_kernels
        )
        self._answers = Answers(backbone, self._bank, decode)
        self._scheduler = Scheduler()
        self._running: list[Active] = []
        self._finished: list[RowPart | RowResult] = []
        self._is_stalled = False

    @property
    def num_rows(self) -> int:
        """Rows submitted and not yet handed back."""
        ended = sum(isinstance(result, RowResult) for result in self._finished)
        return len(self._scheduler) + len(self._running) + ended

    def submit(self, row: Row) -> None:
        """Take a row in; it comes out of a later `step`.

        Raises:
            InvalidRequest: nothing could ever answer this row.
        """
        self._check(row)
        self._scheduler.add(row)

    def cancel(self, row_id: str) -> None:
        """Forget a row and free what it holds; nothing happens if it is already finished."""
        self._scheduler.remove(row_id)
        for active in [a for a in self._running if a.row.row_id == row_id]:
            active.is_done = True
            self._running.remove(active)
            self._free(active)

    def abort(self, error: Exception) -> list[RowPart | RowResult]:
        """End every row with an error and return them all; the engine can go on with new ones."""
        for active in list(self._running):
            self._finish(active, error=error)
        for row in self._scheduler.drain():
            self._fail(row, error)
        return self._hand_over()

    @torch.inference_mode()
    def step(self) -> list[RowPart | RowResult]:
        """Run one mixed pass; return the rows that are finished, and before them the new parts of those that stream.

        Raises:
            torch.AcceleratorError: the device failed for good; only a new process can use it again.
            RunPaused: a signal handler raised it.
        """
        self._end_late_rows()
        for digest, error in self._tiers.begin_step(self._scheduler.adapters).items():
            for row in self._scheduler.drop(digest):
                self._fail(row, error)
        self._places.begin_step()
        parts = self._scheduler.plan(self._running, self.limits.budget, self._admit)
        self._is_stalled = not parts
        if parts:
            self._advance(parts)
        return self._hand_over()

    def run(
        self, rows: Sequence[Row], on_progress: Callable[[int], None] = lambda done: None
    ) -> list[RowResult]:
        """Submit rows, step until all are finished, and return results in the rows' order.

        Args:
            on_progress: told the number of finished rows after each step.
        """
        for row in rows:
            self.submit(row)
        results: dict[str, RowResult] = {}
        while self.num_rows:
            results.update((r.row_id, r) for r in self.step() if isinstance(r, RowResult))
            on_progress(len(results))
            self.wait_for_loads()
        return [results[row.row_id] for row in rows]

    @property
    def is_idle(self) -> bool:
        """Tell whether stepping would do nothing: no rows, and no adapter on its way in."""
        return not (self.num_rows or self._tiers.is_loading or self._tiers.is_pinning)

    def warm(self, digest: str) -> None:
        """Have an adapter read into host memory before anybody asks for it."""
        self._tiers.warm(digest)

    def pin(self, digest: str, *, pinned: bool) -> None:
        """Keep an adapter on the device whether it is used or not, or no longer."""
        self._tiers.pin(digest, pinned=pinned)

    def snapshot(self) -> EngineStats:
        """Return what has been counted so far, and what is here now."""
        return replace(
            self.stats,
            waiting_rows=self.num_rows,
            resident_adapters=tuple(self._bank.digests),
            bank_bytes=self._bank.used_bytes,
            prefix_hit_tokens=self._places.num_prefix_hits,
        )

    def wait_for_loads(self, timeout_seconds: float | None = None) -> None:
        """Block until a bundle is read, if the last step found nothing else to do."""
        if self._is_stalled and self._tiers.is_loading:
            self._tiers.wait(timeout_seconds)
        elif self._is_stalled and not self.is_idle:
            # Rows wait for a place, which only time or a cancel makes, or a pinned adapter for its turn.
            time.sleep(_STALLED_SECONDS)

    def close(self) -> None:
        """Stop loading and give the backbone its own layers back."""
        self._tiers.close()
        self._forward.close()
        self._bank.close()

    def _check(self, row: Row) -> None:
        num_new = row.generation.max_new_tokens if row.generation else 0
        total = len(row.token_ids) + num_new
        if self.backbone.spec.family == "encoder-decoder":  # each side has its own positions
            total = max(len(row.token_ids), num_new + len(self.backbone.start_ids) - 1)
        if not row.token_ids:
            raise InvalidRequest("The row has no tokens. Send some text.", param="input")
        if total > self.backbone.spec.max_tokens:
            raise TextTooLong(
                f"Prompt and answer take '{total}' tokens; backbone '{self.backbone.spec.name}' has "
                f"room for {self.backbone.spec.max_tokens}. Shorten the text.",
                param="input",
            )
        if not all(0 <= token < self._num_tokens for token in row.token_ids):
            raise InvalidRequest(
                f"The row has a token beyond the backbone's vocabulary of {self._num_tokens}. Its tokenizer "
                "does not belong to it.",
                param="input",
            )
        if row.generation is not None:
            self._check_generation(row)
        elif row.adapter is None and row.embed is None:
            raise InvalidRequest(
                "A row without an adapter can only generate or be embedded.", param="adapter"
            )

    def _check_generation(self, row: Row) -> None:
        if self._cache is None:
            raise InvalidRequest(
                f"Backbone '{self.backbone.spec.name}' is an encoder; it can't generate text.",
                param="adapter",
            )
        num_cells = self._places.num_cells(row)
        if blocks_for(num_cells) > self._cache.num_blocks:
            raise TextTooLong(
                f"The row takes '{num_cells}' tokens of the key-value cache, which has fewer. "
                "Shorten the text, or raise the server's cache_bytes.",
                param="input",
            )
        self._answers.check(row)

    def _end_late_rows(self) -> None:
        now = time.monotonic()
        late = [a for a in self._running if a.row.deadline is not None and a.row.deadline <= now]
        for active in late:
            self._finish(active, error=_late())
        for row in self._scheduler.expired(now):
            self._fail(row, _late())

    def _admit(self, row: Row) -> Active | None:
        """Let a row in if its adapter is here and there is a place for it."""
        if not self._tiers.is_open(row.adapter):
            return None
        active = self._places.take(row, self._running)
        if active is not None:
            if row.adapter is not None:
                self._bank.acquire(row.adapter)
            self._running.append(active)
        return active

    def _advance(self, parts: list[Part]) -> None:
        try:
            done = self._forward.run(parts)
        except torch.OutOfMemoryError:
            self._advance_in_halves(parts)
            return
        except (torch.AcceleratorError, RunPaused):
            raise  # the device's context is lost, so that no later pass could succeed; or a signal came
        except (
            Exception
        ) as error:  # whatever else goes wrong in a pass ends its rows, never the engine
            self._finish_all(parts, error)
            return
        try:
            self._read(done)
        except (torch.AcceleratorError, RunPaused):
            raise
        except Exception as error:
            self._finish_all(parts, error)

    def _advance_in_halves(self, parts: list[Part]) -> None:
        """Run what did not fit the device's memory as two passes; a row that does not fit alone ends."""
        torch.cuda.empty_cache()
        if len(parts) == 1:
            self._finish(parts[0].active, error=out_of_memory())
            return
        middle = len(parts) // 2
        self._advance(parts[:middle])
        self._advance(parts[middle:])

    def _read(self, done: Pass) -> None:
        self._count(done.parts)
        is_sound = bool(done.hidden_TD.isfinite().all())
        for i, part in enumerate(done.parts):
            self._places.computed(part, is_sound or bool(done.hidden_of(i).isfinite().all()))
        for active, outcome in self._answers.read(done):
            if isinstance(outcome, RowPart):
                self._finished.append(outcome)
            elif isinstance(outcome, RowOutput):
                self._finish(active, outcome)
            else:
                self._finish(active, error=outcome)

    def _finish_all(self, parts: Sequence[Part], error: Exception) -> None:
        for part in parts:
            self._finish(part.active, error=error)

    def _count(self, parts: Sequence[Part]) -> None:
        digests = {part.active.row.adapter for part in parts if part.active.row.adapter}
        tasks = {self._bank.task_of(digest) for digest in digests}
        batch = MixedBatch(len(parts), len(digests), tuple(sorted(tasks)))
        self.stats.count(batch, sum(part.num_new for part in parts))

    def _finish(
        self, active: Active, output: RowOutput | None = None, error: BaseException | None = None
    ) -> None:
        if active.is_done:  # a pass that fails half-way ends only the rows that had not ended
            return
        active.is_done = True
        self._running.remove(active)
        self._free(active)
        if error is not None:
            self._fail(active.row, error)
        else:
            self._finished.append(RowResult(active.row.row_id, output))

    def _fail(self, row: Row, error: BaseException) -> None:
        if not isinstance(error, HeadstockError):
            error = PredictionFailed(
                f"The engine failed on this row: {type(error).__name__}: {error}"
            )
        self._finished.append(RowResult(row.row_id, error=error))

    def _free(self, active: Active) -> None:
        self._places.give_back(active)
        self._answers.forget(active)
        if active.row.adapter is not None:
            self._bank.release(active.row.adapter)

    def _hand_over(self) -> list[RowPart | RowResult]:
        finished, self._finished = self._finished, []
        return finished


def _late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The answer was not ready in the time it had. Ask for less, or allow more time."
    )
