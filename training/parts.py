"""Small parts of the library's models with gradients written out: a few operators where autograd keeps and runs dozens.

Same formulas as the library's own forward; frozen weights, so no gradient but that of the input. On a CPU they are
kernels, where those can be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers.activations import GELUActivation

from adapters.runtime.gradient_kernels import GradientKernels
from adapters.runtime.parts import ATTENTIONS, GATED, NORMS, is_silu
from training.adjacent import cut, joined
from training.attention import rotated_forward
from training.dropout import dropout_forward

_Forward = Callable[..., Any]


class _RmsNorm(torch.autograd.Function):
    """``weight * x / rms(x)`` over the last dimension; Zhang and Sennrich, arXiv 1910.07467."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float, kernels: GradientKernels | None
    ) -> Tensor:
        ctx.epsilon, ctx.kernels = epsilon, kernels
        ctx.save_for_backward(x, weight_D)
        if kernels is not None and x.dtype == weight_D.dtype:
            return kernels.serving.rms_norm(x, weight_D, epsilon)
        return weight_D * (x.float() * _inverse(x, epsilon)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight_D = ctx.saved_tensors
        if ctx.kernels is not None and x.dtype == weight_D.dtype == grad.dtype:
            return ctx.kernels.rms_norm_back(x, weight_D, grad, ctx.epsilon), None, None, None
        inverse = _inverse(x, ctx.epsilon)
        normed = x.float() * inverse
        wide = grad.float() * weight_D
        shared = (wide * normed).mean(-1, keepdim=True)
        x_grad = wide.sub_(normed.mul_(shared)).mul_(inverse).to(grad.dtype)
        return x_grad, None, None, None


def _inverse(x: Tensor, epsilon: float) -> Tensor:
    return (x.float().square().mean(-1, keepdim=True) + epsilon).rsqrt()


class _GatedProduct(torch.autograd.Function):
    """``silu(gate) * up``; only the two inputs are kept, and their gradients stand side by side as they do."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kernels: GradientKernels | None) -> Tensor:
        ctx.kernels = kernels
        ctx.save_for_backward(gate, up)
        if kernels is not None:
            return kernels.serving.silu_mul(joined((gate, up)))
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        size = gate.shape[-1]
        if ctx.kernels is not None:
            grads = ctx.kernels.silu_mul_back(joined((gate, up)), grad)
            return *cut(grads, (size, size)), None
        gate_grad = torch.ops.aten.silu_backward(grad * up, gate)
        return gate_grad, silu(gate).mul_(grad), None


class _Gelu(torch.autograd.Function):
    """``x Phi(x)``; Hendrycks and Gimpel, arXiv 1606.08415."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: GradientKernels) -> Tensor:
        ctx.kernels = kernels
        ctx.save_for_backward(x)
        return kernels.gelu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return ctx.kernels.gelu(x, grad), None


def replace_parts(model: nn.Module, kernels: GradientKernels | None) -> Callable[[], None]:
    """Let a model's norms, gates, attention, activations and dropout compute by ours; returns what undoes it.

    Args:
        kernels: None leaves attention, activations and dropout to torch.
    """
    replaced: list[nn.Module] = []
    for module in model.modules():
        forward = _forward_for(module, kernels)
        if forward is not None:
            module.forward = forward
            replaced.append(module)

    def restore() -> None:
        for module in replaced:
            del module.forward

    return restore


def _forward_for(module: nn.Module, kernels: GradientKernels | None) -> _Forward | None:
    kind = type(module).__name__
    if kind in NORMS:
        return _norm_forward(module, kernels)
    if kind in GATED and is_silu(module):
        return _gated_forward(module, kernels)
    if kernels is None:
        return None
    if kind in ATTENTIONS:
        return rotated_forward(module)
    if isinstance(module, nn.Dropout):
        return dropout_forward(module, kernels)
    if isinstance(module, nn.GELU | GELUActivation) and _is_exact(module):
        return lambda x: _Gelu.apply(x, kernels)
    return None


def _is_exact(gelu: Any) -> bool:
    """Tell whether a GELU is that of the normal distribution and not one of its approximations."""
    if isinstance(gelu, nn.GELU):
        return gelu.approximate == "none"
    return gelu.act is nn.functional.gelu


def _norm_forward(norm: Any, kernels: GradientKernels | None) -> _Forward:
    weight_D, epsilon = norm.weight.detach(), float(norm.variance_epsilon)
    return lambda x: _RmsNorm.apply(x, weight_D, epsilon, kernels)


def _gated_forward(mlp: Any, kernels: GradientKernels | None) -> _Forward:
    def forward(x: Tensor) -> Tensor:
        product = _GatedProduct.apply(mlp.gate_proj(x), mlp.up_proj(x), kernels)
        out: Tensor = mlp.down_proj(product)
        return out

    return forward
