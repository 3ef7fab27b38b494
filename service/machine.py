"""Which machine this is, for what several machines write into one database about their processes, and what it has."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from pathlib import Path


@functools.cache
def machine_name() -> str:
    """Return a name of the place where this process's number means this process: no other's number is looked for there.

    A host's name alone would not do: copies of one virtual machine share it, and containers in their host's network
    have its name and their own processes. A machine that was booted anew is another one.
    """
    place = [_read(Path("/proc/sys/kernel/random/boot_id")), _link(Path("/proc/self/ns/pid"))]
    mark = hashlib.sha256("\n".join(place).encode()).hexdigest()[:8]
    return f"{socket.gethostname()}-{mark}"


def is_gone(machine: str, pid: str) -> bool:
    """Tell whether a process was one of this machine and is not there any more; of other machines nothing is known."""
    return machine == machine_name() and pid.isdecimal() and not Path(f"/proc/{pid}").exists()


def has_gpu() -> bool:
    """Tell whether this machine has a GPU of NVIDIA's and its driver; nothing of torch is needed for that."""
    return Path("/dev/nvidiactl").exists()


def _read(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _link(path: Path) -> str:
    return os.readlink(path) if path.is_symlink() else ""
