"""One wording for what pydantic finds wrong."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

_MAX_SHOWN = 60
_MOST_KEYS = 20
_MOST_FIELDS = 64
# What pydantic puts behind a field that may be of several types: which of them it tried.
_UNION_MEMBER = re.compile(r"constrained-\w+|literal\[.*\]|function-\w+\[.*\]")


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Return a sentence about the first thing that is wrong, and the path of the field."""
    problem = error.errors(include_url=False)[0]
    parts = [cut(str(part)) for part in problem["loc"]]
    path = printable(".".join(part for part in parts if not _UNION_MEMBER.fullmatch(part)))
    if problem["type"] == "missing":
        found = problem["input"] if isinstance(problem["input"], dict) else {}
        keys = listed([cut(str(key)) for key in found], _MOST_KEYS)
        return printable(f"no field '{path}'. Fields found: {keys or 'none'}."), path
    if problem["type"] == "extra_forbidden":
        return f"unknown field '{path}'. Leave it out, or check its spelling.", path
    if problem["type"] in ("string_pattern_mismatch", "string_too_short"):
        return f"field '{path}' is empty. Give it some text.", path
    said = problem["msg"].removeprefix("Value error, ")
    if not path:  # what is wrong lies between the fields
        return printable(f"{said}."), path
    return printable(f"field '{path}' is {shown(problem['input'])}: {said}."), path


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Return names in quotes, the first ones and how many more there are."""
    told = ", ".join(f"'{name}'" for name in names[:limit])
    return told + (f" and {len(names) - limit} more" if len(names) > limit else "")


def shown(value: Any) -> str:
    """Return a value in quotes, cut if it is long; no more of it is read than that."""
    if isinstance(value, str):
        return f"'{cut(value)}'"
    # Of one character each at least, so many are enough, and of what lies deeper none is asked for.
    return f"'{cut(''.join(itertools.islice(_pieces(value), _MAX_SHOWN + 1)))}'"


def _pieces(value: Any) -> Iterator[str]:
    """Yield what `repr` makes of a JSON value, piece by piece."""
    if type(value) not in (list, dict):
        yield repr(value)
        return
    begin, end = "[]" if type(value) is list else "{}"
    yield begin
    for i, key in enumerate(value):
        if i:
            yield ", "
        yield from _pieces(key)
        if type(value) is dict:
            yield ": "
            yield from _pieces(value[key])
    yield end


def check_number_of_fields(given: Any) -> None:
    """Raise a ValueError for an object of more fields than any has: of each unknown one pydantic makes an error."""
    if isinstance(given, dict) and len(given) > _MOST_FIELDS:
        raise ValueError(
            f"'{len(given)}' fields are more than there can be; leave out the unknown ones"
        )


def cut(text: str, limit: int = _MAX_SHOWN) -> str:
    """Return text, or the beginning of one that is longer than ``limit``."""
    return f"{text[:limit]}…" if len(text) > limit else text


def printable(text: str) -> str:
    """Return text that UTF-8 can carry: JSON may hold half a surrogate pair, which an answer can't echo."""
    return text.encode("utf-8", "backslashreplace").decode()
