"""``headstock bench serving``: runs the workloads, and gives one table and one JSON file."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.machine import describe_machine, library_versions, source_commit
from benchmarks.report import Measurement, Report, with_ratios
from benchmarks.session import Options, Session
from benchmarks.workloads.cold import run_cold
from benchmarks.workloads.context import run_context
from benchmarks.workloads.decode import run_decode
from benchmarks.workloads.gpu import run_gpu
from benchmarks.workloads.memory import run_memory
from benchmarks.workloads.mixed import run_mixed
from benchmarks.workloads.scale import run_scale
from benchmarks.workloads.scoring import run_scoring

WORKLOADS: Mapping[str, Callable[[Session], list[Measurement]]] = {
    "W1": run_decode,
    "W2": run_scoring,
    "W3": run_mixed,
    "W4": run_scale,
    "W5": run_cold,
    "W6": run_context,
    "memory": run_memory,
    "GPU": run_gpu,
}
_TABLE_WIDTH = 150  # in a file; a terminal has its own


def run_serving(options: Options, names: Sequence[str], home: Path, path: Path) -> Report:
    """Run workloads, print the table, and write the report to ``path`` after each of them."""
    console = Console(width=None if sys.stdout.isatty() else _TABLE_WIDTH)
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="headstock-bench-") as scratch:
        session = Session(options, home, Path(scratch), console)
        machine, rows = describe_machine(options.threads), list[Measurement]()
        report = Report(machine, library_versions({}), source_commit(), rows)
        for name in names:
            console.print(f"[bold]{name}[/]")
            begin = time.monotonic()
            rows = with_ratios([*rows, *WORKLOADS[name](session)])
            session.say(f"  done in {time.monotonic() - begin:.0f} s")
            versions = library_versions(session.peer_versions)
            report = Report(machine, versions, report.commit, rows)
            report.save(path)
    report.print(console, session.notes)
    console.print(f"Report: {path}", highlight=False)
    return report
