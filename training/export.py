"""Weights in memory to a sealed bundle, and back."""

from __future__ import annotations

import importlib.metadata
import json
import math
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import torch
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from adapters.backbone import BackboneSpec
from adapters.bundle import (
    CARD_FILE,
    CONFIG_FILE,
    HEAD_FILE,
    WEIGHTS_FILE,
    BackboneReference,
    Lineage,
    Manifest,
    load_bundle,
    read_json,
    seal_bundle,
)
from adapters.dtype import Quantization
from adapters.errors import InvalidBundle
from adapters.tasks.catalog import AnyTask
from training.contract import LoraSettings
from training.model_card import model_card
from training.trainer import Trainee

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "headstock")


def write_weights(trainee: Trainee, folder: Path) -> None:
    """Write a draft bundle: adapter_config.json, LoRA weights and head, not yet sealed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = _peft_config(trainee)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file({k: v.contiguous() for k, v in trainee.lora_state().items()}, folder / WEIGHTS_FILE)
    if trainee.head is not None:
        state = {k: v.detach().cpu() for k, v in trainee.head.state_dict().items()}
        save_file(state, folder / HEAD_FILE)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for its owner only; a server may run as another user


def _peft_config(trainee: Trainee) -> dict[str, object]:
    """Return the adapter_config.json that stock peft loads: sorted, and without this machine's paths."""
    config: LoraConfig = trainee.peft_model.peft_config["default"]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": trainee.backbone.spec.name,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "use_rslora": config.use_rslora,
        "fan_in_fan_out": config.fan_in_fan_out,
        "target_modules": sorted(config.target_modules or ()),
        "bias": "none",
        "inference_mode": True,
        "task_type": None,
    }


def load_weights(trainee: Trainee, folder: Path) -> None:
    """Copy a bundle's weights into a trainee of the same shape, to go on from them."""
    set_peft_model_state_dict(trainee.peft_model, load_file(folder / WEIGHTS_FILE))
    if trainee.head is not None:
        with torch.no_grad():
            trainee.head.load_state_dict(load_file(folder / HEAD_FILE))


def lora_settings_of(folder: Path) -> LoraSettings:
    """Return the settings that give a trainee the shape of a bundle.

    Raises:
        InvalidBundle: its modules have several ranks or scales, as peft's patterns give them.
    """
    modules = load_bundle(folder).modules
    shapes = {(module.rank, module.scale) for module in modules.values()}
    if len(shapes) > 1:
        told = ", ".join(f"rank {rank} at scale {scale:g}" for rank, scale in sorted(shapes)[:4])
        raise InvalidBundle(
            f"The parent's modules have '{told}'; a run goes on from one rank and one scale. Train anew.",
            param="parent",
        )
    config = read_json(folder / CONFIG_FILE)
    ((rank, scale),) = shapes
    return LoraSettings(
        rank=rank,
        alpha=round(scale * (math.sqrt(rank) if config.get("use_rslora") else rank), 9),
        dropout=config.get("lora_dropout") or 0.0,
        use_rslora=bool(config.get("use_rslora")),
        target_modules=sorted(modules),  # the config's own may be an expression
    )


def check_parent(folder: Path, spec: BackboneSpec, task: str) -> Manifest:
    """Return a parent's manifest, if a run for this task on this backbone can go on from it."""
    manifest = load_bundle(folder, spec).manifest
    if manifest.task != task:
        raise InvalidBundle(
            f"The parent is a '{manifest.task}' adapter; this run is for '{task}'.", param="parent"
        )
    return manifest


def seal(
    folder: Path,
    *,
    task: AnyTask,
    spec: BackboneSpec,
    metrics: dict[str, dict[str, float]],
    data: dict[str, str],
    dtype: str,
    seed: int | None,
    parent: str | None,
    quantization: Quantization | None = None,
    intervals: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> Manifest:
    """Write manifest and model card; the bundle is a version from here on."""
    lineage = Lineage(
        data=data,
        seed=seed,
        parent=parent,
        dtype=dtype,
        quantization=quantization,
        libraries={name: importlib.metadata.version(name) for name in _LIBRARIES},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    manifest = seal_bundle(
        folder,
        task=task,
        head=task.head(spec.family),
        backbone=BackboneReference(
            name=spec.name, fingerprint=spec.fingerprint, tokenizer=spec.tokenizer
        ),
        metrics=metrics,
        lineage=lineage,
    )
    (folder / CARD_FILE).write_text(model_card(manifest, intervals))
    return manifest
