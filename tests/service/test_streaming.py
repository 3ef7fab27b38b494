"""Streams over ASGI, from an engine that echoes: what is a status code, what is an event, and who is let go."""

import asyncio
import json
import threading
import time
from dataclasses import replace

import pytest
from fastapi import FastAPI

import service.events
from adapters.errors import InvalidRequest, NotFound
from adapters.runtime.rows import Row
from adapters.tasks.base import Generation
from adapters.text_stream import StreamText
from service.errors import add_error_handlers
from service.limits import Gatekeeper, Traffic
from service.predictor import Prepared
from service.protocols import native
from service.routes.predict import predict_router
from service.settings import Settings
from tests.engines import EchoEngine, Household
from tests.servers import wait_until


class BytesPredictor:
    """Stands for tokenizer, registry and task: an input's bytes are its tokens."""

    def prepare(self, items, deadline=None, caller=None):
        return [self.prepare_stream(item, deadline) for item in items]

    def prepare_stream(self, item, deadline=None, caller=None):
        if item.adapter == "nobody":
            raise NotFound("No adapter named 'nobody'.")
        token_ids = item.input if isinstance(item.input, list) else list(item.input.encode())
        generation = Generation(len(token_ids), (), stream=item.adapter == "streams")
        row = Row("row", token_ids, generation=generation, deadline=deadline)
        return Prepared(None, None, None, None, [], [row])

    def stream_text(self, prepared):
        return StreamText(lambda ids: bytes(ids).decode(errors="replace"))

    def finish(self, prepared, results):
        return [r.error or {"text": bytes(r.output.token_ids).decode()} for r in results]

    def follow_ups(self, prepared, answers):
        return {}


class TwoRounds(BytesPredictor):
    """Asks once more with what was answered first; ``between`` is done before."""

    def __init__(self, between):
        self.between = between

    def finish(self, prepared, results):
        answers = super().finish(prepared, results)
        return [{**answer, "usage": {}, "truncated": False} for answer in answers]

    def follow_ups(self, prepared, answers):
        if prepared[0].rows[0].row_id == "again":
            return {}
        self.between()
        return {0: replace(prepared[0], rows=[replace(prepared[0].rows[0], row_id="again")])}


class SlowPredictor(BytesPredictor):
    """Reads no item before it may."""

    def __init__(self):
        self.may_read, self.is_over = threading.Event(), threading.Event()
        self.num_read = 0

    def prepare(self, items, deadline=None, caller=None):
        try:
            for item in items:
                self.num_read += 1
                self.may_read.wait()
                yield self.prepare_stream(item, deadline)
        finally:
            self.is_over.set()


class Site:
    """The routes on an echoing engine, asked by calling the ASGI app itself."""

    def __init__(self, engine=None, predictor=None):
        self.home = Household(engine or EchoEngine())
        wait_until(lambda: self.home.calls.is_ready)
        self.traffic = Traffic()
        self.app = FastAPI()
        self.app.include_router(
            predict_router(
                predictor or BytesPredictor(),
                self.home.calls,
                Settings(request_timeout_seconds=60),
            )
        )
        add_error_handlers(self.app)
        self.app.add_middleware(Gatekeeper, 10**6, self.traffic)

    async def post(self, body, *, leave_after=None, stall_after=None):
        """Return status, headers and body; the client leaves, or reads no further, after so many messages."""
        sent, asked, left = [], False, asyncio.Event()

        async def receive():
            nonlocal asked
            if asked:
                await left.wait()
                return {"type": "http.disconnect"}
            asked = True
            return {"type": "http.request", "body": json.dumps(body).encode()}

        async def send(message):
            sent.append(message)
            if len(sent) == leave_after:
                left.set()
            if len(sent) == stall_after:
                await asyncio.Event().wait()

        if leave_after == 0:
            left.set()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/predict",
            "raw_path": b"/v1/predict",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        await self.app(scope, receive, send)
        headers = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
        text = b"".join(message.get("body", b"") for message in sent[1:]).decode()
        return sent[0]["status"], headers, text


@pytest.fixture
def site():
    opened = []

    def open_one(engine=None, predictor=None):
        opened.append(Site(engine, predictor))
        return opened[-1]

    yield open_one
    for each in opened:
        each.home.close()


def asking(given, adapter="streams", **more):
    return {"adapter": adapter, "inputs": [given], "stream": True, **more}


def events(text):
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]


@pytest.mark.parametrize("first", ["", "\x03"], ids=["parts", "result-only"])
def test_a_stream_is_deltas_and_then_the_whole_prediction(site, first):
    given = f"{first}naïve 😀"
    status, headers, text = asyncio.run(site().post(asking(given)))
    *deltas, last = events(text)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert "".join(delta["delta"] for delta in deltas) == given
    assert last == {"text": given, "done": True}
    assert (len(deltas) > 3) == (first == "")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (asking("x", adapter="nobody"), 404, "not_found"),
        (asking([0]), 400, "invalid_request"),
        (asking([1, 5]), 400, "invalid_request"),
        ({"adapter": "streams", "inputs": ["a", "b"], "stream": True}, 400, "invalid_request"),
        (asking("x", timeout_seconds=0), 400, "invalid_request"),
    ],
)
def test_what_is_wrong_before_the_first_token_is_a_status_code(site, body, status, code):
    found, headers, text = asyncio.run(site().post(body))
    assert (found, headers["content-type"]) == (status, "application/json")
    assert json.loads(text)["error"]["code"] == code


def test_what_goes_wrong_after_the_first_token_is_an_event(site):
    status, _, text = asyncio.run(site().post(asking([2, 65, 66])))
    assert status == 200
    *deltas, last = events(text)
    assert deltas == [{"delta": "\x02"}]
    assert last["error"] == {
        "code": "invalid_request",
        "message": "failed on the way",
        "param": None,
    }


def test_an_engine_that_dies_ends_the_stream_with_an_event(site):
    here = site(StoppingEngine(2))

    async def scenario():
        asked = asyncio.create_task(here.post(asking("hello")))
        while here.home.engines[0].stats.steps < 2:
            await asyncio.sleep(0)
        here.home.processes[0].kill()
        return await asked

    status, _, text = asyncio.run(scenario())
    assert status == 200
    assert events(text)[-1]["error"]["code"] == "unavailable"


class StoppingEngine(EchoEngine):
    """Makes some steps, then waits."""

    def __init__(self, num_steps):
        super().__init__()
        self.num_steps = num_steps

    def step(self):
        if self.stats.steps == self.num_steps:
            self.go.clear()
        return super().step()


@pytest.mark.parametrize(
    ("stream", "num_steps", "leave_after"),
    [(True, 1, 2), (True, 0, 0), (False, 0, 0)],
    ids=["while-it-streams", "before-the-first-token", "unary"],
)
def test_a_client_that_goes_away_frees_its_row(site, stream, num_steps, leave_after):
    here = site(StoppingEngine(num_steps))

    async def scenario():
        await here.post({**asking("hello " * 9), "stream": stream}, leave_after=leave_after)
        while (await here.home.calls.stats()).waiting_rows:
            pass

    asyncio.run(scenario())
    assert here.home.engines[0].stats.steps == num_steps
    assert here.traffic.num_requests == 0


def test_a_client_that_does_not_read_is_cut_off_after_the_time_of_its_call(site, monkeypatch):
    monkeypatch.setattr(service.events, "_READ_SECONDS", -1e9)
    here = site()

    async def scenario():
        async with asyncio.timeout(60):
            await here.post(asking("hello " * 9), stall_after=2)
        assert not here.home.calls._calls

    asyncio.run(scenario())
    assert here.traffic.num_requests == 0


def test_timeout_seconds_becomes_the_rows_deadline(site):
    here = site(EchoEngine(go=False))
    deadlines = []
    here.home.engines[0].submit = lambda row: (
        deadlines.append(row.deadline - time.monotonic()) or _refuse()
    )
    for more in ({"timeout_seconds": 5}, {}):
        asyncio.run(here.post({"adapter": "a", "inputs": ["x"], **more}))
    assert deadlines == [pytest.approx(5, abs=1), pytest.approx(60, abs=1)]


def test_a_text_that_takes_too_long_to_read_is_answered_at_the_deadline(site):
    predictor = SlowPredictor()
    body = {"adapter": "a", "inputs": ["x"], "timeout_seconds": 0.05}
    status, _, text = asyncio.run(site(predictor=predictor).post(body))
    predictor.may_read.set()
    assert (status, json.loads(text)["error"]["code"]) == (504, "deadline_exceeded")


def test_the_text_of_a_client_that_goes_away_is_not_read_to_its_end(site):
    predictor = SlowPredictor()
    here = site(predictor=predictor)
    asyncio.run(here.post({"adapter": "a", "inputs": ["x"] * 100}, leave_after=0))
    predictor.may_read.set()
    assert predictor.is_over.wait(60)
    assert predictor.num_read < 100


def _refuse():
    raise InvalidRequest("seen")


def test_a_call_that_takes_another_round_may_finish_it_while_the_server_drains(site):
    def drain():
        here.home.calls.is_draining = True

    here = site(predictor=TwoRounds(between=drain))
    status, _, text = asyncio.run(here.post({"adapter": "a", "inputs": ["hello"]}))
    assert (status, json.loads(text)["predictions"][0]["text"]) == (200, "hello")


def test_a_large_answer_is_not_written_out_on_the_event_loop(site, monkeypatch):
    threads, real = [], native.answer

    def answer(results):
        threads.append(threading.current_thread().name)
        return real(results)

    monkeypatch.setattr(native, "answer", answer)
    status, headers, text = asyncio.run(site().post({"adapter": "a", "inputs": "naïve 😀"}))
    assert (status, headers["content-type"]) == (200, "application/json")
    assert text == '{"predictions":[{"text":"naïve 😀"}]}'
    assert [name.partition("_")[0] for name in threads] == ["quick"]


def test_a_draining_server_refuses_before_it_reads_the_body(site):
    here = site()
    here.traffic.is_draining = True
    status, headers, text = asyncio.run(here.post("not even an object"))
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(text)["error"]["code"] == "unavailable"
