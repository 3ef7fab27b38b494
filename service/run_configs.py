"""Configs of runs as the command line gives them: fields, task options and changes as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from adapters.errors import InvalidRequest
from adapters.validation import first_problem
from training.contract import RunConfig


def run_config(changes: Sequence[str] = (), **fields: Any) -> RunConfig:
    """Return the config with some fields changed, each given as its path, ``=`` and a value.

    Raises:
        InvalidRequest: a change names no field, or a value is not what its field takes.
    """
    changed(fields, changes)
    try:
        return RunConfig.model_validate(fields)
    except ValidationError as error:
        message, param = first_problem(error)
        raise InvalidRequest(message, param=param) from error


def changed(fields: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Put values into nested fields, each given as its path, ``=`` and a value; returns the fields.

    Raises:
        InvalidRequest: a change has no ``=``, or its path leads through what holds no fields.
    """
    for change in changes:
        path, equals, value = change.partition("=")
        *sections, name = path.split(".")
        section = fields
        for each in sections:
            section = section.setdefault(each, {})
            if not isinstance(section, dict):
                raise InvalidRequest(f"--set '{change}': '{each}' holds no fields.")
        if not equals:
            raise InvalidRequest(f"--set '{change}' is not path=value, such as fit.epochs=3.")
        section[name] = json_or_text(value)
    return fields


def options_from(given: Sequence[str]) -> dict[str, Any]:
    """Return a task's options, each given as ``key=value`` with JSON or text as the value."""
    return {key: json_or_text(value) for key, value in pairs(given, "--option").items()}


def pairs(given: Sequence[str], flag: str) -> dict[str, str]:
    """Return what a repeated flag says as ``key=value``.

    Raises:
        InvalidRequest: one has no ``=``.
    """
    found = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals:
            raise InvalidRequest(f"{flag} '{each}' is not key=value. Write {flag} {each}=VALUE.")
        found[key] = value
    return found


def json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
