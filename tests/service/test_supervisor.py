"""The engine's process is started again when it dies, and given up when that is of no use."""

from collections import deque

from service.supervisor import DEATHS_SECONDS, MAX_DEATHS, _why_give_up
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


def test_a_process_that_can_not_start_again_is_given_up_at_once():
    home = Household(EchoEngine(), None)
    wait_until(lambda: home.num_ready)
    home.processes[0].kill()
    wait_until(lambda: home.gave_up)
    assert home.gave_up == ["it ended before it was ready"]


def test_deaths_far_apart_are_not_given_up():
    spread = deque((i * DEATHS_SECONDS / (MAX_DEATHS - 1) for i in range(MAX_DEATHS)), MAX_DEATHS)
    assert _why_give_up(True, spread) is None
    assert _why_give_up(True, deque([0.0] * (MAX_DEATHS - 1), MAX_DEATHS)) is None


def test_a_stopped_supervisor_starts_nothing():
    home = Household(EchoEngine(), EchoEngine())
    wait_until(lambda: home.num_ready)
    home.close()
    home.processes[0].join()
    wait_until(lambda: not home.calls.is_ready)
    assert (len(home.processes), home.gave_up) == (1, [])
