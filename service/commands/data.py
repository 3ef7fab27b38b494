"""``headstock data …``: what the data gate says, without a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.errors import InvalidRequest
from service.commands.options import BackboneName, Home, load

if TYPE_CHECKING:
    from rich.console import Console

    from training.contract import DataSettings
    from training.findings import FileReport, Report
    from training.gate import Checked

app = typer.Typer(help="Files of examples, before anything is trained.", no_args_is_help=True)
_MAX_LABELS = 20


@app.callback()
def data() -> None:
    """Keep ``check`` a name of its own, though it is the only one."""


@app.command("check")
def check(
    file: Annotated[str, typer.Argument(help="JSONL, CSV or Parquet file of examples.")],
    task: Annotated[str | None, typer.Option(help="By the columns, if not set.")] = None,
    validation: Annotated[str | None, typer.Option(help="File of validation rows.")] = None,
    test: Annotated[str | None, typer.Option(help="File of test rows.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Our field = their column; may repeat.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report.")] = False,
    backbone: BackboneName = None,
    home: Home = None,
) -> None:
    """Check files as a run would; with --backbone, in its tokens too. Ends with 2 if training can't work."""
    from rich.console import Console

    from service.run_configs import pairs
    from training.contract import DataSettings
    from training.gate import check_data

    settings = DataSettings(
        train=file, validation=validation, test=test, columns=pairs(column or [], "--column")
    )
    checked = check_data(settings, task)
    if backbone and not checked.report.errors():
        _check_tokens(checked, settings, backbone, load(home=home).home)
    if as_json:
        typer.echo(json.dumps(checked.report.model_dump(), indent=2, ensure_ascii=False))
    else:
        _print(checked.report, Console(width=None if sys.stdout.isatty() else 120))
    if checked.report.errors():
        raise typer.Exit(2)


def _check_tokens(checked: Checked, settings: DataSettings, backbone: str, home: Path) -> None:
    from adapters.descriptions import describe_source
    from adapters.tasks.catalog import get_task, task_class
    from adapters.tasks.room import row_room
    from adapters.tokenizer import load_tokenizer
    from training.gate import check_tokens

    spec = describe_source(backbone, home)
    cls = task_class(checked.report.task)
    targets = [example.target for example in checked.splits.train]
    task = get_task(checked.report.task, cls.options_from({}, targets))
    if spec.family not in task.families:
        raise InvalidRequest(f"'{task.name}' writes text, which '{spec.name}' can't.")
    room = row_room(task, spec, task.Parameters.model_validate({}))
    limit = min(room, settings.max_row_tokens or room)
    check_tokens(checked.report, checked.splits, task, load_tokenizer(Path(spec.folder)), limit)


def _print(report: Report, console: Console) -> None:
    console.print(f"task: {report.task}", highlight=False)
    for name, file in report.files.items():
        _print_file(name, file, console)
    _print_splits(report, console)
    for finding in report.findings:
        colour = "red" if finding.level == "error" else "yellow"
        console.print(f"[{colour}]{finding.level}[/] {finding.code}: ", end="", highlight=False)
        console.print(finding.message, highlight=False, markup=False)
    if not report.findings:
        console.print("Nothing found.")


def _print_file(name: str, file: FileReport, console: Console) -> None:
    columns = ", ".join(f"{ours} = '{theirs}'" for ours, theirs in file.columns.items())
    unused = f"; not read: {', '.join(file.unused)}" if file.unused else ""
    console.print(f"{name}: '{file.name}', {columns}{unused}", highlight=False, markup=False)
    for problem in file.problems:
        console.print(f"  line {problem.line}: {problem.message}", highlight=False, markup=False)
    total = sum(file.problem_counts.values())
    if total > len(file.problems):
        counts = ", ".join(f"{kind} {count}" for kind, count in file.problem_counts.items())
        console.print(f"  … {total} bad lines in all ({counts})", highlight=False, markup=False)


def _print_splits(report: Report, console: Console) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("split", "rows", "length in", "p50", "p90", "p99", "longest"):
        table.add_column(heading, justify="left" if heading in ("split", "length in") else "right")
    for name, split in report.splits.items():
        for i, (unit, p) in enumerate(split.lengths.items()):
            first = (name, str(split.num_rows)) if i == 0 else ("", "")
            table.add_row(*first, unit, str(p.p50), str(p.p90), str(p.p99), str(p.longest))
    console.print(table)
    for name, split in report.splits.items():
        if split.labels:
            shown = [f"{label} {count}" for label, count in split.labels.items()]
            more = f", {len(shown) - _MAX_LABELS} more" if len(shown) > _MAX_LABELS else ""
            text = f"{name} labels: {', '.join(shown[:_MAX_LABELS])}{more}"
            console.print(text, highlight=False, markup=False)
