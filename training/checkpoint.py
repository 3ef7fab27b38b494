"""The resumable state of a run, as safetensors: weights, AdamW's moments, and how far it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.errors import InvalidRequest
from training.kept import TRANSLATIONS, as_bytes

Score = tuple[float, ...]  # compared from the left; more is better
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class FitState:
    """How far a fit is: steps done, and the best that validation has seen, with the weights it had.

    ``num_stale`` counts the scores since that were no better.
    """

    step: int = 0
    best_score: Score | None = None
    best_step: int = 0
    num_stale: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)

    def numbers(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "num_stale": self.num_stale,
        }


def save_checkpoint(
    path: Path,
    named: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: FitState,
    run_digest: str,
    translations: Sequence[str] = (),
) -> None:
    """Write the state between two steps, replacing an older one at once.

    Args:
        run_digest: of the config and the data; only the same run may go on from here.
        translations: to be had again from `kept_translations`.
    """
    tensors = {f"best/{name}": tensor for name, tensor in state.best.items()}
    for name, parameter in named.items():
        tensors[f"weight/{name}"] = parameter.detach()
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}/{name}"] = value
    if translations:
        text = bytearray(as_bytes(translations))
        tensors[TRANSLATIONS] = torch.frombuffer(text, dtype=torch.uint8)
    part = path.with_suffix(".part")
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        part,
        {"state": json.dumps(state.numbers()), "run": run_digest},
    )
    part.replace(path)


def load_checkpoint(
    path: Path,
    named: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    run_digest: str,
) -> FitState:
    """Restore weights and moments, and return how far the run was; its beginning without a checkpoint.

    Raises:
        InvalidRequest: the checkpoint is another run's.
    """
    if not path.is_file():
        return FitState()
    with safe_open(path, framework="pt") as file, torch.no_grad():
        if file.metadata()["run"] != run_digest:
            raise InvalidRequest(
                f"'{path}' is the checkpoint of a run with another config or other data. Remove it, or "
                "choose another --out.",
                param="out",
            )
        keys = set(file.keys())
        state = FitState(**json.loads(file.metadata()["state"]))
        state.best_score = None if state.best_score is None else tuple(state.best_score)
        for name, parameter in named.items():
            parameter.copy_(file.get_tensor(f"weight/{name}"))
            if f"best/{name}" in keys:
                state.best[name] = file.get_tensor(f"best/{name}").to(parameter.device)
            if f"exp_avg/{name}" in keys:
                optimizer.state[parameter] = {
                    moment: file.get_tensor(f"{moment}/{name}").to(parameter.device)
                    for moment in _MOMENTS
                }
        return state
