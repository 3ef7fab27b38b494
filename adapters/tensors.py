"""Read safetensors files without torch, so that the API can check a bundle it was sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from adapters.errors import InvalidBundle

FLOAT_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
# Of a file, where its tensors are listed in 150 bytes each; empty ones, of 60 bytes, take 20 times as much memory here.
_MOST_HEADER = 8 * 2**20


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as it lies in the file: safetensors' dtype name, shape, little-endian bytes, which nobody changes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray

    def is_finite(self) -> bool:
        """Tell whether no value is NaN or infinite: an exponent of all ones marks both in every IEEE format."""
        bits = np.frombuffer(self.data, dtype=FLOAT_TYPES[self.dtype])
        if self.dtype == "BF16":
            return bool(((bits & 0x7F80) != 0x7F80).all())
        return bool(np.isfinite(bits).all())

    def digest(self) -> str:
        sha = hashlib.sha256(f"{self.dtype}{list(self.shape)}".encode())
        sha.update(self.data)
        return sha.hexdigest()


def read_tensors(path: Path) -> dict[str, RawTensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        InvalidBundle: the file is not safetensors, or holds something other than 16/32-bit floats.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if _MOST_HEADER < length <= path.stat().st_size:
        raise InvalidBundle(
            f"The list of tensors in '{path.name}' is longer than {_MOST_HEADER} bytes, which no adapter's is."
        )
    try:
        raw = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise InvalidBundle(
            f"'{path.name}' is not a safetensors file ({error}). Save the weights with "
            "safetensors; pickled weights (.bin, .pt) are never read."
        ) from error
    tensors = {}
    for name, entry in raw:
        dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
        if dtype not in FLOAT_TYPES:
            raise InvalidBundle(
                f"Tensor '{name}' of '{path.name}' has dtype '{dtype}'; "
                f"weights must be one of {', '.join(FLOAT_TYPES)}."
            )
        tensors[name] = RawTensor(dtype, shape, entry["data"])
    return tensors


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_digest(value: object) -> str:
    """Return the SHA-256 of a value as canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def tensor_digests(tensors: Mapping[str, RawTensor]) -> Iterator[tuple[str, str]]:
    """Yield (name, digest) of each tensor, sorted by name."""
    for name in sorted(tensors):
        yield name, tensors[name].digest()
