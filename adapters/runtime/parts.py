"""Small parts of the library's models that a compiled kernel does in one go where torch takes ten operators.

The library has the same idea (its kernels from the Hub); these are its layers, same numbers, for serving on a CPU.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.activations import SiLUActivation

from adapters.runtime.attention import packed_attention
from adapters.runtime.kernels import Kernels
from adapters.runtime.linears import GroupMember, replace
from adapters.runtime.pack import Pack

# Classes whose forward is weight * x / rms(x), attention without norms of its own, and MLPs of the form
# down(act(gate(x)) * up(x)).
NORMS = ("LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "MistralRMSNorm")
ATTENTIONS = ("LlamaAttention", "Qwen2Attention", "MistralAttention")
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


class KernelAttention(nn.Module):
    """Attention over a pack whose query, key and value are one product already, rotated where they stand."""

    def __init__(self, attention: Any, kernels: Kernels) -> None:
        super().__init__()
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj
        self.layer_idx, self.is_causal = attention.layer_idx, attention.is_causal
        self._scaling, self._size = attention.scaling, attention.head_dim
        config = attention.config
        self._window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._kernels = kernels

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *,
        pack: Pack,
        **_: Any,
    ) -> tuple[Tensor, None]:
        x_1THD = self.q_proj.group.compute(hidden_states).unflatten(-1, (-1, self._size))
        cos_1TD, sin_1TD = position_embeddings
        rotated = self._heads + self._kv_heads
        self._kernels.rotate(x_1THD[0, :, :rotated], cos_1TD[0], sin_1TD[0])
        query, key, value = x_1THD.transpose(1, 2).split(
            (self._heads, self._kv_heads, self._kv_heads), dim=1
        )
        out_1THD, _none = packed_attention(
            self, query, key, value, None,
            pack=pack, scaling=self._scaling, sliding_window=self._window,
        )  # fmt: skip
        out: Tensor = self.o_proj(out_1THD.flatten(2))
        return out, None


def put_in_kernels(model: nn.Module, kernels: Kernels, *, is_packed: bool) -> None:
    """Replace what has a kernel, in a model whose linear layers are fused."""
    for path, module in list(model.named_modules()):
        kind = type(module).__name__
        if kind in NORMS:
            replace(model, path, KernelNorm(module, kernels))
        elif kind in GATED and is_silu(module) and _is_fused(module.gate_proj, module.up_proj):
            replace(model, path, KernelMlp(module, kernels))
        elif kind in ATTENTIONS and is_packed and _has_fused_input(module):
            replace(model, path, KernelAttention(module, kernels))


def _has_fused_input(attention: Any) -> bool:
    return _is_fused(attention.q_proj, attention.k_proj, attention.v_proj)


def is_silu(mlp: Any) -> bool:
    """Tell whether a gated MLP's activation is SiLU."""
    return isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)


def _is_fused(*layers: nn.Module) -> bool:
    groups = [layer.group for layer in layers if isinstance(layer, GroupMember)]
    return len(groups) == len(layers) and all(group is groups[0] for group in groups)
