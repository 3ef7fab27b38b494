"""Aliases over HTTP: read with their history, moved, rolled back, taken away; ``If-Match`` guards each change."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header, Response
from pydantic import BaseModel, ConfigDict, Field

from adapters.errors import InvalidRequest
from adapters.registry.promotion import Rule
from adapters.registry.records import Alias
from adapters.registry.registry import Registry
from adapters.validation import shown
from service.access.callers import Who
from service.bodies import Body
from service.protocols.registry import (
    AliasAnswer,
    AliasWithHistory,
    DeletedName,
    MovedAlias,
    alias_answer,
    move_answer,
)
from service.routes.adapters import MAX_VERSION

IfMatch = Annotated[str | None, Header()]
_MOST_DIGITS = 18  # of a revision


class RuleBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    metric: str | None = Field(None, description="By default the task's primary one.")
    min_gain: float = Field(0.0, allow_inf_nan=False, description="In the metric's own unit.")

    def rule(self) -> Rule:
        return Rule(self.metric, self.min_gain)


class AliasBody(Body):
    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1, le=MAX_VERSION)
    promote_if: RuleBody | None = Field(
        None, description="Move only if the version is better than what the alias points at now."
    )


def aliases_router(registry: Registry) -> APIRouter:
    router = APIRouter(prefix="/v1/adapters/{name}/aliases/{alias}", tags=["adapters"])

    @router.get("")
    async def get_alias(name: str, alias: str, who: Who, response: Response) -> AliasWithHistory:
        """Tell where an alias points, and where it did."""
        found = await asyncio.to_thread(registry.get_alias, name, alias, who.namespace)
        moves = await asyncio.to_thread(registry.list_moves, name, alias, who.namespace)
        return {**_tagged(found, response), "history": [move_answer(move) for move in moves]}

    @router.put("")
    async def set_alias(
        name: str,
        alias: str,
        body: AliasBody,
        who: Who,
        response: Response,
        if_match: IfMatch = None,
    ) -> MovedAlias | AliasAnswer:
        """Point an alias at a version; with ``If-Match``, only if nobody moved it meanwhile."""
        revision = _revision(if_match)
        if body.promote_if is None:
            found = await asyncio.to_thread(
                registry.set_alias,
                name,
                alias,
                body.version,
                if_revision=revision,
                namespace=who.namespace,
            )
            return _tagged(found, response)
        rule = body.promote_if.rule()
        done = await asyncio.to_thread(
            registry.promote,
            name,
            alias,
            body.version,
            rule,
            if_revision=revision,
            namespace=who.namespace,
        )
        # Not moved means that there was something to compare with.
        assert done.alias is not None
        told = _tagged(done.alias, response)
        return {**told, "moved": done.is_moved, "comparison": done.comparison}

    @router.post("/rollback")
    async def roll_back(
        name: str, alias: str, who: Who, response: Response, if_match: IfMatch = None
    ) -> AliasAnswer:
        """Point an alias back at the version before; once more goes one further back."""
        revision = _revision(if_match)
        found = await asyncio.to_thread(
            registry.roll_back, name, alias, if_revision=revision, namespace=who.namespace
        )
        return _tagged(found, response)

    @router.delete("")
    async def remove_alias(
        name: str, alias: str, who: Who, if_match: IfMatch = None
    ) -> DeletedName:
        """Take an alias away; its history stays, and a rollback does not reach behind this."""
        revision = _revision(if_match)
        await asyncio.to_thread(
            registry.remove_alias, name, alias, if_revision=revision, namespace=who.namespace
        )
        return {"name": alias, "deleted": True}

    return router


def _tagged(alias: Alias, response: Response) -> AliasAnswer:
    """Return an alias, whose revision goes into the response's headers too."""
    response.headers["ETag"] = f'"{alias.revision}"'
    return alias_answer(alias)


def _revision(if_match: str | None) -> int | None:
    if if_match is None:
        return None
    text = if_match.strip().strip('"')
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise InvalidRequest(
            f'If-Match is {shown(if_match)}; send the ETag that the alias came with, such as "3".',
            param="if-match",
        )
    return int(text)
