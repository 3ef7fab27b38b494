"""Stock PEFT folders, which have no manifest, become bundles for ``text-generation``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import TensorSpec, serialize_file

from adapters.backbone import BackboneSpec
from adapters.bundle import (
    CARD_FILE,
    CONFIG_FILE,
    HEAD_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    BackboneReference,
    Lineage,
    read_json,
    seal_bundle,
)
from adapters.errors import BackboneMismatch, InvalidBundle
from adapters.lora import check_plain_lora
from adapters.tasks.catalog import get_task
from adapters.tensors import RawTensor, read_tensors

_TASK = "text-generation"
_WRITING = (None, "CAUSAL_LM", "SEQ_2_SEQ_LM")
_PREFIX = "base_model.model."
_SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def is_stock(folder: Path) -> bool:
    """Tell whether a folder is one that peft's ``save_pretrained`` wrote, and no bundle."""
    return (folder / CONFIG_FILE).is_file() and not (folder / MANIFEST_FILE).is_file()


def import_stock(
    folder: Path, target: Path, known: Sequence[BackboneSpec], backbone: str | None = None
) -> None:
    """Write the bundle for ``text-generation`` that a stock PEFT folder amounts to.

    Weights of the ``AutoModel`` form are renamed to the causal form, onto which peft would load them with a warning
    only, and serve the backbone's own answers. Other files of the folder, such as a tokenizer, are left out.

    Args:
        target: an empty folder.
        known: backbones that it may have been made for.
        backbone: name of the one it was made for; the one its config names, if None.

    Raises:
        InvalidBundle: it is no plain LoRA adapter of a model that writes text.
        BackboneMismatch: none of the backbones is the one it was made for.
    """
    if (folder / HEAD_FILE).exists():
        raise InvalidBundle(
            f"'{HEAD_FILE}' is there, but no '{MANIFEST_FILE}' that tells its task and labels. Send the whole bundle."
        )
    config = read_json(folder / CONFIG_FILE)
    check_plain_lora(config)
    if config.get("task_type") not in _WRITING:
        raise InvalidBundle(
            f"task_type is '{config['task_type']}', whose head and labels a PEFT folder does not keep; only "
            "adapters that write text can be imported. Train the task with 'headstock train'.",
            param="task_type",
        )
    spec = _find_backbone(config, known, backbone)
    task = get_task(_TASK, {})
    if spec.family not in task.families:
        raise BackboneMismatch(
            f"Backbone '{spec.name}' is an {spec.family} and can't write text, which an imported adapter "
            "must. Train the task with 'headstock train'.",
            param="backbone",
        )
    tensors = read_tensors(_weights_file(folder))
    _write_tensors(target / WEIGHTS_FILE, _renamed(tensors, spec))
    shutil.copyfile(folder / CONFIG_FILE, target / CONFIG_FILE)
    if (folder / CARD_FILE).is_file():
        shutil.copyfile(folder / CARD_FILE, target / CARD_FILE)
    reference = BackboneReference(
        name=spec.name, fingerprint=spec.fingerprint, tokenizer=spec.tokenizer
    )
    seal_bundle(target, task=task, head=None, backbone=reference, metrics={}, lineage=Lineage())


def _weights_file(folder: Path) -> Path:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").exists()
        hint = " Pickled weights (adapter_model.bin) are never read." if pickled else ""
        raise InvalidBundle(
            f"File '{WEIGHTS_FILE}' is missing from the PEFT folder.{hint} Save the adapter with "
            "peft's save_pretrained, which writes it."
        )
    return path


def _find_backbone(
    config: Mapping[str, Any], known: Sequence[BackboneSpec], backbone: str | None
) -> BackboneSpec:
    """Return the backbone that is named: same shapes alone do not make it the one an adapter was trained on."""
    named = backbone or config.get("base_model_name_or_path") or ""
    if not isinstance(named, str):
        named = str(named)
    found = [spec for spec in known if _short(spec.name) == _short(named)]
    if not found:
        names = ", ".join(f"'{spec.name}'" for spec in known) or "none yet"
        raise BackboneMismatch(
            f"The PEFT folder was made for '{named[:100]}', which is not known here. Known: {names}. If it is one "
            "of these under another name, say which with 'backbone'; else start a server with --backbone.",
            param="backbone",
        )
    if len(found) > 1:
        raise BackboneMismatch(
            f"'{len(found)}' backbones with other weights each are called '{named[:100]}' here. Import on a server "
            "that knows one of them only.",
            param="backbone",
        )
    return found[0]


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def _renamed(tensors: Mapping[str, RawTensor], spec: BackboneSpec) -> dict[str, RawTensor]:
    """Return the weights under the names that the backbone's canonical form has for their modules."""
    renamed = {}
    for key, tensor in tensors.items():
        module, lora, half = key.removeprefix(_PREFIX).rpartition(".lora_")
        renamed[f"{_PREFIX}{_module(module, spec)}{lora}{half}"] = tensor
    if len(renamed) != len(tensors):
        raise InvalidBundle(f"'{WEIGHTS_FILE}' names one module in two ways. Save it anew.")
    return renamed


def _module(name: str, spec: BackboneSpec) -> str:
    """Return a module's canonical name; a name that fits none or several stays, for the check that tells of it."""
    if name in spec.modules:
        return name
    longer = [module for module in spec.modules if module.endswith(f".{name}")]
    return longer[0] if len(longer) == 1 else name


def _write_tensors(path: Path, tensors: Mapping[str, RawTensor]) -> None:
    """Write a safetensors file without torch, for the API imports too."""
    buffers = {name: np.frombuffer(tensor.data, np.uint8) for name, tensor in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype=_SAFETENSORS_DTYPES[tensor.dtype],
            shape=list(tensor.shape),
            data_ptr=buffers[name].ctypes.data,
            data_len=len(tensor.data),
        )
        for name, tensor in tensors.items()
    }
    serialize_file(specs, str(path))
    path.chmod(0o644)  # it writes for its owner only; a server may run as another user
