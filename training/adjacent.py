"""Tensors that stand side by side in one: views of it are handed on, and put together again without a copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cut(whole: Tensor, widths: Sequence[int], dim: int = -1) -> tuple[Tensor, ...]:
    """Return parts of ``whole`` that autograd takes for tensors of their own."""
    return tuple(part.detach() for part in whole.split(list(widths), dim))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return ``parts`` side by side in their last dimension: the tensor that they are views of if there is one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    width, place = 0, first.storage_offset()
    for part in parts:
        if (
            part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
            or part.storage_offset() != place + width
            or part.stride() != first.stride()
            or part.stride(-1) != 1
        ):
            return torch.cat(list(parts), dim=-1)
        width += part.shape[-1]
    return first.as_strided((*first.shape[:-1], width), first.stride(), place)
