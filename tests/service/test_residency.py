"""Which versions may be pinned, and that every one may be let go again."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from adapters.registry.blobs import BlobStore
from adapters.registry.database import Database
from adapters.registry.registry import Registry
from service.errors import add_error_handlers
from service.routes.residency import residency_router
from tests.bundles import classifier, save_bundle
from tests.engines import EchoEngine, Household
from tests.servers import wait_until


@pytest.fixture
def registry(tmp_path, decoder_spec, encoder_spec):
    registry = Registry(
        Database(f"sqlite:///{tmp_path / 'registry.db'}"),
        BlobStore(str(tmp_path / "blobs"), tmp_path / "cache"),
    )
    for name, spec in (("ours", decoder_spec), ("theirs", encoder_spec)):
        registry.add_backbone(spec)
        save_bundle(tmp_path / name, spec, classifier(2))
        registry.create_version(name, tmp_path / name)
    return registry


@pytest.fixture
def ask(registry, decoder_spec):
    """Give a function that sends a request about a version, and the engine."""
    home = Household(EchoEngine())
    wait_until(lambda: home.calls.is_ready)
    app = FastAPI()
    app.include_router(residency_router(registry, home.calls, decoder_spec))
    add_error_handlers(app)

    async def send(method, path):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.request(method, f"/v1/adapters/{path}")

    yield lambda method, path: asyncio.run(send(method, path)), home.engines[0]
    home.close()


def test_a_version_that_was_deleted_is_unpinned_all_the_same(ask, registry):
    send, engine = ask
    assert send("POST", "ours/versions/1/pin").json()["is_pinned"]
    assert len(engine.pinned) == 1
    registry.delete_version("ours", 1)
    assert send("POST", "ours/versions/1/pin").status_code == 404
    assert send("DELETE", "ours/versions/2/pin").status_code == 404
    response = send("DELETE", "ours/versions/1/pin")
    assert (response.status_code, response.json()["is_pinned"]) == (200, False)
    assert engine.pinned == set()


@pytest.mark.parametrize("how", ["pin", "warm"])
def test_a_version_of_another_backbone_is_neither_pinned_nor_warmed(ask, how):
    send, engine = ask
    response = send("POST", f"theirs/versions/1/{how}")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "backbone_mismatch")
    assert engine.pinned == set()
