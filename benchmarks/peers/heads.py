"""Task heads as a peer would apply them by hand: each row pooled, then multiplied with its own head."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowHead:
    """The head of one adapter, read from its bundle."""

    weight: Tensor
    bias: Tensor
    pooling: str

    def label(self, hidden_TD: Tensor) -> int:
        """Return the likeliest label of a row, given the hidden states of its tokens without padding."""
        pooled = hidden_TD[-1].float() if self.pooling == "last" else hidden_TD.float().mean(0)
        return int((self.weight @ pooled + self.bias).argmax())


def read_head(folder: str) -> RowHead:
    """Return the head of a bundle."""
    tensors = load_file(Path(folder) / "head.safetensors")
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    return RowHead(tensors["weight"], tensors["bias"], manifest["head"]["pooling"])


def padded(rows: list[list[int]], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask of rows, padded on the right."""
    width = length or max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask
