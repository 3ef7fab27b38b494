"""Aliases over HTTP: read with their history, moved, rolled back, taken away; ``If-Match`` guards each change."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from adapters.errors import InvalidRequest
from adapters.registry.promotion import Promotion, Rule
from adapters.registry.records import Alias
from adapters.registry.registry import Registry
from adapters.validation import shown
from service.access.callers import Who
from service.bodies import Body
from service.routes.adapters import MAX_VERSION, alias_body

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
    async def get_alias(name: str, alias: str, who: Who) -> JSONResponse:
        """Tell where an alias points, and where it did."""
        found = await asyncio.to_thread(registry.get_alias, name, alias, who.namespace)
        moves = await asyncio.to_thread(registry.list_moves, name, alias, who.namespace)
        history = [{**asdict(move), "moved_at": move.moved_at.isoformat()} for move in moves]
        return _tagged(found, history=history)

    @router.put("")
    async def set_alias(
        name: str, alias: str, body: AliasBody, who: Who, if_match: IfMatch = None
    ) -> JSONResponse:
        """Point an alias at a version; with ``If-Match``, only if nobody moved it meanwhile."""
        revision = _revision(if_match)
        if body.promote_if is None:
            return _tagged(
                await asyncio.to_thread(
                    registry.set_alias,
                    name,
                    alias,
                    body.version,
                    if_revision=revision,
                    namespace=who.namespace,
                )
            )
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
        return _promoted(done)

    @router.post("/rollback")
    async def roll_back(name: str, alias: str, who: Who, if_match: IfMatch = None) -> JSONResponse:
        """Point an alias back at the version before; once more goes one further back."""
        revision = _revision(if_match)
        return _tagged(
            await asyncio.to_thread(
                registry.roll_back, name, alias, if_revision=revision, namespace=who.namespace
            )
        )

    @router.delete("")
    async def remove_alias(
        name: str, alias: str, who: Who, if_match: IfMatch = None
    ) -> dict[str, Any]:
        """Take an alias away; its history stays, and a rollback does not reach behind this."""
        revision = _revision(if_match)
        await asyncio.to_thread(
            registry.remove_alias, name, alias, if_revision=revision, namespace=who.namespace
        )
        return {"name": alias, "deleted": True}

    return router


def _tagged(alias: Alias, **more: Any) -> JSONResponse:
    return JSONResponse({**alias_body(alias), **more}, headers={"ETag": f'"{alias.revision}"'})


def _promoted(done: Promotion) -> JSONResponse:
    told = {"moved": done.is_moved, "comparison": asdict(done.comparison)}
    # Not moved means that there was something to compare with.
    assert done.alias is not None
    return _tagged(done.alias, **told)


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
