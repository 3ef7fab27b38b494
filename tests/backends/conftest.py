"""Real servers for these tests, PostgreSQL and a store that speaks S3; what can't be had is skipped, with a reason."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import pytest

from service.demo import free_port
from tests.registries import Stores

_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if os.name == "posix" else []
_USER = "headstock"
READY_SECONDS = 60


def postgres_tool(name):
    found = shutil.which(name) or next((str(b / name) for b in reversed(_POSTGRES)), None)
    if found is None:
        pytest.skip(f"PostgreSQL's '{name}' is not installed (apt install postgresql).")
    return found


def unprivileged():
    """Return what runs a command as another user than root, whom PostgreSQL refuses."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user 'postgres'.")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def wait_for(condition, process, log):
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)  # between two looks


class Postgres:
    """A server with no data of its own worth keeping; may be stopped and started again."""

    def __init__(self, folder):
        self.port = free_port()
        self._folder = folder
        self._as_user = unprivileged()
        self._process = None
        if self._as_user:
            os.chown(folder, self._as_user["user"], self._as_user["group"])
        initdb = [postgres_tool("initdb"), "-D", folder / "data", "-U", _USER, "--auth=trust"]
        subprocess.run(
            [*initdb, "--no-sync", "-E", "UTF8", "--locale=C"],
            cwd=folder,
            check=True,
            capture_output=True,
            **self._as_user,
        )

    def start(self):
        log = self._folder / "log"
        options = ["listen_addresses=127.0.0.1", "fsync=off", "max_connections=200"]
        with log.open("a") as file:
            self._process = subprocess.Popen(
                [
                    *(postgres_tool("postgres"), "-D", self._folder / "data", "-p", str(self.port)),
                    *("-k", self._folder, *(x for option in options for x in ("-c", option))),
                ],
                cwd=self._folder,
                stdout=file,
                stderr=file,
                **self._as_user,
            )
        wait_for(self._answers, self._process, log)

    def stop(self):
        """Stop at once, as after a fault: what was committed is there when it starts again."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(timeout=READY_SECONDS)

    def url(self, database="postgres"):
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{database}"

    def new_database(self, encoding="UTF8"):
        import psycopg

        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0")
        return self.url(name)

    def _answers(self):
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.url(), connect_timeout=1).close()
            return True
        return False


@pytest.fixture(scope="session")
def postgres():
    pytest.importorskip("psycopg", reason="psycopg is not installed (make test-backends does it).")
    folder = Path("/tmp") / f"headstock-pg-{uuid.uuid4().hex[:8]}"  # a socket's path is short
    folder.mkdir()
    try:
        server = Postgres(folder)
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running_s3(folder, **environment):
    """Run moto's server and point botocore at it.

    Args:
        environment: of the server.
    """
    for package in ("s3fs", "moto", "flask"):
        pytest.importorskip(
            package, reason=f"{package} is not installed (make test-backends does it)."
        )
    port, log = free_port(), folder / "log"
    url = f"http://127.0.0.1:{port}"
    variables = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch, log.open("w") as file:
        for name, value in variables.items():
            patch.setenv(name, value)
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env={**os.environ, **environment},
            stdout=file,
            stderr=file,
        )
        try:
            wait_for(lambda: _answers(url), process, log)
            yield
        finally:
            process.terminate()
            process.wait(timeout=READY_SECONDS)


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """Run a store; gives the name of a bucket."""
    with running_s3(tmp_path_factory.mktemp("s3")):
        import s3fs

        s3fs.S3FileSystem().mkdir("bundles")
        yield "bundles"


def _answers(url):
    with contextlib.suppress(httpx.TransportError):
        httpx.get(url)
        return True
    return False


@pytest.fixture
def new_stores(postgres, s3, tmp_path):
    """Return what gives a new, empty pair of PostgreSQL database and S3 prefix each time it is called."""

    def make():
        url = f"s3://{s3}/{uuid.uuid4().hex}"
        return Stores(postgres.new_database(), url, tmp_path / uuid.uuid4().hex)

    return make
