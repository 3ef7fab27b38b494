"""One wording for what pydantic finds wrong."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

_MAX_SHOWN = 60


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Return a sentence about the first thing that is wrong, and the path of the field."""
    problem = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        found = problem["input"]
        keys = ", ".join(f"'{key}'" for key in found) if isinstance(found, dict) else ""
        return f"no field '{path}'. Fields found: {keys or 'none'}.", path
    if problem["type"] == "extra_forbidden":
        return f"unknown field '{path}'. Leave it out, or check its spelling.", path
    if problem["type"] == "string_pattern_mismatch" or problem["type"] == "string_too_short":
        return f"field '{path}' is empty. Give it some text.", path
    return f"field '{path}' is {_shown(problem['input'])}: {problem['msg']}.", path


def _shown(value: Any) -> str:
    text = str(value)
    return f"'{text[:_MAX_SHOWN]}…'" if len(text) > _MAX_SHOWN else f"'{text}'"
