"""The guard before all routes: what it keeps of those who have no key."""

import asyncio
import tracemalloc

from adapters.registry.database import Database
from service.access.guard import Guard
from service.access.keys import Keys


async def status(guard, secret):
    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"authorization", f"Bearer {secret}".encode())]
    scope = {"type": "http", "method": "GET", "path": "/v1/stats", "headers": headers}
    await guard(scope, None, send)
    return sent[0]["status"]


async def answered(scope, receive, send):
    await send({"type": "http.response.start", "status": 200})


def test_wrong_keys_however_long_take_no_room(tmp_path):
    keys = Keys(Database(f"sqlite:///{tmp_path / 'registry.db'}"))
    _, secret = keys.create("ours", ["admin"])
    guard = Guard(answered, keys)

    async def ask():
        assert await status(guard, secret) == 200
        tracemalloc.start()
        statuses = {await status(guard, f"{i:06}" * 9000) for i in range(50)}
        assert statuses == {401}
        assert await status(guard, secret) == 200
        return tracemalloc.get_traced_memory()[0]

    try:
        assert asyncio.run(ask()) < 500_000  # of 2,700,000 that were sent
    finally:
        tracemalloc.stop()
