"""Small parts of the library's models with gradients written out: a few operators where autograd keeps and runs dozens.

Same formulas as the library's own forward; frozen weights, so no gradient but that of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from adapters.runtime.parts import GATED, NORMS, is_silu


class _RmsNorm(torch.autograd.Function):
    """``weight * x / rms(x)`` over the last dimension; Zhang and Sennrich, arXiv 1910.07467."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        inverse = (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt()
        ctx.save_for_backward(x, inverse, weight_D)
        return weight_D * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, inverse, weight_D = ctx.saved_tensors
        normed = x.float() * inverse
        wide = grad.float() * weight_D
        shared = (wide * normed).mean(-1, keepdim=True)
        return wide.sub_(normed.mul_(shared)).mul_(inverse).to(grad.dtype), None, None


class _GatedProduct(torch.autograd.Function):
    """``silu(gate) * up``; only the two inputs are kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        gate_grad = torch.ops.aten.silu_backward(grad * up, gate)
        return gate_grad, silu(gate).mul_(grad)


def replace_parts(model: nn.Module) -> Callable[[], None]:
    """Let a model's norms and gated MLPs compute by the above; returns what undoes it."""
    replaced: list[nn.Module] = []
    for module in model.modules():
        kind = type(module).__name__
        forward: Any = None
        if kind in NORMS:
            forward = _norm_forward(module)
        elif kind in GATED and is_silu(module):
            forward = _gated_forward(module)
        if forward is not None:
            module.forward = forward
            replaced.append(module)

    def restore() -> None:
        for module in replaced:
            del module.forward

    return restore


def _norm_forward(norm: Any) -> Callable[[Tensor], Tensor]:
    weight_D, epsilon = norm.weight.detach(), float(norm.variance_epsilon)

    def forward(x: Tensor) -> Tensor:
        out: Tensor = _RmsNorm.apply(x, weight_D, epsilon)
        return out

    return forward


def _gated_forward(mlp: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        out: Tensor = mlp.down_proj(_GatedProduct.apply(mlp.gate_proj(x), mlp.up_proj(x)))
        return out

    return forward
