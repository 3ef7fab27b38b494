"""The kernels that training needs beside those of serving: kernels_gradient.h; arguments are checked here.

Shape letters: T tokens, H query heads, K key-value heads, D head size, B rows.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.runtime.kernels import NO_WINDOW, Kernels, bind_typed

_SIGNATURES = {
    "attend_whole": "pnnpnnpnnpnnpppnnnnfnnnf", "attend_whole_back": "pnnpnnpnnpnnpppppnnnnfnnnf",
    "rms_norm_back": "ppppnnf", "silu_mul_back": "pppnn", "gelu": "pppn", "drop_out": "ppnnf",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attending:
    """What one attention over whole rows does, beside its tensors.

    Args:
        bounds: int64, the rows' B + 1 token borders; no row is longer than ``longest``.
        window: a token attends to those less than so many away; None: to all.
        seed: of the dropout; the same drops the same.
    """

    bounds: Tensor
    longest: int
    scale: float
    is_causal: bool
    window: int | None = None
    dropout: float = 0.0
    seed: int = 0


class GradientKernels:
    """Functions of compiled kernels; all tensors are on the CPU and of one dtype unless told."""

    def __init__(self, kernels: Kernels) -> None:
        self.serving = kernels
        self._typed = bind_typed(kernels.library, _SIGNATURES)
        self._space = kernels.library.attend_space
        self._space.restype = ctypes.c_int64
        self._space.argtypes = [ctypes.c_int64, ctypes.c_int64]

    def attend(
        self, query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, how: Attending
    ) -> tuple[Tensor, Tensor]:
        """Return ``[T, H, D]`` and the logarithms of the softmaxes' sums ``[H, T]``, fp32, for `attend_back`."""
        tokens, heads, size = query_THD.shape
        out_THD = query_THD.new_empty((tokens, heads, size))
        sums_HT = query_THD.new_empty((heads, tokens), dtype=torch.float32)
        room = self._room(how, size)
        self._typed["attend_whole"][query_THD.dtype](
            *_lines(query_THD, key_TKD, value_TKD), how.bounds.data_ptr(), len(how.bounds) - 1, how.longest,
            out_THD.data_ptr(), sums_HT.data_ptr(), room.data_ptr(), len(room),
            heads, key_TKD.shape[1], size, *_numbers(how),
        )  # fmt: skip
        return out_THD, sums_HT

    def attend_back(
        self,
        query_THD: Tensor,
        key_TKD: Tensor,
        value_TKD: Tensor,
        sums_HT: Tensor,
        grad_THD: Tensor,
        how: Attending,
    ) -> Tensor:
        """Return the gradients of query, key and value side by side: ``[T, H + 2 K, D]``."""
        tokens, heads, size = query_THD.shape
        kv_heads = key_TKD.shape[1]
        assert grad_THD.dtype == query_THD.dtype
        grad_THD = grad_THD.contiguous()
        grads = query_THD.new_empty((tokens, heads + 2 * kv_heads, size))
        parts = query_THD.new_empty((2, heads, tokens, size), dtype=torch.float32)
        room = self._room(how, size)
        self._typed["attend_whole_back"][query_THD.dtype](
            *_lines(query_THD, key_TKD, value_TKD), how.bounds.data_ptr(), len(how.bounds) - 1, how.longest,
            grad_THD.data_ptr(), sums_HT.data_ptr(), grads.data_ptr(), parts.data_ptr(),
            room.data_ptr(), len(room), heads, kv_heads, size, *_numbers(how),
        )  # fmt: skip
        return grads

    def rms_norm_back(self, x: Tensor, weight_D: Tensor, grad: Tensor, epsilon: float) -> Tensor:
        """Return the gradient of the input of `Kernels.rms_norm`."""
        assert x.dtype == weight_D.dtype == grad.dtype
        assert x.is_cpu
        x, grad, weight_D = x.contiguous(), grad.contiguous(), weight_D.contiguous()
        out = torch.empty_like(x)
        size = x.shape[-1]
        self._typed["rms_norm_back"][x.dtype](
            x.data_ptr(), weight_D.data_ptr(), grad.data_ptr(), out.data_ptr(),
            x.numel() // size, size, epsilon,
        )  # fmt: skip
        return out

    def silu_mul_back(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient of the input of `Kernels.silu_mul`, gate and up side by side."""
        assert x.is_contiguous()
        assert x.dtype == grad.dtype
        assert x.is_cpu
        grad, out = grad.contiguous(), torch.empty_like(x)
        size = grad.shape[-1]
        self._typed["silu_mul_back"][x.dtype](
            x.data_ptr(), grad.data_ptr(), out.data_ptr(), grad.numel() // size, size
        )
        return out

    def gelu(self, x: Tensor, grad: Tensor | None = None) -> Tensor:
        """Return ``x Phi(x)``; with ``grad``, the gradient of ``x`` instead."""
        assert x.is_cpu
        assert grad is None or x.dtype == grad.dtype
        x = x.contiguous()
        grad = None if grad is None else grad.contiguous()
        out = torch.empty_like(x)
        self._typed["gelu"][x.dtype](
            x.data_ptr(), None if grad is None else grad.data_ptr(), out.data_ptr(), x.numel()
        )
        return out

    def drop_out(self, x: Tensor, p: float, seed: int) -> Tensor:
        """Return ``x`` with a share ``p`` of it zero and the rest scaled up, the same for the same seed."""
        assert x.is_cpu
        x = x.contiguous()
        out = torch.empty_like(x)
        self._typed["drop_out"][x.dtype](x.data_ptr(), out.data_ptr(), x.numel(), seed, p)
        return out

    def _room(self, how: Attending, size: int) -> Tensor:
        """Return a line for each thread; no more than those work, even where the kernels' OpenMP is not torch's."""
        floats = self._space(how.longest, size)
        return torch.empty((torch.get_num_threads(), floats), dtype=torch.float32, device="cpu")


def _lines(*parts: Tensor) -> list[int]:
    """Return address, token stride and head stride of each tensor ``[T, heads, D]``."""
    assert all(x.stride(2) == 1 and x.dtype == parts[0].dtype for x in parts)
    assert parts[0].is_cpu
    assert parts[0].shape[1] % parts[1].shape[1] == 0
    return [number for x in parts for number in (x.data_ptr(), x.stride(0), x.stride(1))]


def _numbers(how: Attending) -> tuple[float, ...]:
    window = NO_WINDOW if how.window is None else how.window
    return how.scale, how.is_causal, window, how.seed, how.dropout
