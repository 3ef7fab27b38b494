"""The model types that can be backbones, and how each is run: its family, packed or padded, and where positions begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from adapters.errors import UnsupportedBackbone

Family = Literal["decoder", "encoder", "encoder-decoder"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How models of one type are run.

    ``is_packed``: their code passes extra keyword arguments and position ids down to the attention function, so that
    rows can be laid end to end; else they run padded. ``is_windowed``: a sliding window in their config is
    honoured packed. ``counts_from_padding``: positions begin behind the padding token's id.
    """

    family: Family
    is_packed: bool = True
    is_windowed: bool = False
    has_pooler: bool = False
    counts_from_padding: bool = False


_ROBERTA = Architecture("encoder", has_pooler=True, counts_from_padding=True)
# Only what is tested against the stock library is let in.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("decoder"),
    "qwen2": Architecture("decoder"),
    "qwen3": Architecture("decoder"),
    "mistral": Architecture("decoder"),
    "gpt2": Architecture("decoder"),
    "bert": Architecture("encoder", has_pooler=True),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": Architecture("encoder"),
    "modernbert": Architecture("encoder", is_windowed=True),
    "t5": Architecture("encoder-decoder", is_packed=False),
    "bart": Architecture("encoder-decoder", is_packed=False),
    "marian": Architecture("encoder-decoder", is_packed=False),
}


def architecture_of(config: Any, name: str) -> Architecture:
    """Return how a model is run, by its config.

    Raises:
        UnsupportedBackbone: models of this type are not tested, or it has layers that nobody would feed.
    """
    if config.model_type not in ARCHITECTURES or getattr(config, "add_cross_attention", False):
        raise UnsupportedBackbone(
            f"Backbone '{name}' is of type '{config.model_type}', which can't be served yet. "
            f"Types that can: {', '.join(ARCHITECTURES)} (without added cross attention).",
            param="backbone",
        )
    return ARCHITECTURES[config.model_type]


def can_pack(config: Any) -> bool:
    """Tell whether a model of a known type can run packed: it must not need a window that packed attention ignores."""
    architecture = ARCHITECTURES[config.model_type]
    window = getattr(config, "sliding_window", None)
    is_full = window is None or window >= max_positions(config)
    return architecture.is_packed and (is_full or architecture.is_windowed)


def max_positions(config: Any) -> int:
    """Return the most positions of a row; for T5, whose positions are relative, those it was trained with."""
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return most or 512


def first_position(config: Any) -> int:
    """Return the position id of a row's first token."""
    counts = ARCHITECTURES[config.model_type].counts_from_padding
    return int(config.pad_token_id) + 1 if counts else 0
