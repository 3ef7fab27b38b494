"""What ties processes together: a signal that comes while a lock is held."""

import signal
import threading

import pytest

from service.lifeline import stop_on_signals


@pytest.fixture(autouse=True)
def handlers():
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_while_the_main_thread_holds_a_lock_of_stop_does_not_hang(number):
    lock, stopped = threading.Lock(), threading.Event()

    def stop():
        assert lock.acquire(timeout=20)
        stopped.set()

    stop_on_signals(stop)
    with lock:  # as an event's `wait` holds its own
        signal.raise_signal(number)
        assert not stopped.is_set()
    assert stopped.wait(20)
