"""The one form that every ``headstock bench …`` writes: a JSON file, and the same as a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number: the median of its runs.

    Args:
        adapters: how many adapters took part; 0 for the bare backbone.
        ratios: this value over that of each other system in the workload, by the other's name.
    """

    workload: str
    system: str
    adapters: int
    value: float
    unit: str
    runs: list[float]
    ratios: dict[str, float] = field(default_factory=dict)


def measure(
    workload: str, system: str, adapters: int, unit: str, runs: Sequence[float]
) -> Measurement:
    """Return the median of runs as a measurement."""
    rounded = [_rounded(run) for run in runs]
    return Measurement(workload, system, adapters, statistics.median(rounded), unit, rounded)


def with_ratios(rows: Iterable[Measurement]) -> list[Measurement]:
    """Return measurements with ratios against all others of the same workload and unit.

    The other is named by its system, and by its adapters too where their number differs.
    """
    rows = list(rows)
    return [replace(row, ratios=_ratios(row, rows)) for row in rows]


def _ratios(row: Measurement, rows: list[Measurement]) -> dict[str, float]:
    others = [
        other
        for other in rows
        if other is not row and (other.workload, other.unit) == (row.workload, row.unit)
    ]
    return {
        _name_beside(row, other): round(row.value / other.value, 3)
        for other in others
        if other.value
    }


def _name_beside(row: Measurement, other: Measurement) -> str:
    if other.adapters == row.adapters:
        return other.system
    return f"{other.system}, {other.adapters} adapters"


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one command measured, and where."""

    machine: dict[str, object]
    versions: dict[str, str]
    commit: str | None
    rows: list[Measurement]

    def save(self, path: Path) -> None:
        """Write the report as JSON, whole or not at all."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")
        part.replace(path)

    def print(self, console: Console, notes: Sequence[str] = ()) -> None:
        """Print one table; each row's ratio is that of the workload's first row over it."""
        table = Table(title=f"{self.machine['cpu']}, {self.machine['threads']} threads")
        for column in ("workload", "system", "adapters"):
            table.add_column(column)
        for column in ("median", "unit", "range", "first / this"):
            table.add_column(column, justify="right")
        first: Measurement | None = None
        for row in self.rows:
            if first is None or (first.workload, first.unit) != (row.workload, row.unit):
                if first is None or first.workload.split()[0] != row.workload.split()[0]:
                    table.add_section()
                first = row
            table.add_row(*_cells(row, first))
        console.print(table)
        for note in notes:
            console.print(note, highlight=False)


def _cells(row: Measurement, first: Measurement) -> tuple[str, ...]:
    ratio = "" if row is first or not row.value else f"{first.value / row.value:.2f}"
    spread = "" if len(row.runs) < 2 else f"{min(row.runs):g} to {max(row.runs):g}"
    return (
        row.workload,
        row.system,
        str(row.adapters),
        f"{row.value:g}",
        row.unit,
        spread,
        ratio,
    )


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
