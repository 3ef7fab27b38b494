"""Dropout by kernel: what is dropped follows from a seed, so that no mask is kept or drawn number by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adapters.runtime.gradient_kernels import GradientKernels


def new_seed() -> int:
    """Return a seed from torch's own random numbers, so that a run repeats itself and goes on as it was."""
    return int(torch.randint(2**31, ()))


class _Dropout(torch.autograd.Function):
    """Srivastava et al., JMLR 15 (2014)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, kernels: GradientKernels) -> Tensor:
        ctx.p, ctx.seed, ctx.kernels = p, new_seed(), kernels
        return kernels.drop_out(x, p, ctx.seed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.kernels.drop_out(grad, ctx.p, ctx.seed), None, None


def dropout_forward(module: nn.Dropout, kernels: GradientKernels) -> Callable[[Tensor], Tensor]:
    """Return a forward for a dropout layer."""

    def forward(x: Tensor) -> Tensor:
        if not module.training or module.p == 0:
            return x
        out: Tensor = _Dropout.apply(x, module.p, kernels)
        return out

    return forward
