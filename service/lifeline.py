"""Ties a child's life to its parent's; apart, so that a child need not import what the server is made of."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable

PARENT_VARIABLE = "HEADSTOCK_PARENT"  # number of the process that starts a worker or a run


def live_and_die_with_parent() -> None:
    """Tie this process to the server's: no signal meant for the whole group ends it early, and no crash leaves it.

    The server drains at SIGTERM, which needs the engine; when it is gone, the wire's end is noticed between steps
    and the kernel's signal at once.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():  # it died before we could ask
        os._exit(1)


def stop_with_parent() -> None:
    """Have SIGTERM sent to this process when the server that started it is gone; a person's shell is not told apart."""
    if sys.platform != "linux" or os.environ.get(PARENT_VARIABLE) is None:
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.environ[PARENT_VARIABLE] != str(os.getppid()):  # it died before we could ask
        os.kill(os.getpid(), signal.SIGTERM)


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Have ``stop`` called at SIGTERM and Ctrl-C, by a thread.

    A handler runs inside of whatever the main thread does: one that sets the event which that thread waits for can
    come while it holds the event's lock, and both wait for ever.
    """
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()  # whose `put` may be called in a handler

    def watch() -> None:
        while True:
            signals.get()
            stop()

    threading.Thread(target=watch, name="signals", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: signals.put(number))


if __name__ == "__main__":  # becomes the command that follows, which the tie stays with
    stop_with_parent()
    os.execv(sys.argv[1], sys.argv[1:])
