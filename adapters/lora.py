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
MAX_RANK = 512
# What would change the arithmetic in a way that A and B alone do not tell.
_UNSUPPORTED = ("use_dora", "use_qalora", "alora_invocation_tokens", "corda_config", "arrow_config")


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
    for option in _UNSUPPORTED:
        if config.get(option):
            raise InvalidBundle(f"adapter_config.json sets '{option}'; only plain LoRA is served.")
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
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise InvalidBundle(f"lora_alpha of '{name}' is '{alpha}'; it must be a finite number.")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    # PEFT matches a pattern against the end of the module's path.
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
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
