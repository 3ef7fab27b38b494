"""Which of a benchmark's workloads a person asks for."""

from __future__ import annotations

from collections.abc import Iterable

from adapters.errors import InvalidRequest


def chosen_workloads(only: str | None, workloads: Iterable[str]) -> list[str]:
    """Return the names in ``only``, such as ``W1,W2``; all ``workloads`` without it.

    Raises:
        InvalidRequest: there is no such workload.
    """
    known = list(workloads)
    names = [name.strip() for name in only.split(",")] if only else known
    for name in names:
        if name not in known:
            raise InvalidRequest(
                f"No workload '{name}'. There are {', '.join(known)}.", param="only"
            )
    return names
