"""The machine's clock jumps, a day ahead and a day back, while jobs run: none is taken for dead, lost or doubled."""

import time
from pathlib import Path

import pytest

from tests.end_to_end.test_job_faults import ended, submit, told
from tests.end_to_end.test_jobs import write_films
from tests.servers import running_server, wait_until

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    """Give what sets the clock of all processes that are started from now on, in seconds from the right time."""
    if not _LIBRARIES:
        pytest.skip("libfaketime is not installed (apt install faketime).")
    file = tmp_path_factory.mktemp("clock") / "offset"

    def set_to(seconds):
        file.write_text(f"{seconds:+d}\n")

    set_to(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(_LIBRARIES[0]))
        patch.setenv("FAKETIME_TIMESTAMP_FILE", str(file))
        patch.setenv("FAKETIME_NO_CACHE", "1")
        patch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        patch.setenv("DONT_FAKE_MONOTONIC", "1")
        yield set_to


@pytest.fixture(scope="module")
def client(clock, tmp_path_factory, decoder_folder):
    home = tmp_path_factory.mktemp("clock-home")
    with running_server(home, str(decoder_folder), dtype="float32") as (client, _):
        yield client


@pytest.fixture(scope="module")
def films(client, tmp_path_factory):
    path = write_films(tmp_path_factory.mktemp("films") / "films.jsonl")
    return client.create_file(path)["id"]


@pytest.mark.parametrize("jump", [86400, -86400])
def test_a_job_goes_on_over_a_jump_of_the_clock(client, clock, films, jump):
    name = f"over-{'ahead' if jump > 0 else 'back'}"
    job = submit(client, films, name, epochs=80)
    wait_until(lambda: (client.get_job(job)["progress"] or {}).get("done", 0) > 3)
    before = client.get_job(job)
    clock(jump)
    try:
        done = ended(client, job)
        assert (done["status"], done["attempt"]) == ("succeeded", 1), told(client, job)
        assert client.predict(name, "a good film")[0]["label"] in ("pos", "neg")
        assert abs(done["finished_at"] - before["created_at"] - jump) < 600
    finally:
        clock(0)
    assert client.get_adapter(name)["latest_version"] == 1


def test_the_clock_of_the_server_is_the_one_that_jumps(client, clock, films):
    clock(86400)
    try:
        job = submit(client, films, "jumped", epochs=1)
        assert client.get_job(job)["created_at"] - time.time() > 80000
        assert ended(client, job)["status"] == "succeeded"
    finally:
        clock(0)
