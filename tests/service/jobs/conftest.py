"""A queue, on SQLite here; the same tests run on PostgreSQL under tests/backends. Workers, with runs by a script."""

import threading

import pytest

from adapters.registry.database import Database
from service.jobs.files import Files
from service.jobs.objects import ObjectStore
from service.jobs.orders import JobOrder, JobPlan
from service.jobs.queue import JobQueue
from service.jobs.worker import Worker, Workplace
from tests.bundles import classifier, save_bundle
from tests.registries import open_registry, stores_in
from tests.scripted_runs import ScriptedLauncher


@pytest.fixture
def new_stores(tmp_path_factory):
    return lambda: stores_in(tmp_path_factory.mktemp("queue"))


@pytest.fixture
def stores(new_stores):
    return new_stores()


@pytest.fixture
def database(stores):
    return Database(stores.database_url)


@pytest.fixture
def queue(database):
    return JobQueue(database)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory, decoder_spec):
    folder = tmp_path_factory.mktemp("worker") / "bundle"
    save_bundle(folder, decoder_spec, classifier())
    return folder


@pytest.fixture
def launcher(bundle):
    return ScriptedLauncher(bundle=bundle)


@pytest.fixture
def place(database, decoder_spec, launcher, tmp_path):
    stores = stores_in(tmp_path / "stores")
    objects = ObjectStore(stores.blob_url)
    registry = open_registry(stores, decoder_spec)
    files = Files(database, objects)
    return Workplace(
        JobQueue(database), files, objects, registry, {"process": launcher}, tmp_path / "home"
    )


@pytest.fixture
def submit(place, decoder_spec, tmp_path):
    path = tmp_path / "films.jsonl"
    path.write_text('{"text": "a", "label": "b"}\n')
    file = place.files.create(path, path.name, "fine-tune", None)

    def order(parent=None, launcher="process", **fields):
        plan = JobPlan(
            task="text-classification",
            backbone=decoder_spec.fingerprint,
            adapter="films",
            parent=parent,
            launcher=launcher,
        )
        return place.queue.submit(
            JobOrder(model=decoder_spec.name, training_file=file.id, **fields), plan
        ).id

    return order


@pytest.fixture
def work(place):
    """Start a worker, and stop it at the end."""
    workers = []

    def start(**options):
        worker = Worker(place, poll_seconds=0.01, **options)
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        workers.append((worker, thread))
        return worker, thread

    yield start
    for worker, thread in workers:
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()
