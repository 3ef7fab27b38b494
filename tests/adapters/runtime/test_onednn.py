"""A process that computes ever new shapes stays as large as it is."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from adapters.runtime.onednn import bound_caches
if sys.argv[1] == "bounded":
    bound_caches()
import torch

def pages():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

layers = [torch.randn(n, 384).bfloat16() for n in (384, 512, 768, 1536)]
for tokens in range(1, 300):
    for layer in layers:
        torch.nn.functional.linear(torch.randn(tokens, 384).bfloat16(), layer)
    if tokens == 60:
        before = pages()
print(pages() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_bounded_caches_keep_a_process_small():
    def growth(how):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    free = growth("free")
    if free < 32e6:
        pytest.skip("torch computes these products without oneDNN here")
    assert growth("bounded") < free / 2
