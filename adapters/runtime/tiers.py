"""Brings adapters in: fetched on threads that wait, read on one that computes, put into the bank between steps."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Thread

import torch

from adapters.backbone import Backbone
from adapters.bundle import load_bundle
from adapters.errors import HeadstockError, PredictionFailed, StorageFull, Unavailable
from adapters.runtime.bank import Bank
from adapters.runtime.host import HostTier
from adapters.runtime.weights import AdapterWeights, prepare_weights, weights_bytes

logger = logging.getLogger(__name__)
MAX_LOADS = 8  # bundles being read at once, or waiting to be
# After which a bundle gives up its turn: a store that hangs must not keep out what lies on this machine's disk.
SLOW_SECONDS = 10.0
RETRY_SECONDS = 5.0  # between two tries to bring in a pinned adapter while its store is away
_MAX_THREADS = 32  # bundles being read at once, slow ones included


class Tiers:
    """Answers whether an adapter can take rows now, and if not, sees to it that it soon can.

    Args:
        fetch: gives the folder of a bundle by digest; called on a thread of its own, which must not compute.
    """

    def __init__(
        self, backbone: Backbone, bank: Bank, host: HostTier, fetch: Callable[[str], Path]
    ) -> None:
        self._backbone = backbone
        self._bank = bank
        self._host = host
        self._fetch = fetch
        self._loader = _start_loader()
        self._loads: dict[str, _Load] = {}
        self._warming: dict[str, None] = {}  # to be read when nothing else is, first come first
        self._ready: dict[str, AdapterWeights] = {}  # read, and waiting for their first row
        self._blocked: dict[str, int] = {}  # found no place in the last step: bytes they need
        self._ending: set[str] = set()
        self._failed: dict[str, HeadstockError] = {}
        # First come first; when each may be brought in: later while its store is away, never while it has no room.
        self._pinned: dict[str, float] = {}

    @property
    def is_loading(self) -> bool:
        return bool(self._loads or self._warming)

    @property
    def is_pinning(self) -> bool:
        """Tell whether a pinned adapter is still to be brought in: it may have no turn, or its store may be away."""
        return any(d not in self._bank and when < math.inf for d, when in self._pinned.items())

    def warm(self, digest: str) -> None:
        """Have a bundle read into host memory in its turn."""
        self._warming[digest] = None

    def pin(self, digest: str, *, pinned: bool) -> None:
        """Keep an adapter in the bank, brought there as soon as it can be, or no longer."""
        if pinned:
            self._pinned.setdefault(digest, 0.0)
        else:
            self._pinned.pop(digest, None)
        # There may be room now for those that had none.
        self._pinned = dict.fromkeys(self._pinned, 0.0)
        if digest in self._bank:
            self._bank.pin(digest, pinned=pinned)

    def begin_step(self, wanted: Iterable[str | None]) -> dict[str, HeadstockError]:
        """Take in what has been read since the last step; return the adapters that could not be, and why.

        Args:
            wanted: adapters with waiting rows.
        """
        failed, self._failed = self._failed | self._take_in(), {}
        for digest in failed.keys() & self._pinned.keys():
            self._pin_failed(digest, failed[digest])
        due = [digest for digest, when in self._pinned.items() if when <= time.monotonic()]
        still = {*wanted, *due}
        self._ready = {d: w for d, w in self._ready.items() if d in still}
        failed |= self._make_places(still)
        for digest in list(self._warming)[: max(0, self._num_turns)]:
            del self._warming[digest]
            self.load(digest)
        for digest in due:
            if digest not in self._bank:
                self.is_open(digest)
        return failed

    def _take_in(self) -> dict[str, HeadstockError]:
        """Take in what has been read; return what could not be."""
        failed = {}
        for digest, load in list(self._loads.items()):
            if load.done():
                del self._loads[digest]
                try:
                    self._ready[digest] = load.result()
                    self._host.put(digest, self._ready[digest])
                except Exception as error:
                    failed[digest] = _load_error(error)
        return failed

    def _make_places(self, still: Collection[str | None]) -> dict[str, HeadstockError]:
        """Have adapters end for those that found no place in the last step; return those that can't have one."""
        failed: dict[str, HeadstockError] = {}
        self._ending = set()
        for digest, size_bytes in self._blocked.items():
            if not self._bank.fits_beside_pins(size_bytes):
                failed[digest] = _no_room()
                if self._pinned.get(digest, math.inf) < math.inf:
                    logger.warning("Pinned adapter %s: %s", digest, failed[digest])
                    self._pinned[digest] = math.inf
            elif digest in still:
                # Every place is in use. Those used longest ago get no new rows until this one is in.
                self._ending.update(self._bank.must_end(size_bytes))
        self._blocked = {}
        return failed

    def _pin_failed(self, digest: str, error: HeadstockError) -> None:
        """Try again after a pause if the store is at fault; a bundle that is will not get better."""
        if isinstance(error, StorageFull | Unavailable):
            logger.warning("Pinned adapter %s is tried again: %s", digest, error)
            self._pinned[digest] = time.monotonic() + RETRY_SECONDS
        else:
            logger.warning("Adapter %s is not pinned any more: %s", digest, error)
            del self._pinned[digest]

    def is_open(self, digest: str | None) -> bool:
        """Tell whether an adapter can take a new row; install it now if it is in host memory, else have it read.

        What goes wrong in it comes out of the next `begin_step`.
        """
        if digest is None:
            return True
        if digest in self._bank:
            return digest not in self._ending
        weights = self._ready.get(digest) or self._host.get(digest)
        if weights is None:
            self.load(digest)
            return False
        if not self._bank.can_install(weights.size_bytes):
            self._blocked[digest] = weights.size_bytes
            return False
        self._ready.pop(digest, None)
        try:
            self._bank.install(digest, weights)
            self._bank.pin(digest, pinned=digest in self._pinned)
        except Exception as error:
            self._failed[digest] = _load_error(error)
        return digest in self._bank

    def load(self, digest: str) -> None:
        """Have a bundle read into host memory, if it is not there and few others are being read."""
        if digest not in self._loads and digest not in self._host and self._num_turns > 0:
            self._loads[digest] = load = _Load()
            # Of all threads, Python waits for those of an executor at its end, and a fetch may take minutes.
            Thread(target=self._bring, args=(digest, load), daemon=True).start()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block until a bundle has been read."""
        if self._loads:
            wait(self._loads.values(), timeout_seconds, FIRST_COMPLETED)

    def close(self) -> None:
        self._loader.shutdown(wait=False, cancel_futures=True)

    @property
    def _num_turns(self) -> int:
        """How many more bundles may be read now; those read that find no place are bounded, too."""
        held = sum(not load.is_slow for load in self._loads.values()) + len(self._ready)
        return min(MAX_LOADS - held, _MAX_THREADS - len(self._loads))

    def _bring(self, digest: str, load: _Load) -> None:
        try:
            load.set_result(self._loader.submit(self._read, self._fetch(digest)).result())
        except Exception as error:
            load.set_exception(error)

    def _read(self, folder: Path) -> AdapterWeights:
        bundle = load_bundle(folder, self._backbone.spec, is_registered=True)
        self._bank.check_size(weights_bytes(bundle, self._backbone.dtype))
        spec = self._backbone.spec
        return prepare_weights(bundle, self._backbone.dtype, spec.hidden_size, self._bank.names)


class _Load(Future[AdapterWeights]):
    """A bundle being read, and since when."""

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()

    @property
    def is_slow(self) -> bool:
        return time.monotonic() - self._began >= SLOW_SECONDS


def _start_loader() -> ThreadPoolExecutor:
    """Return one thread that computes by itself.

    A second thread with a team of its own makes OpenMP put all teams to sleep between two products, and waking the
    engine's costs more than many a product does: scoring on MiniLM took a seventh longer.
    """
    loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bundle-loader")
    num_threads = torch.get_num_threads()
    loader.submit(_compute_alone).result()
    torch.set_num_threads(num_threads)  # that thread's number is also the one of threads to come
    return loader


def _compute_alone() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread takes over the common number once, when it first asks; that was now


def _no_room() -> PredictionFailed:
    return PredictionFailed(
        "The adapter finds no place beside those that are pinned. Unpin one, or raise HEADSTOCK_BANK_BYTES or "
        "HEADSTOCK_BANK_SLOTS."
    )


def _load_error(error: Exception) -> HeadstockError:
    reason = error.message if isinstance(error, HeadstockError) else repr(error)
    told = f"The adapter could not be loaded: {reason}"
    # The store's fault, not the adapter's: the same request may do later.
    return (
        type(error)(told)
        if isinstance(error, StorageFull | Unavailable)
        else PredictionFailed(told)
    )
