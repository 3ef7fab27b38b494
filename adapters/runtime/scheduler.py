"""Which tokens go into the next step: a budget per step, fair between adapters.

Fairness is start-time fair queueing (Goyal et al., SIGCOMM 1996) with tokens as the service: an adapter that comes anew
starts level with the one served least, and whoever has been served least goes first.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from adapters.runtime.active import Active, Part
from adapters.runtime.limits import Budget
from adapters.runtime.rows import Row
from adapters.runtime.spans import BLOCK

Admit = Callable[[Row], Active | None]
_CREDIT = 4  # chunks of prompts; steps are short from two on


class Scheduler:
    """The waiting rows, one queue per adapter, and how much of the engine each adapter has had."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str | None, deque[Row]] = OrderedDict()
        self._service: dict[str | None, int] = {}
        self._refused: set[str | None] = set()
        self._served: set[str | None] = set()  # in this step

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    @property
    def adapters(self) -> list[str | None]:
        """Adapters with waiting rows."""
        return list(self._queues)

    def add(self, row: Row) -> None:
        self._queues.setdefault(row.adapter, deque()).append(row)

    def remove(self, row_id: str) -> bool:
        """Drop a waiting row; return whether it was there."""
        return bool(self._remove_if(lambda row: row.row_id == row_id))

    def expired(self, now: float) -> list[Row]:
        """Remove and return the rows whose deadline has passed; ``now`` is `time.monotonic`'s."""
        return self._remove_if(lambda row: row.deadline is not None and row.deadline <= now)

    def drop(self, adapter: str | None) -> list[Row]:
        """Remove and return all waiting rows of an adapter."""
        return list(self._queues.pop(adapter, ()))

    def drain(self) -> list[Row]:
        """Remove and return all waiting rows."""
        return [row for adapter in list(self._queues) for row in self.drop(adapter)]

    def plan(self, running: Sequence[Active], budget: Budget, admit: Admit) -> list[Part]:
        """Return what the next step computes; rows that are let in leave the queues.

        A row that can't be divided and is longer than the budget is taken if no other prompt is before it.
        ``admit`` is asked last and reserves what the row needs; an adapter whose next row is not admitted waits,
        its order kept.
        """
        self._level(running, _CREDIT * budget.chunk)
        spread = max(self._service.values(), default=0) - min(self._service.values(), default=0)
        is_uneven = spread > 2 * budget.chunk
        step = _Step(min(budget.fair, budget.step) if is_uneven else budget.step)
        candidates = self._candidates(running)
        if not is_uneven:  # one token of each generating row costs little, and nobody is behind
            for rows in candidates.values():
                for active in [a for a in rows if a.is_decoding][: max(0, step.room)]:
                    rows.remove(active)
                    self._charge(active.row.adapter, step.take(active, 1))
        chunk = budget.chunk if any(a.is_decoding for a in running) else budget.step
        self._fill(step, candidates, chunk, admit)
        return step.parts

    def _fill(
        self,
        step: _Step,
        candidates: dict[str | None, deque[Active]],
        chunk: int,
        admit: Admit,
    ) -> None:
        """Give the adapter served least its next row, again and again, until the step is full."""
        order = {adapter: i for i, adapter in enumerate(self._queues)}
        heap = [(s, order.get(a, -1), i, a) for i, (a, s) in enumerate(self._service.items())]
        heapq.heapify(heap)
        prompt_room = chunk
        while heap and step.room > 0:
            _, turn, i, adapter = heapq.heappop(heap)
            active = self._next(adapter, candidates[adapter], step, admit)
            if active is None:
                continue
            room = step.room if active.is_decoding else min(step.room, prompt_room)
            num_new = step.share(active, room)
            if not num_new:
                continue
            step.take(active, num_new)
            prompt_room -= 0 if active.is_decoding else num_new
            self._charge(adapter, num_new)
            heapq.heappush(heap, (self._service[adapter], turn + len(order), i, adapter))

    def _next(
        self, adapter: str | None, running: deque[Active], step: _Step, admit: Admit
    ) -> Active | None:
        """Return an adapter's next row: one that runs already, else one that waits and is let in."""
        if running:
            return running.popleft()
        queue = self._queues.get(adapter)
        if not queue or (step.has_prompt and step.room < min(BLOCK, len(queue[0].token_ids))):
            return None
        active = admit(queue[0])
        if active is None:
            self._refused.add(adapter)
        else:
            self._pop(adapter)
        return active

    def _candidates(self, running: Sequence[Active]) -> dict[str | None, deque[Active]]:
        candidates: dict[str | None, deque[Active]] = {a: deque() for a in self._service}
        for active in running:
            candidates[active.row.adapter].append(active)
        return candidates

    def _level(self, running: Sequence[Active], credit: int) -> None:
        """Let newcomers start level with the adapter served least, and forget those that have no rows.

        An adapter of which no row could be let in, as while it loads, counts as new: it must not slow the others down.

        Args:
            credit: tokens that an adapter can be behind at most: one row that generates asks for a token a step, and
                what else a flood had meanwhile must not be had at once later.
        """
        active = {a.row.adapter for a in running}
        live: dict[str | None, None] = dict.fromkeys(
            [*(a.row.adapter for a in running), *self._queues]
        )
        for adapter in self._refused - self._served - active:
            self._service.pop(adapter, None)
        self._refused.clear()
        self._served.clear()
        known = [self._service[a] for a in live if a in self._service]
        floor = max(min(known, default=0), max(known, default=0) - credit)
        self._service = {a: max(0, self._service.get(a, floor) - floor) for a in live}

    def _charge(self, adapter: str | None, num_tokens: int) -> None:
        self._service[adapter] += num_tokens
        self._served.add(adapter)

    def _pop(self, adapter: str | None) -> None:
        queue = self._queues[adapter]
        queue.popleft()
        if queue:
            self._queues.move_to_end(adapter)  # next step begins with those who waited longest
        else:
            del self._queues[adapter]

    def _remove_if(self, condition: Callable[[Row], bool]) -> list[Row]:
        removed = []
        for adapter, queue in list(self._queues.items()):
            gone = [row for row in queue if condition(row)]
            if gone:
                removed += gone
                kept = deque(row for row in queue if not condition(row))
                if kept:
                    self._queues[adapter] = kept
                else:
                    del self._queues[adapter]
        return removed


class _Step:
    """A step being planned."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.parts: list[Part] = []
        self.has_prompt = False

    def share(self, active: Active, room: int) -> int:
        """Return how many of a row's tokens go in; a part of a prompt is worth it from a block on.

        One row that can't be divided, or one such part, may go beyond the room, or it would wait for as long as others
        generate.
        """
        if active.num_pending <= room:
            return active.num_pending
        if self.has_prompt and (room < BLOCK or not active.is_divisible):
            return 0
        if not active.is_divisible:
            return active.num_pending
        room = min(max(room, BLOCK), active.num_pending)
        # Not all but one: a single token goes the way of decoding, whose last bits differ from a prompt's.
        return room - 1 if active.num_pending == room + 1 else room

    def take(self, active: Active, num_new: int) -> int:
        self.parts.append(Part(active, num_new))
        self.has_prompt = self.has_prompt or not active.is_decoding
        self.room -= num_new
        return num_new
