"""The gatekeeper: what it tells, whom, and what it keeps to itself."""

import asyncio
import logging

from fastapi import FastAPI, Request

from service.errors import add_error_handlers
from service.limits import Gatekeeper, Traffic


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
