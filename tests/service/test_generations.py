"""The API knows at once what was written here, soon what was written elsewhere, and goes on when it can't ask."""

import threading

from adapters.errors import Unavailable
from service.generations import Generations
from tests.servers import wait_until


class SharedRegistry:
    """A registry whose database is on another machine, as far as generations go."""

    is_shared = True

    def __init__(self):
        self.number, self.num_own_writes, self.is_down = 1, 0, False
        self.was_asked = threading.Event()

    def generation(self):
        self.was_asked.set()
        if self.is_down:
            raise Unavailable("It is gone.")
        return self.number


def test_what_others_write_is_seen_within_a_poll():
    registry = SharedRegistry()
    generations = Generations(registry, poll_seconds=0.01)
    before = generations.current()
    registry.number = 2
    wait_until(lambda: generations.current() != before)
    generations.close()


def test_what_is_written_here_is_seen_at_once():
    registry = SharedRegistry()
    generations = Generations(registry, poll_seconds=60)
    before = generations.current()
    registry.num_own_writes += 1
    assert generations.current() != before
    generations.close()


def test_while_the_database_is_gone_the_last_generation_stays():
    registry = SharedRegistry()
    generations = Generations(registry, poll_seconds=0.01)
    before = generations.current()
    registry.is_down = True
    registry.was_asked.clear()
    assert registry.was_asked.wait(30)
    assert generations.current() == before
    registry.is_down, registry.number = False, 5
    wait_until(lambda: generations.current() != before)
    generations.close()
