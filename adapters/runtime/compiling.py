"""Compiles kernels.c, once per machine and kind of processor, and keeps what only this user could have written."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adapters.lora import MAX_RANK

logger = logging.getLogger(__name__)
SOURCES = (
    "kernels.c",
    "kernels_rows.h",
    "kernels_typed.h",
    "kernels_gradient.h",
    "kernels_linear.h",
)
# No -ffast-math: it would set flush-to-zero for the whole process, and not-a-number must stay one.
_FLAGS = (
    "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC",
    f"-DMAX_RANK={MAX_RANK}",
    *(["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []),
)  # fmt: skip
_COMPILE_SECONDS = 120


def load_library(compiler: Sequence[str], folder: Path) -> ctypes.CDLL:
    """Return the compiled functions, from a folder if it has them; what can't be kept there is this process's alone."""
    name = f"{_identity(compiler)}.so"
    try:
        return _load(compiler, folder / name)
    except OSError as error:
        logger.warning(
            "Compiled kernels can't be kept in '%s' (%s); each process compiles its own.",
            folder,
            error,
        )
        with tempfile.TemporaryDirectory() as private:
            return _load(compiler, Path(private) / name)


def _load(compiler: Sequence[str], path: Path) -> ctypes.CDLL:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not _is_ours(path.parent):
        raise PermissionError("another user may write to it, and what is in it would be run")
    if not _is_whole(path):
        _compile(compiler, path)
    return ctypes.CDLL(str(path))


def find_compiler() -> list[str]:
    """Return the command that compiles C, with its own arguments; empty if there is none."""
    given = os.environ.get("CC")
    if given:
        return shlex.split(given)
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return [found] if found else []


def _is_ours(path: Path) -> bool:
    """Tell whether a file or folder is this user's or root's, and not everybody's to write to."""
    about = path.stat()
    return about.st_uid in (0, os.geteuid()) and not about.st_mode & stat.S_IWOTH


def _is_whole(path: Path) -> bool:
    """Tell whether a compiled file is as it was written: a damaged one would end the process that loads it."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return _is_ours(path) and _sum_of(path).read_bytes() == digest.encode()
    except OSError:
        return False


def _sum_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _identity(compiler: Sequence[str]) -> str:
    """Return a name for what the compiler would make here: sources, flags, compiler and processor decide it."""
    sha = hashlib.sha256()
    for name in SOURCES:
        sha.update((Path(__file__).parent / name).read_bytes())
    version = subprocess.run(
        [*compiler, "--version"],
        check=True,
        capture_output=True,
        timeout=_COMPILE_SECONDS,
    ).stdout
    sha.update(version)
    sha.update(" ".join((*_FLAGS, *compiler, platform.machine(), _processor())).encode())
    return sha.hexdigest()[:24]


def _processor() -> str:
    """Return what tells this processor from others whose instructions differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: Sequence[str], path: Path) -> None:
    source = Path(__file__).parent / SOURCES[0]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        subprocess.run(
            [*compiler, *_FLAGS, str(source), "-o", str(made), "-lm"],
            check=True,
            capture_output=True,
            timeout=_COMPILE_SECONDS,
        )
        digest = hashlib.sha256(made.read_bytes()).hexdigest()
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.chmod(0o755)
        made.replace(path)  # at once, for another process may be doing the same
    _sum_of(path).write_text(digest)
