"""Bytes that no version needs go, in parts; what a crash left of them is in nobody's way."""

from datetime import timedelta

import pytest

from adapters.bundle import read_manifest
from adapters.registry import collection
from adapters.registry.blobs import BlobStore
from tests.registries import NUM_BUNDLES, open_registry, stores_in

_AT_ONCE = -timedelta(hours=1)


def test_others_may_write_between_two_parts_of_a_collection(
    registry, stores, bundles, decoder_spec, monkeypatch
):
    monkeypatch.setattr(collection, "_AT_ONCE", 1)
    monkeypatch.setattr(collection, "sleep", lambda _: None)
    digests = {registry.create_version("a", bundles / str(i)).digest for i in range(NUM_BUNDLES)}
    registry.delete_adapter("a")
    other, real, seen = open_registry(stores, decoder_spec), BlobStore.remove, []

    def remove(blobs, digest):
        seen.append(other.generation())
        real(blobs, digest)

    monkeypatch.setattr(BlobStore, "remove", remove)
    assert set(registry.collect(_AT_ONCE)) == digests
    assert seen == sorted(set(seen))  # what is seen from outside has been committed


def test_what_is_registered_again_while_others_are_collected_stays(
    registry, stores, bundles, decoder_spec, monkeypatch
):
    monkeypatch.setattr(collection, "_AT_ONCE", 1)
    for name in "01":
        registry.create_version("a", bundles / name)
    registry.delete_adapter("a")
    by_digest = {read_manifest(bundles / name).digest: bundles / name for name in "01"}
    other, back = open_registry(stores, decoder_spec), []

    def meanwhile(seconds):
        if not back:
            back.append(sorted(by_digest)[1])
            other.create_version("a", by_digest[back[0]])

    monkeypatch.setattr(collection, "sleep", meanwhile)
    assert registry.collect(_AT_ONCE) == [sorted(by_digest)[0]]
    assert registry._blobs.fetch(back[0])


@pytest.fixture
def local(tmp_path, decoder_spec):
    return open_registry(stores_in(tmp_path), decoder_spec)


def test_what_a_crash_left_of_a_bundle_is_no_bundle(local, bundles):
    version = local.create_version("a", bundles / "0")
    folder = local.fetch(version)
    local.delete_adapter("a")
    (folder / "manifest.json").unlink()  # as if it had been killed while it removed the rest
    again = local.create_version("a", bundles / "0")
    assert {p.name for p in local.fetch(again).iterdir()} == {
        p.name for p in (bundles / "0").iterdir()
    }


def test_what_a_crash_left_of_a_bundle_is_collected(local, bundles):
    version = local.create_version("a", bundles / "0")
    folder = local.fetch(version)
    local.delete_adapter("a")
    for path in folder.iterdir():
        path.unlink()
    local.collect(_AT_ONCE)
    assert not folder.exists()
