"""Which way a backbone runs its passes: packed where it can be, else padded, and an encoder-decoder its own."""

from __future__ import annotations

from adapters.backbone import Backbone
from adapters.runtime.bank import Bank
from adapters.runtime.cache import READ_BYTES, KeyValueCache, head_shape, read_cell_bytes
from adapters.runtime.encoder_decoder import EncoderDecoderForward
from adapters.runtime.forward import PackedForward
from adapters.runtime.graphs import DecodeGraphs
from adapters.runtime.kernels import Kernels, fits, fits_attention, load_kernels
from adapters.runtime.padded import PaddedForward
from adapters.runtime.replay import CallRecorder

Forward = PackedForward | PaddedForward | EncoderDecoderForward


def build_forward(
    backbone: Backbone,
    bank: Bank,
    cache: KeyValueCache | None,
    kernels: Kernels | None,
    *,
    use_graphs: bool = False,
) -> Forward:
    """Return what runs a backbone's parts, attention by ``kernels`` where those are given and fit.

    Args:
        use_graphs: record decode passes where the device can.
    """
    if backbone.spec.family == "encoder-decoder":
        assert cache is not None
        return EncoderDecoderForward(backbone, bank, cache)
    if backbone.is_packed:
        graphs = None
        if use_graphs and cache is not None:
            graphs = _graphs(backbone, bank, cache, kernels)
        return PackedForward(backbone, bank, cache, kernels, graphs)
    return PaddedForward(backbone, bank, cache)


def _graphs(
    backbone: Backbone, bank: Bank, cache: KeyValueCache, kernels: Kernels | None
) -> DecodeGraphs | None:
    if backbone.device.type == "cuda":
        return DecodeGraphs(backbone, bank, cache)
    if kernels is None:
        return None
    return DecodeGraphs(backbone, bank, cache, CallRecorder(kernels), kernels)


def past_bytes(backbone: Backbone, row_tokens: int) -> int:
    """Return what a pass takes at most to read the past of rows of so many tokens; 0 where kernels read it in place."""
    is_read_in_place = (
        backbone.is_packed
        and fits(backbone.dtype, backbone.device)
        and fits_attention(*head_shape(backbone.config))
        and load_kernels() is not None
    )
    if is_read_in_place or backbone.spec.family == "encoder":
        return 0
    return max(READ_BYTES, row_tokens * read_cell_bytes(backbone))
