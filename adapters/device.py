"""Where a backbone computes: on the CPU, or on one of the GPUs that CUDA finds."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from adapters.errors import EnvironmentProblem


def _check(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ValueError("a device is 'cpu', 'cuda', or one of several GPUs such as 'cuda:1'")
    return name


DeviceName = Annotated[str, AfterValidator(_check)]


def find_device(name: DeviceName, local_rank: int = 0) -> str:
    """Return a device by its whole name, such as ``cuda:0``.

    Args:
        local_rank: of a process among those on this machine that compute together; ``cuda`` gives each its own GPU.

    Raises:
        EnvironmentProblem: it is not here.
    """
    if name == "cpu":
        return name
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    _, _, number = name.partition(":")
    index = int(number) if number else local_rank % max(1, num_gpus)
    if index >= num_gpus:
        raise EnvironmentProblem(
            f"There is no device '{name}': torch {torch.__version__} finds '{num_gpus}' GPUs here. Choose device cpu "
            "(HEADSTOCK_DEVICE), or install a driver and a build of torch for CUDA."
        )
    return f"cuda:{index}"
