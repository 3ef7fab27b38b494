"""Backbones that were described before: finding out anew takes seconds, most of them for importing model code."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from adapters.backbone import (
    READ_FILES,
    BackboneSpec,
    backbone_name,
    describe_backbone,
    find_backbone,
)
from adapters.errors import EnvironmentProblem
from adapters.tensors import canonical_digest, file_digest

_READ = (*READ_FILES, "additional_chat_templates/*.jinja")
_LIBRARIES = ("torch", "transformers", "tokenizers")
# The code that decides what is found out.
_SOURCES = ("architectures.py", "backbone.py", "tokenizer.py", "runtime/linears.py")


def describe_source(
    source: str, home: Path, describe: Callable[[Path, str], BackboneSpec] = describe_backbone
) -> BackboneSpec:
    """Return the spec of a backbone, remembered in home until a byte of its folder or of the code is another one.

    Args:
        source: as of `find_backbone`, which see for its errors.
        describe: finds out what is not remembered.

    Raises:
        EnvironmentProblem: a file of its folder can't be read.
    """
    folder, name = find_backbone(source, home), backbone_name(source)
    identity = _identity(folder, name)
    path = home / "specs" / f"{identity}.json"
    try:
        return BackboneSpec.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        spec = describe(folder, name)
    if _identity(folder, name) == identity:  # else it changed meanwhile
        with suppress(OSError):  # a home that can't be written only costs the time again
            _keep(spec, path)
    return spec


def _keep(spec: BackboneSpec, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    part.write_text(spec.model_dump_json())
    os.replace(part, path)  # at once, for another process may be doing the same


def _identity(folder: Path, name: str) -> str:
    found = {path for pattern in _READ for path in folder.glob(pattern) if path.is_file()}
    try:
        files = {str(path.relative_to(folder)): file_digest(path) for path in found}
    except OSError as error:
        raise EnvironmentProblem(
            f"Can't read '{error.filename}' of backbone '{name}': {error.strerror}. Let the user of this process read "
            "the whole folder."
        ) from error
    code = [file_digest(Path(__file__).parent / source) for source in _SOURCES]
    return canonical_digest(
        [name, str(folder), files, code, [version(each) for each in _LIBRARIES]]
    )
