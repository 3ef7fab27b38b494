"""What the numbers were measured on: the processor, its limits as measured here, and the libraries' versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import psutil
import torch
from torch.nn.functional import linear

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
_LIBRARIES = (
    "headstock",
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "tokenizers",
    "litserve",
    "numpy",
)
_TRIALS, _MOST_SECONDS = 5, 2.0
_MATMUL = 2048
_READ_BYTES = 512 * 2**20


def describe_machine(threads: int) -> dict[str, object]:
    """Return the processor, its memory, and its measured compute and bandwidth limits with so many threads."""
    torch.set_num_threads(threads)
    cpu = _cpu_info()
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "flags": [flag for flag in _FLAGS if flag in flags],
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "bf16_matmul_gflops": round(_matmul_gflops(torch.bfloat16)),
        "fp32_matmul_gflops": round(_matmul_gflops(torch.float32)),
        "read_gb_per_second": round(_read_gb_per_second(), 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
    }


def library_versions(peers: dict[str, str]) -> dict[str, str]:
    """Return versions of Python, of our libraries and of the peers that took part."""
    ours = {name: importlib.metadata.version(name) for name in _LIBRARIES if _is_installed(name)}
    return {"python": platform.python_version(), **ours, **peers}


def peer_version(python: Path, package: str) -> str:
    """Return the version of a package in another environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def source_commit() -> str | None:
    """Return the commit of the source tree, with a plus if it has changes; None outside a repository."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    lines = path.read_text().partition("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _matmul_gflops(dtype: torch.dtype) -> float:
    x = torch.ones(_MATMUL, _MATMUL, dtype=dtype)
    # As layers multiply. Where a processor has no bf16, torch takes half a minute for ``x @ x``.
    return 2 * _MATMUL**3 / _best_seconds(lambda: linear(x, x)) / 1e9


def _read_gb_per_second() -> float:
    # Larger than any cache, and only read: what a decode step does with the weights.
    data = torch.ones(_READ_BYTES // 4)
    return _READ_BYTES / _best_seconds(data.sum) / 1e9


def _best_seconds(call: object) -> float:
    assert callable(call)
    best = float("inf")
    stop = time.perf_counter() + _MOST_SECONDS
    for _ in range(_TRIALS):
        if time.perf_counter() > stop:
            break
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return best
