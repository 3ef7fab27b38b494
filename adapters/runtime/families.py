"""Which way a backbone runs its passes: packed where it can be, else padded, and an encoder-decoder its own."""

from __future__ import annotations

from adapters.backbone import Backbone
from adapters.runtime.bank import Bank
from adapters.runtime.cache import KeyValueCache
from adapters.runtime.encoder_decoder import EncoderDecoderForward
from adapters.runtime.forward import PackedForward
from adapters.runtime.padded import PaddedForward

Forward = PackedForward | PaddedForward | EncoderDecoderForward


def build_forward(backbone: Backbone, bank: Bank, cache: KeyValueCache | None) -> Forward:
    """Return what runs a backbone's parts."""
    if backbone.spec.family == "encoder-decoder":
        assert cache is not None
        return EncoderDecoderForward(backbone, bank, cache)
    return (PackedForward if backbone.is_packed else PaddedForward)(backbone, bank, cache)
