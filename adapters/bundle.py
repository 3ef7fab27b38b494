"""The folder that holds one version of an adapter: a plain PEFT folder with a manifest and a head beside it.

    adapter_config.json, adapter_model.safetensors   load with stock PEFT
    head.safetensors                                 the task head, if the task has one
    manifest.json                                    task, backbone, file hashes, digest, metrics, lineage
    README.md                                        a Hub model card

Nothing here imports torch: the API checks bundles too.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field, ValidationError

from adapters.backbone import BackboneSpec
from adapters.dtype import Quantization
from adapters.errors import BackboneMismatch, HeadstockError, InvalidBundle
from adapters.lora import LoraModule, check_against_backbone, read_lora
from adapters.tasks.base import HeadSpec, Strict
from adapters.tasks.catalog import AnyTask, get_task
from adapters.tensors import (
    RawTensor,
    canonical_digest,
    file_digest,
    read_tensors,
    tensor_digests,
)
from adapters.validation import first_problem

SCHEMA_VERSION: Final = 1
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
HEAD_FILE = "head.safetensors"
MANIFEST_FILE = "manifest.json"
CARD_FILE = "README.md"
ALLOWED_FILES = {CONFIG_FILE, WEIGHTS_FILE, HEAD_FILE, MANIFEST_FILE, CARD_FILE}
MAX_TEXT_BYTES = 4 * 2**20
# The fields of adapter_config.json that decide an answer.
_DECIDING = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")


class BackboneReference(Strict):
    """The backbone a bundle was made for."""

    name: str
    fingerprint: str
    tokenizer: str = Field(description="SHA-256 of the tokenizer it was trained with.")


class Lineage(Strict):
    """Where a version comes from."""

    data: dict[str, str] = Field(default_factory=dict, description="SHA-256 of each data file.")
    seed: int | None = None
    parent: str | None = Field(None, description="Digest of the version it was continued from.")
    dtype: str | None = Field(None, description="What the backbone ran in; metrics are of that.")
    quantization: Quantization | None = Field(
        None,
        description="How the backbone's linear layers kept their weights; None: not quantised.",
    )
    libraries: dict[str, str] = Field(default_factory=dict)
    created_at: str | None = None


class Manifest(Strict):
    """``manifest.json``; ``digest`` covers weights, task, backbone and scaling, not metrics or lineage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    task: str
    options: dict[str, Any]
    head: HeadSpec | None
    backbone: BackboneReference
    files: dict[str, str]
    digest: str
    metrics: dict[str, dict[str, float]] = Field(default_factory=dict)
    lineage: Lineage = Field(default_factory=Lineage)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A validated bundle in memory."""

    manifest: Manifest
    modules: dict[str, LoraModule]
    head: dict[str, RawTensor]

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def task(self) -> AnyTask:
        return get_task(self.manifest.task, self.manifest.options)


def seal_bundle(
    folder: Path,
    *,
    task: AnyTask,
    head: HeadSpec | None,
    backbone: BackboneReference,
    metrics: dict[str, dict[str, float]],
    lineage: Lineage,
) -> Manifest:
    """Write the manifest of a folder that already holds the weights, and return it.

    The bundle is immutable from here on: any change to a listed file fails validation.
    """
    options = task.options.model_dump(mode="json")
    manifest = Manifest(
        task=task.name,
        options=options,
        head=head,
        backbone=backbone,
        files={
            path.name: file_digest(path)
            for path in sorted(folder.iterdir())
            if path.name in ALLOWED_FILES - {MANIFEST_FILE, CARD_FILE}
        },
        digest=_digest(
            read_json(folder / CONFIG_FILE),
            read_tensors(folder / WEIGHTS_FILE),
            read_tensors(folder / HEAD_FILE) if head else {},
            (task.name, options, head, backbone),
        ),
        metrics={split: _numbers(measured) for split, measured in metrics.items()},
        lineage=lineage,
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True)
    (folder / MANIFEST_FILE).write_text(text + "\n")
    return manifest


def _numbers(measured: dict[str, float]) -> dict[str, float]:
    """Return what came out as a number, which is all that JSON can say."""
    return {name: value for name, value in measured.items() if math.isfinite(value)}


def load_bundle(
    folder: Path, spec: BackboneSpec | None = None, *, is_registered: bool = False
) -> Bundle:
    """Read a bundle, checking everything that can be checked without running it.

    Args:
        spec: the backbone it must fit; checked only within the bundle if None.
        is_registered: all was checked when it was registered. Its digest, which covers whatever decides an answer, is
            checked again; the files' own sums, and whether each number is finite, are not.

    Raises:
        InvalidBundle: a file is missing, unexpected, damaged or unsafe, or the parts disagree.
        BackboneMismatch: it was made for another backbone.
    """
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    if not is_registered:
        _check_sums(folder, manifest)
    config = read_json(folder / CONFIG_FILE)
    weights = read_tensors(folder / WEIGHTS_FILE)
    head = read_tensors(folder / HEAD_FILE) if manifest.head else {}
    if not is_registered:
        _check_finite(weights | head)
    modules = read_lora(config, weights)
    if not modules:
        raise InvalidBundle(
            f"'{WEIGHTS_FILE}' holds no weights: it would answer as the backbone does."
        )
    if spec is not None:
        _check_backbone(manifest, modules, spec)
    _check_task(manifest, head, spec)
    deciding = (manifest.task, manifest.options, manifest.head, manifest.backbone)
    digest = _digest(config, weights, head, deciding)
    if digest != manifest.digest:
        raise InvalidBundle(
            f"The manifest's digest is '{manifest.digest[:12]}…', but its contents have "
            f"'{digest[:12]}…'. Seal the bundle again instead of editing it."
        )
    return Bundle(manifest, modules, head)


def read_manifest(folder: Path) -> Manifest:
    """Return a bundle's manifest, checked for form only."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise InvalidBundle(
            f"'{folder.name}' has no {MANIFEST_FILE}. A bundle is the folder that training writes."
        )
    try:
        return Manifest.model_validate(read_json(path))
    except ValidationError as error:
        raise InvalidBundle(f"{MANIFEST_FILE}: {first_problem(error)[0]}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in one of a bundle's JSON files, which are bounded in size."""
    if not path.is_file():
        raise InvalidBundle(f"File '{path.name}' is missing from the bundle.")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise InvalidBundle(f"'{path.name}' is larger than {MAX_TEXT_BYTES} bytes.")
    try:
        value = json.loads(path.read_text())
        # Neither NaN nor half a character: what is registered is kept, and told, as JSON in UTF-8.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidBundle(f"'{path.name}' is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidBundle(f"'{path.name}' must hold a JSON object.")
    return value


def check_file_name(name: str) -> None:
    """Refuse a file that does not belong in a bundle, pickled weights above all."""
    if name not in ALLOWED_FILES:
        hint = (
            " Pickled weights are never read; save them as safetensors." if _pickled(name) else ""
        )
        raise InvalidBundle(
            f"File '{name}' does not belong in a bundle; allowed are "
            f"{', '.join(sorted(ALLOWED_FILES))}.{hint}"
        )


def _pickled(name: str) -> bool:
    return name.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"))


def _check_files(folder: Path, manifest: Manifest) -> None:
    for path in folder.iterdir():
        check_file_name(path.name)
        if path.is_symlink() or not path.is_file():
            raise InvalidBundle(f"'{path.name}' is not a plain file.")
    required = {CONFIG_FILE, WEIGHTS_FILE} | ({HEAD_FILE} if manifest.head else set())
    for name in sorted(required):
        if name not in manifest.files or not (folder / name).is_file():
            raise InvalidBundle(f"File '{name}' is missing from the bundle.")
    for name in manifest.files:
        check_file_name(name)
        if not (folder / name).is_file():
            raise InvalidBundle(f"File '{name}' is missing from the bundle.")


def _check_sums(folder: Path, manifest: Manifest) -> None:
    for name, digest in manifest.files.items():
        if file_digest(folder / name) != digest:
            raise InvalidBundle(
                f"File '{name}' does not have the SHA-256 that the manifest says; it was changed or "
                "damaged. Fetch or train the bundle again."
            )


def _check_finite(tensors: dict[str, RawTensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_finite():
            raise InvalidBundle(
                f"Tensor '{name}' holds NaN or infinity. The training diverged: lower the learning rate."
            )


def _check_backbone(manifest: Manifest, modules: dict[str, LoraModule], spec: BackboneSpec) -> None:
    if manifest.backbone.fingerprint != spec.fingerprint:
        raise BackboneMismatch(
            f"The bundle was made for backbone '{manifest.backbone.name}' (fingerprint "
            f"{manifest.backbone.fingerprint[:12]}…); here runs '{spec.name}' "
            f"({spec.fingerprint[:12]}…). Train it on this one, or start a server with --backbone."
        )
    if manifest.backbone.tokenizer != spec.tokenizer:
        raise BackboneMismatch(
            f"The bundle was made with another tokenizer than that of backbone '{spec.name}' here. Train "
            "it with this one."
        )
    check_against_backbone(modules, spec)


def _check_task(manifest: Manifest, head: dict[str, RawTensor], spec: BackboneSpec | None) -> None:
    try:
        task = get_task(manifest.task, manifest.options)
    except HeadstockError as error:
        raise InvalidBundle(f"{MANIFEST_FILE}: {error.message}") from error
    if spec is not None and spec.family not in task.families:
        raise InvalidBundle(
            f"An {spec.family} backbone can't write text, which '{manifest.task}' needs."
        )
    wanted = manifest.head
    expected = [task.head(family) for family in ([spec.family] if spec else task.families)]
    if wanted not in expected:
        raise InvalidBundle(
            f"The manifest's head '{wanted}' is not the one that '{manifest.task}' with these options has: "
            f"'{expected[0]}'."
        )
    if wanted is None:
        return
    shapes = {name: tensor.shape for name, tensor in head.items()}
    hidden = shapes.get("weight", (0, 0))[-1]
    if spec is not None:
        hidden = spec.hidden_size
    if shapes != {"weight": (wanted.outputs, hidden), "bias": (wanted.outputs,)}:
        raise InvalidBundle(
            f"'{HEAD_FILE}' holds {shapes}, but the manifest's head needs weight "
            f"[{wanted.outputs}, {hidden}] and bias [{wanted.outputs}]."
        )


def _digest(
    config: dict[str, Any],
    weights: dict[str, RawTensor],
    head_tensors: dict[str, RawTensor],
    deciding: tuple[str, dict[str, Any], HeadSpec | None, BackboneReference],
) -> str:
    task, options, head, backbone = deciding
    return canonical_digest(
        {
            "task": task,
            "options": options,
            "head": head.model_dump() if head else None,
            "backbone": [backbone.fingerprint, backbone.tokenizer],
            "scaling": {key: config.get(key) for key in _DECIDING},
            "tensors": [dict(tensor_digests(weights)), dict(tensor_digests(head_tensors))],
        }
    )
