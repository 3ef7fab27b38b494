"""What all JSON bodies are checked for: what JSON can say, and no answer repeat or no database keep."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, model_validator

from adapters.errors import InvalidRequest, TooLarge
from adapters.validation import cut, shown

MOST_ROWS = 10_000  # that any server takes in one call
_MOST_VALUES = 50_000  # of any body but that of /v1/predict, keys counted
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


class Body(BaseModel):
    """The body of a request. What is stored of it stands in listings, which one bad value would break for good.

    ``/v1/predict`` has its own: there each row is refused, or answered, for itself.
    """

    is_stored: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _can_be_repeated(cls, given: Any) -> Any:
        if (found := _first_fault(given, cls.is_stored)) is not None:
            path, value, fault = found
            raise InvalidRequest(
                f"In the request, field '{path}' is {shown(value)}: {fault}.", param=path
            )
        return given


def _first_fault(given: Any, is_stored: bool) -> tuple[str, Any, str] | None:
    """Return the first value of a body that has a fault: where, what, and the fault; a key stands for itself.

    Raises:
        TooLarge: there are more values than are looked at: each costs, and pydantic may make an error of each.
    """
    num_values = 0
    path: list[Any] = []
    open_items = [_items(given)]  # not by recursion: a body may be nested deeper than that goes
    while open_items:
        for key, value in open_items[-1]:
            num_values += 1
            if num_values > _MOST_VALUES:
                raise TooLarge(f"The body holds more than '{_MOST_VALUES}' values. Send fewer.")
            kind = type(value)
            fault = _fault(value, is_stored) if kind is str or kind is float else None
            if fault is not None:
                return ".".join(cut(str(part)) for part in [*path, key]), value, fault
            if kind is dict or kind is list:
                path.append(key)
                open_items.append(_items(value))
                break
        else:
            open_items.pop()
            del path[-1:]
    return None


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        return itertools.chain(zip(value, value, strict=True), value.items())
    return iter(enumerate(value if isinstance(value, list) else ()))


def _fault(value: str | float, is_stored: bool) -> str | None:
    if isinstance(value, str):
        if is_stored and "\0" in value:  # which PostgreSQL has no text for
            return "it holds U+0000, which can't be stored. Leave it out"
        if value.isascii() or not _HALF_A_PAIR.search(value):
            return None
        return "it holds half of a character, a surrogate without its other half. Send both"
    return None if math.isfinite(value) else "JSON has no such number. Send a finite one"
