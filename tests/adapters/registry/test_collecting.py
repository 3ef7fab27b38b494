"""Bytes that no version needs go; what a crash left of them is in nobody's way."""

from datetime import timedelta

import pytest

from tests.registries import open_registry, stores_in

_AT_ONCE = -timedelta(hours=1)


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
