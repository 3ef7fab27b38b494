"""Server-sent events: one prediction's text as it is made, then the whole prediction."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.responses import StreamingResponse

from adapters.errors import HeadstockError
from adapters.runtime.rows import RowResult
from adapters.text_stream import StreamText
from service.calls import Call
from service.errors import error_body
from service.threads import in_quick_thread
from service.wire import Reply, RowParts, RowsDone

logger = logging.getLogger(__name__)
# After a call's deadline, for its last events to be read; the engine's last word comes 3 s after it at the latest.
_READ_SECONDS = 10.0


class EventStream(StreamingResponse):
    """Sends events, and closes the call they come from however the client goes, or stays without reading."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], call: Call) -> None:
        # X-Accel-Buffering: nginx otherwise keeps events until its buffer is full.
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._call = call

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            async with asyncio.timeout(self._call.seconds_left(_READ_SECONDS)):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            logger.warning(
                "A client did not read its stream in the time of its call; it is cut off."
            )
        finally:
            self._call.close()


async def prediction_events(
    first: Reply,
    call: Call,
    text: StreamText,
    finish: Callable[[RowResult], dict[str, Any] | HeadstockError],
) -> AsyncIterator[str]:
    """Yield ``{"delta"}`` events and then the prediction with ``"done": true``, or an ``{"error"}``.

    Args:
        first: the call's first reply; an error in its place is not an event but a status code.
        finish: makes the answer from the row's result.
    """
    num_tokens = 0
    reply = first
    try:
        while isinstance(reply, RowParts):
            made = [token for part in reply.parts for token in part.token_ids]
            num_tokens += len(made)
            if delta := text.feed(made):
                yield _event({"delta": delta})
            reply = await call.next()
        assert isinstance(reply, RowsDone)
        (result,) = reply.results
        answer = await in_quick_thread(finish, result)
        if isinstance(answer, HeadstockError):
            raise answer
        # Tokens of the last step may come with the result alone.
        rest = result.output.token_ids[num_tokens:] if result.output else ()
        if delta := text.feed(rest) + text.finish():
            yield _event({"delta": delta})
        yield _event({**answer, "done": True})
    except HeadstockError as error:
        yield _event({"error": error_body(error)})


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
