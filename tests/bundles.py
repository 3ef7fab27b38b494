"""Sealed bundles with random weights on the tiny backbones, written by the trainer's own code through peft."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from adapters.backbone import Backbone, BackboneSpec, load_backbone
from adapters.bundle import Manifest, read_manifest, seal_bundle
from adapters.tasks.catalog import AnyTask, get_task
from training.contract import LoraSettings
from training.export import seal, write_weights
from training.trainer import build_trainee


def classifier(num_labels: int = 2, **options) -> AnyTask:
    labels = [f"label-{i}" for i in range(num_labels)]
    return get_task("text-classification", {"labels": labels, **options})


def answerer() -> AnyTask:
    return get_task("question-answering", {})


def summarizer(**options) -> AnyTask:
    return get_task("summarization", {"max_new_tokens": 12, **options})


def save_bundle(
    folder: Path,
    spec: BackboneSpec,
    task: AnyTask,
    *,
    seed: int = 0,
    backbone: Backbone | None = None,
    metrics: dict[str, float] | None = None,
    test_rows: str | None = None,
    **lora,
) -> Manifest:
    """Write and seal a bundle whose LoRA weights and head are random and large enough to matter."""
    backbone = backbone or load_backbone(spec, "float32")
    settings = LoraSettings(**{"rank": 4, "alpha": 8, **lora})
    trainee = build_trainee(backbone, settings, task.head(spec.family), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainee.parameters().values():
            parameter.normal_(0, 0.2, generator=generator)
    write_weights(trainee, folder)
    trainee.release()
    return seal(
        folder,
        task=task,
        spec=spec,
        metrics={"after": metrics} if metrics else {},
        data={"test": test_rows} if test_rows else {},
        dtype="float32",
        seed=seed,
        parent=None,
    )


def reseal(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Put other weights into a sealed two-label bundle and seal it again."""
    manifest = read_manifest(folder)
    save_file(weights, folder / "adapter_model.safetensors")
    seal_bundle(
        folder,
        task=classifier(2),
        head=manifest.head,
        backbone=manifest.backbone,
        metrics={},
        lineage=manifest.lineage,
    )
