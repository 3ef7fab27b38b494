"""The resumable state of a run, as safetensors: weights, AdamW's moments, the random state, and the next step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.errors import InvalidRequest

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save_checkpoint(
    path: Path,
    named: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    step: int,
    run_digest: str,
) -> None:
    """Write the state before ``step``, replacing an older one at once.

    Args:
        run_digest: of the config and the data; only the same run may go on from here.
    """
    tensors: dict[str, Tensor] = {"random": torch.get_rng_state()}
    for name, parameter in named.items():
        tensors[f"weight/{name}"] = parameter.detach()
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}/{name}"] = value
    part = path.with_suffix(".part")
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        part,
        {"step": str(step), "run": run_digest},
    )
    part.replace(path)


def load_checkpoint(
    path: Path,
    named: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    run_digest: str,
) -> int:
    """Restore a state and return the step to go on with; 0 if there is no checkpoint.

    Raises:
        InvalidRequest: the checkpoint is another run's.
    """
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as file, torch.no_grad():
        if file.metadata()["run"] != run_digest:
            raise InvalidRequest(
                f"'{path}' is the checkpoint of a run with another config or other data. Remove it, or "
                "choose another --out.",
                param="out",
            )
        keys = set(file.keys())
        for name, parameter in named.items():
            parameter.copy_(file.get_tensor(f"weight/{name}"))
            if f"exp_avg/{name}" in keys:
                optimizer.state[parameter] = {
                    moment: file.get_tensor(f"{moment}/{name}") for moment in _MOMENTS
                }
        torch.set_rng_state(file.get_tensor("random"))
        return int(file.metadata()["step"])
