"""The backbone's linear layers as the engine runs them: those that read the same input in one product, adapters added.

The library's own model code calls each layer as before; the first of a group to be called computes all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from adapters.dtype import Quantization
from adapters.runtime.kernels import PANEL, Kernels, to_panels
from adapters.runtime.quantized import QuantizedLinear, quantized_linear
from adapters.runtime.route import Routes, Site

# Siblings of these names read the same input, in all architectures that have them.
SHARED_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("wi_0", "wi_1"),
)
# In these parents, keys and values come from the encoder's output, and queries from elsewhere.
CROSS_ATTENTION = ("encoder_attn", "EncDecAttention", "crossattention")
_PACK_HINT = (
    16  # rows that oneDNN lays the weights out for: decoding is what memory bandwidth bounds
)


class LinearGroup:
    """Layers that read the same input; ``outputs`` of all members stand side by side in one product."""

    def __init__(
        self, site: Site, base: Callable[[Tensor], Tensor], *, is_source: bool = False
    ) -> None:
        self.site = site
        self.routes = Routes()
        self._base = base
        self._is_source = is_source
        self._widths = site.widths.tolist()
        self._input: Tensor | None = None
        self._outputs: tuple[Tensor, ...] = ()

    def output(self, x: Tensor, member: int) -> Tensor:
        """Return one member's output; computes the group's unless it was, for this very tensor."""
        if len(self._widths) == 1:
            return self.compute(x)
        if self._input is not x:
            self._input, self._outputs = x, self.compute(x).split(self._widths, dim=-1)
        output = self._outputs[member]
        if member == len(self._widths) - 1:  # the last to be called; nothing may outlive its pass
            self._input, self._outputs = None, ()
        return output

    def compute(self, x: Tensor) -> Tensor:
        """Return all members' outputs side by side."""
        out = self._base(x)
        route = self.routes.source if self._is_source else self.routes.main
        if route is not None:
            route.add(x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1]), self.site)
        return out


class GroupMember(nn.Module):
    """Stands in the model where one linear layer of a group was."""

    def __init__(self, group: LinearGroup, member: int, base: nn.Module | None) -> None:
        super().__init__()
        self.base = base  # None once its weights are part of a fused product
        self.group = group
        self._member = member

    def forward(self, x: Tensor) -> Tensor:
        return self.group.output(x, self._member)

    @property
    def weight(self) -> object:
        """The layer's own weight, which some model code looks at; None once it is fused."""
        return getattr(self.base, "weight", None)


class FusedLinear:
    """Several linear layers' weights as one product, on a CPU laid out once for what computes it.

    Args:
        kernels: compute with `Kernels.linear` where it fits; else oneDNN does.
    """

    def __init__(self, layers: Sequence[nn.Module], kernels: Kernels | None) -> None:
        weights = [weight_of(layer) for layer in layers]
        weight_OI = torch.cat(weights) if len(weights) > 1 else weights[0].contiguous()
        bias_O = _join_biases(layers, weights)
        self.panels: Tensor | None = None  # the weight as `Kernels.linear` reads it
        self._compute = self._product(weight_OI, bias_O, kernels)

    def __call__(self, x: Tensor) -> Tensor:
        return self._compute(x)

    def _product(
        self, weight_OI: Tensor, bias_O: Tensor | None, kernels: Kernels | None
    ) -> Callable[[Tensor], Tensor]:
        """Return what computes ``x W^T + bias`` fastest here; the weight it is given may be freed then."""
        if kernels is not None and kernels.fits_linear(weight_OI):
            panels, num_outputs = to_panels(weight_OI), len(weight_OI)
            self.panels, bias_O = panels, None if bias_O is None else bias_O.float()
            return lambda x: kernels.linear(x, panels, bias_O, num_outputs)
        if not _can_pack(weight_OI):
            return lambda x: linear(x, weight_OI, bias_O)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, _PACK_HINT)

        def compute(x: Tensor) -> Tensor:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias_O, "none", [], "")
            return out

        return compute


class PanelEmbedding(nn.Module):
    """An embedding whose weight is also the language head's, read from where that lies: not held twice.

    Args:
        panels: ``[V / 16, D / 2, 16, 2]``, from `to_panels`.
    """

    def __init__(self, panels: Tensor) -> None:
        super().__init__()
        self._panels = panels

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return ``[*token_ids, D]``."""
        pairs = self._panels[token_ids // PANEL, :, token_ids % PANEL]
        return pairs.flatten(-2)


def _join_biases(layers: Sequence[nn.Module], weights: Sequence[Tensor]) -> Tensor | None:
    biases = [getattr(layer, "bias", None) for layer in layers]
    if all(bias is None for bias in biases):
        return None
    zeros = [w.new_zeros(w.shape[0]) for w in weights]
    return torch.cat([z if b is None else b for b, z in zip(biases, zeros, strict=True)]).detach()


def _can_pack(weight: Tensor) -> bool:
    supported = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and bool(supported)


def weight_of(layer: nn.Module) -> Tensor:
    """Return a layer's weight as ``[O, I]``; GPT-2's Conv1D keeps it the other way round."""
    assert not isinstance(layer, QuantizedLinear), "a quantised layer has no weight to compute with"
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach() if isinstance(layer, nn.Linear) else weight.detach().T


def wrap_linears(
    model: nn.Module,
    layers: dict[str, nn.Module],
    *,
    fuse: bool,
    kernels: Kernels | None = None,
) -> list[LinearGroup]:
    """Put `GroupMember`s in the place of a model's linear layers and return their groups.

    Args:
        fuse: compute each group in one product; the layers' own weights are given up for it. Quantised
            layers stay as they are, each a group of its own.
        kernels: what may compute fused layers.
    """
    groups: list[LinearGroup] = []
    for names in sibling_groups(layers) if fuse else [(name,) for name in layers]:
        members = [layers[name] for name in names]
        widths = torch.tensor([output_size(member) for member in members])
        can_fuse = fuse and not isinstance(members[0], QuantizedLinear)
        base = FusedLinear(members, kernels) if can_fuse else members[0]
        group = LinearGroup(
            Site(len(groups), names, widths), base, is_source=_reads_source(names[0])
        )
        groups.append(group)
        for i, name in enumerate(names):
            replace(model, name, GroupMember(group, i, None if can_fuse else members[i]))
    return groups


def unwrap_linears(model: nn.Module, groups: Sequence[LinearGroup]) -> None:
    """Give a model its own layers back, where they still exist."""
    for group in groups:
        group.routes = Routes()
        for name in group.site.names:
            member = model.get_submodule(name)
            if isinstance(member, GroupMember) and member.base is not None:
                replace(model, name, member.base)


def quantize_linears(model: nn.Module, paths: Iterable[str], quantization: Quantization) -> None:
    """Put quantised layers in the place of a model's linear layers, freeing one before the next is made."""
    for path in paths:
        layer = model.get_submodule(path)
        bias = layer.bias
        assert bias is None or isinstance(bias, nn.Parameter)
        replace(model, path, quantized_linear(weight_of(layer), bias, quantization))


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def output_size(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.nf)  # type: ignore[arg-type]


def input_size(layer: nn.Module) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.nx)  # type: ignore[arg-type]


def sibling_groups(layers: dict[str, nn.Module]) -> list[tuple[str, ...]]:
    """Return the layers' paths, those that read the same input together."""
    groups: list[tuple[str, ...]] = []
    grouped: set[str] = set()
    for path, layer in layers.items():
        if path in grouped:
            continue
        if isinstance(layer, QuantizedLinear):
            groups.append((path,))
            continue
        parent, _, name = path.rpartition(".")
        siblings: tuple[str, ...] = next((s for s in SHARED_INPUT if name in s), (name,))
        if parent.rpartition(".")[2] in CROSS_ATTENTION:
            siblings = siblings[1:] if name in siblings[1:] else (name,)
        names = tuple(p for s in siblings if (p := f"{parent}.{s}" if parent else s) in layers)
        groups.append(names)
        grouped.update(names)
    return groups


def _reads_source(path: str) -> bool:
    """Tell whether a decoder's layer works on the encoder's tokens."""
    parts = path.split(".")
    crosses = len(parts) > 1 and parts[-2] in CROSS_ATTENTION
    return crosses and parts[-1] in ("k_proj", "v_proj", "k", "v", "key", "value")
