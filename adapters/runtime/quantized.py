"""The backbone's linear layers in 8 or 4 bits: weights are kept small, activations and arithmetic in 16 or 32 bits.

bitsandbytes' own layers are not used. Its 8-bit layer quantises activations too: with outlier columns apart
(``threshold`` above zero) a row's answer depends on the rows beside it; without them, rounding still turned input
differences of 1e-6 into output differences of 4e-3. Its 4-bit layer rounds fp32 inputs to bf16 on some CPUs.

Shape letters: T tokens, I input features, O output features.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from adapters.dtype import Quantization
from adapters.errors import EnvironmentProblem, UnsupportedBackbone

_NF4_BLOCK = 64  # weights that share a scale: 4.5 bits a weight
_SHIFT = 2.0**-7  # exact in every float type; keeps sums over 8-bit integers within fp16's range


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with quantised weights; gradients flow to its input.

    Attributes:
        qweight: int8, whatever the bits: model code and peft look at its dtype, and leave integers alone.
        scale: fp32, in the order of what it scales.
        weight: always None; nothing must read integers as weights.
    """

    qweight: Tensor
    scale: Tensor

    def __init__(self, weight_OI: Tensor, bias_O: nn.Parameter | None) -> None:
        outputs, inputs = weight_OI.shape
        super().__init__(inputs, outputs, bias=False, device="meta")
        self.register_parameter("weight", None)
        self.register_parameter("bias", bias_O)
        qweight, scale = self._quantize(weight_OI.float())
        self.register_buffer("qweight", qweight)
        self.register_buffer("scale", scale)

    def _quantize(self, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the weights ``[O, I]`` that the layer computes with."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """Return ``x W^T``, outside autograd."""
        return linear(x, self.dequantized(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, self)
        return out if self.bias is None else out + self.bias


class _Product(torch.autograd.Function):
    """Keeps the layer for the backward pass, not float weights as large as the backbone unquantised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.dequantized(grad.dtype), None


class Int8Linear(QuantizedLinear):
    """Weights in 8 bits, a scale for each output."""

    def _quantize(self, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        if weight_OI.device.type == "cuda":  # whose kernel takes no other dtype
            weight_OI = weight_OI.half()
        qweight_OI, largest_O, _ = load_bitsandbytes().functional.int8_vectorwise_quant(weight_OI)
        qweight_OI[largest_O == 0] = 0  # bitsandbytes divides by the largest
        return qweight_OI, largest_O / 127

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return (self.qweight * self.scale[:, None]).to(dtype)

    def product(self, x: Tensor) -> Tensor:
        # Scaling outputs instead of weights saves a pass over the weights; integers to 127 are exact in bf16.
        return linear(x * _SHIFT, self.qweight.to(x.dtype)).mul_(self.scale / _SHIFT)


class Nf4Linear(QuantizedLinear):
    """Weights in 4 bits, as quantiles of a normal distribution: QLoRA, Dettmers et al., arXiv 2305.14314."""

    def _quantize(self, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        packed, state = load_bitsandbytes().functional.quantize_4bit(
            weight_OI, blocksize=_NF4_BLOCK, quant_type="nf4", compress_statistics=False
        )
        return packed.view(torch.int8), state.absmax

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        weight: Tensor = load_bitsandbytes().functional.dequantize_4bit(
            self.qweight.view(torch.uint8), self._state(dtype)
        )
        return weight.reshape(self.out_features, self.in_features)

    def product(self, x: Tensor) -> Tensor:
        if self.in_features % _NF4_BLOCK:
            return super().product(x)
        out: Tensor = load_bitsandbytes().matmul_4bit(
            x, self.qweight.view(torch.uint8), self._state(x.dtype)
        )
        return out

    def _state(self, dtype: torch.dtype) -> Any:
        shape = (self.out_features, self.in_features)
        if self.in_features % _NF4_BLOCK:
            # bitsandbytes 0.50.2 reads wrong scales on a CPU where blocks straddle rows; one long row has none.
            shape = (1, self.out_features * self.in_features)
        return load_bitsandbytes().functional.QuantState(
            absmax=self.scale,
            shape=torch.Size(shape),
            code=_nf4_code(self.scale.device),
            blocksize=_NF4_BLOCK,
            quant_type="nf4",
            dtype=dtype,
        )


@functools.cache
def _nf4_code(device: torch.device) -> Any:
    return load_bitsandbytes().functional.get_4bit_type("nf4", device)


def quantized_linear(
    weight_OI: Tensor, bias_O: nn.Parameter | None, quantization: Quantization
) -> QuantizedLinear:
    """Return a layer with these weights quantised.

    Raises:
        UnsupportedBackbone: the weights are quantised already.
        EnvironmentProblem: bitsandbytes can't be imported.
    """
    if not weight_OI.is_floating_point():
        raise UnsupportedBackbone(
            f"The backbone's weights are '{weight_OI.dtype}' already, so dtype '{quantization}' can't be had. "
            "Name a backbone with float weights, or leave --dtype at auto.",
            param="dtype",
        )
    return {"int8": Int8Linear, "nf4": Nf4Linear}[quantization](weight_OI, bias_O)


@functools.cache
def load_bitsandbytes() -> Any:
    """Return bitsandbytes, which takes seconds to import the first time.

    Raises:
        EnvironmentProblem: it can't be imported.
    """
    # It warns at import of an optional package that would download its kernels.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except Exception as error:  # beside ImportError, whatever loading its libraries may raise
        raise EnvironmentProblem(
            f"dtype 'int8' and 'nf4' need bitsandbytes, which can't be imported ({error}). "
            "Run: pip install bitsandbytes",
            param="dtype",
        ) from error
    return bitsandbytes


def return_freed_memory() -> None:
    """Give the system back what quantising used in passing, which glibc would keep: twice the weights and more."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
