"""The data gate: what would make a training run fail or mislead, found before any of it is run. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from pydantic import BaseModel

from adapters.errors import InvalidData, InvalidRequest, TextTooLong
from adapters.tasks.base import Labelled
from adapters.tasks.catalog import AnyTask, task_class
from adapters.tasks.words import split_words
from adapters.tokenizer import Tokenizer
from training import checks
from training.checks import SplitRows
from training.contract import DataSettings
from training.data import DataFile, Example, fingerprint, read_examples
from training.findings import FileReport, Finding, LineProblem, Percentiles, Report, SplitReport
from training.records import file_name
from training.splits import Splits, split_examples

_TOLD_LATER = ("task", "data.columns")  # what a job may say of a file that was sent before
MIN_ROWS = 8  # fewer than the smallest batch that teaches anything


@dataclass(frozen=True, slots=True)
class Checked:
    """A run's rows, and what the gate says of them."""

    splits: Splits
    report: Report


def check_data(settings: DataSettings, task: str | None) -> Checked:
    """Read a run's files, divide them as the settings say, and check all; a bad line is a finding, not an error.

    Args:
        task: the task's name; None tells it by the columns of the training file.

    Raises:
        InvalidRequest: there is no such task.
        InvalidData: a file can't be read at all, its columns fit no task, or a share gives no row.
    """
    if task is not None:
        task_class(task)
    files = _read_files(settings, task)
    splits = _divide(files, settings)
    report = Report(task=files["train"].columns.task)
    for name, file in files.items():
        report.files[name] = _describe_file(file)
        report.findings += _file_findings(file, f"data.{name}")
    for name, rows in splits.parts().items():
        report.splits[name] = _describe_split(rows)
    if not report.errors():  # what bad lines hold is not known: the rest would mislead
        report.findings += find_all({"train": splits.train, **splits.parts()})
    return Checked(splits, report)


def check_upload(url: str) -> Report | None:
    """Check a file by itself, before anybody says what it is for; None if only its columns don't tell the task.

    Raises:
        InvalidData: it can't be read, or a line is bad; the message names the first ones.
    """
    try:
        report = check_data(DataSettings(train=url), None).report
    except InvalidData as error:
        if error.param in _TOLD_LATER:
            return None
        raise
    bad = [finding for finding in report.errors() if finding.code == "bad_lines"]
    if bad:
        raise InvalidData(bad[0].message, param="file")
    return report


def check_examples(
    train: Sequence[Example], test: Sequence[Example] = (), *, min_rows: int = MIN_ROWS
) -> list[str]:
    """Return warnings about a data set.

    Raises:
        InvalidData: training on it can't work: too few rows, one class or score only, or no entity or answer at all.
    """
    report = Report(task="")
    report.findings += find_all({"train": train, "test": test}, min_rows=min_rows)
    report.validate_data()
    return report.warnings()


def find_all(splits: SplitRows, *, min_rows: int = MIN_ROWS) -> Iterator[Finding]:
    """Yield what all checks that need no tokenizer find; ``splits`` holds ``train`` at least."""
    yield from checks.size_findings(splits, min_rows)
    if not splits["train"]:
        return
    for check in (
        checks.score_findings,
        checks.class_findings,
        checks.entity_findings,
        checks.answer_findings,
        checks.duplicate_findings,
    ):
        yield from check(splits)


def check_tokens(
    report: Report, splits: Splits, task: AnyTask, tokenizer: Tokenizer, max_tokens: int
) -> list[Finding]:
    """Add to a report what only a tokenizer can tell, and return the findings that it added.

    Lengths in tokens, the share of rows that do not fit into ``max_tokens``, and training rows that teach nothing
    because no token of theirs has a label.
    """
    added: list[Finding] = []
    for name, rows in splits.parts().items():
        measured = [_encode(task, tokenizer, example, max_tokens) for example in rows]
        lengths = [row for row in measured if row is not None]
        if name in report.splits and lengths:
            counts = [sum(len(part.token_ids) for part in row) for row in lengths]
            report.splits[name].lengths["tokens"] = _percentiles(counts)
        added += checks.length_findings(name, len(rows) - len(lengths), len(rows), max_tokens)
        if name == "train":
            lines = [e.line for e, row in zip(rows, measured, strict=True) if _is_masked(row)]
            added += checks.masked_findings(lines, len(rows))
    report.findings += added
    return added


def _encode(
    task: AnyTask, tokenizer: Tokenizer, example: Example, max_tokens: int
) -> list[Labelled] | None:
    """Return an example's rows; None if it does not fit."""
    parameters = task.Parameters.model_validate({})
    try:
        parts = task.encode_parts(tokenizer, example.request, parameters, max_tokens)
        return task.label_parts(tokenizer, parts, example.target)
    except TextTooLong:
        return None
    except (InvalidData, InvalidRequest) as error:
        raise InvalidData(f"Line {example.line}: {error.message}", param=error.param) from error


def _is_masked(rows: Sequence[Labelled] | None) -> bool:
    return rows is not None and all(map(checks.is_masked, rows))


def _read_files(settings: DataSettings, task: str | None) -> dict[str, DataFile]:
    if not settings.train:
        raise InvalidRequest("No training file. Set data.train.", param="data.train")
    files: dict[str, DataFile] = {}
    urls = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    for name, url in urls.items():
        if url:
            files[name] = read_examples(
                url, task, columns=settings.columns, class_names=settings.class_names
            )
            task = task or files[name].columns.task
    return files


def _divide(files: dict[str, DataFile], settings: DataSettings) -> Splits:
    given = {name: file.examples for name, file in files.items()}
    drawn = split_examples(
        given["train"],
        validation_share=settings.validation_share,
        test_share=settings.test_share,
        seed=settings.split_seed,
    )
    return Splits(
        drawn.train,
        given.get("validation", drawn.validation),
        given.get("test", drawn.test)[: settings.max_test_rows],
    )


def _file_findings(file: DataFile, param: str) -> Iterator[Finding]:
    try:
        file.validate()
    except InvalidData as error:
        yield Finding(level="error", code="bad_lines", message=error.message, param=param)


def _describe_file(file: DataFile) -> FileReport:
    return FileReport(
        name=file_name(file.url),
        columns=file.columns.fields,
        unused=list(file.columns.unused),
        problems=[LineProblem(line=p.line, kind=p.kind, message=p.message) for p in file.problems],
        problem_counts=dict(file.problem_counts.most_common()),
    )


def _describe_split(rows: Sequence[Example]) -> SplitReport:
    texts = [_text(example.request) for example in rows]
    return SplitReport(
        num_rows=len(rows),
        fingerprint=fingerprint(rows),
        labels=dict(checks.count_labels(rows).most_common()),
        lengths={
            "characters": _percentiles([len(text) for text in texts]),
            "words": _percentiles([len(split_words(text)) for text in texts]),
        },
    )


def _percentiles(lengths: Sequence[int]) -> Percentiles:
    """Return percentiles that occur among the lengths."""
    p50, p90, p99 = np.percentile(lengths, [50, 90, 99], method="higher").tolist()
    return Percentiles(p50=p50, p90=p90, p99=p99, longest=max(lengths))


def _text(request: BaseModel) -> str:
    """Return all text of a request."""
    return " ".join(_strings(request.model_dump(exclude={"role"})))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(_strings(v) for k, v in value.items() if k != "role")
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_strings, value))
