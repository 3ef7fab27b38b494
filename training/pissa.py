"""PiSSA on a backbone that stays as it is: principal directions to start from, and the same ones taken off again.

PiSSA (Meng et al., arXiv 2404.02948) starts A and B from a weight's largest singular values and takes them out of the
weight, which a shared backbone does not allow. Here an adapter of rank 2R is trained instead: R directions that learn,
and R frozen ones with the start's values and B negated, which do what the change of the weight would have done. It
starts as no change, and what is trained is what is served.

Shape letters: O outputs, I inputs, R rank of the half that learns, K = 2R.
"""

from __future__ import annotations

import math

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from adapters.errors import InvalidRequest
from adapters.runtime.linears import weight_of

_ADAPTER = "default"  # the name that peft gives an adapter
_ITERATIONS, _SPARE = (
    16,
    8,
)  # of the randomised SVD (Halko et al., arXiv 0909.4061); peft iterates as often


@torch.no_grad()
def start_principal(peft_model: PeftModel, rank: int) -> None:
    """Fill LoRA layers of rank 2R with principal directions, and let gradients reach the first R alone.

    Raises:
        InvalidRequest: the rank is higher than a weight's.
    """
    for layer in peft_model.modules():
        if isinstance(layer, LoraLayer):
            a_KI, b_OK = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            a_RI, b_OR = principal_factors(
                weight_of(layer.base_layer), rank, layer.scaling[_ADAPTER]
            )
            a_KI.copy_(torch.cat([a_RI, a_RI]))
            b_OK.copy_(torch.cat([b_OR, -b_OR], dim=1))
            a_KI.register_hook(lambda grad: torch.cat([grad[:rank], torch.zeros_like(grad[rank:])]))
            b_OK.register_hook(
                lambda grad: torch.cat([grad[:, :rank], torch.zeros_like(grad[:, rank:])], dim=1)
            )


def principal_factors(weight_OI: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A ``[R, I]`` and B ``[O, R]``, with ``scale * B A`` the weight's best approximation of rank R."""
    if rank > min(weight_OI.shape):
        shape = " x ".join(map(str, weight_OI.shape))
        raise InvalidRequest(
            f"PiSSA of rank '{rank}' asks more directions than a weight of {shape} has. Lower lora.rank.",
            param="lora.rank",
        )
    size = min(rank + _SPARE, *weight_OI.shape)
    left_OS, values_S, right_IS = torch.svd_lowrank(weight_OI.float(), q=size, niter=_ITERATIONS)
    roots_R = (values_S[:rank] / scale).sqrt()
    return roots_R[:, None] * right_IS.T[:rank], left_OS[:, :rank] * roots_R


def doubled(rank: int, alpha: float, use_rslora: bool) -> tuple[int, float]:
    """Return rank 2R and the alpha with which it scales as R did."""
    return 2 * rank, alpha * (math.sqrt(2) if use_rslora else 2)
