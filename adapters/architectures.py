"""The model types that can be backbones, and how each runs: its family, packed or padded, and where positions begin."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from adapters.errors import HeadstockError, UnsupportedBackbone

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


_DECODER = Architecture("decoder")
_ROBERTA = Architecture("encoder", has_pooler=True, counts_from_padding=True)
_SEQUENCE = Architecture("encoder-decoder", is_packed=False)
# Only what is tested against the stock library is let in (tests/adapters/runtime/test_parity.py). DeBERTa is not:
# it puts relative positions, which belong to no row, through the layers that adapters change.
ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gpt2"), _DECODER),
    **dict.fromkeys(("gemma", "gpt_neox", "olmo2", "opt", "phi", "phi3", "starcoder2"), _DECODER),
    **dict.fromkeys(("bloom", "gpt_neo", "gptj"), Architecture("decoder", is_packed=False)),
    "bert": Architecture("encoder", has_pooler=True),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _ROBERTA),
    "distilbert": Architecture("encoder"),
    "modernbert": Architecture("encoder", is_windowed=True),
    "albert": Architecture("encoder", has_pooler=True),
    "electra": Architecture("encoder"),
    "mpnet": replace(_ROBERTA, is_packed=False),
    **dict.fromkeys(("t5", "mt5", "bart", "mbart", "marian", "pegasus"), _SEQUENCE),
}
# Rotary positions that change with the longest row of a pass: a row's answer would depend on its company.
_STRETCHING = ("dynamic", "longrope")
# Positions of BERT's kin that the library has no code for any more: it takes them for absolute ones.
_NOT_ABSOLUTE = ("relative_key", "relative_key_query", "alibi")
# What a config's ``is_causal`` may say, if anything: models turned into the other kind set it, as embedders do.
_CAUSAL = {"decoder": True, "encoder": False}


def read_config(folder: Path, name: str) -> Any:
    """Return a backbone's config; for a type not known here, the library would ask to run code from the folder.

    Raises:
        UnsupportedBackbone: its type is not known here, or the library can't make anything of it.
    """
    from transformers import AutoConfig

    try:
        _check_type(json.loads((folder / "config.json").read_text()).get("model_type"), name)
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except HeadstockError:
        raise  # of ours, or a signal that came meanwhile
    except Exception as error:  # what a value out of place raises differs by type
        raise UnsupportedBackbone(
            f"The config.json of backbone '{name}' can't be used: {error}", param="backbone"
        ) from error


def architecture_of(config: Any, name: str) -> Architecture:
    """Return how a model is run, by its config from `read_config`.

    Raises:
        UnsupportedBackbone: its config asks for what can't be honoured.
    """
    trouble = _trouble(config)
    if trouble is not None:
        raise UnsupportedBackbone(
            f"Backbone '{name}' has {trouble}, which can't be served. Choose one without, such as the "
            "packaged ones.",
            param="backbone",
        )
    return ARCHITECTURES[config.model_type]


def _check_type(model_type: object, name: str) -> None:
    """Raise `UnsupportedBackbone` if models of a type are not tested."""
    if str(model_type) not in ARCHITECTURES:
        raise UnsupportedBackbone(
            f"Backbone '{name}' is of type '{model_type}', which can't be served yet. "
            f"Types that can: {', '.join(ARCHITECTURES)}.",
            param="backbone",
        )


def _trouble(config: Any) -> str | None:
    """Return what of a config can't be honoured."""
    if getattr(config, "add_cross_attention", False):
        return "added cross attention ('add_cross_attention')"
    positions = getattr(config, "position_embedding_type", None)
    if positions in _NOT_ABSOLUTE:
        return f"positions of type '{positions}'"
    if quantized := getattr(config, "quantization_config", None):
        return f"weights that are quantised already (by '{quantized.get('quant_method')}')"
    if getattr(config, "use_bidirectional_attention", None):
        return "attention in both directions ('use_bidirectional_attention')"
    is_causal = getattr(config, "is_causal", None)
    if is_causal is not None and is_causal != _CAUSAL.get(ARCHITECTURES[config.model_type].family):
        return f"attention of another kind than its type's ('is_causal': {str(is_causal).lower()})"
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type")
    return f"rotary positions of type '{kind}'" if kind in _STRETCHING else None


def check_weights(name: str, model: Any, found: dict[str, Any]) -> None:
    """Raise `UnsupportedBackbone` if a folder lacks weights: the library draws them by chance, others in each process.

    Args:
        found: the library's loading info.
    """
    absent = {*found["missing_keys"], *(path for path, *_ in found["mismatched_keys"])}
    lacking = sorted(path for path in absent if not _is_computed(model, path))
    if lacking:
        raise UnsupportedBackbone(
            f"Backbone '{name}' lacks {len(lacking)} of the weights that its config.json asks for, or has them in "
            f"another shape: '{lacking[0]}' is one. Fetch it anew, or save it whole with transformers.",
            param="backbone",
        )


def _is_computed(model: Any, path: str) -> bool:
    """Tell whether a weight follows from the config, as Pegasus' positions, which its folders leave out."""
    owner = model.get_submodule(path.rpartition(".")[0])
    return "Sinusoidal" in type(owner).__name__


def can_pack(config: Any) -> bool:
    """Tell whether a model of a known type can run packed: it must not need a window that packed attention ignores."""
    architecture = ARCHITECTURES[config.model_type]
    window = getattr(config, "sliding_window", None)
    is_full = window is None or window >= max_positions(config)
    return architecture.is_packed and (is_full or architecture.is_windowed)


def max_positions(config: Any) -> int:
    """Return the most positions of a row; for relative ones, which have no end, those it was trained with."""
    names = ("max_position_embeddings", "n_positions", "seq_length")
    return next((value for name in names if (value := getattr(config, name, None))), 512)


def output_width(config: Any) -> int:
    """Return the size of the last hidden states; OPT's may be projected to that of its embeddings."""
    return int(getattr(config, "word_embed_proj_dim", config.hidden_size))


def first_position(config: Any) -> int:
    """Return the position id of a row's first token."""
    counts = ARCHITECTURES[config.model_type].counts_from_padding
    return int(config.pad_token_id) + 1 if counts else 0
