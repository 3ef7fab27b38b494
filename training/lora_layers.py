"""Linear layers with LoRA as training computes them: siblings in one product, and no more kept than the gradient needs.

peft's own layers hold the weights and stay in their places; only what they compute with is replaced. Against peft's
forward it saves the casts of every input to fp32, two products a layer, and the copies that autograd keeps of each.
Shape letters: T tokens, I inputs, O outputs of all members, K ranks of all members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear

from adapters.runtime.linears import sibling_groups, weight_of
from training.adjacent import cut, joined

_ADAPTER = "default"  # the name that peft gives an adapter


class LoraGroup:
    """Layers that read the same input, with or without LoRA each, whose outputs stand side by side in one product.

    The layers' frozen weights become views of one buffer, so that they are not held twice.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        bases = [_base_of(layer) for layer in layers]
        self._widths = [len(weight_of(base)) for base in bases]
        self._weight_OI, self._bias_O = _join(bases)
        self._input: Tensor | None = None
        self._outputs: tuple[Tensor, ...] = ()
        for member, layer in enumerate(layers):
            layer.forward = _Member(self, member)

    def output(self, x: Tensor, member: int) -> Tensor:
        """Return one member's output; computes all members' unless it was, for this very tensor."""
        if self._input is not x:
            self._input, self._outputs = x, self._compute(x)
        output = self._outputs[member]
        if member == len(self._widths) - 1:  # the last to be called; nothing may outlive its pass
            self._input, self._outputs = None, ()
        return output

    def restore(self) -> None:
        """Give the layers their own forward back."""
        for layer in self._layers:
            del layer.forward

    def _compute(self, x: Tensor) -> tuple[Tensor, ...]:
        adapted = [
            (layer, end - width, width)
            for layer, end, width in zip(
                self._layers, _running_sum(self._widths), self._widths, strict=True
            )
            if isinstance(layer, LoraLinear)
        ]
        if not adapted:
            return linear(x, self._weight_OI, self._bias_O).split(self._widths, dim=-1)
        first = adapted[0][0]
        places = tuple((start, width, layer.scaling[_ADAPTER]) for layer, start, width in adapted)
        pairs = [
            module.weight
            for layer, _, _ in adapted
            for module in (layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER])
        ]
        dropped = first.lora_dropout[_ADAPTER](x)
        outputs: tuple[Tensor, ...] = _LoraProduct.apply(
            x, dropped, self._weight_OI, self._bias_O, self._widths, places, *pairs
        )
        return outputs


class _Member:
    """Stands in for one layer's forward."""

    def __init__(self, group: LoraGroup, member: int) -> None:
        self._group = group
        self._member = member

    def __call__(self, x: Tensor) -> Tensor:
        return self._group.output(x, self._member)


class _LoraProduct(torch.autograd.Function):
    """Each member's columns of ``x W^T + bias``, with ``scale * (d A^T) B^T`` added to those of adapted members.

    Products are in the backbone's dtype with sums in fp32; A, B and their gradients are fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        widths: Sequence[int],
        places: tuple[tuple[int, int, float], ...],
        *pairs: Tensor,
    ) -> tuple[Tensor, ...]:
        out = linear(x, weight_OI, bias_O)
        out_TO, dropped_TI = out.view(-1, out.shape[-1]), dropped.reshape(-1, dropped.shape[-1])
        a_KI = _together([a.detach() for a in pairs[::2]], dim=0).to(x.dtype)
        scaled = [
            (b.detach() * scale).to(x.dtype)
            for b, (_, _, scale) in zip(pairs[1::2], places, strict=True)
        ]
        low_TK = dropped_TI @ a_KI.T
        for (start, width, _), low_TR, b_OR in _members(places, low_TK, scaled):
            out_TO[:, start : start + width].addmm_(low_TR, b_OR.T)
        ctx.places, ctx.is_plain = places, dropped is x
        ctx.save_for_backward(dropped, low_TK, weight_OI, a_KI, *scaled)
        return cut(out, widths)

    @staticmethod
    def backward(ctx: Any, *grads_of: Tensor) -> Any:
        grad = joined(grads_of)
        dropped, low_TK, weight_OI, a_KI, *scaled = ctx.saved_tensors
        grad_TO = grad.reshape(-1, grad.shape[-1])
        low_grads: list[Tensor] = []
        grads: list[Tensor] = []
        for (start, width, scale), low_TR, b_OR in _members(ctx.places, low_TK, scaled):
            part_TO = grad_TO[:, start : start + width]
            low_grads.append(part_TO @ b_OR)
            grads.append((part_TO.T @ low_TR).float().mul_(scale))
        low_grad_TK = _together(low_grads, dim=1)
        a_grads = (low_grad_TK.T @ dropped.reshape(-1, dropped.shape[-1])).float()
        split = a_grads.split([g.shape[1] for g in low_grads])
        paired = [g for pair in zip(split, grads, strict=True) for g in pair]
        x_grad = grad @ weight_OI if ctx.needs_input_grad[0] else None
        dropped_grad = None
        if ctx.is_plain and x_grad is not None:
            x_grad.view(-1, x_grad.shape[-1]).addmm_(low_grad_TK, a_KI)
        elif ctx.needs_input_grad[1]:
            dropped_grad = (low_grad_TK @ a_KI).view(dropped.shape)
        return x_grad, dropped_grad, None, None, None, None, *paired


def _members(
    places: Sequence[tuple[int, int, float]], low_TK: Tensor, scaled: Sequence[Tensor]
) -> list[tuple[tuple[int, int, float], Tensor, Tensor]]:
    """Return each adapted member's place, its part of the low-rank inputs, and B with its scale."""
    lows = low_TK.split([b_OR.shape[1] for b_OR in scaled], dim=1)
    return list(zip(places, lows, scaled, strict=True))


def _together(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def replace_forwards(model: nn.Module, paths: Sequence[str]) -> list[LoraGroup]:
    """Let a model that peft has put LoRA into compute its linear layers in groups; returns them, to be restored.

    Groups without LoRA, quantised layers, and LoRA layers of another kind are left as they are.

    Args:
        paths: of all adaptable layers, in the bare backbone's names.
    """
    layers = {path: model.get_submodule(path) for path in paths}
    bases = {path: _base_of(layer) for path, layer in layers.items()}
    groups = []
    for names in sibling_groups(bases):
        members = [layers[name] for name in names]
        if all(_is_plain(member) for member in members) and any(
            isinstance(member, LoraLinear) for member in members
        ):
            groups.append(LoraGroup(members))
    return groups


def _is_plain(layer: nn.Module) -> bool:
    base = _base_of(layer)
    weight = getattr(base, "weight", None)
    return isinstance(weight, Tensor) and weight.is_floating_point() and not _is_variant(layer)


def _is_variant(layer: nn.Module) -> bool:
    return isinstance(layer, LoraLinear) and bool(layer.lora_variant)


def _base_of(layer: nn.Module) -> nn.Module:
    base = getattr(layer, "base_layer", layer)
    assert isinstance(base, nn.Module)
    return base


def _join(bases: Sequence[nn.Module]) -> tuple[Tensor, Tensor | None]:
    """Return the layers' weights and biases as one; the layers' own become views of it."""
    weights = [weight_of(base) for base in bases]
    biases = [getattr(base, "bias", None) for base in bases]
    if len(bases) == 1:
        return weights[0], None if biases[0] is None else biases[0].detach()
    weight_OI = torch.cat(weights)
    for base, view in zip(bases, weight_OI.split([len(w) for w in weights]), strict=True):
        base.weight.data = view if isinstance(base, nn.Linear) else view.T
    if all(bias is None for bias in biases):
        return weight_OI, None
    zeros = [w.new_zeros(len(w)) for w in weights]
    joined = [z if b is None else b.detach() for b, z in zip(biases, zeros, strict=True)]
    return weight_OI, torch.cat(joined)


def _running_sum(widths: Sequence[int]) -> list[int]:
    ends, total = [], 0
    for width in widths:
        total += width
        ends.append(total)
    return ends
