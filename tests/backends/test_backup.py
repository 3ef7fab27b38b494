"""Backup and restore on PostgreSQL and S3, and from SQLite and a folder to these."""

import pytest

from tests.registries import stores_in
from tests.service.test_backup import *  # noqa: F403
from tests.service.test_backup import bundle, filled  # noqa: F401


@pytest.fixture
def new_target_stores(new_stores):
    return new_stores


def test_sqlite_s_state_moves_to_postgresql(new_stores, decoder_spec, bundle, tmp_path):  # noqa: F811
    here = open_all(stores_in(tmp_path / "sqlite"))  # noqa: F405
    here.registry.add_backbone(decoder_spec)
    here.registry.set_alias(
        "films", "production", here.registry.create_version("films", bundle).number
    )
    write_backup(here.database, here.objects, tmp_path / "all.tar")  # noqa: F405
    there = open_all(new_stores())  # noqa: F405
    restore_backup(there.database, there.objects, tmp_path / "all.tar")  # noqa: F405
    assert contents(there) == contents(here)  # noqa: F405
