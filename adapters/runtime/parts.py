"""Small parts of the library's models that a compiled kernel does in one go where torch takes ten operators.

The library has the same idea (its kernels from the Hub); these are its layers, same numbers, for serving on a CPU.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.activations import SiLUActivation

from adapters.runtime.kernels import Kernels
from adapters.runtime.linears import GroupMember, replace

# Classes whose forward is weight * x / rms(x), and MLPs of the form down(act(gate(x)) * up(x)).
NORMS = ("LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "MistralRMSNorm")
GATED = ("LlamaMLP", "Qwen2MLP", "Qwen3MLP", "MistralMLP")


class KernelNorm(nn.Module):
    """RMSNorm by kernel."""

    def __init__(self, norm: Any, kernels: Kernels) -> None:
        super().__init__()
        self.weight = norm.weight
        self._epsilon = float(norm.variance_epsilon)
        self._kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        return self._kernels.rms_norm(x, self.weight, self._epsilon)


class KernelMlp(nn.Module):
    """A gated MLP whose gate and up are one product already, and their activation one kernel."""

    def __init__(self, mlp: Any, kernels: Kernels) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self._kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self._kernels.silu_mul(self.gate_proj.group.compute(x)))
        return out


def put_in_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Replace what has a kernel, in a model whose linear layers are fused."""
    for path, module in list(model.named_modules()):
        kind = type(module).__name__
        if kind in NORMS:
            replace(model, path, KernelNorm(module, kernels))
        elif kind in GATED and _is_fused_silu(module):
            replace(model, path, KernelMlp(module, kernels))


def _is_fused_silu(mlp: Any) -> bool:
    names = ("gate_proj", "up_proj")
    members = [getattr(mlp, name) for name in names]
    return (
        isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)
        and all(isinstance(member, GroupMember) for member in members)
        and members[0].group is members[1].group
    )
