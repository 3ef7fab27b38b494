"""Interleaved timing: every system does the same work once a round, in another order each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


def run_rounds(systems: Mapping[str, Callable[[int], T]], num_rounds: int) -> dict[str, list[T]]:
    """Call each system once a round and return what each gave, by name.

    Whatever drifts during a run (heat, neighbours, page cache) so hits all systems alike; and none always runs
    after the same one. Each is called with the number of the round.
    """
    names = list(systems)
    given: dict[str, list[T]] = {name: [] for name in names}
    for round_number in range(num_rounds):
        turn = round_number % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            given[name].append(systems[name](round_number))
    return given
