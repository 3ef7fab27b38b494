"""Texts that a checkpoint keeps beside the state of a fit, so that a run which goes on has them as they were."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

TRANSLATIONS = "translations"  # a tensor's name


def as_bytes(texts: Sequence[str]) -> bytes:
    """Return texts as the bytes of one tensor."""
    return json.dumps(texts).encode()


def kept_translations(checkpoint: Path | None) -> list[str]:
    """Return the translations that a checkpoint keeps; none without a checkpoint, or if it has none."""
    if checkpoint is None or not checkpoint.is_file():
        return []
    with safe_open(checkpoint, framework="np") as file:
        if TRANSLATIONS not in file.keys():  # noqa: SIM118 - it is no dict
            return []
        texts: list[str] = json.loads(np.asarray(file.get_tensor(TRANSLATIONS)).tobytes())
        return texts
