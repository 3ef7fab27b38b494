"""Blocks of the cache that several rows share because they begin alike: same adapter version, same tokens.

A block is known by the chain of all that stands before and in it (as in vLLM's automatic prefix caching), so equal
keys mean equal keys and values; the adapter's digest is part of the chain.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.runtime.cache import KeyValueCache
from adapters.runtime.spans import BLOCK


@dataclass(frozen=True, slots=True)
class Match:
    """How a prompt's beginning is known: blocks that can be read now, and whether more are being computed."""

    blocks: list[int]
    is_growing: bool


def chain_keys(adapter: str | None, token_ids: Sequence[int]) -> list[bytes]:
    """Return a key for each full block of a prompt.

    Its last token is left to be computed, for its logits, and one more: a single token would be computed as decoding
    rows are, whose last bits differ, and a prompt would be answered otherwise the second time.
    """
    key, keys = (adapter or "").encode(), []
    for start in range(0, (len(token_ids) - 2) // BLOCK * BLOCK, BLOCK):
        sha = hashlib.sha256(key)
        sha.update(array("q", token_ids[start : start + BLOCK]).tobytes())
        key = sha.digest()
        keys.append(key)
    return keys


class PrefixIndex:
    """Finds blocks by chain key; keeps those that no row holds any more within a bound, oldest out first.

    A block is of no use without all that stands before it, so a chain is touched from its end to its beginning: the
    end goes first.

    Args:
        size_bytes: bound of the blocks that are kept for later rows; 0 turns sharing off.
    """

    def __init__(self, cache: KeyValueCache, size_bytes: int) -> None:
        self._cache = cache
        self._max_kept = size_bytes // cache.block_bytes
        self._blocks: OrderedDict[bytes, int] = (
            OrderedDict()
        )  # held once by the index; least recently used first
        self._pending: dict[bytes, int] = {}  # key -> block that a running row will have written
        self.num_hits = 0  # tokens that were not computed again

    @property
    def num_kept(self) -> int:
        return len(self._blocks)

    def keys_of(self, adapter: str | None, token_ids: Sequence[int]) -> list[bytes]:
        """Return the keys of a prompt's blocks that can be kept; one longer than the bound keeps its beginning."""
        return chain_keys(adapter, token_ids)[: self._max_kept] if self._max_kept else []

    def match(self, keys: Sequence[bytes]) -> Match:
        """Return the longest known beginning; nothing is held by asking."""
        known = next((i for i, key in enumerate(keys) if key not in self._blocks), len(keys))
        is_growing = known < len(keys) and keys[known] in self._pending
        return Match([self._blocks[key] for key in keys[:known]], is_growing)

    def use(self, keys: Sequence[bytes], blocks: list[int]) -> None:
        """Hold matched blocks for a row; the caller gives them to the cache's `release`."""
        self._cache.share(blocks)
        self.num_hits += len(blocks) * BLOCK
        for key in reversed(keys[: len(blocks)]):
            self._blocks.move_to_end(key)

    def announce(self, keys: Sequence[bytes], blocks: Sequence[int]) -> None:
        """Say that a row is computing these blocks; others that begin alike may wait for it."""
        for key, block in zip(keys, blocks, strict=False):
            if key not in self._blocks:
                self._pending.setdefault(key, block)

    def publish(self, keys: Sequence[bytes], blocks: Sequence[int]) -> None:
        """Take in a chain that has been computed, from its first block on."""
        self.withdraw(keys, blocks)
        for key, block in reversed(list(zip(keys, blocks, strict=False))):
            if key not in self._blocks:
                self._cache.share([block])
                self._blocks[key] = block
            self._blocks.move_to_end(key)
        self.shrink_to(self._max_kept)

    def withdraw(self, keys: Sequence[bytes], blocks: Sequence[int]) -> None:
        """Say that a row has ended; what it announced and did not compute will not come from it."""
        for key, block in zip(keys, blocks, strict=False):
            if self._pending.get(key) == block:
                del self._pending[key]

    def num_evictable(self, match: Match) -> int:
        """Return how many kept blocks would be free if let go: those that no row holds, the matched ones aside."""
        matched = set(match.blocks)
        return sum(
            block not in matched and self._cache.num_holders(block) == 1
            for block in self._blocks.values()
        )

    def make_room(self, num_blocks: int) -> None:
        """Let go of kept blocks that no row holds, oldest first, until so many are free or none are left."""
        for key, block in list(self._blocks.items()):
            if self._cache.num_free_blocks >= num_blocks:
                return
            if self._cache.num_holders(block) == 1:
                del self._blocks[key]
                self._cache.release([block])

    def shrink_to(self, num_blocks: int) -> None:
        while len(self._blocks) > num_blocks:
            _, block = self._blocks.popitem(last=False)
            self._cache.release([block])
