"""Threads for what waits for no store: uploads that hang, which have asyncio's own few, hold no prediction up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_NUM_THREADS = 8
_POOL = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="quick")
P = ParamSpec("P")
T = TypeVar("T")


async def in_quick_thread(act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a function returns, without stopping the event loop meanwhile."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_POOL, lambda: act(*args, **kwargs))
