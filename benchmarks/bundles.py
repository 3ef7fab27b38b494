"""Sealed bundles with random weights, written in milliseconds: a benchmark needs many adapters, not good ones."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from adapters.backbone import BackboneSpec
from adapters.bundle import (
    CONFIG_FILE,
    HEAD_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    BackboneReference,
    Lineage,
    seal_bundle,
)
from adapters.tasks.catalog import AnyTask, get_task

ALL_LINEAR: tuple[str, ...] = ()
QUERY_VALUE = ("q_proj", "v_proj", "query", "value")
# With A of unit gain, this makes an update a tenth or so of what the layer puts out: enough to change most
# answers, little enough to leave text as text.
B_STD = 0.02


@dataclass(frozen=True, slots=True)
class Lora:
    """The shape of a made adapter; no targets means all linear layers."""

    rank: int = 8
    targets: tuple[str, ...] = ALL_LINEAR
    dtype: torch.dtype = torch.bfloat16


def classifier(num_labels: int) -> AnyTask:
    """Return a classification task with so many labels."""
    return get_task("text-classification", {"labels": [f"label-{i}" for i in range(num_labels)]})


def writer(max_new_tokens: int = 32) -> AnyTask:
    """Return a task that generates."""
    return get_task("summarization", {"max_new_tokens": max_new_tokens})


def answerer() -> AnyTask:
    """Return an extractive question-answering task."""
    return get_task("question-answering", {})


def make_bundle(
    folder: Path, spec: BackboneSpec, task: AnyTask, seed: int, lora: Lora | None = None
) -> Path:
    """Write and seal a bundle with seeded random weights, unless it is there already, and return its folder."""
    if (folder / MANIFEST_FILE).is_file():
        return folder
    lora = lora or Lora()
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    modules = _targeted(spec, lora.targets)
    weights: dict[str, torch.Tensor] = {}
    for path, (inputs, outputs) in modules.items():
        a = torch.randn(lora.rank, inputs, generator=generator) / math.sqrt(inputs)
        b = torch.randn(outputs, lora.rank, generator=generator) * B_STD
        weights[f"base_model.model.{path}.lora_A.weight"] = a.to(lora.dtype)
        weights[f"base_model.model.{path}.lora_B.weight"] = b.to(lora.dtype)
    save_file(weights, folder / WEIGHTS_FILE)
    _write_config(folder, spec, lora, modules)
    _write_head(folder, spec, task, generator)
    _seal(folder, spec, task)
    return folder


def _targeted(spec: BackboneSpec, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    return {
        path: sizes
        for path, sizes in spec.modules.items()
        if not targets or path.rsplit(".", 1)[-1] in targets
    }


def _write_config(
    folder: Path, spec: BackboneSpec, lora: Lora, modules: dict[str, tuple[int, int]]
) -> None:
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": spec.name,
        "r": lora.rank,
        "lora_alpha": 2 * lora.rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "target_modules": sorted({path.rsplit(".", 1)[-1] for path in modules}),
        "bias": "none",
        "inference_mode": True,
        "task_type": None,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_head(
    folder: Path, spec: BackboneSpec, task: AnyTask, generator: torch.Generator
) -> None:
    head = task.head(spec.family)
    if head is None:
        return
    weight = torch.randn(head.outputs, spec.hidden_size, generator=generator)
    save_file({"weight": weight, "bias": torch.zeros(head.outputs)}, folder / HEAD_FILE)


def _seal(folder: Path, spec: BackboneSpec, task: AnyTask) -> None:
    reference = BackboneReference(
        name=spec.name, fingerprint=spec.fingerprint, tokenizer=spec.tokenizer
    )
    seal_bundle(
        folder,
        task=task,
        head=task.head(spec.family),
        backbone=reference,
        metrics={},
        lineage=Lineage(),
    )
