"""The model card in a bundle: what the Hub reads of it, and what a person should know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from adapters.bundle import Manifest
from adapters.packaged import PACKAGED

_HUB_TAGS = {"regression": "text-classification"}  # the Hub knows no tag for scores of texts
_DATASET = "training file"  # its name may be private; its fingerprint is told


def model_card(manifest: Manifest, intervals: Mapping[str, tuple[float, float]]) -> str:
    """Return README.md: YAML for the Hub (``model-index``), metrics, data, and how to load it both ways.

    Args:
        intervals: of the metrics after training, 95 %; a metric without is shown alone.
    """
    header = yaml.safe_dump(_metadata(manifest), sort_keys=False, allow_unicode=True)
    backbone = manifest.backbone
    rows = "".join(
        f"| {whose} | {name} | {value:.4f} | {_interval(intervals.get(name)) if whose == 'after' else ''} |\n"
        for whose, values in manifest.metrics.items()
        for name, value in values.items()
    )
    data = "".join(f"- {split}: `{digest}`\n" for split, digest in manifest.lineage.data.items())
    return f"""---
{header}---

# A `{manifest.task}` adapter

LoRA weights{" with a task head" if manifest.head else ""} for the frozen backbone `{backbone.name}`, made by Headstock.
Digest `{manifest.digest}`, seed {manifest.lineage.seed}.

## Intended use

The task `{manifest.task}` on texts like those it was trained on. It was not tested on others; what the backbone has
learned from its own data, it may still say.

## Metrics

| of | metric | value | 95 %, bootstrap over the test rows |
|---|---|---|---|
{rows}
## Data

SHA-256 of the rows' content, by split:

{data}
## Use

With Headstock:

    headstock adapters push NAME FOLDER
    headstock serve

With stock peft, which loads the LoRA weights{" but not the head (`head.safetensors`)" if manifest.head else ""}:

    from peft import PeftModel
    model = PeftModel.from_pretrained(backbone_model, "FOLDER")
"""


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _metadata(manifest: Manifest) -> dict[str, Any]:
    header: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": _HUB_TAGS.get(manifest.task, manifest.task),
        "base_model": _hub_id(manifest.backbone.name),
        "tags": ["lora", "headstock"],
    }
    after = manifest.metrics.get("after")
    if after:
        header["model-index"] = [
            {
                "name": f"{manifest.task} adapter",
                "results": [
                    {
                        "task": {"type": manifest.task},
                        "dataset": {
                            "name": _DATASET,
                            "type": "custom",
                            "revision": manifest.lineage.data.get("test", ""),
                            "split": "test",
                        },
                        "metrics": [
                            {"type": name, "value": round(value, 6)}
                            for name, value in after.items()
                        ],
                    }
                ],
            }
        ]
    return header


def _hub_id(name: str) -> str:
    """Return what the Hub calls a backbone, so that it can show the two together."""
    return PACKAGED[name].hub_id if name in PACKAGED else name
