"""The low-rank weights of one adapter: read from PEFT's file, checked against the backbone, torch-free.

PEFT writes ``base_model.model.<module>.lora_A.weight`` ``[R, I]`` and ``lora_B.weight`` ``[O, R]``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters.backbone import BackboneSpec
from adapters.errors import BackboneMismatch, InvalidBundle
from adapters.tensors import RawTensor

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_PLAIN_PATTERN = re.compile(r"[A-Za-z0-9_.]+")
MAX_RANK = 512
# Starts that leave the backbone as it is; others (pissa, olora, loftq, corda) rewrite it, so that A and B alone
# would be added to the wrong weights.
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
_MAX_ALPHA = 1e6
# Keys of adapter_config.json that plain LoRA has, or that do not bear on the arithmetic. Any other key may
# only be empty or false: peft grows variants, and one not known here must not be served as plain LoRA.
_KNOWN_KEYS = {
    "peft_type", "task_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "bias",
    "init_lora_weights", "modules_to_save", "inference_mode", "base_model_name_or_path", "revision",
    "auto_mapping", "peft_version", "megatron_core", "qalora_group_size", "ensure_weight_tying",
    "fan_in_fan_out", "eva_config",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoraModule:
    """A and B of one module, and the factor alpha / rank (or alpha / sqrt(rank) with rsLoRA)."""

    a: RawTensor
    b: RawTensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def read_lora(config: Mapping[str, Any], tensors: Mapping[str, RawTensor]) -> dict[str, LoraModule]:
    """Pair A and B of each module and work out its scale from ``adapter_config.json``.

    Raises:
        InvalidBundle: a half is missing, shapes disagree, or the config asks for more than plain LoRA.
    """
    check_plain_lora(config)
    halves: dict[str, dict[str, RawTensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if not match:
            raise InvalidBundle(
                f"adapter_model.safetensors holds '{key}', which is no LoRA weight of a module. "
                "Expected base_model.model.<module>.lora_A.weight and lora_B.weight."
            )
        halves.setdefault(match["module"], {})[match["side"]] = tensor
    return {name: _pair(name, sides, config) for name, sides in halves.items()}


def check_plain_lora(config: Mapping[str, Any]) -> None:
    """Refuse variants whose answer A, B and alpha don't fix, rather than serve them wrong."""
    if config.get("peft_type") != "LORA":
        raise InvalidBundle(f"peft_type is '{config.get('peft_type')}'; only 'LORA' can be served.")
    for option, value in config.items():
        if option not in _KNOWN_KEYS and value:
            raise InvalidBundle(f"adapter_config.json sets '{option}'; only plain LoRA is served.")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        raise InvalidBundle(
            f"init_lora_weights is '{config['init_lora_weights']}', which rewrites the backbone's weights; "
            "convert the adapter to plain LoRA first (peft: save_pretrained with "
            "path_initial_model_for_weight_conversion)."
        )
    if config.get("bias", "none") != "none":
        raise InvalidBundle(
            f"bias is '{config['bias']}'; only adapters with bias 'none' are served."
        )
    if config.get("modules_to_save"):
        raise InvalidBundle(
            f"modules_to_save is '{config['modules_to_save']}'; heads belong in head.safetensors."
        )


def _pair(name: str, sides: Mapping[str, RawTensor], config: Mapping[str, Any]) -> LoraModule:
    if set(sides) != {"A", "B"}:
        raise InvalidBundle(f"Module '{name}' has only lora_{next(iter(sides))}; both are needed.")
    a, b = sides["A"], sides["B"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise InvalidBundle(
            f"lora_A {list(a.shape)} and lora_B {list(b.shape)} of '{name}' disagree."
        )
    rank = a.shape[0]
    if not 1 <= rank <= MAX_RANK:
        raise InvalidBundle(f"Module '{name}' has rank {rank}; ranks go from 1 to {MAX_RANK}.")
    return LoraModule(a, b, _scale(name, rank, config))


def _scale(name: str, rank: int, config: Mapping[str, Any]) -> float:
    declared = _pattern(config.get("rank_pattern"), name, config.get("r"))
    if declared != rank:
        raise InvalidBundle(
            f"Module '{name}' has rank {rank}, but adapter_config.json says '{declared}'."
        )
    alpha = _pattern(config.get("alpha_pattern"), name, config.get("lora_alpha"))
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not is_number or not abs(alpha) < _MAX_ALPHA:
        raise InvalidBundle(
            f"lora_alpha of '{name}' is '{str(alpha)[:40]}'; it must be a number below {_MAX_ALPHA:.0f}."
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(patterns: Any, name: str, default: Any) -> Any:
    """Return what a rank or alpha pattern says of a module. PEFT matches it against the end of the path.

    PEFT takes regular expressions; only plain names are served, for a bundle's expression could run for ever.
    """
    if patterns is not None and not isinstance(patterns, Mapping):
        raise InvalidBundle(
            f"A rank or alpha pattern is '{str(patterns)[:40]}'; it must be an object."
        )
    for pattern, value in (patterns or {}).items():
        if not _PLAIN_PATTERN.fullmatch(pattern):
            raise InvalidBundle(
                f"Pattern '{pattern[:40]}' is no module name; only those are served."
            )
        if name == pattern or name.endswith(f".{pattern}"):
            return value
    return default


def check_against_backbone(modules: Mapping[str, LoraModule], spec: BackboneSpec) -> None:
    """Check that every weight has its place in the backbone.

    Raises:
        BackboneMismatch: a module is not there, or has another size.
    """
    missing = sorted(set(modules) - set(spec.modules))
    if missing:
        raise BackboneMismatch(
            f"{len(missing)} of {len(modules)} adapted modules, such as '{missing[0]}', match no "
            f"module of backbone '{spec.name}'. Its modules are named like "
            f"'{next(iter(spec.modules))}'. Train the adapter on this backbone."
        )
    for name, module in modules.items():
        size = (module.a.shape[1], module.b.shape[0])
        if size != tuple(spec.modules[name]):
            raise BackboneMismatch(
                f"Module '{name}' takes and gives {list(spec.modules[name])} features in backbone "
                f"'{spec.name}', but the adapter's weights are for {list(size)}."
            )
