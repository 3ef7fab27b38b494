"""Attention over a pack as training computes it on a CPU: by kernel, with its gradient, dropout and rotation.

Against attention by torch's operators nothing is padded, no scores are kept, and a layer is two calls.
Shape letters: T tokens of the pack, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters.runtime.gradient_kernels import Attending, GradientKernels
from adapters.runtime.pack import Pack
from training.adjacent import cut, joined
from training.dropout import new_seed


@dataclass(frozen=True, slots=True)
class KernelAttention:
    """What a pack's attention is handed over to, see `Pack.attend`."""

    kernels: GradientKernels
    bounds: Tensor
    longest: int

    def __call__(
        self,
        query_HTD: Tensor,
        key_KTD: Tensor,
        value_KTD: Tensor,
        *,
        is_causal: bool,
        scale: float,
        window: int | None,
        dropout: float,
    ) -> Tensor:
        """Return ``[T, H, D]``."""
        how = self._how(scale, is_causal, window, dropout)
        parts = [x.transpose(0, 1) for x in (query_HTD, key_KTD, value_KTD)]
        out: Tensor = _Attention.apply(*parts, None, how, self.kernels)
        return out

    def rotated(
        self,
        query_THD: Tensor,
        key_TKD: Tensor,
        value_TKD: Tensor,
        turn: tuple[Tensor, Tensor],
        scale: float,
        window: int | None,
        dropout: float,
    ) -> Tensor:
        """Return causal attention of queries and keys that are rotated first, ``[T, H, D]``.

        Args:
            turn: cosines and sines of the tokens' positions, ``[T, D]``.
        """
        how = self._how(scale, True, window, dropout)
        out: Tensor = _Attention.apply(query_THD, key_TKD, value_TKD, turn, how, self.kernels)
        return out

    def _how(self, scale: float, is_causal: bool, window: int | None, dropout: float) -> Attending:
        seed = new_seed() if dropout else 0
        return Attending(self.bounds, self.longest, scale, is_causal, window, dropout, seed)


class _Attention(torch.autograd.Function):
    """Softmax attention; queries and keys are rotated by ``turn`` if it is given (Su et al., arXiv 2104.09864)."""

    @staticmethod
    def forward(
        ctx: Any,
        query_THD: Tensor,
        key_TKD: Tensor,
        value_TKD: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        how: Attending,
        kernels: GradientKernels,
    ) -> Tensor:
        if turn is not None:
            # A copy of all three, so that what the layer put out need not be kept for values alone.
            parts = query_THD, key_TKD, value_TKD
            heads = [x.shape[1] for x in parts]
            whole_TD = joined([x.flatten(1) for x in parts]).clone()
            whole_THD = whole_TD.unflatten(1, (sum(heads), -1))
            kernels.serving.rotate(whole_THD[:, : heads[0] + heads[1]], *turn)
            query_THD, key_TKD, value_TKD = whole_THD.split(heads, dim=1)
        out_THD, sums_HT = kernels.attend(query_THD, key_TKD, value_TKD, how)
        ctx.turn, ctx.how, ctx.kernels = turn, how, kernels
        ctx.save_for_backward(query_THD, key_TKD, value_TKD, sums_HT)
        return out_THD

    @staticmethod
    def backward(ctx: Any, grad_THD: Tensor) -> Any:
        query_THD, key_TKD, value_TKD, sums_HT = ctx.saved_tensors
        grads = ctx.kernels.attend_back(query_THD, key_TKD, value_TKD, sums_HT, grad_THD, ctx.how)
        heads, kv_heads = query_THD.shape[1], key_TKD.shape[1]
        if ctx.turn is not None:
            cos_TD, sin_TD = ctx.turn
            ctx.kernels.serving.rotate(grads[:, : heads + kv_heads], cos_TD, -sin_TD)
        return *cut(grads, (heads, kv_heads, kv_heads), dim=1), None, None, None


def rotated_forward(attention: Any) -> Callable[..., Any]:
    """Return a forward for a Llama-like attention layer that computes it as serving's `KernelAttention` does."""
    size, window = attention.head_dim, getattr(attention, "sliding_window", None)
    own = attention.forward

    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *arguments: Any,
        pack: Pack | None = None,
        **more: Any,
    ) -> Any:
        if pack is None:  # it runs padded, through the library's own attention
            return own(hidden_states, position_embeddings, *arguments, **more)
        if not isinstance(pack.attend, KernelAttention):
            return own(hidden_states, position_embeddings, *arguments, pack=pack, **more)
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (
            layer(hidden_states).squeeze(0).unflatten(-1, (-1, size)) for layer in layers
        )
        cos_1TD, sin_1TD = position_embeddings
        turn = (cos_1TD[0].contiguous(), sin_1TD[0].contiguous())
        dropout = attention.attention_dropout if attention.training else 0.0
        scale = attention.scaling
        out_THD = pack.attend.rotated(query, key, value, turn, scale, window, dropout)
        return attention.o_proj(out_THD.flatten(1)[None]), None

    return forward
