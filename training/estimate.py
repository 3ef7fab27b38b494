"""What a run will take in time and memory, told from a few of its steps; and afterwards, how far off that was."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from adapters.tasks.base import Labelled
from training.contract import ESTIMATE_NAME, UNTRAINED_NAME, Band, Estimate, RunConfig
from training.data import Example
from training.evaluation import predict
from training.setup import Setup
from training.trainer import Trainee
from training.validation import Validation

_SAMPLE_ROWS = 32
_STEPS = 6
_SLACK = 1.15  # of memory: what an allocator may take beyond the largest batch's need
_BATCHING = 0.5  # of a sample's time a row: many rows share steps that a few don't fill


def estimate_run(setup: Setup, out: Path, start_seconds: float) -> Estimate:
    """Time a few steps and answers, and write what follows from them to ``out``; what they made is thrown away."""
    rows = setup.rows()
    setup.check_answerable()
    batches = setup.batches(setup.plan(rows), rows)
    trainee = setup.trainee()
    seconds = {
        "start": Band(low=start_seconds, high=start_seconds),
        "fit": time_steps(trainee, batches).times(sum(map(_num_tokens, batches))),
        "validation": _time_validation(setup, trainee, len(batches)),
    }
    trainee.release()
    seconds["test"] = _time_answers(setup, out)
    estimate = Estimate(
        config_digest=setup.config.digest(),
        seconds=seconds,
        peak_bytes=_peak_band(setup.backbone.device),
        num_steps=math.ceil(len(batches) / setup.config.fit.accumulation),
        num_tokens=sum(map(_num_tokens, batches)),
    )
    (out / ESTIMATE_NAME).write_text(estimate.model_dump_json(indent=2) + "\n")
    return estimate


def _time_validation(setup: Setup, trainee: Trainee, num_batches: int) -> Band:
    rows = setup.inputs.validation

    def score(num: int) -> None:
        Validation(setup.task, setup.tokenizer, rows[:num]).metrics(trainee)

    return time_rows(score, len(rows)).times(min(setup.config.fit.validations, num_batches))


def _time_answers(setup: Setup, out: Path) -> Band:
    """Return what answering takes: validation rows once, test rows once or also before training."""
    folder = setup.untrained(out / UNTRAINED_NAME)

    def time_split(rows: list[Example]) -> Band:
        def answer(num: int) -> None:
            predict(setup.backbone, setup.task, setup.tokenizer, folder, rows[:num])

        return time_rows(answer, len(rows))

    inputs = setup.inputs
    test = time_split(inputs.test).times(2 if setup.config.evaluate_untrained else 1)
    return time_split(inputs.validation) + test


def time_steps(trainee: Trainee, batches: Sequence[Sequence[Labelled]]) -> Band:
    """Return the seconds a token takes, fastest and slowest step of some; weights stay as they are.

    The largest batch goes first and is not counted: it warms up, and shows how much memory a step needs.
    """
    parameters = list(trainee.parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    largest = max(batches, key=_num_tokens)
    some = batches[:: max(1, len(batches) // _STEPS)][:_STEPS]
    trainee.backbone.model.train()
    paces = [_step(trainee, optimizer, batch) / _num_tokens(batch) for batch in (largest, *some)]
    trainee.backbone.model.eval()
    return Band(low=min(paces[1:]), high=max(paces[1:]))


def _step(trainee: Trainee, optimizer: torch.optim.Optimizer, batch: Sequence[Labelled]) -> float:
    begin = time.monotonic()
    loss, num_labels = trainee.loss(batch)
    (loss / num_labels).backward()
    nn.utils.clip_grad_norm_(trainee.parameters().values(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if trainee.backbone.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - begin


def time_rows(answer: Callable[[int], object], num_rows: int) -> Band:
    """Return the seconds that ``num_rows`` take, from those that ``answer`` takes for a few."""
    if not num_rows:
        return Band(low=0, high=0)
    answer(1)  # warms up
    begin = time.monotonic()
    answer(_SAMPLE_ROWS)
    seconds = (time.monotonic() - begin) * num_rows / min(num_rows, _SAMPLE_ROWS)
    return Band(low=seconds * _BATCHING, high=seconds)


def _peak_band(device: torch.device) -> Band:
    peak = peak_bytes(device)
    return Band(low=peak, high=peak * _SLACK)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that this process has held: on a GPU its tensors there, else its resident pages."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def find_estimate(out: Path, config: RunConfig) -> Estimate | None:
    """Return what a dry run of this very config said in this folder, if there was one."""
    path = out / ESTIMATE_NAME
    if not path.is_file():
        return None
    estimate = Estimate.model_validate_json(path.read_text())
    return estimate if estimate.config_digest == config.digest() else None


def _num_tokens(batch: Sequence[Labelled]) -> int:
    return sum(len(row.token_ids) for row in batch)
