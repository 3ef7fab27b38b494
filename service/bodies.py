"""What all JSON bodies are checked for: values that JSON can say, and that no answer can repeat."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, model_validator

from adapters.errors import InvalidRequest
from adapters.validation import cut, shown

_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


class Body(BaseModel):
    """The body of a request. What is stored of it stands in listings, which one bad value would break for good.

    ``/v1/predict`` has its own: there each row is refused, or answered, for itself.
    """

    @model_validator(mode="before")
    @classmethod
    def _can_be_repeated(cls, given: Any) -> Any:
        if (found := _unrepeatable(given)) is not None:
            path, value = found
            raise InvalidRequest(
                f"In the request, field '{path}' is {shown(value)}: {_fault(value)}.", param=path
            )
        return given


def _unrepeatable(given: Any) -> tuple[str, Any] | None:
    """Return the first value of a body that has a fault, and where; a key stands for itself."""
    path: list[Any] = []
    open_items = [_items(given)]  # not by recursion: a body may be nested deeper than that goes
    while open_items:
        for key, value in open_items[-1]:
            kind = type(value)
            if (kind is str or kind is float) and _fault(value):
                return ".".join(cut(str(part)) for part in [*path, key]), value
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


def _fault(value: str | float) -> str | None:
    if isinstance(value, str):
        if value.isascii() or not _HALF_A_PAIR.search(value):
            return None
        return "it holds half of a character, a surrogate without its other half. Send both"
    return None if math.isfinite(value) else "JSON has no such number. Send a finite one"
