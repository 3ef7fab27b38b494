"""The registry: versions count up, aliases move, nothing half-done is ever seen."""

import importlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from adapters import migrations
from adapters.bundle import read_manifest
from adapters.errors import (
    BackboneMismatch,
    Conflict,
    InvalidBundle,
    InvalidRequest,
    NotFound,
)
from adapters.reference import parse_reference
from adapters.registry.database import Database
from adapters.registry.tables import Base
from tests.bundles import classifier, save_bundle
from tests.registries import NUM_BUNDLES, open_registry, resolve, stores_in


def test_versions_count_up_and_the_same_bundle_keeps_its_number(registry, bundles):
    numbers = [registry.create_version("a", bundles / name).number for name in "0121"]
    assert numbers == [1, 2, 3, 2]
    assert [version.number for version in registry.list_versions("a")] == [1, 2, 3]


def test_a_bare_name_is_production_or_else_the_newest(registry, bundles):
    for name in "01":
        registry.create_version("a", bundles / name)
    assert resolve(registry, "a") == 2
    registry.set_alias("a", "production", 1)
    registry.create_version("a", bundles / "2")
    assert (resolve(registry, "a"), resolve(registry, "a@production")) == (1, 1)
    assert resolve(registry, "a:3") == 3


def test_what_is_fetched_is_what_was_pushed(registry, bundles):
    version = registry.create_version("a", bundles / "0")
    folder = registry._blobs.fetch(version.digest)
    for path in (bundles / "0").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nobody", "No adapter named 'nobody'. Known: 'a'."),
        ("a:9", "'a' has no version '9'. Its newest is 1."),
        ("a@canary", "'a' has no alias 'canary'. Known: none yet."),
        ("other/a", "No adapter named 'other/a'. Known: none yet."),
    ],
)
def test_what_is_not_there_is_said_with_what_is(registry, bundles, reference, message):
    registry.create_version("a", bundles / "0")
    with pytest.raises(NotFound) as caught:
        resolve(registry, reference)
    assert message in caught.value.message


def test_namespaces_do_not_see_each_other(registry, bundles):
    registry.create_version("a", bundles / "0", namespace="blue")
    registry.create_version("a", bundles / "1", namespace="red")
    assert resolve(registry, "blue/a") == resolve(registry, "red/a") == 1
    assert [adapter.namespace for adapter in registry.list_adapters("red")] == ["red"]
    assert registry.list_adapters() == []


def test_an_alias_moves_only_from_the_revision_that_was_read(registry, bundles):
    for name in "01":
        registry.create_version("a", bundles / name)
    first = registry.set_alias("a", "production", 1, if_revision=0)
    registry.set_alias("a", "production", 2, if_revision=first.revision)
    with pytest.raises(Conflict, match="revision '2'"):
        registry.set_alias("a", "production", 1, if_revision=first.revision)
    assert resolve(registry, "a") == 2


def test_an_alias_cannot_point_at_nothing(registry, bundles):
    registry.create_version("a", bundles / "0")
    with pytest.raises(NotFound):
        registry.set_alias("a", "production", 2)
    assert resolve(registry, "a") == 1


def test_one_adapter_keeps_to_one_task(registry, bundles):
    registry.create_version("a", bundles / "0")
    with pytest.raises(Conflict, match="text-classification"):
        registry.create_version("a", bundles / "answers")


def test_a_bundle_for_an_unknown_backbone_is_refused(registry, tmp_path, encoder_spec):
    save_bundle(tmp_path / "bundle", encoder_spec, classifier())
    with pytest.raises(BackboneMismatch, match="Known: tiny-llama"):
        registry.create_version("a", tmp_path / "bundle")
    assert registry.list_adapters() == []


def test_a_damaged_bundle_leaves_nothing_behind(registry, bundles, tmp_path):
    bad = shutil.copytree(bundles / "0", tmp_path / "bad")
    (bad / "head.safetensors").write_bytes(b"")
    generation = registry.generation()
    with pytest.raises(InvalidBundle):
        registry.create_version("a", bad)
    assert registry.list_adapters() == []
    assert registry.generation() == generation


def test_every_write_raises_the_generation(registry, bundles):
    seen = [registry.generation()]
    registry.create_version("a", bundles / "0")
    seen.append(registry.generation())
    registry.set_alias("a", "production", 1)
    seen.append(registry.generation())
    assert seen == sorted(set(seen))


def test_many_threads_adding_at_once_get_a_number_each(stores, decoder_spec, bundles):
    registries = [open_registry(stores, decoder_spec) for _ in range(NUM_BUNDLES)]
    with ThreadPoolExecutor(NUM_BUNDLES) as pool:
        made = pool.map(
            lambda i: registries[i].create_version("a", bundles / str(i)).number, range(NUM_BUNDLES)
        )
    assert sorted(made) == [1, 2, 3, 4]


def test_a_registry_opened_again_remembers(stores, decoder_spec, bundles):
    first = open_registry(stores, decoder_spec)
    first.create_version("a", bundles / "0")
    first.set_alias("a", "production", 1)
    assert resolve(open_registry(stores, decoder_spec), "a@production") == 1


def test_a_deleted_version_is_not_found_and_its_number_is_not_used_again(registry, bundles):
    for name in "01":
        registry.create_version("a", bundles / name)
    registry.delete_version("a", 2)
    assert resolve(registry, "a") == 1
    with pytest.raises(NotFound, match="no version '2'"):
        resolve(registry, "a:2")
    assert registry.create_version("a", bundles / "2").number == 3
    assert [version.number for version in registry.list_versions("a")] == [1, 3]


def test_a_deleted_bundle_comes_back_under_its_number(registry, bundles):
    registry.create_version("a", bundles / "0", note="old")
    registry.delete_adapter("a")
    assert registry.list_adapters() == []
    back = registry.create_version("a", bundles / "0", note="new")
    assert (back.number, back.note) == (1, "new")


def test_what_an_alias_points_at_is_not_deleted_unless_forced(registry, bundles):
    for name in "01":
        registry.create_version("a", bundles / name)
    registry.set_alias("a", "production", 1)
    with pytest.raises(Conflict, match="'production' at version 1"):
        registry.delete_version("a", 1)
    with pytest.raises(Conflict, match="production"):
        registry.delete_adapter("a")
    registry.delete_version("a", 1, force=True)
    assert resolve(registry, "a") == 2
    assert registry.get_adapter("a").aliases == ()


def test_a_name_whose_versions_are_deleted_takes_another_task(registry, bundles):
    registry.create_version("a", bundles / "0")
    registry.delete_adapter("a")
    with pytest.raises(NotFound, match="Known: none yet"):
        registry.get_adapter("a")
    assert registry.create_version("a", bundles / "answers").number == 2
    assert registry.get_adapter("a").task == "question-answering"
    with pytest.raises(Conflict, match="question-answering"):
        registry.create_version("a", bundles / "0")


def test_rolling_back_goes_back_move_by_move(registry, bundles):
    for name in "012":
        registry.create_version("a", bundles / name)
    for number in (1, 2, 3):
        registry.set_alias("a", "production", number)
    back = [registry.roll_back("a", "production") for _ in range(2)]
    assert [alias.version for alias in back] == [2, 1]
    with pytest.raises(Conflict, match="no version before '1'"):
        registry.roll_back("a", "production")
    moves = registry.list_moves("a", "production")
    assert [(m.revision, m.version, m.is_rollback) for m in moves] == [
        (1, 1, False),
        (2, 2, False),
        (3, 3, False),
        (4, 2, True),
        (5, 1, True),
    ]


def test_rolling_back_passes_over_what_is_deleted(registry, bundles):
    for name in "012":
        registry.create_version("a", bundles / name)
    for number in (1, 2, 3):
        registry.set_alias("a", "production", number)
    registry.delete_version("a", 2)
    assert registry.roll_back("a", "production").version == 1


def test_rolling_back_to_where_an_alias_was_twice_goes_on_from_the_later_time(registry, bundles):
    for name in "012":
        registry.create_version("a", bundles / name)
    for number in (1, 2, 1, 3):
        registry.set_alias("a", "production", number)
    back = [registry.roll_back("a", "production").version for _ in range(3)]
    assert back == [1, 2, 1]


def test_an_alias_made_again_does_not_fit_an_old_etag(registry, bundles):
    for name in "01":
        registry.create_version("a", bundles / name)
    first = registry.set_alias("a", "canary", 1)
    registry.remove_alias("a", "canary", if_revision=first.revision)
    with pytest.raises(NotFound, match="no alias 'canary'"):
        resolve(registry, "a@canary")
    again = registry.set_alias("a", "canary", 2, if_revision=0)
    assert again.revision > first.revision
    with pytest.raises(Conflict):
        registry.set_alias("a", "canary", 1, if_revision=first.revision)
    with pytest.raises(Conflict, match="no version before"):
        registry.roll_back("a", "canary")


def test_notes_and_tags_are_kept_and_replaced(registry, bundles):
    registry.create_version("a", bundles / "0", note="first", tags={"owner": "ana"})
    changed = registry.annotate("a", 1, tags={"owner": "bo", "data": "may"})
    assert (changed.note, changed.tags) == ("first", {"owner": "bo", "data": "may"})
    assert registry.annotate("a", 1, note="").note == ""
    assert registry.resolve(parse_reference("a")).tags == {"owner": "bo", "data": "may"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"note": "x" * 2001}, "2001 characters; at most 2000"),
        ({"tags": {f"t{i}": "" for i in range(33)}}, "'33' tags; at most 32"),
        ({"tags": {"Ü b": ""}}, "'Ü b' is not a valid tag"),
        ({"tags": {"owner": "x" * 257}}, "Tag 'owner' is 'xxx"),
    ],
)
def test_notes_and_tags_are_bounded(registry, bundles, wrong, message):
    with pytest.raises(InvalidRequest) as caught:
        registry.create_version("a", bundles / "0", **wrong)
    assert message in caught.value.message
    assert registry.list_adapters() == []


def test_bytes_go_only_when_no_version_needs_them(registry, bundles):
    mine = registry.create_version("a", bundles / "0")
    kept = registry.create_version("b", bundles / "1")
    registry.create_version("c", bundles / "1")
    for name in "ac":
        registry.delete_adapter(name)
    assert registry.collect(timedelta(hours=1)) == []
    assert registry.collect(-timedelta(hours=1)) == [mine.digest]
    assert registry._blobs.fetch(kept.digest)
    with pytest.raises(NotFound):
        registry._blobs.fetch(mine.digest)
    assert registry.create_version("a", bundles / "0").number == 1
    assert registry._blobs.fetch(mine.digest)


def test_bytes_that_no_version_ever_got_go_too(registry, bundles):
    digest = read_manifest(bundles / "0").digest
    registry._blobs.push(bundles / "0", digest)
    assert registry.collect(timedelta(days=1)) == []
    assert registry.collect(-timedelta(hours=1)) == [digest]


def test_what_a_killed_push_left_goes_too(tmp_path, decoder_spec):
    registry = open_registry(stores_in(tmp_path), decoder_spec)
    left = tmp_path / "blobs" / "ab" / ".push-killed"
    left.mkdir(parents=True)
    registry.collect(timedelta(hours=1))
    assert left.is_dir()
    registry.collect(-timedelta(hours=1))
    assert not left.exists()


def test_a_registry_of_the_first_form_is_brought_up_to_date(stores, decoder_spec, bundles):
    registry = open_registry(stores, decoder_spec)
    registry.create_version("a", bundles / "0")
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    engine = create_engine(stores.database_url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO aliases (namespace, adapter_id, name, version, revision, moved_at) "
                "VALUES ('default', 1, 'production', 1, 7, '2026-01-01 00:00:00')"
            )
        )
    again = open_registry(stores, decoder_spec)
    (move,) = again.list_moves("a", "production")
    assert (move.revision, move.version) == (7, 1)
    assert again.set_alias("a", "production", 1).revision == 8
    assert again.list_versions("a")[0].tags == {}


def test_migrations_make_the_tables_that_the_code_reads_forwards_and_back(stores):
    importlib.import_module("service.jobs.tables")  # whose tables are on the same base
    importlib.import_module("service.access.tables")
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    Database(stores.database_url)
    engine = create_engine(stores.database_url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
        command.upgrade(config, "head")
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    if engine.name == "sqlite":  # which does not tell that a column of an index falls
        found = [each for each in found if getattr(each[1], "name", "") != "ix_jobs_next"]
    assert found == []
