"""Which form of the low-rank updates a GPU runs: what is faster there, measured once when the engine is made."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.runtime.route import KernelRoute, LoraKernels, Route, Site, TorchRoute
from adapters.runtime.weights import Pair

logger = logging.getLogger(__name__)
# What is measured: a decode step of many adapters, which is what serving does most of the time.
NUM_ROWS, RANK = 64, 16
_LONG = 20  # tokens of rows that are only checked: more than a tile takes, and a part of one
_RUNS = 5
# Of the largest value; a half has 11 bits, bf16 8, and both forms round the low-rank sums.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


def choose_gpu_kernels(backbone: Backbone) -> LoraKernels | None:
    """Return the Triton kernels if, on this backbone's GPU and shapes, they are right and faster; else None.

    None always on a CPU, and where Triton isn't installed.
    """
    if backbone.device.type != "cuda":
        return None
    kernels = _triton_kernels()
    if kernels is None:
        return None
    shapes = sorted(set(backbone.spec.modules.values()))
    return kernels if is_better(kernels, shapes, backbone.dtype, backbone.device) else None


@functools.cache
def _triton_kernels() -> LoraKernels | None:
    try:
        from adapters.runtime.triton_kernels import TritonKernels
    except ImportError:
        logger.warning("Triton isn't installed; adapters run on torch alone, slower.")
        return None
    return TritonKernels()


def is_better(
    kernels: LoraKernels,
    shapes: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
) -> bool:
    """Tell whether kernels give torch's updates, in less time over all shapes together, and log what was found.

    Args:
        shapes: inputs and outputs of the layers.
    """
    ours = theirs = 0.0
    try:
        for inputs, outputs in shapes:
            trial = Trial.make(kernels, inputs, outputs, dtype, device)
            long = Trial.make(kernels, inputs, outputs, dtype, device, _LONG)
            if not (trial.agrees() and long.agrees()):
                logger.warning(
                    "The Triton kernel's updates of a layer with %d inputs and %d outputs are not torch's; torch "
                    "runs instead. Please report it with this GPU's name.", inputs, outputs,
                )  # fmt: skip
                return False
            ours += trial.seconds(trial.kernel)
            theirs += trial.seconds(trial.dense)
    except torch.AcceleratorError:  # the device is lost, for torch as well
        raise
    except Exception as error:
        # Triton compiles here: what a compiler, a driver and a new GPU can raise is no closed list.
        logger.warning("The Triton kernel can't be used (%r); torch runs instead.", error)
        return False
    logger.info("Updates by Triton %.2f ms, by torch %.2f ms", ours * 1e3, theirs * 1e3)
    return ours < theirs


@dataclass(frozen=True, slots=True)
class Trial:
    """One layer's updates for a row of each of many random adapters, by both forms; rows of one token unless told."""

    x_TI: Tensor
    before_TO: Tensor
    site: Site
    modules: Sequence[dict[str, Pair]]  # keeps what the kernel's table points at
    kernel: Route
    dense: Route

    @staticmethod
    def make(
        kernels: LoraKernels,
        inputs: int,
        outputs: int,
        dtype: torch.dtype,
        device: torch.device,
        num_tokens: int = 1,
    ) -> Trial:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        pairs = [
            (random(RANK, inputs) / inputs**0.5, random(RANK, outputs)) for _ in range(NUM_ROWS)
        ]
        cells = [[[(a.data_ptr(), b.data_ptr(), RANK)]] for a, b in pairs]
        owners = list(range(NUM_ROWS))
        spans = [(i * num_tokens, (i + 1) * num_tokens) for i in owners]
        owner_T = torch.tensor(owners, device=device).repeat_interleave(num_tokens)
        modules = [{"layer": pair} for pair in pairs]
        return Trial(
            random(len(owner_T), inputs),
            random(len(owner_T), outputs),
            Site(0, ("layer",), torch.tensor([outputs])),
            modules,
            KernelRoute.over(kernels, spans, owners, torch.tensor(cells, device=device)),
            TorchRoute(owner_T, modules),
        )

    def agrees(self) -> bool:
        """Tell whether both give the same, as closely as their dtype can."""
        ours, theirs = (self._run(route).float() for route in (self.kernel, self.dense))
        difference = (ours - theirs).abs().max() / theirs.abs().max()
        return bool(difference < _TOLERANCE[self.x_TI.dtype])

    def seconds(self, route: Route) -> float:
        """Return the median time of one group's updates, after a first run that is not counted."""
        return median([self._timed(lambda: self._run(route)) for _ in range(_RUNS + 1)][1:])

    def _run(self, route: Route) -> Tensor:
        out_TO = self.before_TO.clone()
        route.add(self.x_TI, out_TO, self.site)
        return out_TO

    def _timed(self, run: Callable[[], object]) -> float:
        self._wait()
        begin = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.x_TI.device.type == "cuda":
            torch.cuda.synchronize(self.x_TI.device)
