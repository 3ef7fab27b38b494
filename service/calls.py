"""Calls of the engine in flight: which are let in, how each gets its replies, and when it has waited long enough."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal

from adapters.errors import DeadlineExceeded, HeadstockError, Overloaded, TooLarge, Unavailable
from adapters.runtime.rows import Row, RowResult
from adapters.runtime.stats import EngineStats
from adapters.tasks.base import Generation
from service.wire import (
    CancelRows,
    HoldAdapter,
    Message,
    ReadStats,
    Reply,
    RowsDone,
    RunRows,
    Wire,
    WireClosed,
)

# The engine ends a row at its deadline by itself; past this the API does not trust it to.
_GRACE_SECONDS = 3.0
# What is asked between two steps; a long step is waited for, and Prometheus waits 10 s for us.
_ASK_SECONDS = 8.0


class EngineLine:
    """Sends to one engine's process, in order, without ever blocking the caller."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._outbox: queue.SimpleQueue[tuple[int, Message] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="engine-writer", daemon=True)
        self._writer.start()

    def send(self, uid: int, message: Message) -> None:
        self._outbox.put((uid, message))

    def close(self) -> None:
        """End the writing thread; only once the process is gone, for until then it may block."""
        self._outbox.put(None)
        self._writer.join()

    def _write(self) -> None:
        try:
            while (item := self._outbox.get()) is not None:
                self._wire.send(item)
        except WireClosed:
            return  # who reads the replies learns it too, and fails the calls


class Call:
    """A call that was let in, for all the rounds of rows that it takes; while a server drains, too.

    Close it, or leave its ``with`` block: rows that nobody waits for leave the engine.
    """

    def __init__(self, uid: int, calls: EngineCalls) -> None:
        self.uid = uid
        self.line: EngineLine | None = None  # of its rows
        self.num_tokens = 0
        self._rows: Sequence[Row] = ()  # in the engine
        self._calls = calls
        self._replies: asyncio.Queue[Reply | HeadstockError] = asyncio.Queue()
        self._deadline: float | None = None

    def send(self, rows: Sequence[Row]) -> None:
        """Send a round of rows to the engine.

        Raises:
            Overloaded: too many tokens wait already; only of the first round, later ones were let in with it.
            TooLarge: the rows alone are more than this server ever takes at once.
            Unavailable: the engine is not there.
        """
        self.line = self._calls.admit(self, num_tokens(rows))
        self._rows = rows
        self._deadline = max(
            (row.deadline for row in rows if row.deadline is not None), default=None
        )
        self.line.send(self.uid, RunRows(list(rows)))

    async def run(self, rows: Sequence[Row]) -> list[RowResult]:
        """Return the results of a round of rows, in their order.

        Raises:
            HeadstockError: see `send` and `next`.
        """
        self.send(rows)
        while not isinstance(reply := await self.next(), RowsDone):
            pass
        return reply.results

    def put(self, reply: Reply | HeadstockError) -> None:
        """Take a reply in; on the event loop only."""
        if isinstance(reply, RowsDone):
            self._rows, self.line = (), None
        self._replies.put_nowait(reply)

    async def next(self) -> Reply:
        """Return the next reply.

        Raises:
            Unavailable: the engine's process ended, or the server stops.
            DeadlineExceeded: the engine did not answer in time, not even to say so.
        """
        try:
            async with asyncio.timeout(self.seconds_left(_GRACE_SECONDS)):
                reply = await self._replies.get()
        except TimeoutError:
            raise DeadlineExceeded(
                "The engine did not answer in the time this request had. Raise timeout_seconds, or send less."
            ) from None
        if isinstance(reply, HeadstockError):
            raise reply
        return reply

    def seconds_left(self, grace_seconds: float) -> float | None:
        """Return the time until so long after the latest deadline of the rows; None if they have none."""
        if self._deadline is None:
            return None
        return max(0.0, self._deadline + grace_seconds - time.monotonic())

    def close(self) -> None:
        if self._calls.forget(self) and self._rows and self.line is not None:
            self.line.send(self.uid, CancelRows([row.row_id for row in self._rows]))

    def __enter__(self) -> Call:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class EngineCalls:
    """The only way to the engine. Used on the event loop, save where a method says otherwise.

    Args:
        max_calls: calls in flight beyond which more are refused.
        max_tokens: bound of the prompt and answer tokens of all rows in flight.
    """

    def __init__(self, max_calls: int, max_tokens: int) -> None:
        self.is_draining = False
        self._max_calls = max_calls
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._num_asked = 0  # calls that are no prediction's
        self._uids = itertools.count()
        self._calls: dict[int, Call] = {}
        self._line: EngineLine | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_ready(self) -> bool:
        return self._line is not None and not self.is_draining

    async def stats(self) -> EngineStats:
        """Return the engine's counters; asked for even when the queue is full."""
        return await self._ask(ReadStats())

    async def hold(self, digest: str, how: Literal["warm", "pin", "unpin"]) -> EngineStats:
        """Bring an adapter in ahead of requests, keep it in, or no longer; return the engine's counters."""
        return await self._ask(HoldAdapter(digest, how))

    async def _ask(self, message: ReadStats | HoldAdapter) -> EngineStats:
        with self._enter() as call:
            self._num_asked += 1
            try:
                call.line = self._ready_line()
                call.line.send(call.uid, message)
                async with asyncio.timeout(_ASK_SECONDS):
                    reply = await call.next()
            except TimeoutError:
                raise Unavailable(
                    f"The engine has not answered for {_ASK_SECONDS:g} s. Try again after the time in Retry-After."
                ) from None
            finally:
                self._num_asked -= 1
        assert isinstance(reply, EngineStats)
        return reply

    def open(self) -> Call:
        """Let a call in before its text is read; it counts until it is closed.

        Raises:
            Overloaded: as many calls are in flight as may be.
            Unavailable: the engine is not there, or the server stops.
        """
        self._ready_line()
        num_calls = len(self._calls) - self._num_asked
        if num_calls >= self._max_calls:
            raise Overloaded(
                f"'{num_calls}' calls are waiting, as many as this server takes. "
                "Try again after the time in Retry-After."
            )
        return self._enter()

    def admit(self, call: Call, tokens: int) -> EngineLine:
        """Count the tokens of a call's next round; return where its rows go. Raises what `Call.send` does."""
        line = self._line
        if line is None:
            raise _starting()
        if not call.num_tokens:
            self._check_tokens(tokens)
        self._num_tokens += tokens - call.num_tokens
        call.num_tokens = tokens
        return line

    def _check_tokens(self, tokens: int) -> None:
        if tokens > self._max_tokens:
            raise TooLarge(
                f"The call's prompts and answers take '{tokens}' tokens; at most {self._max_tokens} go into one "
                "call. Send fewer inputs, ask for shorter answers or fewer logprobs, or raise "
                "HEADSTOCK_MAX_WAITING_TOKENS on the server."
            )
        if self._num_tokens + tokens > self._max_tokens:
            raise Overloaded(
                f"'{self._num_tokens}' tokens are waiting; with this call there would be more than the "
                f"{self._max_tokens} that this server takes. Try again after the time in Retry-After."
            )

    def _enter(self) -> Call:
        # Before the line is looked at: whoever fails the line's calls needs it.
        self._event_loop = asyncio.get_running_loop()
        call = Call(next(self._uids), self)
        self._calls[call.uid] = call
        return call

    def _ready_line(self) -> EngineLine:
        if self.is_draining:
            raise Unavailable(
                "The server is stopping. Send the request to another, or again later."
            )
        line = self._line
        if line is None:
            raise _starting()
        return line

    def forget(self, call: Call) -> bool:
        """Drop a call; return whether it was there."""
        if self._calls.pop(call.uid, None) is None:
            return False
        self._num_tokens -= call.num_tokens
        return True

    def connect(self, line: EngineLine) -> None:
        """Let calls in, to this line; from any thread."""
        self._line = line

    def disconnect(self, line: EngineLine, error: HeadstockError) -> None:
        """Refuse further calls and answer those on this line with an error; from any thread."""
        self._line = None
        # A call that saw the line still there is entered before this runs on its loop.
        self._on_loop(lambda: self._fail(error, line))

    def deliver(self, replies: Sequence[tuple[int, Reply]]) -> None:
        """Hand replies to their calls; from any thread."""
        self._on_loop(lambda: self._put(replies))

    def fail_all(self, error: HeadstockError) -> None:
        """Answer every call in flight with an error, and take its rows out of the engine; from any thread."""
        self._on_loop(lambda: self._fail(error, None))

    def _on_loop(self, action: Callable[[], None]) -> None:
        if self._event_loop is not None:  # else there never was a call
            self._event_loop.call_soon_threadsafe(action)

    def _put(self, replies: Sequence[tuple[int, Reply]]) -> None:
        for uid, reply in replies:
            if call := self._calls.get(uid):
                call.put(reply)

    def _fail(self, error: HeadstockError, line: EngineLine | None) -> None:
        for call in self._calls.values():
            if line in (None, call.line):
                call.put(error)


def _starting() -> Unavailable:
    return Unavailable("The engine is starting. Try again after the time in Retry-After.")


def num_tokens(rows: Sequence[Row]) -> int:
    """Return the tokens of the rows' prompts and of the longest answers they may get, those told beside them too."""
    return sum(len(row.token_ids) + _answer_tokens(row.generation) for row in rows)


def _answer_tokens(generation: Generation | None) -> int:
    if generation is None:
        return 0
    # Each takes some 600 bytes on its way, the token's own log-probability as much as one of the likeliest.
    told = 0 if generation.num_logprobs is None else 1 + generation.num_logprobs
    return generation.max_new_tokens * (1 + told)
