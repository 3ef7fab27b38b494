"""The processes that fit one adapter together, as `accelerate launch` starts them; usually there is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, distributed

from adapters.errors import HeadstockError, PeerLost
from adapters.tasks.base import Labelled

# For the first process to be done with what it does alone, a test of many rows say. What ends is noticed at once.
_ALONE = timedelta(days=7)
Result = TypeVar("Result")


class World:
    """Divides each batch's rows, and adds up what the processes computed.

    All do the same steps on the same sums, so their weights stay the same.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            self._accelerator = Accelerator(cpu=device.type == "cpu")
            # Of its own, for a group has one time limit, and by a fit's a process that hangs is noticed.
            several = self.size > 1
            self._patient = (
                distributed.new_group(backend="gloo", timeout=_ALONE) if several else None
            )
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
            raise _lost(error) from error
        assert isinstance(total, Tensor)
        parts = total.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set in any process."""
        number = torch.tensor(float(flag), device=self._device)
        self.add_up([number])
        return bool(number)

    def once(self, act: Callable[[], Result]) -> Result:
        """Return what ``act`` gives, or raise what it does, in all processes; the first one does it, the others wait.

        Raises:
            PeerLost: one of them is not there any more.
        """
        if self.size == 1:
            return act()
        outcome = [_outcome(act) if self.rank == 0 else None]
        try:
            distributed.broadcast_object_list(outcome, src=0, group=self._patient)
        except RuntimeError as error:
            raise _lost(error) from error
        found: Any = outcome[0]
        if isinstance(found, HeadstockError):
            raise found
        return found


def _outcome(act: Callable[[], object]) -> object:
    try:
        return act()
    except HeadstockError as error:
        return error


def _lost(error: RuntimeError) -> PeerLost:
    return PeerLost(
        f"Another process of this fit is gone ({error}). The same command goes on from the last checkpoint."
    )
