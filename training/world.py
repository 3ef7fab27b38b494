"""The processes that fit one adapter together, as `accelerate launch` starts them; usually there is one."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from adapters.errors import PeerLost
from adapters.tasks.base import Labelled


class World:
    """Divides each batch's rows, and adds up what the processes computed.

    All do the same steps on the same sums, so their weights stay the same.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            self._accelerator = Accelerator(cpu=device.type == "cpu")
        except RuntimeError as error:
            if os.environ.get("WORLD_SIZE", "1") == "1":
                raise
            raise PeerLost(
                f"The processes of this fit do not find each other ({error}). The same command begins it again."
            ) from error
        self._device = device

    @property
    def size(self) -> int:
        return int(self._accelerator.num_processes)

    @property
    def rank(self) -> int:
        return int(self._accelerator.process_index)

    def share(self, rows: Sequence[Labelled]) -> Sequence[Labelled]:
        """Return this process's rows of a batch: every n-th of those sorted by length, so that all have as much."""
        return rows[self.rank :: self.size]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace fp32 tensors by their sums over all processes.

        Raises:
            PeerLost: one of them is not there any more.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        try:
            total = self._accelerator.reduce(flat, "sum")
        except RuntimeError as error:  # what gloo and NCCL raise
            raise PeerLost(
                f"Another process of this fit is gone ({error}). The same command goes on from the last checkpoint."
            ) from error
        assert isinstance(total, Tensor)
        parts = total.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set in any process."""
        number = torch.tensor(float(flag), device=self._device)
        self.add_up([number])
        return bool(number)

    def wait(self) -> None:
        """Return once all processes are here."""
        self._accelerator.wait_for_everyone()
