"""Kernels touch no memory beyond their tensors, and do nothing that C leaves undefined: gcc's sanitizers look on.

They must be there before all else, so that a process of its own runs this file.
"""

import itertools
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapters.runtime import compiling
from adapters.runtime.gradient_kernels import Attending, GradientKernels
from adapters.runtime.kernels import load_kernels, to_panels
from adapters.runtime.route import KernelRoute, Site
from adapters.runtime.spans import Reads, Span, join_spans

FLAGS = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
PROCESSORS = {
    "native": (),
    "wide": ("-march=x86-64-v3",),
    "narrow": ("-march=x86-64-v3", "-DLANES=4"),
}
LENGTHS = (1, 15, 16, 17, 33)
HEADS = ((9, 3, 64), (1, 1, 20), (40, 8, 32), (3, 1, 33), (2, 2, 256))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86-64's processors")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_kernels_keep_to_their_memory(tmp_path, processor):
    watch = _library("libasan.so")
    if watch is None:
        pytest.skip("no gcc with its sanitizers on this machine")
    environment = {**os.environ, "LD_PRELOAD": watch, "ASAN_OPTIONS": "detect_leaks=0", "CC": "gcc"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.adapters.runtime.test_sanitized", str(tmp_path), processor],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-3000:]


def _library(name: str) -> str | None:
    """Return where gcc has a library, whose own name it gives back if it has none."""
    if shutil.which("gcc") is None:
        return None
    asked = ["gcc", f"-print-file-name={name}"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return found if Path(found).is_absolute() else None


def _run_all(home: Path, processor: str) -> None:
    flags = [f for f in compiling._FLAGS if f != "-O3"]
    compiling._FLAGS = (*flags, *FLAGS, *PROCESSORS[processor])
    kernels = load_kernels.__wrapped__(home)
    assert kernels is not None
    for dtype in (torch.float32, torch.bfloat16):
        for heads in HEADS:
            _decode(kernels, dtype, *heads)
            _attend_rows(kernels, dtype, *heads)
            _train(GradientKernels(kernels), dtype, *heads)
        for width in (1, 7, 16, 33, 130):
            _small_parts(GradientKernels(kernels), dtype, width)
            _add_updates(kernels, dtype, width)
    for outputs, tokens in itertools.product((1, 17, 77), (0, 1, 9, 17)):
        panels = to_panels(torch.ones(outputs, 48, dtype=torch.bfloat16))
        x = torch.ones(tokens, 48, dtype=torch.bfloat16)
        kernels.linear(x, panels, torch.ones(outputs), outputs)


def _decode(kernels, dtype, heads, kv_heads, size):
    lengths = torch.tensor([*LENGTHS, 300], dtype=torch.int32)
    rows, width = len(lengths), 19
    blocks = torch.arange(rows * width, dtype=torch.int32).view(width, rows).T.contiguous()
    cells = torch.ones(rows * width * 16, kv_heads, size, dtype=dtype)
    query = torch.ones(rows, heads, size, dtype=dtype)
    kernels.attend(query, cells, cells, Reads(rows, blocks, lengths), 0.1, torch.empty_like(query))


def _attend_rows(kernels, dtype, heads, kv_heads, size):
    bounds = [0, *itertools.accumulate(LENGTHS)]
    query = torch.ones(bounds[-1], heads, size, dtype=dtype)
    key = torch.ones(bounds[-1], kv_heads, size, dtype=dtype)
    spans = [Span(a, b - a, b - a, range(a, b, 16)) for a, b in itertools.pairwise(bounds)]
    parts = [x.transpose(0, 1) for x in (query, key, key)]
    for is_causal, window in itertools.product((True, False), (None, 3)):
        out = torch.empty_like(query)
        kernels.attend_rows(*parts, join_spans(spans), 0.1, out, is_causal=is_causal, window=window)


def _train(gradients, dtype, heads, kv_heads, size):
    bounds = torch.tensor([0, *itertools.accumulate(LENGTHS)])
    whole = torch.ones(int(bounds[-1]), heads + 2 * kv_heads, size, dtype=dtype)
    parts = whole.split((heads, kv_heads, kv_heads), 1)
    for is_causal in (True, False):
        how = Attending(bounds, LENGTHS[-1], 0.1, is_causal, 20, 0.1, 3)
        out, sums = gradients.attend(*parts, how)
        gradients.attend_back(*parts, sums, out, how)


def _small_parts(gradients, dtype, width):
    x, weight = torch.ones(5, 2 * width, dtype=dtype), torch.ones(2 * width, dtype=dtype)
    gradients.rms_norm_back(x, weight, gradients.serving.rms_norm(x, weight, 1e-5), 1e-5)
    gradients.silu_mul_back(x, gradients.serving.silu_mul(x))
    gradients.gelu(x, gradients.gelu(x))
    gradients.drop_out(x, 0.1, 3)
    turned = torch.ones(5, 3, 2 * width, dtype=dtype)
    gradients.serving.rotate(turned, x, x)
    store = torch.empty(9, 3, 2 * width, dtype=dtype)
    gradients.serving.keep(turned.transpose(0, 1), None, torch.tensor([0, 8, 3, 4, 5]), store)


def _add_updates(kernels, dtype, width):
    for rank in (1, 16, 33, 512):
        a, b = torch.ones(rank, width, dtype=dtype), torch.ones(rank, width, dtype=dtype)
        table = torch.tensor([[[(a.data_ptr(), b.data_ptr(), rank)]]])
        x, site = torch.ones(7, width, dtype=dtype), Site(0, ("m",), torch.tensor([width]))
        KernelRoute.over(kernels, [(0, 7)], [0], table).add(x, torch.ones_like(x), site)


if __name__ == "__main__":
    _run_all(Path(sys.argv[1]), sys.argv[2])
    print("done")
