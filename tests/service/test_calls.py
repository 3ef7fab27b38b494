"""Calls of the engine: answered in order, refused at once when there are too many, and never left waiting."""

import asyncio
import time

import pytest

import service.calls
from adapters.errors import DeadlineExceeded, InvalidRequest, Overloaded, TooLarge, Unavailable
from adapters.runtime.rows import Row
from adapters.tasks.base import Generation
from service.calls import num_tokens
from service.wire import RowParts, RowsDone
from tests.engines import EchoEngine, Household
from tests.servers import wait_until


def row(name, *tokens, stream=False, timeout=None):
    generation = Generation(len(tokens), (), stream=stream)
    deadline = None if timeout is None else time.monotonic() + timeout
    return Row(name, tokens, generation=generation, deadline=deadline)


@pytest.fixture
def household():
    """Give a function that opens one, and close them all."""
    opened = []

    def open_one(*engines, **limits):
        opened.append(Household(*(engines or [EchoEngine()]), **limits))
        wait_until(lambda: opened[-1].calls.is_ready)
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def outputs(results):
    return [result.output.token_ids if result.output else result.error.code for result in results]


def test_results_come_in_the_order_of_the_rows_whichever_ends_first(household):
    home = household()
    results = asyncio.run(home.run([row("a", 7, 8, 9), row("b", 5), row("c", 0), row("d", 2)]))
    assert outputs(results) == [(7, 8, 9), (5,), "invalid_request", "invalid_request"]


def test_a_step_that_fails_ends_its_rows_and_the_engine_goes_on(household):
    home = household()
    assert outputs(asyncio.run(home.run([row("a", 1), row("b", 5, 6)]))) == ["invalid_request"] * 2
    assert outputs(asyncio.run(home.run([row("c", 5, 6)]))) == [(5, 6)]


def test_a_lost_device_ends_its_process_and_the_next_one_answers(household):
    home = household(EchoEngine(), EchoEngine())
    with pytest.raises(Unavailable):
        asyncio.run(home.run([row("a", 4), row("b", 5, 6)]))
    wait_until(lambda: home.num_ready == 2)
    assert outputs(asyncio.run(home.run([row("c", 5, 6)]))) == [(5, 6)]


def test_parts_of_a_streaming_row_come_before_its_result(household):
    home = household()

    async def replies():
        with home.calls.open() as call:
            call.send([row("a", 7, 8, 9, stream=True)])
            found = []
            while not isinstance(reply := await call.next(), RowsDone):
                assert isinstance(reply, RowParts)
                found += [part.token_ids for part in reply.parts]
            return found, reply.results[0].output.token_ids

    assert asyncio.run(replies()) == ([(7,), (8,), (9,)], (7, 8, 9))


def test_too_many_calls_or_tokens_are_refused_at_once_and_let_in_again_later(household):
    home = household(EchoEngine(go=False), max_calls=2, max_tokens=20)

    async def scenario():
        first = asyncio.create_task(home.run([row("a", *[5] * 8)]))  # prompt + answer: 16
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="'16' tokens are waiting"):
            await home.run([row("b", 5, 5, 5)])
        with pytest.raises(TooLarge, match="'22' tokens; at most 20"):
            await home.run([row("b", *[5] * 11)])
        second = asyncio.create_task(home.run([row("c", 5, 5)]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="'2' calls are waiting"):
            home.calls.open()
        assert (await home.calls.stats()).waiting_rows == 2
        home.engines[0].go.set()
        await asyncio.gather(first, second)
        return await home.run([row("d", *[5] * 10)])

    assert outputs(asyncio.run(scenario())) == [(5,) * 10]


@pytest.mark.parametrize(("num_logprobs", "tokens"), [(None, 6), (0, 9), (20, 69)])
def test_a_token_whose_likeliest_are_told_counts_as_that_many_more(num_logprobs, tokens):
    generation = Generation(3, (), num_logprobs=num_logprobs)
    assert num_tokens([Row("a", [5] * 3, generation=generation)]) == tokens


def test_later_rounds_belong_to_the_call_that_was_let_in(household):
    home = household(max_calls=1, max_tokens=20)

    async def scenario():
        with home.calls.open() as call:
            first = await call.run([row("a", 5)])
            with pytest.raises(Overloaded, match="'1' calls are waiting"):
                home.calls.open()
            home.calls.is_draining = True
            return [*first, *await call.run([row("b", *[6] * 11)])]

    assert outputs(asyncio.run(scenario())) == [(5,), (6,) * 11]


def test_a_cancelled_call_takes_its_rows_out_of_the_engine(household):
    home = household(EchoEngine(go=False))

    async def scenario():
        waiting = asyncio.create_task(home.run([row("a", 5, 5), row("b", 6)]))
        while (await home.calls.stats()).waiting_rows < 2:
            pass
        waiting.cancel()
        while (await home.calls.stats()).waiting_rows:
            pass
        home.engines[0].go.set()
        await home.run([row("c", *[5] * 500)])  # its tokens are given back

    asyncio.run(scenario())


def test_the_engines_own_deadline_error_ends_the_row_alone(household):
    home = household()
    results = asyncio.run(home.run([row("a", 5, 5, timeout=-1), row("b", 5, timeout=60)]))
    assert outputs(results) == ["deadline_exceeded", (5,)]


def test_an_engine_that_ignores_the_deadline_is_not_waited_for(household, monkeypatch):
    monkeypatch.setattr(service.calls, "_GRACE_SECONDS", 0.05)
    home = household(EchoEngine(go=False, is_deaf=True))

    async def scenario():
        with pytest.raises(DeadlineExceeded, match="timeout_seconds"):
            await home.run([row("a", 5, timeout=0.05)])
        while (await home.calls.stats()).waiting_rows:
            pass

    asyncio.run(scenario())


def test_an_engine_that_says_nothing_is_not_asked_for_ever_and_no_call_loses_its_place(
    household, monkeypatch
):
    monkeypatch.setattr(service.calls, "_ASK_SECONDS", 0.05)
    home = household(StuckEngine(), max_calls=2)

    async def scenario():
        for _ in range(2):
            with pytest.raises(Unavailable, match="has not answered"):
                await home.calls.stats()
        asked = [asyncio.create_task(home.calls.stats()) for _ in range(4)]
        await asyncio.sleep(0)
        home.calls.open().close()
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(scenario())
    home.engines[0].go.set()


class StuckEngine(EchoEngine):
    """Tells nothing until it goes."""

    def __init__(self):
        super().__init__(go=False)

    def snapshot(self):
        self.go.wait()
        return super().snapshot()


def test_an_engine_that_dies_answers_its_calls_at_once_and_the_next_takes_over(household):
    home = household(EchoEngine(go=False), EchoEngine())

    async def scenario():
        waiting = [asyncio.create_task(home.run([row(f"r{i}", 5)])) for i in range(4)]
        while (await home.calls.stats()).waiting_rows < 4:
            pass
        home.processes[0].kill()
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in errors] == [Unavailable] * 4
        while not home.calls.is_ready:
            with pytest.raises(Unavailable, match="starting"):
                home.calls.open()
            await asyncio.sleep(0)
        return await home.run([row("r0", 6, 7)])  # the same row id as a call that is lost

    assert outputs(asyncio.run(scenario())) == [(6, 7)]
    assert home.num_ready == 2
    assert home.gave_up == []


def test_draining_refuses_new_calls_and_fails_what_is_left(household):
    home = household(EchoEngine(go=False))

    async def scenario():
        waiting = asyncio.create_task(home.run([row("a", 5)]))
        await asyncio.sleep(0)
        home.calls.is_draining = True
        with pytest.raises(Unavailable, match="stopping"):
            home.calls.open()
        home.calls.fail_all(Unavailable("too late"))
        with pytest.raises(Unavailable, match="too late"):
            await waiting

    asyncio.run(scenario())


def test_errors_of_rows_keep_their_kind_over_the_wire(household):
    (result,) = asyncio.run(household().run([row("a", 0)]))
    assert isinstance(result.error, InvalidRequest)
    assert result.error.message == "refused"
