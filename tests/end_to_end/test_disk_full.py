"""A small disk fills up during an upload, a registration and a training run: refused, told, and nothing half done."""

import contextlib
import os
import subprocess

import pytest

from adapters.backbone import describe_backbone
from service.client import ClientError
from tests.bundles import classifier, save_bundle
from tests.faults import FAULTY
from tests.jobs import ended, is_training, submit, told, trainer_of, write_films
from tests.servers import running_server, wait_until

MIB = 2**20
RANK = 256  # for a bundle of a megabyte and more


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Mount a disk of 96 MiB; gives its folder."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("Only root may mount a small disk.")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def server(disk, decoder_folder):
    (disk / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(disk / "tmp"))
        with running_server(disk / "home", str(decoder_folder), dtype="float32") as running:
            yield running


@pytest.fixture(scope="module")
def client(server):
    return server[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, decoder_folder):
    folder = tmp_path_factory.mktemp("bundle") / "b"
    save_bundle(folder, describe_backbone(decoder_folder), classifier(2), rank=RANK)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory, decoder_folder):
    folder = tmp_path_factory.mktemp("small") / "b"
    save_bundle(folder, describe_backbone(decoder_folder), classifier(2))
    return folder


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


class Filling:
    """A file that leaves so many bytes of a disk, until it is removed."""

    def __init__(self, disk, left):
        self._path = disk / "filling"
        while not self._fill(disk, left):
            pass

    def _fill(self, disk, left):
        """Tell whether there was room; a run that goes on takes some between two looks."""
        space = os.statvfs(disk)
        with self._path.open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, space.f_bavail * space.f_bsize - left))
            return True
        return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._path.unlink()


def left_behind(disk):
    return sorted(str(path) for path in (disk / "tmp").iterdir()) + sorted(
        str(path) for path in (disk / "home" / "blobs").rglob("*") if path.is_file()
    )


@pytest.mark.parametrize(
    ("bundles_left", "where"), [(0.5, "while it comes"), (1.5, "unpacked"), (2.5, "stored")]
)
def test_an_upload_that_finds_no_room_is_refused_and_leaves_nothing(
    client, disk, folder, small, bundles_left, where
):
    client.create_version("here", small)
    before = left_behind(disk)
    with Filling(disk, int(bundles_left * size_of(folder))):
        with pytest.raises(ClientError) as caught:
            client.create_version("large", folder)
        assert (caught.value.status, caught.value.code) == (507, "storage_full"), where
        assert client.predict("here", "a good film")
        assert left_behind(disk) == before
    with pytest.raises(ClientError, match="No adapter named 'large'"):
        client.get_adapter("large")


def test_a_run_that_finds_no_room_goes_on_when_there_is_some(client, disk, tmp_path):
    films = client.create_file(write_films(tmp_path / "films.jsonl"))["id"]
    job = submit(client, films, "films", training={**FAULTY, "epochs": 120})
    is_training(client, job)
    with Filling(disk, 0):
        wait_until(lambda: trainer_of(job) is None, seconds=120)
        assert client.is_healthy()
    done = ended(client, job)
    assert done["status"] == "succeeded", (done["error"], told(client, job))
    assert any("room" in message for message in told(client, job)), told(client, job)
    assert client.get_adapter("films")["latest_version"] == 1
    assert client.predict("films", "a good film")
