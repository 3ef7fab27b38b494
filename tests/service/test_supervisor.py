"""The engine's process is started again when it dies, and given up when that is of no use."""

from collections import deque

from service.supervisor import DEATHS_SECONDS, MAX_DEATHS, MAX_FAILED_STARTS, _why_give_up
from tests.engines import EchoEngine, Household
from tests.servers import wait_until


def test_a_process_that_dies_again_and_again_is_given_up():
    home = Household(*(EchoEngine() for _ in range(MAX_DEATHS)))
    for number in range(1, MAX_DEATHS + 1):
        wait_until(lambda number=number: home.num_ready == number)
        assert home.gave_up == []
        home.processes[-1].kill()
    wait_until(lambda: home.gave_up)
    assert home.gave_up == ["it ended 5 times within 60 seconds"]
    assert not home.calls.is_ready
    assert len(home.processes) == MAX_DEATHS


def test_a_process_that_never_was_ready_is_given_up_at_once():
    home = Household(None)
    wait_until(lambda: home.gave_up)
    assert home.gave_up == ["it ended before it was ready"]


def test_a_process_that_has_served_is_tried_again_when_it_fails_to_start():
    home = Household(EchoEngine(), None, None, EchoEngine(), None, None, None)
    wait_until(lambda: home.num_ready == 1)
    home.processes[0].kill()
    wait_until(lambda: home.num_ready == 2)
    assert home.gave_up == []


def test_three_failed_starts_in_a_row_are_the_end():
    assert _why_give_up(True, MAX_FAILED_STARTS - 1, deque([0.0])) is None
    assert "failed to start 3 times" in _why_give_up(True, MAX_FAILED_STARTS, deque([0.0]))


def test_deaths_far_apart_are_not_given_up():
    spread = deque((i * DEATHS_SECONDS / (MAX_DEATHS - 1) for i in range(MAX_DEATHS)), MAX_DEATHS)
    assert _why_give_up(True, 0, spread) is None
    assert _why_give_up(True, 0, deque([0.0] * (MAX_DEATHS - 1), MAX_DEATHS)) is None


def test_a_stopped_supervisor_starts_nothing():
    home = Household(EchoEngine(), EchoEngine())
    wait_until(lambda: home.num_ready)
    home.close()
    home.processes[0].join()
    wait_until(lambda: not home.calls.is_ready)
    assert (len(home.processes), home.gave_up) == (1, [])
