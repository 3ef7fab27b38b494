"""``headstock bench training``: fits by Headstock and by stock `Trainer` and peft, interleaved; speed and memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from adapters.packaged import DEFAULT_BACKBONE
from benchmarks.fits import FitSet, FitWork, cut_set, prepare_work, run_job
from benchmarks.machine import describe_machine, library_versions, source_commit
from benchmarks.peers.fit_job import FitOutcome
from benchmarks.report import Measurement, Report, measure, with_ratios
from benchmarks.rounds import run_rounds
from benchmarks.session import DEFAULT_ENCODER, Session
from training.contract import FitSettings

SYSTEMS = {"headstock": "fit_ours", "Trainer + peft": "fit_trainer"}
_BATCH_TOKENS = 512
_FLOPS_A_WEIGHT = 4  # of a token: forward, and back to the input; the weight itself is frozen


@dataclass(frozen=True, slots=True)
class Workload:
    """A fit that is timed.

    Args:
        num_tokens: that a fit goes through; a few hundred steps are not needed to see the pace of one.
        dtype: of the backbone, for both.
    """

    fit_set: FitSet
    num_tokens: int
    dtype: str


WORKLOADS: Mapping[str, Workload] = {
    "T1": Workload(
        FitSet("sentence_polarity", "text-classification", DEFAULT_BACKBONE), 12_000, "bfloat16"
    ),
    "T2": Workload(FitSet("scitldr", "summarization", DEFAULT_BACKBONE), 12_000, "bfloat16"),
    "T3": Workload(FitSet("banking77", "text-classification", DEFAULT_ENCODER), 40_000, "bfloat16"),
}


def run_training(session: Session, names: Sequence[str], data: Path, path: Path) -> Report:
    """Time the workloads' fits, and write the report to ``path`` after each.

    Raises:
        InvalidRequest: the data's folder lacks a set.
    """
    machine = describe_machine(session.options.threads)
    rows: list[Measurement] = []
    report = Report(machine, library_versions({}), source_commit(), rows)
    for name in names:
        work = _prepare(session, WORKLOADS[name], data)
        outcomes, watched = _time(session, name, WORKLOADS[name], work)
        rows = with_ratios([*rows, *_measured(name, outcomes, watched)])
        for system, each in outcomes.items():
            session.note(f"{name} {system}: {_share(work, each, machine):.0%} of the bf16 peak")
        report = Report(machine, report.versions, report.commit, rows)
        report.save(path)
    report.print(Console(width=None if sys.stdout.isatty() else 150), session.notes)
    return report


def _prepare(session: Session, workload: Workload, data: Path) -> FitWork:
    num_tokens = session.options.full_or_quick(workload.num_tokens, 2000)
    model = session.model(workload.fit_set.backbone)
    cut = cut_set(data, workload.fit_set.name, num_tokens, 1, model, session.scratch / "rows")
    settings = FitSettings(max_tokens=num_tokens, epochs=1, batch_tokens=_BATCH_TOKENS)
    return prepare_work(workload.fit_set, model, cut, settings)


def _time(
    session: Session, name: str, workload: Workload, work: FitWork
) -> tuple[dict[str, list[FitOutcome]], dict[str, FitOutcome]]:
    """Return each system's timed fits, and one more of each whose memory was watched."""
    session.say(f"{name}: {workload.fit_set.label}, {work.num_rows} rows")
    job = work.job(workload.dtype, session.options.threads, 0, answer=False)

    def fit(
        system: str, module: str, round_number: int, *, watch_memory: bool = False
    ) -> FitOutcome:
        out = session.scratch / f"{name}-{module}-{round_number}"
        try:
            outcome = run_job(module, replace(job, watch_memory=watch_memory), out)
        except subprocess.CalledProcessError as error:
            words = (out / "log.txt").read_text()[-2000:]
            raise RuntimeError(f"{system} failed:\n{words}") from error
        session.say(f"  {system}: {outcome.tokens / outcome.seconds:.0f} tokens/s")
        return outcome

    systems = {system: partial(fit, system, module) for system, module in SYSTEMS.items()}
    timed = run_rounds(systems, session.options.runs)
    watched = {s: fit(s, m, session.options.runs, watch_memory=True) for s, m in SYSTEMS.items()}
    return timed, watched


def _measured(
    name: str, outcomes: Mapping[str, Sequence[FitOutcome]], watched: Mapping[str, FitOutcome]
) -> list[Measurement]:
    speed = [
        measure(name, system, 1, "tokens/s", [each.tokens / each.seconds for each in runs])
        for system, runs in outcomes.items()
    ]
    memory = [
        measure(f"{name} memory", system, 1, "MB", [each.peak_bytes / 1e6])
        for system, each in watched.items()
    ]
    return [*speed, *memory]


def _share(work: FitWork, outcomes: Sequence[FitOutcome], machine: Mapping[str, object]) -> float:
    """Return what part of the measured bf16 matrix peak the backbone's products alone come to."""
    weights = sum(shape[0] * shape[1] for shape in work.model.spec.modules.values())
    pace = max(each.tokens / each.seconds for each in outcomes)
    return pace * _FLOPS_A_WEIGHT * weights / (float(str(machine["bf16_matmul_gflops"])) * 1e9)
