"""What a worker process is told and answers, as JSON lines; free of torch and of the rest of Headstock."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Load:
    """What a worker loads before it is timed.

    Args:
        backbone: folder of the model.
        adapters: PEFT folders by name.
        options: what only this kind of worker knows, such as the engine's limits.
        device: as torch names it.
    """

    backbone: str
    dtype: str
    threads: int
    adapters: dict[str, str]
    options: dict[str, int | str] = field(default_factory=dict)
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class WorkRow:
    """One request: generate ``max_new`` tokens, or up to one of ``end_ids``; with 0, give a label's index."""

    token_ids: list[int]
    adapter: str | None = None
    max_new: int = 0
    end_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """Rows in order of arrival; a system sees ``window`` rows at once, or all if it is 0."""

    rows: list[WorkRow]
    window: int = 0

    def windows(self) -> list[list[WorkRow]]:
        size = self.window or max(1, len(self.rows))
        return [self.rows[i : i + size] for i in range(0, len(self.rows), size)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds that the work took inside the worker, and each row's generated tokens or label."""

    seconds: float
    outputs: list[list[int]]


class Peer(Protocol):
    """A system that can be timed."""

    def load(self, order: Load) -> None:
        """Get ready: nothing that happens here is timed."""

    def run(self, work: Work) -> Outcome:
        """Do the work and time it."""


def serve(peer: Peer) -> None:
    """Answer each line of stdin with one line, until stdin ends."""
    # Libraries print; what they print must not mix with the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    handlers: dict[str, Callable[[dict[str, Any]], object]] = {
        "load": lambda body: peer.load(Load(**body)),
        "run": lambda body: asdict(peer.run(_work(body))),
    }
    for line in sys.stdin:
        message = json.loads(line)
        try:
            reply = {"ok": handlers[message["command"]](message["body"])}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)
    gc.freeze()  # or the interpreter's end looks at all that was imported, for a second or two


def _work(body: dict[str, Any]) -> Work:
    return Work([WorkRow(**row) for row in body["rows"]], body["window"])
