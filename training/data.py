"""Files of examples, read row by row into the task's own request and target."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails

from adapters.errors import InvalidData
from adapters.tasks.catalog import AnyTask, task_class
from adapters.tensors import canonical_digest
from adapters.validation import first_problem
from training.columns import Columns, detect_task, find_columns, is_telling, pick
from training.records import Fault, Record, file_name, read_records, stored_class_names
from training.shapes import shape

MAX_PROBLEMS = 50
_HEAD_ROWS = 100  # columns are judged by so many records, and by later ones that have others
_MAX_CLASS_NUMBER = 10_000


@dataclass(frozen=True, slots=True)
class Example:
    """A training record: request, right answer, the line it came from (1 is the first), and its weight in the loss."""

    request: BaseModel
    target: BaseModel
    line: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one line of a file; of Parquet, ``line`` is the row."""

    line: int
    kind: str
    message: str


@dataclass(slots=True)
class DataFile:
    """A file of examples as it was read.

    Args:
        problems: the lines that are no examples, the first `MAX_PROBLEMS` of them.
        problem_counts: all of them, by kind.
    """

    url: str
    columns: Columns
    examples: list[Example] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    problem_counts: Counter[str] = field(default_factory=Counter)

    def validate(self) -> None:
        """Raise `InvalidData`, naming the first one, if a line is bad, and also if there are no rows."""
        name = file_name(self.url)
        if self.problems:
            first, count = self.problems[0], self.problem_counts.total()
            more = f" ({count} bad lines in all)" if count > 1 else ""
            raise InvalidData(f"Line {first.line} of '{name}': {first.message}{more}", param="data")
        if not self.examples:
            raise InvalidData(f"'{name}' holds no rows. Give it one example a line.", param="data")


def read_examples(
    url: str,
    task: str | None,
    *,
    columns: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
) -> DataFile:
    """Return a file's examples and the lines that are none.

    Args:
        task: the task's name; None tells it by the columns' names.
        columns: our field to the file's column, where its name doesn't tell.
        class_names: what numbers in the column of labels or tags stand for, from 0.

    Raises:
        InvalidData: the file can't be read at all, or its columns don't fit the task.
    """
    records = read_records(url)
    head = list(islice(records, _HEAD_ROWS))

    def judge(task: str | None) -> Columns:
        return _columns(url, task, head, columns or {}, class_names)

    file = DataFile(url, judge(task))
    _fill(file, head)
    for each in records:
        if not isinstance(each[1], Fault) and is_telling(each[1], file.columns):
            head.append(each)
            file.columns = judge(file.columns.task if file.columns.fields else task)
        _fill(file, [each])
    return file


def load_examples(url: str, task: str, **options: Any) -> list[Example]:
    """Return a file's examples; the options are those of `read_examples`.

    Raises:
        InvalidData: a line is bad; the message names the first one.
    """
    file = read_examples(url, task, **options)
    file.validate()
    return file.examples


def fingerprint(examples: Iterable[Example]) -> str:
    """Return a SHA-256 over the examples' content, whatever the file's form."""
    return canonical_digest(
        [[example.request.model_dump(), example.target.model_dump()] for example in examples]
    )


def content_key(example: Example) -> str:
    """Return what two examples with the same input share, but for case, spaces and forms of the same character."""
    return plain(example.request.model_dump_json())


def plain(text: str) -> str:
    """Return a text without what does not count when inputs are compared."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _columns(
    url: str,
    task: str | None,
    head: Sequence[tuple[int, Record | Fault]],
    given: Mapping[str, str],
    class_names: Sequence[str] | None,
) -> Columns:
    seen = [record for _, record in head if not isinstance(record, Fault)]
    if not seen:  # nothing to judge by; what the lines hold instead is told line by line
        return Columns(task or "unknown", {})
    try:
        name = task or detect_task(seen, given)
        found = find_columns(name, seen, given, stored_class_names(url))
    except InvalidData as error:
        raise InvalidData(f"'{file_name(url)}': {error.message}", param=error.param) from None
    _name_classes(found, seen, class_names)
    return found


def _name_classes(
    columns: Columns, head: Sequence[Record], class_names: Sequence[str] | None
) -> None:
    """Add the names of numbered classes: given ones, or the numbers themselves where all labels are numbers."""
    for ours in ("label", "labels", "tags"):
        if ours not in columns.fields:
            continue
        if class_names is not None:
            columns.class_names[ours] = list(class_names)
        elif ours != "tags" and ours not in columns.class_names:
            values = [pick(record, columns.fields[ours]) for record in head]
            numbers = list(chain.from_iterable(v if isinstance(v, list) else [v] for v in values))
            if numbers and all(_is_class_number(number) for number in numbers):
                columns.class_names[ours] = [str(i) for i in range(_MAX_CLASS_NUMBER)]


def _is_class_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_CLASS_NUMBER


def _fill(file: DataFile, records: Iterable[tuple[int, Record | Fault]]) -> None:
    for line, each in _examples(file.columns, records):
        if isinstance(each, Example):
            file.examples.append(each)
            continue
        file.problem_counts[each.kind] += 1
        if len(file.problems) < MAX_PROBLEMS:
            file.problems.append(Problem(line, each.kind, each.message))


def _examples(
    columns: Columns, records: Iterable[tuple[int, Record | Fault]]
) -> Iterator[tuple[int, Example | Fault]]:
    for line, record in records:
        if isinstance(record, Fault):
            yield line, record
            continue
        try:
            yield line, _example(record, columns, line)
        except ValidationError as error:
            yield line, _fault(error, columns)
        except InvalidData as error:
            theirs = columns.fields[str(error.param)]
            yield line, Fault(f"wrong '{error.param}'", error.message + _as_json(theirs))


def _fault(error: ValidationError, columns: Columns) -> Fault:
    message, path = first_problem(error)
    what = {"missing": "missing", "string_too_short": "empty", "string_pattern_mismatch": "empty"}
    ours = path.split(".")[0]
    kind = f"{what.get(error.errors()[0]['type'], 'wrong')} '{ours}'"
    theirs = columns.fields.get(ours, ours)
    source = "" if theirs == ours else f" (It is read from '{theirs}'.)"
    if ours == "tags" and ours not in columns.class_names and "valid string" in message:
        source += (
            " Numbers need their names: set data.class_names, a list (--set data.class_names=…)."
        )
    if error.errors()[0]["type"] == "list_type":
        cell = error.errors()[0]["input"]
        is_shown = isinstance(cell, str) and cell.startswith(("[", "{"))
        source += _as_json(theirs) if is_shown else ""
        source += " If it is one label, name its column 'label'." if ours == "labels" else ""
    return Fault(kind, message + source)


def _as_json(column: str) -> str:
    """Return how lists and objects must be written: pandas puts them into CSV as Python shows them."""
    return f""" Write it as JSON, such as ["x", "y"] (pandas: df['{column}'].map(json.dumps))."""


def _example(record: Record, columns: Columns, line: int) -> Example:
    task: type[AnyTask] = task_class(columns.task)
    shaped = shape(record, columns)

    def part(model: type[BaseModel]) -> BaseModel:
        known = {name: shaped[name] for name in model.model_fields if name in shaped}
        if (
            not known
        ):  # not even one of several that would do; the record's own fields show what is misspelt
            first = next(iter(model.model_fields))
            details = [InitErrorDetails(type="missing", loc=(first,), input=record)]
            raise ValidationError.from_exception_data(model.__name__, details)
        return model.model_validate(known)

    try:
        return Example(part(task.Request), part(task.Target), line)
    except ValidationError as error:
        raise _with_whole_record(error, record) from None


def _with_whole_record(error: ValidationError, record: Record) -> ValidationError:
    details = [
        {**item, "input": record} if item["type"] == "missing" and len(item["loc"]) == 1 else item
        for item in error.errors(include_url=False)
    ]
    known: list[Any] = [
        {"type": d["type"], "loc": d["loc"], "input": d["input"], "ctx": d.get("ctx", {})}
        for d in details
    ]
    return ValidationError.from_exception_data(error.title, known)
