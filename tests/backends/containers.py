"""A Docker of these tests' own, without a registry, and the Dockerfile's two targets built by it.

A daemon that DOCKER_HOST names is used if it is set. What can't be had is skipped, with a reason.
"""

import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tests.backends.conftest import READY_SECONDS, wait_for
from tests.servers import ROOT

BASE = "python:3.11-slim-bookworm"
_BUILD_SECONDS = 900
_PACKAGES = ["docker.io", "mmdebstrap"]
_NO_NETWORK = ["iptables", "ip6tables", "ip-forward", "ip-masq"]  # containers here need none


@pytest.fixture(scope="session")
def docker_host():
    pytest.importorskip("docker", reason="docker is not installed (make test-backends does it).")
    if "DOCKER_HOST" in os.environ:
        yield os.environ["DOCKER_HOST"]
        return
    if os.geteuid() != 0:
        pytest.skip("Only root can start a Docker daemon; set DOCKER_HOST to one.")
    daemon = _tool("dockerd")
    with tempfile.TemporaryDirectory(prefix="headstock-docker-") as name:
        folder = Path(name)
        host = f"unix://{folder}/socket"
        command = [daemon, "-H", host, "--data-root", folder / "data", "--exec-root", folder / "x"]
        command += ["--pidfile", folder / "pid", "--bridge=none"]
        command += [f"--{each}=false" for each in _NO_NETWORK]
        log = folder / "log"
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            _wait_or_skip(lambda: _answers(host), process, log)
            yield host
        finally:
            process.terminate()
            process.wait(timeout=READY_SECONDS)
            _unmount_below(folder)


@pytest.fixture(scope="session")
def images(docker_host, tmp_path_factory):
    """Return the names of the two built images by their target."""
    environment = {**os.environ, "DOCKER_HOST": docker_host, "DOCKER_BUILDKIT": "1"}
    docker = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else _tool("docker")
    _provide_base(docker, environment, tmp_path_factory.mktemp("base"))
    fetch = ["python", "-m", "pip", "download", "-q", "--no-deps", "-d", "/tmp", "iniconfig"]
    if _run([docker, "run", "--rm", "--network=host", BASE, *fetch], environment).returncode:
        pytest.skip("Packages can't be fetched from within a container here.")
    names = {target: f"headstock-{target}:test" for target in ("train", "serve")}
    with _torch_index(tmp_path_factory.mktemp("index")) as url:
        for target, image in names.items():
            command = [docker, "build", "--network=host", "--target", target, "-t", image]
            command += ["--build-arg", f"TORCH_INDEX_URL={url}", str(ROOT)]
            done = _run(command, environment)
            assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return names


def _unmount_below(folder):
    """Undo what the daemon leaves mounted, or its folder can't be removed."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([mount for mount in mounts if Path(mount).is_relative_to(folder)]):
        subprocess.run(["umount", place], capture_output=True, check=True)


def _wait_or_skip(condition, process, log):
    try:
        wait_for(condition, process, log)
    except AssertionError:
        pytest.skip(f"Docker does not start here: {log.read_text()[-300:]}")


def _provide_base(docker, environment, folder):
    """Make the base image from the distribution's packages if it can't be pulled."""
    for command in (["image", "inspect", BASE], ["pull", "-q", BASE]):
        if _run([docker, *command], environment).returncode == 0:
            return
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    words = sources.read_text().split() if sources.is_file() else []
    if "URIs:" not in words:
        pytest.skip(f"The image '{BASE}' can't be had, and this is no Debian to make it from.")
    mirror, archive = words[words.index("URIs:") + 1], folder / "base.tar"
    hooks = [
        'rm -f "$1"/usr/lib/python3.*/EXTERNALLY-MANAGED; ln -s python3 "$1/usr/bin/python"',
        *(f"upload {path} {path}" for path in _trust()),
    ]
    options = ['--aptopt=Acquire::Check-Valid-Until "false"', "--variant=minbase", "-q"]
    options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    options += [f"--customize-hook={hook}" for hook in hooks]
    included = "--include=ca-certificates,python3,python3-venv,python3-pip"
    source = f"deb {mirror} bookworm main"
    made = _run([_tool("mmdebstrap"), *options, included, "bookworm", str(archive), source])
    if made.returncode:
        pytest.skip(f"The image '{BASE}' can't be made: {made.stderr[-300:]}")
    imported = _run(
        [docker, "import", "--change", 'CMD ["python3"]', str(archive), BASE], environment
    )
    assert imported.returncode == 0, imported.stderr


def _trust():
    """Return what pip and apt of this machine trust, so that they do in the image."""
    paths = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf"]
    return [path for path in paths if Path(path).is_file()]


@contextlib.contextmanager
def _torch_index(folder):
    """Serve this machine's wheels of torch as an index, on loopback; gives its URL, or nothing if there are none."""
    found = _run([sys.executable, "-m", "pip", "config", "get", "global.find-links"]).stdout.split()
    wheels = [wheel for place in found for wheel in Path(place).glob("torch-*.whl")]
    if not wheels:
        yield os.environ.get("TORCH_INDEX_URL", "")
        return
    (folder / "torch").mkdir()
    for wheel in wheels:
        (folder / "torch" / wheel.name).symlink_to(wheel)
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def _answers(host):
    import docker

    with (
        contextlib.suppress(docker.errors.DockerException),
        contextlib.closing(docker.DockerClient(base_url=host)) as client,
    ):
        return client.ping()
    return False


def _run(command, environment=None):
    return subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )


def _tool(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"'{name}' is not installed (apt install {' '.join(_PACKAGES)}).")
    return found
