"""How people name an adapter: ``name``, ``name@alias`` or ``name:version``, after ``namespace/`` if not theirs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapters.errors import InvalidRequest
from adapters.validation import shown

DEFAULT_NAMESPACE = "default"
DEFAULT_ALIAS = "production"
NAME_RULE = "1 to 64 of a-z 0-9 . _ -, starting with a letter or digit"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed adapter reference; at most one of ``alias`` and ``version`` is set."""

    name: str
    alias: str | None = None
    version: int | None = None
    namespace: str = DEFAULT_NAMESPACE

    def __str__(self) -> str:
        prefix = "" if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/"
        suffix = f"@{self.alias}" if self.alias else f":{self.version}" if self.version else ""
        return f"{prefix}{self.name}{suffix}"


def parse_reference(text: str, home: str = DEFAULT_NAMESPACE) -> Reference:
    """Return the parts of an adapter reference.

    Args:
        home: namespace of a name without one.

    Raises:
        InvalidRequest: the text has no valid name, alias or version number.
    """
    namespace, slash, rest = text.rpartition("/")
    name, at, alias = rest.partition("@")
    name, colon, number = (name, "", "") if at else rest.partition(":")
    for part, present in ((namespace, slash), (alias, at)):
        if present:
            check_name(part, what="adapter reference", whole=text)
    check_name(name, what="adapter reference", whole=text)
    if colon and not re.fullmatch(r"[1-9][0-9]{0,8}", number):
        raise InvalidRequest(
            f"{shown(text)} is not an adapter reference: {shown(number)} is no version number. "
            "Write name, name@alias or name:version, such as 'tickets:3'.",
            param="adapter",
        )
    return Reference(name, alias or None, int(number) if colon else None, namespace or home)


def check_name(name: str, *, what: str, whole: str | None = None) -> str:
    """Return ``name`` if it may name an adapter, alias or namespace; raise `InvalidRequest` if not."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{shown(whole or name)} is not a valid {what}: a name has {NAME_RULE}.",
            param="adapter",
        )
    return name
