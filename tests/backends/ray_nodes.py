"""Ray on nodes of its own: network namespaces on one bridge, each with an address and shared memory of its own."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.gates import Gate
from tests.servers import wait_until

HEAD, DASHBOARD = "10.77.0.1", 8265
_NEW_NETWORK = 0x40000000
# Notice a lost node within seconds, not half a minute.
_HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
_QUIET = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_memory_monitor_refresh_ms": "0",
    "GLOO_SOCKET_IFNAME": "eth0",
}


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


class Nodes:
    """A switch, and nodes at it: the first is Ray's head, and computes nothing."""

    def __init__(self, folder):
        self._folder = folder
        self._name = f"hs{uuid.uuid4().hex[:6]}"
        self._nodes = {}
        self._processes = []

    def name(self, number):
        return f"{self._name}n{number}"

    def make_switch(self):
        run("ip", "netns", "add", self._name)
        run("ip", "-n", self._name, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self._name, "link", "set", "br0", "up")

    def start(self, number, cpus):
        """Start a node; Ray's head is number 1."""
        name, port = self.name(number), f"p{number}"
        run("ip", "netns", "add", name)
        self._nodes[number] = name
        link = ["type", "veth", "peer", "name", port, "netns", self._name]
        run("ip", "link", "add", "eth0", "netns", name, *link)
        run("ip", "-n", self._name, "link", "set", port, "master", "br0", "up")
        run("ip", "-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            run("ip", "-n", name, "link", "set", device, "up")
        run("ip", "-n", name, "route", "add", "default", "dev", "eth0")
        self._start_ray(number, cpus)

    def kill(self, number):
        """End all of a node at once, as when its machine is lost."""
        found = subprocess.run(
            ["ip", "netns", "pids", self._nodes[number]], capture_output=True, text=True
        )
        for pid in found.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def pids(self, number):
        found = subprocess.run(
            ["ip", "netns", "pids", self._nodes[number]], capture_output=True, text=True
        )
        return [int(pid) for pid in found.stdout.split()]

    def remove(self):
        for number in self._nodes:
            self.kill(number)
        for process in self._processes:
            process.wait(timeout=30)
        for name in [*self._nodes.values(), self._name]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def log(self, number):
        return (self._folder / f"node-{number}.log").read_text()

    def _start_ray(self, number, cpus):
        role = [f"--address={HEAD}:6379"]
        if number == 1:
            role = ["--head", "--port=6379", "--include-dashboard=true", f"--dashboard-host={HEAD}"]
        own = (
            "mount -t tmpfs -o size=1g tmpfs /tmp/ray && mount -t tmpfs -o size=512m tmpfs /dev/shm"
        )
        ray = [str(Path(sys.executable).with_name("ray")), "start", *role, "--block"]
        ray += [f"--node-ip-address=10.77.0.{number}", f"--num-cpus={cpus}"]
        ray += ["--object-store-memory=100000000", "--disable-usage-stats"]
        Path("/tmp/ray").mkdir(exist_ok=True)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with (self._folder / f"node-{number}.log").open("w") as log:
            process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self._nodes[number], "unshare", "-m"),
                    *("sh", "-c", f'{own} && exec "$@"', "sh", *ray),
                ],
                env={**os.environ, **_QUIET, **_HEALTH, "PATH": path},
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)


class Door(Gate):
    """An address on this machine's loopback that leads to one in a namespace."""

    def __init__(self, namespace, host, port):
        self._namespace = namespace
        super().__init__(host, port)

    def connect(self):
        """Return a connection made in the namespace: a thread may be in another one than its process."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._enter).result()

    def _enter(self):
        with open(f"/run/netns/{self._namespace}") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "setns")
        return super().connect()


def skip_unless_nodes_can_be_had():
    pytest.importorskip("ray", reason="ray is not installed (make test-backends does it).")
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "unshare", "setpriv")):
        pytest.skip("Nodes need network namespaces: root, iproute2 and util-linux.")
    name = f"hs{uuid.uuid4().hex[:6]}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        pytest.skip("This machine lets nobody make network namespaces.")
    run("ip", "netns", "del", name)


@contextlib.contextmanager
def running_nodes(folder, cpus):
    """Run Ray on a head and as many nodes as ``cpus`` has numbers; gives them and the dashboard's address here."""
    nodes = Nodes(folder)
    door = None
    try:
        nodes.make_switch()
        nodes.start(1, 0)
        door = Door(nodes.name(1), HEAD, DASHBOARD)
        wait_until(lambda: _answers(door), seconds=120)
        for number, each in enumerate(cpus, start=2):
            nodes.start(number, each)
        yield nodes, f"http://127.0.0.1:{door.port}"
    finally:
        if door is not None:
            door.shut()
        nodes.remove()


def _answers(door):
    with contextlib.suppress(OSError):
        door.connect().close()
        return True
    return False
