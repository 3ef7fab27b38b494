"""Threads of the API for what must not stop its event loop: some for what is soon done, others for all that is not.

Predictions wait for the first alone, so that no upload holds them up, be it large or its store hanging.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_NUM_QUICK, _NUM_SLOW = 8, 32
_NUM_A_TURN = 16
_NICENESS = 10
P = ParamSpec("P")
T = TypeVar("T")


def _give_way() -> None:
    """Lower this thread's priority: the engine's threads wait for each other in every layer, each for the last."""
    with contextlib.suppress(OSError):  # Linux knows priorities of threads; others need not
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


_QUICK = ThreadPoolExecutor(_NUM_QUICK, thread_name_prefix="quick")
_SLOW = ThreadPoolExecutor(_NUM_SLOW, thread_name_prefix="slow", initializer=_give_way)


async def in_quick_thread(act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a function returns that waits for no store."""
    return await asyncio.get_running_loop().run_in_executor(_QUICK, lambda: act(*args, **kwargs))


async def in_quick_turns(each: Iterator[T]) -> list[T]:
    """Return all that an iterator gives, some at a time: others' work comes in between, and a cancel ends it."""
    made: list[T] = []
    while True:
        some = await in_quick_thread(lambda: list(itertools.islice(each, _NUM_A_TURN)))
        made += some
        if len(some) < _NUM_A_TURN:
            return made


async def in_slow_thread(act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a function returns that reads, writes or checks much; predictions go first."""
    return await asyncio.get_running_loop().run_in_executor(_SLOW, lambda: act(*args, **kwargs))
