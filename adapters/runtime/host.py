"""The host tier: adapters read, checked and ready to compute with, in main memory within a bound of bytes."""

from __future__ import annotations

from collections import OrderedDict

from adapters.runtime.weights import AdapterWeights


class HostTier:
    """Adapters by digest; the least recently used one makes room. Used by the engine's thread only.

    On a CPU the bank shares these tensors, so that an adapter in both tiers takes its bytes once.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._kept: OrderedDict[str, AdapterWeights] = OrderedDict()
        self.used_bytes = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._kept

    def get(self, digest: str) -> AdapterWeights | None:
        if digest in self._kept:
            self._kept.move_to_end(digest)
        return self._kept.get(digest)

    def put(self, digest: str, weights: AdapterWeights) -> None:
        """Keep an adapter if it fits at all."""
        if digest in self._kept or weights.size_bytes > self._size_bytes:
            return
        self._kept[digest] = weights
        self.used_bytes += weights.size_bytes
        while self.used_bytes > self._size_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.used_bytes -= dropped.size_bytes
