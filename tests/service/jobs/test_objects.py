"""Objects that go while somebody else removes them, too."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import fsspec

from service.jobs.objects import ObjectStore


def test_old_objects_go_though_another_worker_removes_them_too(tmp_path, monkeypatch):
    objects = ObjectStore(str(tmp_path / "store"))
    (tmp_path / "file").write_text("x")
    for name in ("one", "two"):
        objects.put(tmp_path / "file", f"estimates/{name}.json")
    store = type(fsspec.filesystem("file"))
    real = store.find

    def find(self, path, **options):
        return [f"{path}/gone.json", *real(self, path, **options)]

    monkeypatch.setattr(store, "find", find)
    objects.remove_older("estimates", datetime.now(UTC) - timedelta(hours=1))
    monkeypatch.undo()
    assert len(list(objects.list_keys())) == 2
    monkeypatch.setattr(store, "find", find)
    objects.remove_older("estimates", datetime.now(UTC) + timedelta(hours=1))
    monkeypatch.undo()
    assert list(objects.list_keys()) == []


def test_all_objects_of_a_job_go_though_others_remove_them_too(tmp_path):
    objects = ObjectStore(str(tmp_path / "store"))
    (tmp_path / "file").write_text("x")
    with ThreadPoolExecutor(4) as pool:
        for number in range(30):
            for name in "abcde":
                objects.put(tmp_path / "file", f"jobs/{number}/{name}")
            list(pool.map(objects.remove, [f"jobs/{number}"] * 4))
    assert list(objects.list_keys()) == []
