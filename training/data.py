"""Files of examples, read row by row into the task's own request and target."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec
from pydantic import BaseModel, ValidationError

from adapters.errors import InvalidData
from adapters.tasks.catalog import AnyTask
from adapters.tensors import canonical_digest
from adapters.validation import first_problem

MAX_PROBLEMS = 50
MAX_CELL_CHARACTERS = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Example:
    """A training record: the request, the right answer, and the line it came from (1 is the first)."""

    request: BaseModel
    target: BaseModel
    line: int


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one line of a file."""

    line: int
    message: str


def read_examples(url: str, task: type[AnyTask]) -> tuple[list[Example], list[Problem]]:
    """Return a file's examples and the lines that are no examples (the first `MAX_PROBLEMS`).

    Fields that the task does not know, such as an id, are passed over.

    Raises:
        InvalidData: the file can't be read at all.
    """
    examples: list[Example] = []
    problems: list[Problem] = []
    for line, record in _records(url):
        if isinstance(record, str):
            problems.append(Problem(line, record))
        else:
            try:
                examples.append(_example(record, task, line))
            except ValidationError as error:
                problems.append(Problem(line, first_problem(error)[0]))
        if len(problems) >= MAX_PROBLEMS:
            break
    return examples, problems


def load_examples(url: str, task: type[AnyTask]) -> list[Example]:
    """Return a file's examples.

    Raises:
        InvalidData: a line is bad; the message names the first one.
    """
    examples, problems = read_examples(url, task)
    if problems:
        more = f" ({len(problems)} bad lines in all)" if len(problems) > 1 else ""
        raise InvalidData(
            f"Line {problems[0].line} of '{_name(url)}': {problems[0].message}{more}", param="data"
        )
    if not examples:
        raise InvalidData(
            f"'{_name(url)}' holds no rows. Give it one example a line.", param="data"
        )
    return examples


def fingerprint(examples: list[Example]) -> str:
    """Return a SHA-256 over the examples' content, whatever the file's form."""
    return canonical_digest(
        [[example.request.model_dump(), example.target.model_dump()] for example in examples]
    )


def _example(record: dict[str, Any], task: type[AnyTask], line: int) -> Example:
    def part(model: type[BaseModel]) -> BaseModel:
        known = {name: record[name] for name in model.model_fields if name in record}
        # Nothing known: show the record's own fields, so that a misspelt one is seen.
        return model.model_validate(known or record)

    try:
        return Example(part(task.Request), part(task.Target), line)
    except ValidationError as error:
        raise _with_whole_record(error, record) from None


def _with_whole_record(error: ValidationError, record: dict[str, Any]) -> ValidationError:
    details = [
        {**item, "input": record} if item["type"] == "missing" and len(item["loc"]) == 1 else item
        for item in error.errors(include_url=False)
    ]
    known: list[Any] = [
        {"type": d["type"], "loc": d["loc"], "input": d["input"], "ctx": d.get("ctx", {})}
        for d in details
    ]
    return ValidationError.from_exception_data(error.title, known)


def _records(url: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield line number and record, or line number and what is wrong with it."""
    suffix = PurePosixPath(url).suffix.lower()
    readers = {".jsonl": _json_lines, ".csv": _csv_rows}
    if suffix not in readers:
        raise InvalidData(
            f"'{_name(url)}' ends in '{suffix}'; examples come as .jsonl or .csv.", param="data"
        )
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        with fsspec.open(url, "rt", encoding="utf-8-sig", newline="") as file:
            yield from readers[suffix](file)
    except FileNotFoundError as error:
        raise InvalidData(f"No file '{url}'. Check the path.", param="data") from error
    except (OSError, ValueError, ImportError, csv.Error) as error:
        raise InvalidData(f"Can't read '{_name(url)}': {error}.", param="data") from error


def _json_lines(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"'{line.strip()[:60]}' is not JSON ({error})."
            continue
        yield number, record if isinstance(record, dict) else f"'{line.strip()[:60]}' is no object."


def _csv_rows(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    reader = csv.DictReader(file)
    for record in reader:
        if None in record or None in record.values():
            columns = len(reader.fieldnames or ())
            yield reader.line_num, f"the row does not have the header's {columns} columns."
        else:
            yield reader.line_num, {key: _cell(value) for key, value in record.items()}


def _cell(value: str) -> Any:
    """Return a cell's JSON value if it is an object or a list (``answers``, ``tokens``), else its text."""
    if not value.startswith(("[{", "{", '["')):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _name(url: str) -> str:
    return PurePosixPath(url).name
