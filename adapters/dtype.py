"""Which dtype a backbone runs in on this machine: measured once, then remembered, so that all processes agree."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

DtypeName = Literal["auto", "float32", "bfloat16", "float16", "int8", "nf4"]
Quantization = Literal["int8", "nf4"]
_FILE = "dtype.json"
_TRIALS = 20


def resolve_dtype(name: DtypeName, device: str, home: Path) -> DtypeName:
    """Return the dtype to compute in: ``name``, or for ``auto``, ``int8`` and ``nf4`` the faster of fp32 and bf16 here.

    On CPUs "has AVX512-BF16" does not tell: one machine with it ran bf16 at 4.3 times the fp32 rate,
    another (Emerald Rapids with AMX hidden) at 0.55 times. The choice is kept under ``home``: a busy
    moment could tip it, and evaluation and serving must not differ.
    """
    if name != "auto" and quantization_of(name) is None:
        return name
    path, machine = home / _FILE, _machine(device)
    known = _read(path)
    if machine not in known:
        known[machine] = _measure(device)
        home.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(known, indent=2) + "\n")
        part.replace(path)
    return known[machine]


def quantization_of(name: DtypeName) -> Quantization | None:
    """Return how the backbone's linear layers keep their weights; None for as they are."""
    return name if name in ("int8", "nf4") else None


def _read(path: Path) -> dict[str, DtypeName]:
    try:
        known: dict[str, DtypeName] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known


def _machine(device: str) -> str:
    import torch

    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {torch.__version__} {device}"


def _measure(device: str) -> DtypeName:
    import torch

    if device != "cpu":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    seconds = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(_TRIALS):  # in turn, so that a busy moment hits both
        for dtype in seconds:
            seconds[dtype] = min(seconds[dtype], _matmul_seconds(dtype))
    return "float32" if seconds[torch.float32] <= seconds[torch.bfloat16] else "bfloat16"


def _matmul_seconds(dtype: torch.dtype) -> float:
    import torch

    x, weight = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    torch.nn.functional.linear(x, weight)
    begin = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    return time.perf_counter() - begin
