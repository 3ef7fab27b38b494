"""Whom a request comes from, and what of the references in it that caller may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from adapters.errors import NotFound
from adapters.reference import DEFAULT_NAMESPACE, Reference, parse_reference

CALLER_KEY = "headstock.caller"  # in a request's scope


@dataclass(frozen=True, slots=True)
class Caller:
    """Args:
    namespace: whose things a bare name means.
    is_bound: by a key: other namespaces are not there for it.
    key: id of that key.
    max_jobs: of the key's own that have not ended.
    """

    namespace: str = DEFAULT_NAMESPACE
    is_bound: bool = False
    key: str | None = None
    max_jobs: int | None = None

    def reference(self, text: str) -> Reference:
        """Return an adapter reference as this caller means it.

        Raises:
            InvalidRequest: it is none.
            NotFound: it is in a namespace that is not there for this caller.
        """
        found = parse_reference(text, self.namespace)
        if self.is_bound and found.namespace != self.namespace:
            raise NotFound(f"No adapter named '{text[:160]}'.", param="adapter")
        return found


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope.get(CALLER_KEY) or Caller()
    return caller


Who = Annotated[Caller, Depends(caller_of)]
