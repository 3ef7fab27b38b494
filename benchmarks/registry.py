"""``headstock bench registry``: registering, listing and claiming, on SQLite and, where one is given, PostgreSQL."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.machine import describe_machine, library_versions, source_commit
from benchmarks.report import Measurement, Report, with_ratios
from benchmarks.session import Session
from benchmarks.workloads.beside import run_beside
from benchmarks.workloads.claiming import run_claiming
from benchmarks.workloads.databases import describe_databases, open_databases
from benchmarks.workloads.listing import run_listing
from benchmarks.workloads.registering import run_registering

WORKLOADS: Mapping[str, Callable[[Session, dict[str, str]], list[Measurement]]] = {
    "R1": lambda session, _: run_registering(session),
    "R2": run_listing,
    "R3": run_claiming,
    "R4": lambda session, _: run_beside(session),
}
_TABLE_WIDTH = 150  # in a file; a terminal has its own


def run_registry(session: Session, names: Sequence[str], url: str | None, path: Path) -> Report:
    """Run workloads, print the table, and write the report to ``path`` after each of them.

    Args:
        url: an empty database of PostgreSQL, which is empty again at the end; without it, SQLite alone is measured.

    Raises:
        InvalidRequest: the database at the URL is not empty, or not PostgreSQL's.
        EnvironmentProblem: it can't be reached.
    """
    rows = list[Measurement]()
    with open_databases(session.scratch, url) as urls:
        versions, notes = describe_databases(urls)
        session.notes.extend(notes)
        machine = describe_machine(session.options.threads)
        report = Report(machine, library_versions(versions), source_commit(), rows)
        for name in names:
            session.say(name)
            rows = with_ratios([*rows, *WORKLOADS[name](session, urls)])
            report = Report(machine, report.versions, report.commit, rows)
            report.save(path)
    report.print(Console(width=None if sys.stdout.isatty() else _TABLE_WIDTH), session.notes)
    session.say(f"Report: {path}")
    return report
