"""The optimisation: batches through a trainee in order, scored on validation rows between, resumable at any step."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import RunFailed, RunPaused
from adapters.tasks.base import Labelled
from training.checkpoint import FitState, Score, load_checkpoint, save_checkpoint
from training.contract import FitSettings
from training.schedule import learning_rate
from training.trainer import Trainee
from training.world import World

Batch = Sequence[Labelled]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a fit asks and tells whoever runs it.

    Args:
        score: how good the trainee is on validation rows after a step; None for no validation.
        on_step: told the number of steps done, and loss, learning rate, rows and tokens of the last.
    """

    should_pause: Callable[[], bool] = lambda: False
    on_step: Callable[[int, dict[str, Any]], None] = lambda step, data: None
    score: Callable[[int], Score] | None = None


class Fit:
    """Trains on batches in order, going on from ``checkpoint`` if it is there.

    AdamW. A step's loss is the mean over its labels, those of all its batches and of all processes: gradients of
    sums are added up first and divided last, so that uneven batches weigh what they hold.

    Args:
        rate: the highest learning rate.
        run_digest: of config and data; only the same run goes on from a checkpoint.
        translations: to be kept with it.
    """

    def __init__(
        self,
        trainee: Trainee,
        batches: Sequence[Batch],
        settings: FitSettings,
        rate: float,
        *,
        checkpoint: Path,
        run_digest: str,
        translations: Sequence[str] = (),
        world: World | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self._trainee = trainee
        self._settings = settings
        self._rate = rate
        size = settings.accumulation
        self._steps = [batches[i : i + size] for i in range(0, len(batches), size)]
        self._checkpoint = checkpoint
        self._run_digest = run_digest
        self._translations = translations
        self._world = world or World(trainee.backbone.device)
        self.hooks = hooks or Hooks()
        self._named = trainee.parameters()
        self._optimizer = torch.optim.AdamW(
            list(self._named.values()), lr=rate, weight_decay=settings.weight_decay, fused=True
        )
        self._state = FitState()
        self._saved = time.monotonic()

    @property
    def num_steps(self) -> int:
        return len(self._steps)

    def run(self) -> FitState:
        """Train to the end, or until validation has not got better for ``patience`` scores; keep the best weights.

        Raises:
            RunPaused: the hook said so; the state is in ``checkpoint``.
            RunFailed: the loss is no longer finite.
        """
        self._state = load_checkpoint(
            self._checkpoint, self._named, self._optimizer, self._run_digest
        )
        self._trainee.backbone.model.train()
        scored = self._scored_steps()
        while self._state.step < self.num_steps and not self._is_stale():
            self._save_or_pause()
            self._step()
            if self.hooks.score is not None and self._state.step in scored:
                # By one for all: if a last bit differed, some would go on where others have lost their patience.
                score = partial(self.hooks.score, self._state.step)
                self._keep_best(self._world.once(score))
        self._save()
        self._trainee.backbone.model.eval()
        self._take_best()
        return self._state

    def _scored_steps(self) -> set[int]:
        """Return after which steps to score: evenly spread, the last one among them."""
        num = min(self._settings.validations, self.num_steps)
        return {round(self.num_steps * (i + 1) / num) for i in range(num)}

    def _is_stale(self) -> bool:
        patience = self._settings.patience
        return patience is not None and self._state.num_stale >= patience

    def _keep_best(self, score: Score) -> None:
        self._trainee.backbone.model.train()  # scoring left it in eval mode
        state = self._state
        if state.best_score is None or score > state.best_score:
            state.best_score, state.best_step, state.num_stale = score, state.step, 0
            state.best = {name: p.detach().clone() for name, p in self._named.items()}
        else:
            state.num_stale += 1

    @torch.no_grad()
    def _take_best(self) -> None:
        for name, tensor in self._state.best.items():
            self._named[name].copy_(tensor)

    def _save_or_pause(self) -> None:
        should_pause = self._world.any(self.hooks.should_pause())
        if should_pause or time.monotonic() - self._saved > self._settings.checkpoint_seconds:
            self._save()
        if should_pause:
            raise paused()

    def _save(self) -> None:
        if self._world.rank == 0:
            save_checkpoint(
                self._checkpoint,
                self._named,
                self._optimizer,
                self._state,
                self._run_digest,
                self._translations,
            )
        self._saved = time.monotonic()

    def _step(self) -> None:
        step, settings = self._state.step, self._settings
        rate = learning_rate(
            step, self.num_steps, self._rate, settings.warmup_share, settings.schedule
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._seed()
        loss = self._add_gradients(self._steps[step])
        if not bool(loss.isfinite()):
            raise RunFailed(
                f"The loss became '{loss.item()}'. Lower fit.learning_rate ({rate:.2g} at this step)."
            )
        nn.utils.clip_grad_norm_(self._named.values(), settings.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._state.step += 1
        rows = [row for batch in self._steps[step] for row in batch]
        told = {
            "loss": float(loss),
            "learning_rate": rate,
            "rows": len(rows),
            "tokens": sum(len(row.token_ids) for row in rows),
        }
        self.hooks.on_step(self._state.step, told)

    def _seed(self) -> None:
        """Let what a step draws follow from its number and this process: no state is to be kept to go on as it was."""
        drawn = random.Random(f"{self._settings.seed} {self._state.step} {self._world.rank}")
        torch.manual_seed(drawn.getrandbits(63))

    def _add_gradients(self, batches: Sequence[Batch]) -> Tensor:
        """Leave the gradient of the mean loss in the parameters, and return that loss."""
        total, num_labels = self._zero(), self._zero()
        for batch in batches:
            rows = self._world.share(batch)
            if rows:
                loss, num = self._trainee.loss(rows)
                loss.backward()
                total += loss.detach()
                num_labels += num
        gradients = [_gradient_of(parameter) for parameter in self._named.values()]
        self._world.add_up([total, num_labels, *gradients])
        torch._foreach_div_(gradients, num_labels)
        return total / num_labels

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self._trainee.backbone.device)


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:  # this process had no rows, or the loss does not touch it
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def paused() -> RunPaused:
    return RunPaused("The run was stopped; the same command goes on from its last checkpoint.")
