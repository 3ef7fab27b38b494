"""The gatekeeper: what it tells, whom, and what it keeps to itself."""

import asyncio
import logging
import socket
import threading

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request

from service.errors import add_error_handlers
from service.limits import BoundedProtocol, Gatekeeper, Traffic


def test_a_client_that_leaves_while_it_sends_is_no_fault_of_ours(caplog):
    app, traffic, sent = FastAPI(), Traffic(), []

    @app.post("/v1/files")
    async def take(request: Request) -> int:
        return sum([len(chunk) async for chunk in request.stream()])

    add_error_handlers(app)
    app.add_middleware(Gatekeeper, 10**6, traffic)
    messages = [{"type": "http.request", "body": b"abc", "more_body": True}]

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/files",
        "raw_path": b"/v1/files",
        "query_string": b"",
        "root_path": "",
        "headers": [],
    }
    with caplog.at_level(logging.WARNING):
        asyncio.run(app(scope, receive, send))
    assert (sent, caplog.records, traffic.num_requests) == ([], [], 0)


@pytest.fixture
def address():
    """Where an app listens that gives each body back."""
    app = FastAPI()

    @app.post("/")
    async def echo(request: Request) -> int:
        return len(await request.body())

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=BoundedProtocol, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join()


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
MOST_SENT = 400  # of pieces; those in the sockets' buffers are among them


def pieces_sent(address, begin, piece):
    """Return how many pieces a server takes before it hangs up."""
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(begin)
        for i in range(MOST_SENT):
            try:
                connection.sendall(piece)
            except OSError:
                return i
    return MOST_SENT


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"POST /", b"a" * 2**16),
        (HEAD + b"X: ", b"a" * 2**16),
        (HEAD, b"X: a\r\n" * 2**13),
        (CHUNKED + b"1;", b"a" * 2**16),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"X: a\r\n" * 2**13),
    ],
    ids=["address", "header", "headers", "extension", "trailers"],
)
def test_a_head_without_end_is_not_kept(address, begin, piece):
    assert pieces_sent(address, begin, piece) < MOST_SENT


def test_bodies_of_any_length_are_read_one_after_the_other(address):
    with httpx.Client(base_url="http://{}:{}".format(*address)) as client:
        for size in (0, 10, 2**22, 1):
            assert client.post("/", content=b"a" * size).json() == size
            pieces = iter([b"a" * 2**16] * (size // 2**16))
            assert client.post("/", content=pieces).json() == size // 2**16 * 2**16
        assert client.post("/", headers={"X": "a" * 2**16}).json() == 0


def test_a_head_may_come_right_behind_a_body(address):
    body = HEAD + b"Content-Length: 1000000\r\n\r\n" + b"a" * 10**6
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(body * 3 + HEAD + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
        answers = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert answers.count(b"200 OK") == 4


def test_bodies_together_are_bounded_and_small_ones_always_let_in():
    app, traffic, go = FastAPI(), Traffic(), asyncio.Event()

    @app.post("/")
    async def take(request: Request) -> int:
        size = len(await request.body())
        await go.wait()
        return size

    add_error_handlers(app)
    most = 10**6
    app.add_middleware(Gatekeeper, most, traffic)

    async def scenario():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def send(size):
                return await client.post("/", content=b"a" * size)

            held = [asyncio.create_task(send(most)) for _ in range(16)]
            while traffic.num_body_bytes < 16 * most:
                await asyncio.sleep(0)
            refused = await send(2**16 + 1)
            small = asyncio.create_task(send(2**16))
            while traffic.num_requests < 17:
                await asyncio.sleep(0)
            assert traffic.num_body_bytes == 16 * most + 2**16
            go.set()
            answers = await asyncio.gather(*held, small)
            return refused, [each.json() for each in answers], await send(most)

    refused, answered, later = asyncio.run(scenario())
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert refused.json()["error"]["code"] == "overloaded"
    assert answered == [most] * 16 + [2**16]
    assert later.json() == most
    assert traffic.num_body_bytes == 0
