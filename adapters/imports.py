"""Imports of the large libraries, and what the garbage collector has to do with them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def many_imports() -> Iterator[None]:
    """Import within this what has hundreds of thousands of objects, which stay for as long as the process runs.

    The collector would look for garbage among them: again and again while they come (a fifth of the time that torch,
    transformers and peft take), in 0.3 s whenever it looks at all, and for 1.5 s when the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
