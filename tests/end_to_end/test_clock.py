"""The machine's clock jumps, a day ahead and a day back, while jobs run: none is taken for dead, lost or doubled."""

import shutil
import struct
import subprocess
import sys
import time

import pytest

from tests.faults import FAULTY
from tests.jobs import ended, is_training, submit, told
from tests.servers import running_server

# Puts the clock on the wall wrong by as many seconds as a file says, and leaves alone what only counts. (libfaketime's
# own way of that, DONT_FAKE_MONOTONIC, makes every sleep fail.)
_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static int64_t offset(void) {
    static volatile int64_t *seconds;
    if (!seconds) {
        int file = open(getenv("CLOCK_OFFSET_FILE"), O_RDONLY | O_CLOEXEC);
        seconds = mmap(0, sizeof *seconds, PROT_READ, MAP_SHARED, file, 0);
    }
    return *seconds;
}
int clock_gettime(clockid_t clock, struct timespec *told) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, told);
    if (!failed && clock == CLOCK_REALTIME) told->tv_sec += offset();
    return failed;
}
int gettimeofday(struct timeval *told, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    told->tv_sec = now.tv_sec; told->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *told) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (told) *told = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    """Give what sets the clock of all processes that are started from now on, in seconds from the right time."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("A clock to be put wrong needs Linux and a C compiler.")
    folder = tmp_path_factory.mktemp("clock")
    source, library, file = folder / "clock.c", folder / "clock.so", folder / "offset"
    source.write_text(_SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)

    file.write_bytes(bytes(8))

    def set_to(seconds):
        with file.open("r+b") as opened:  # in place: it is mapped into the processes
            opened.write(struct.pack("=q", seconds))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOCK_OFFSET_FILE", str(file))
        patch.setenv("LD_PRELOAD", str(library))
        yield set_to


@pytest.fixture(scope="module")
def client(clock, tmp_path_factory, decoder_folder):
    home = tmp_path_factory.mktemp("clock-home")
    with running_server(home, str(decoder_folder), dtype="float32") as (client, _):
        yield client


@pytest.mark.parametrize("jump", [86400, -86400])
def test_a_job_goes_on_over_a_jump_of_the_clock(client, clock, films, jump):
    name = f"over-{'ahead' if jump > 0 else 'back'}"
    job = submit(client, films, name, training={**FAULTY, "epochs": 80})
    is_training(client, job)
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
        job = submit(client, films, "jumped", training={"epochs": 1})
        assert client.get_job(job)["created_at"] - time.time() > 80000
        assert ended(client, job)["status"] == "succeeded"
    finally:
        clock(0)
