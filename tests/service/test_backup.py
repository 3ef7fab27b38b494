"""Backup and restore: what was there is there again, also of a state that changes meanwhile."""

import io
import json
import tarfile
import threading
from dataclasses import dataclass

import pytest

from adapters.errors import Conflict, InvalidRequest, NotFound
from adapters.reference import parse_reference
from adapters.registry.blobs import BlobStore
from adapters.registry.database import Database
from adapters.registry.registry import Registry
from service.access.keys import Keys
from service.backup import restore_backup, write_backup
from service.jobs.files import Files
from service.jobs.objects import ObjectStore
from service.jobs.queue import JobQueue
from tests.bundles import classifier, save_bundle
from tests.registries import stores_in
from tests.service.jobs.test_queue import submit


@dataclass
class Everything:
    """All that one pair of stores holds."""

    database: Database
    blobs: BlobStore
    registry: Registry
    queue: JobQueue
    files: Files
    objects: ObjectStore
    keys: Keys


def open_all(stores):
    database = Database(stores.database_url)
    blobs, objects = BlobStore(stores.blob_url, stores.cache), ObjectStore(stores.blob_url)
    registry = Registry(database, blobs)
    files = Files(database, objects)
    return Everything(database, blobs, registry, JobQueue(database), files, objects, Keys(database))


@pytest.fixture
def new_stores(tmp_path_factory):
    return lambda: stores_in(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def new_target_stores(new_stores):
    return new_stores


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, decoder_spec):
    folder = tmp_path_factory.mktemp("backup") / "bundle"
    save_bundle(folder, decoder_spec, classifier())
    return folder


@pytest.fixture
def filled(new_stores, decoder_spec, bundle, tmp_path):
    state = open_all(new_stores())
    state.registry.add_backbone(decoder_spec)
    version = state.registry.create_version("films", bundle)
    state.registry.set_alias("films", "production", version.number)
    examples = tmp_path / "films.jsonl"
    examples.write_text('{"text": "a", "label": "b"}\n')
    state.files.create(examples, "films.jsonl", purpose="fine-tune", report=None)
    submit(state.queue, idempotency_key="once")
    state.queue.cancel(submit(state.queue).id)
    state.keys.create("ci", ["predict"])
    return state


def contents(state):
    version = state.registry.resolve(parse_reference("films@production"))
    jobs = state.queue.list_jobs()
    return {
        "version": (version.number, version.digest, version.created_at),
        "bundle": sorted(p.read_bytes() for p in state.registry.fetch(version).iterdir()),
        "jobs": jobs,
        "events": [state.queue.list_events(job.id) for job in jobs],
        "files": state.files.list_files(),
        "keys": state.keys.list_keys(),
    }


def test_what_was_there_is_there_again_and_goes_on(filled, new_target_stores, tmp_path, bundle):
    made = write_backup(filled.database, filled.objects, tmp_path / "all.tar")
    assert (made.rows["versions"], made.rows["jobs"], made.num_objects) == (1, 2, 6)
    there = open_all(new_target_stores())
    restore_backup(there.database, there.objects, tmp_path / "all.tar")
    assert contents(there) == contents(filled)
    (file,) = there.files.list_files()
    assert there.files.fetch(file.id, tmp_path).read_text() == '{"text": "a", "label": "b"}\n'
    # Numbers go on after those that came along, and what was used once stays used.
    new = submit(there.queue)
    assert there.queue.list_jobs()[0].id == new.id
    assert submit(there.queue, idempotency_key="once").id == filled.queue.list_jobs()[1].id
    assert there.registry.create_version("others", bundle).number == 1


def test_a_backup_of_what_changes_meanwhile_is_whole(
    filled, new_target_stores, tmp_path, decoder_spec
):
    save_bundle(tmp_path / "b", decoder_spec, classifier(3), seed=7)
    stop, numbers = threading.Event(), []

    def change():
        while not stop.is_set():
            name = f"new-{len(numbers)}"
            filled.registry.create_version(name, tmp_path / "b")
            filled.registry.set_alias(name, "production", 1)
            numbers.append(submit(filled.queue).id)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for i in range(3):
            write_backup(filled.database, filled.objects, tmp_path / f"{i}.tar")
    finally:
        stop.set()
        thread.join()
    assert numbers
    for i in range(3):
        there = open_all(new_target_stores())
        restore_backup(there.database, there.objects, tmp_path / f"{i}.tar")
        for adapter in there.registry.list_adapters():
            version = there.registry.resolve(parse_reference(f"{adapter.name}:1"))
            assert (there.registry.fetch(version) / "manifest.json").is_file()
        for job in there.queue.list_jobs(limit=1000):
            assert there.queue.list_events(job.id)[0].message.startswith("Created")


def test_a_state_that_holds_something_is_not_written_over(filled, tmp_path):
    write_backup(filled.database, filled.objects, tmp_path / "all.tar")
    before = contents(filled)
    with pytest.raises(Conflict, match="not empty"):
        restore_backup(filled.database, filled.objects, tmp_path / "all.tar")
    with pytest.raises(Conflict, match="exists"):
        write_backup(filled.database, filled.objects, tmp_path / "all.tar")
    assert contents(filled) == before


def test_a_lost_bundle_is_told_and_leaves_no_backup(filled, tmp_path):
    version = filled.registry.resolve(parse_reference("films"))
    filled.blobs.remove(version.digest)
    with pytest.raises(NotFound, match=version.digest[:12]):
        write_backup(filled.database, filled.objects, tmp_path / "out" / "all.tar")
    assert not list((tmp_path / "out").iterdir())


def rewritten(path, target, change):
    """Copy a backup with some of its members changed: given name and bytes, returns the same, or None."""
    with tarfile.open(path) as tar, tarfile.open(target, "w") as out:
        for member in tar:
            changed = change(member.name, tar.extractfile(member).read())
            if changed is not None:
                info = tarfile.TarInfo(changed[0])
                info.size = len(changed[1])
                out.addfile(info, io.BytesIO(changed[1]))
    return target


def other_revision(name, data):
    if name == "backup.json":
        return name, json.dumps({**json.loads(data), "revision": "0001"}).encode()
    return name, data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, data: (name, data) if name != "backup.json" else None, "no backup"),
        (other_revision, "'0001'"),
        (
            lambda name, data: (name.replace("store/", "store/../../"), data),
            r"'store/\.\./\.\./.*' ?, which",
        ),
        (lambda name, data: (name, data[:-9] if "jobs" in name else data), "can't be read"),
    ],
)
def test_what_is_no_whole_backup_is_refused_and_changes_nothing(
    filled, new_target_stores, tmp_path, change, said
):
    write_backup(filled.database, filled.objects, tmp_path / "all.tar")
    bad = rewritten(tmp_path / "all.tar", tmp_path / "bad.tar", change)
    there = open_all(new_target_stores())
    with pytest.raises(InvalidRequest, match=said):
        restore_backup(there.database, there.objects, bad)
    assert not there.registry.list_adapters()
    assert not there.queue.list_jobs()
    restore_backup(there.database, there.objects, tmp_path / "all.tar")
    assert contents(there) == contents(filled)


def test_a_file_that_is_no_archive_is_refused(new_target_stores, tmp_path):
    (tmp_path / "text").write_text("no archive")
    there = open_all(new_target_stores())
    with pytest.raises(InvalidRequest, match="can't be read"):
        restore_backup(there.database, there.objects, tmp_path / "text")
