"""Which waiting rows go into the next step: fair between adapters, within a token budget."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from adapters.runtime.rows import Row


class Scheduler:
    """One queue per adapter, served in turn, one row each: a flood on one adapter can't starve another."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str | None, deque[Row]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def add(self, row: Row) -> None:
        self._queues.setdefault(row.adapter, deque()).append(row)

    def remove(self, row_id: str) -> bool:
        """Drop a waiting row; return whether it was there."""
        for adapter, queue in self._queues.items():
            for row in queue:
                if row.row_id == row_id:
                    queue.remove(row)
                    if not queue:
                        del self._queues[adapter]
                    return True
        return False

    def drop(self, adapter: str | None) -> list[Row]:
        """Remove and return all waiting rows of an adapter."""
        return list(self._queues.pop(adapter, ()))

    def drain(self) -> list[Row]:
        """Remove and return all waiting rows."""
        return [row for adapter in list(self._queues) for row in self.drop(adapter)]

    def take(self, token_budget: int, admit: Callable[[Row], bool]) -> list[Row]:
        """Remove and return the next rows, at most ``token_budget`` tokens of them.

        A row longer than the whole budget is taken if it comes first. ``admit`` is asked last, and may reserve what the
        row needs; an adapter whose next row is not admitted waits, its order kept.
        """
        taken: list[Row] = []
        room = token_budget
        waiting = deque(self._queues)  # adapters that may still get a row this step, in turn
        while waiting:
            adapter = waiting.popleft()
            row = self._queues[adapter][0]
            if (taken and len(row.token_ids) > room) or not admit(row):
                continue
            taken.append(self._pop(adapter))
            room -= len(row.token_ids)
            if adapter in self._queues:
                waiting.append(adapter)
        return taken

    def _pop(self, adapter: str | None) -> Row:
        queue = self._queues[adapter]
        row = queue.popleft()
        if queue:
            self._queues.move_to_end(adapter)  # next step begins with those who waited longest
        else:
            del self._queues[adapter]
        return row
