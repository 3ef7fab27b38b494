"""In which fields two manifests differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from adapters.bundle import Manifest

_ABSENT = "(absent)"


def differences(first: Manifest, second: Manifest) -> Iterator[tuple[str, str, str]]:
    """Yield a field's path, such as ``metrics.after.accuracy``, and its two values as JSON, by path."""
    one, other = (dict(_leaves(m.model_dump(mode="json"), "")) for m in (first, second))
    for path in sorted(one.keys() | other.keys()):
        if one.get(path, _ABSENT) != other.get(path, _ABSENT):
            yield path, one.get(path, _ABSENT), other.get(path, _ABSENT)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(value, ensure_ascii=False)
