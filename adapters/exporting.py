"""A version for those who do not run Headstock: as a plain PEFT folder, or merged into its backbone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from adapters.backbone import Backbone, BackboneSpec, load_backbone
from adapters.bundle import (
    ALLOWED_FILES,
    CARD_FILE,
    CONFIG_FILE,
    HEAD_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    load_bundle,
    read_json,
)
from adapters.errors import Conflict
from adapters.lora import LoraModule

_PEFT_FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
_HEAD_FILES = (HEAD_FILE, MANIFEST_FILE)


def export_bundle(folder: Path, target: Path) -> None:
    """Copy a whole bundle.

    Raises:
        Conflict: the target is there and not empty.
    """
    _make_empty(target)
    _copy(folder, target, sorted(ALLOWED_FILES))


def export_peft(folder: Path, target: Path) -> list[str]:
    """Copy what stock peft reads of a bundle; returns what was left out: the head, which peft has no place for.

    What is left without it gives hidden states, and its config says so, lest it is taken for an adapter that writes.
    """
    _make_empty(target)
    _copy(folder, target, _PEFT_FILES)
    if not (folder / HEAD_FILE).is_file():
        return []
    config = read_json(folder / CONFIG_FILE) | {"task_type": "FEATURE_EXTRACTION"}
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return [HEAD_FILE]


def export_merged(
    folder: Path, spec: BackboneSpec, target: Path, dtype: Literal["float32", "bfloat16"]
) -> list[str]:
    """Write a backbone with a bundle's weights added to its own, as transformers loads it.

    Sums are made in fp32 and rounded once to ``dtype``; bf16 rounds small updates away, so that answers differ a
    little from the served adapter's. Head and manifest are copied beside it, for transformers has no class that
    would hold them.

    Raises:
        InvalidBundle, BackboneMismatch: the bundle can't be used with this backbone.
        Conflict: the target is there and not empty.
    """
    import torch
    from transformers import AutoTokenizer

    bundle = load_bundle(folder, spec)
    _make_empty(target)
    backbone = load_backbone(spec, "float32", is_packed=False)
    for path, module in bundle.modules.items():
        _add(backbone, path, module)
    model: Any = backbone.model
    model.to(getattr(torch, dtype)).save_pretrained(target)
    AutoTokenizer.from_pretrained(spec.folder).save_pretrained(target)
    kept = [name for name in _HEAD_FILES if (folder / HEAD_FILE).is_file()]
    _copy(folder, target, kept)
    return kept


def _add(backbone: Backbone, path: str, module: LoraModule) -> None:
    """Add ``scale * B A`` to a layer's weights ``[O, I]``, or ``[I, O]`` where the library keeps them so."""
    import torch

    from adapters.runtime.weights import to_torch

    layer: Any = backbone.model.get_submodule(path)
    with torch.no_grad():
        update_OI = to_torch(module.b).float() @ to_torch(module.a).float() * module.scale
        layer.weight += update_OI if isinstance(layer, torch.nn.Linear) else update_OI.T


def _make_empty(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise Conflict(f"Folder '{target}' is not empty. Name a new one.", param="out")


def _copy(folder: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
