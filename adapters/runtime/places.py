"""Who may run: a place and cache blocks for each row that keeps keys and values, shared where rows begin alike."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.runtime.active import Active, Part
from adapters.runtime.cache import KeyValueCache
from adapters.runtime.limits import EngineLimits
from adapters.runtime.prefix import PrefixIndex
from adapters.runtime.rows import Row
from adapters.runtime.spans import BLOCK, blocks_for

SPARE = 4  # one of so many places and blocks is for adapters that hold none: a flood on one must not shut others out


class Places:
    """Gives out places and cache blocks, and takes them back.

    Args:
        cache: None for a backbone that keeps nothing.
        is_causal: a prompt's token reads those before it only; else prompts are neither shared nor divided.
        num_start: tokens that the decoder of an encoder-decoder begins with.
    """

    def __init__(
        self,
        cache: KeyValueCache | None,
        limits: EngineLimits,
        *,
        is_causal: bool = True,
        num_start: int = 0,
    ) -> None:
        self._cache = cache
        self._is_causal = is_causal
        self._num_extra = max(0, num_start - 1)  # the last token of an answer needs no cell
        self._max_running = limits.max_running
        self._chunk_tokens = limits.chunk_tokens
        kept_bytes = limits.prefix_bytes if is_causal else 0
        self.prefix = PrefixIndex(cache, kept_bytes) if cache is not None else None
        self._waiter: str | None = (
            None  # the row that was first refused blocks in the last step: none pass it
        )
        self._waiter_blocks = 0
        self._next_waiter: str | None = None
        self._next_waiter_blocks = 0

    def begin_step(self) -> None:
        """Keep blocks that become free for the row that was first to find too few, until it is in or gone."""
        self._waiter, self._waiter_blocks = self._next_waiter, self._next_waiter_blocks
        self._next_waiter = None

    @property
    def num_prefix_hits(self) -> int:
        """Prompt tokens that were found in the cache and not computed again."""
        return self.prefix.num_hits if self.prefix is not None else 0

    def take(self, row: Row, running: Sequence[Active]) -> Active | None:
        """Return the row with what it needs reserved, or None if it must wait."""
        if self._cache is None or not self._keeps(row):
            return Active(row)
        assert self.prefix is not None
        if row.row_id == self._waiter:
            self._claim(row, self._waiter_blocks)  # its turn stays its own, whatever it lacks now
        holders = [active.row.adapter for active in running if active.blocks]
        is_newcomer = row.adapter not in holders
        if len(holders) >= self._max_running - (0 if is_newcomer else self._max_running // SPARE):
            return None
        return self._reserve(row, is_newcomer or not holders)

    def _reserve(self, row: Row, is_newcomer: bool) -> Active | None:
        assert self._cache is not None
        assert self.prefix is not None
        keys = self.prefix.keys_of(row.adapter, row.token_ids) if row.generation else []
        match = self.prefix.match(keys)
        if match.is_growing:
            return None  # a running row is computing what this one would compute again
        needed = blocks_for(self.num_cells(row)) - len(match.blocks)
        # An adapter alone may need more than is left beside the spare blocks; it then runs row by row.
        spare = 0 if is_newcomer else self._cache.num_blocks // SPARE
        if self._waiter not in (None, row.row_id):
            spare += self._waiter_blocks
        if self._cache.num_free_blocks + self.prefix.num_evictable(match) < needed + spare:
            self._claim(row, needed)
            return None
        if self._next_waiter == row.row_id:
            self._next_waiter = None
        self.prefix.use(keys, match.blocks)
        self.prefix.make_room(needed + spare)
        blocks = match.blocks + self._cache.reserve(needed)
        self.prefix.announce(keys, blocks)
        num_done = len(match.blocks) * BLOCK
        return Active(row, blocks, keys, num_done, is_whole=not self._is_causal)

    def _claim(self, row: Row, num_blocks: int) -> None:
        """Keep blocks in the next step for a row that found too few: the first in this step, or the one from before."""
        if self._next_waiter is None or row.row_id == self._waiter:
            self._next_waiter, self._next_waiter_blocks = row.row_id, num_blocks

    def computed(self, part: Part, is_sound: bool) -> None:
        """Note that a part has been through the backbone; its full blocks can be read by others now.

        Args:
            is_sound: all its numbers are finite. Else its blocks stay its own: a masked NaN is still a NaN, so that
                even what stands before the bad token may be spoiled, and would be for every row that begins alike.
        """
        active = part.active
        num_before = min(active.num_done // BLOCK, len(active.keys))
        active.num_done += part.num_new
        if self.prefix is not None and not is_sound:
            self.prefix.withdraw(active.keys, active.blocks)
            active.keys = []
        done = active.keys[: active.num_done // BLOCK]
        # Only when a block has been filled: a row that decodes must not pass for one that asks for its prompt anew.
        if self.prefix is not None and len(done) > num_before:
            self.prefix.publish(done, active.blocks)

    def give_back(self, active: Active) -> None:
        if self._cache is not None and active.blocks:
            assert self.prefix is not None
            self.prefix.withdraw(active.keys, active.blocks)
            self._cache.release(active.blocks)
            active.blocks = []

    def _keeps(self, row: Row) -> bool:
        """Tell whether a row needs the cache: to generate, or to go through in several parts."""
        if row.generation is not None:
            return True
        assert self._cache is not None
        fits = blocks_for(len(row.token_ids)) <= self._cache.num_blocks
        return self._is_causal and fits and len(row.token_ids) > self._chunk_tokens

    def num_cells(self, row: Row) -> int:
        """Return the cells that a row needs if it keeps anything."""
        if not row.num_reserved_tokens:
            return len(row.token_ids)
        return row.num_reserved_tokens + self._num_extra
