"""How the API knows that the registry has changed: what it remembers of it is good for one generation."""

from __future__ import annotations

import logging
import threading

from adapters.errors import Unavailable
from adapters.registry.registry import Registry

logger = logging.getLogger(__name__)
Generation = tuple[int, int]
_POLL_SECONDS = 0.25


class Generations:
    """Tells the registry's generation: read each time where that is cheap, else polled.

    Own writes count at once, those of other machines within a poll. While a shared database does not answer, the
    last generation stays, so that what is remembered is still served.
    """

    def __init__(self, registry: Registry, poll_seconds: float = _POLL_SECONDS) -> None:
        self._registry = registry
        self._poll_seconds = poll_seconds
        self._number = registry.generation()
        self._closed = threading.Event()
        if registry.is_shared:
            threading.Thread(target=self._poll, name="generations", daemon=True).start()

    def current(self) -> Generation:
        """Return the generation as far as it is known; another one than before if anything was written."""
        if not self._registry.is_shared:
            self._number = self._registry.generation()
        return self._number, self._registry.num_own_writes

    def close(self) -> None:
        self._closed.set()

    def _poll(self) -> None:
        is_there = True
        while not self._closed.wait(self._poll_seconds):
            try:
                self._number = self._registry.generation()
            except Unavailable as error:
                if is_there:
                    logger.warning("%s Adapters that are known here are served on.", error.message)
                is_there = False
            else:
                is_there = True
