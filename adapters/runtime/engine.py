"""The engine: rows of any adapter and any task through one shared backbone, one mixed pass a step.

It knows token ids, digests and heads; it knows no text, no HTTP and no database. One thread drives it.

Shape letters: T tokens of the pack, D hidden size, V vocabulary, G generating rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.bundle import Bundle, load_bundle
from adapters.errors import HeadstockError, InvalidRequest, PredictionFailed, TextTooLong
from adapters.runtime.bank import Bank
from adapters.runtime.cache import Extent, blocks_for, build_cache, view_cache
from adapters.runtime.pack import Pack, pack_rows
from adapters.runtime.rows import Row, RowResult
from adapters.runtime.scheduler import Scheduler
from adapters.runtime.stats import EngineStats, MixedBatch
from adapters.tasks.base import RowOutput

MAX_LOADS = 8  # bundles being read, or read and waiting for a place


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one engine.

    ``step_tokens`` bounds what one pass takes (and so its activations), ``max_running`` the rows that
    generate at once, ``cache_bytes`` their keys and values, ``bank_bytes`` the resident adapters.
    """

    step_tokens: int = 2048
    max_running: int = 64
    cache_bytes: int = 512 * 2**20
    bank_bytes: int = 1024 * 2**20


@dataclass(slots=True)
class _Active:
    """A row that has been admitted: its blocks of the cache and what it has generated."""

    row: Row
    blocks: list[int]
    is_done: bool = False
    generated: list[int] = field(default_factory=list)

    def extent(self) -> Extent:
        """Return what the next pass adds to this row: its prompt, or the token it made last."""
        num_prompt = len(self.row.token_ids)
        if not self.generated:
            return Extent(self.blocks, 0, num_prompt)
        return Extent(self.blocks, num_prompt + len(self.generated) - 1, 1)

    def new_tokens(self) -> Sequence[int]:
        return self.generated[-1:] or self.row.token_ids


class Engine:
    """Runs rows in steps; each step takes all generating rows one token on and lets new rows in.

    Args:
        fetch: gives the folder of a bundle by digest; called on a thread of its own.
    """

    def __init__(
        self,
        backbone: Backbone,
        fetch: Callable[[str], Path],
        limits: EngineLimits | None = None,
    ) -> None:
        self.backbone = backbone
        self.limits = limits or EngineLimits()
        self.stats = EngineStats()
        self._fetch = fetch
        self._num_tokens = int(backbone.config.vocab_size)
        self._bank = Bank(backbone, self.limits.bank_bytes)
        self._cache = build_cache(backbone, self.limits.cache_bytes)
        self._scheduler = Scheduler()
        self._running: list[_Active] = []
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bundle-loader")
        self._loads: dict[str, Future[Bundle]] = {}
        self._finished: list[RowResult] = []
        self._is_stalled = False
        self._ending: set[str] = set()

    @property
    def num_rows(self) -> int:
        """Rows submitted and not yet handed back."""
        return len(self._scheduler) + len(self._running) + len(self._finished)

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
            self._running.remove(active)
            self._free(active)

    def abort(self, error: Exception) -> list[RowResult]:
        """End every row with an error and return them all; the engine can go on with new ones."""
        for item in self._running:
            self._finish(item, error=error)
        self._running = []
        for row in self._scheduler.drain():
            self._fail(row, error)
        finished, self._finished = self._finished, []
        return finished

    @torch.inference_mode()
    def step(self) -> list[RowResult]:
        """Run one mixed pass and return the rows that are finished, in no particular order."""
        installed = self._install_loaded()
        fresh = self._admit()
        for digest in installed:
            self._bank.release(digest)
        self._is_stalled = not (self._running or fresh)
        if not self._is_stalled:
            self._advance(self._running, sorted(fresh, key=lambda a: len(a.row.token_ids)))
        finished, self._finished = self._finished, []
        return finished

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
            results.update((result.row_id, result) for result in self.step())
            on_progress(len(results))
            self.wait_for_loads()
        return [results[row.row_id] for row in rows]

    def wait_for_loads(self, timeout_seconds: float | None = None) -> None:
        """Block until a bundle is read, if the last step found nothing else to do."""
        if self._is_stalled and self._loads:
            wait(self._loads.values(), timeout_seconds, FIRST_COMPLETED)

    def close(self) -> None:
        """Stop loading and give the backbone its own layers back."""
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._bank.close()

    def _check(self, row: Row) -> None:
        total = len(row.token_ids) + (row.generation.max_new_tokens if row.generation else 0)
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
        if row.generation is None:
            if row.adapter is None:
                raise InvalidRequest("A row without an adapter can only generate.", param="adapter")
        elif self._cache is None:
            raise InvalidRequest(
                f"Backbone '{self.backbone.spec.name}' is an encoder; it can't generate text.",
                param="adapter",
            )
        elif blocks_for(row.num_reserved_tokens) > self._cache.num_blocks:
            raise TextTooLong(
                f"The row takes '{total}' tokens of the key-value cache, which has fewer. Shorten the "
                "text, or raise the server's cache_bytes.",
                param="input",
            )

    def _read(self, digest: str) -> Bundle:
        bundle = load_bundle(self._fetch(digest), self.backbone.spec)
        self._bank.check_size(bundle)
        return bundle

    def _install_loaded(self) -> list[str]:
        """Put bundles that are read into the bank, held so that none takes another's place at once."""
        installed: list[str] = []
        self._ending = set()
        for digest, load in list(self._loads.items()):
            if load.done() and self._settle_load(digest, load):
                del self._loads[digest]
                if digest in self._bank:
                    self._bank.acquire(digest)
                    installed.append(digest)
        return installed

    def _settle_load(self, digest: str, load: Future[Bundle]) -> bool:
        """Install a bundle that is read, or fail its rows; return False if it must wait for a place."""
        try:
            bundle = load.result()
            if ending := self._bank.must_end(bundle):
                # Every place is in use. Those used longest ago get no new rows until this one is in.
                self._ending.update(ending)
                return False
            self._bank.install(digest, bundle)
        except Exception as error:
            reason = error.message if isinstance(error, HeadstockError) else repr(error)
            for row in self._scheduler.drop(digest):
                self._fail(row, PredictionFailed(f"The adapter could not be loaded: {reason}"))
        return True

    def _admit(self) -> list[_Active]:
        admitted: list[_Active] = []
        is_full = False

        def admit(row: Row) -> bool:
            nonlocal is_full
            if not self._is_open(row.adapter):
                return False
            blocks = None if is_full and row.generation else self._reserve(row, len(admitted))
            if blocks is None:
                is_full = (
                    True  # nobody who generates may pass now, or small rows would starve a big one
                )
                return False
            if row.adapter is not None:
                self._bank.acquire(row.adapter)
            admitted.append(_Active(row, blocks))
            return True

        self._scheduler.take(max(1, self.limits.step_tokens - len(self._running)), admit)
        return admitted

    def _is_open(self, digest: str | None) -> bool:
        """Tell whether an adapter can take new rows; if it is not in the bank, have it read."""
        if digest is None:
            return True
        if digest in self._bank:
            return digest not in self._ending
        if digest not in self._loads and len(self._loads) < MAX_LOADS:
            self._loads[digest] = self._loader.submit(self._read, digest)
        return False

    def _reserve(self, row: Row, num_admitted: int) -> list[int] | None:
        if row.generation is None:
            return []
        assert self._cache is not None
        if len(self._running) + num_admitted >= self.limits.max_running:
            return None
        if not self._cache.can_reserve(row.num_reserved_tokens):
            return None
        return self._cache.reserve(row.num_reserved_tokens)

    def _advance(self, running: list[_Active], fresh: list[_Active]) -> None:
        active = [*running, *fresh]
        try:
            pack = self._pack(running, fresh)
            hidden_TD = self._call_backbone(active, pack)
            survivors = self._generate(active, hidden_TD, pack)
            self._score(active, hidden_TD, pack)
        except Exception as error:  # whatever goes wrong in a pass ends its rows, never the engine
            survivors = []
            for item in active:
                self._finish(item, error=error)
        self._running = survivors

    def _pack(self, running: list[_Active], fresh: list[_Active]) -> Pack:
        extents = [active.extent() for active in (*running, *fresh)]
        cache = view_cache(self._cache, extents, len(running)) if self._cache else None
        past = [extent.num_cached for extent in extents[: len(running)]]
        lengths = [extent.num_new for extent in extents[len(running) :]]
        return pack_rows(lengths, past, cache, self.backbone.device)

    def _call_backbone(self, active: list[_Active], pack: Pack) -> Tensor:
        token_ids = [token for item in active for token in item.new_tokens()]
        self._bank.route([item.row.adapter for item in active], pack.bounds)
        self.stats.count(self._census(active), pack.num_tokens)
        token_ids_T = torch.tensor(token_ids, device=self.backbone.device)
        return self.backbone.hidden_states(token_ids_T, pack)

    def _census(self, active: list[_Active]) -> MixedBatch:
        digests = {item.row.adapter for item in active if item.row.adapter}
        tasks = {self._bank.task_of(digest) for digest in digests}
        return MixedBatch(len(active), len(digests), tuple(sorted(tasks)))

    def _generate(self, active: list[_Active], hidden_TD: Tensor, pack: Pack) -> list[_Active]:
        """Give each generating row its next token; return those that go on."""
        rows = [(i, item) for i, item in enumerate(active) if item.row.generation]
        if not rows:
            return []
        last_G = pack.last_tokens()[[i for i, _ in rows]]
        logits_GV = self.backbone.next_token_logits(hidden_TD[last_G])
        finite = logits_GV.isfinite().all(dim=1).tolist()
        survivors = []
        for (_, item), token, good in zip(
            rows, logits_GV.argmax(dim=1).tolist(), finite, strict=True
        ):
            if not good:
                self._finish(item, error=_not_finite())
            elif self._append(item, token):
                survivors.append(item)
        return survivors

    def _append(self, item: _Active, token: int) -> bool:
        """Add a token to a row; return whether it goes on."""
        generation = item.row.generation
        assert generation is not None
        if token in generation.end_ids:
            self._finish(item, RowOutput(token_ids=tuple(item.generated), finish_reason="stop"))
            return False
        item.generated.append(token)
        if len(item.generated) >= generation.max_new_tokens:
            self._finish(item, RowOutput(token_ids=tuple(item.generated), finish_reason="length"))
            return False
        return True

    def _score(self, active: list[_Active], hidden_TD: Tensor, pack: Pack) -> None:
        """Put each scoring row through its own head."""
        bounds = pack.bounds.tolist()
        by_adapter: dict[str, list[int]] = {}
        for i, item in enumerate(active):
            if item.row.generation is None and item.row.adapter is not None:
                by_adapter.setdefault(item.row.adapter, []).append(i)
        for digest, rows in by_adapter.items():
            logits = self._bank.apply_head(
                digest, [hidden_TD[bounds[i] : bounds[i + 1]] for i in rows]
            )
            if logits is None:
                error = InvalidRequest("The adapter has no head; it can only generate text.")
                for i in rows:
                    self._finish(active[i], error=error)
                continue
            for i, row_logits in zip(rows, logits, strict=True):
                if not bool(row_logits.isfinite().all()):
                    self._finish(active[i], error=_not_finite())
                else:
                    self._finish(active[i], RowOutput(logits=row_logits.cpu().numpy()))

    def _finish(
        self, item: _Active, output: RowOutput | None = None, error: BaseException | None = None
    ) -> None:
        if item.is_done:  # a pass that fails half-way ends only the rows that had not ended
            return
        item.is_done = True
        self._free(item)
        if error is not None:
            self._fail(item.row, error)
        else:
            self._finished.append(RowResult(item.row.row_id, output))

    def _fail(self, row: Row, error: BaseException) -> None:
        if not isinstance(error, HeadstockError):
            error = PredictionFailed(
                f"The engine failed on this row: {type(error).__name__}: {error}"
            )
        self._finished.append(RowResult(row.row_id, error=error))

    def _free(self, item: _Active) -> None:
        if self._cache is not None and item.blocks:
            self._cache.release(item.blocks)
            item.blocks = []
        if item.row.adapter is not None:
            self._bank.release(item.row.adapter)


def _not_finite() -> PredictionFailed:
    return PredictionFailed(
        "The model's numbers for this row are not finite. Check the adapter on its own data, or train it "
        "again with a lower learning rate."
    )
