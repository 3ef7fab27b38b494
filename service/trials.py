"""Several runs beside each other: each in a folder of its own, the finished ones not run again, one table of all."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from adapters.errors import InvalidData, InvalidRequest, RunFailed
from service.run_configs import json_or_text, run_config
from service.runs import execute_run
from training.contract import CONFIG_NAME, RESULT_NAME, Event, RunConfig, RunResult

Choices = Mapping[str, Sequence[Any]]  # a run's field, as a path, to the values to try


@dataclass(frozen=True, slots=True)
class Trial:
    """One run among others; ``result`` is None if it failed, for the reason in ``error``."""

    name: str
    choice: dict[str, Any]
    folder: Path
    result: RunResult | None
    error: str = ""

    def score(self, split: str) -> float | None:
        """Return the task's primary metric on a split: ``validation``, or ``after`` for the test rows."""
        if self.result is None:
            return None
        return self.result.metrics.get(split, {}).get(self.result.primary_metric)


def read_choices(given: Sequence[str]) -> dict[str, list[Any]]:
    """Return what is to be varied, each given as a field's path, ``=`` and values with commas between.

    Raises:
        InvalidRequest: one has no value, or names a field twice.
    """
    choices: dict[str, list[Any]] = {}
    for each in given:
        path, _, values = each.partition("=")
        if not values or path in choices:
            raise InvalidRequest(
                f"--vary '{each}' is not a new path=value,value, such as lora.rank=4,8,16."
            )
        choices[path] = [json_or_text(value) for value in values.split(",")]
    return choices


def draw_choices(choices: Choices, limit: int, seed: int) -> list[dict[str, Any]]:
    """Return combinations: all of them, or ``limit`` different ones drawn by a seed (random search, Bergstra 2012)."""
    every = [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]
    if len(every) <= limit:
        return every
    drawn = sorted(random.Random(seed).sample(range(len(every)), limit))
    return [every[i] for i in drawn]


def run_trials(
    configs: Mapping[str, RunConfig],
    choices: Mapping[str, dict[str, Any]],
    out: Path,
    home: Path,
    on_event: Callable[[str, Event], None],
) -> Iterator[Trial]:
    """Run the configs one after the other and yield each as it is done; one that fails does not stop the rest.

    A run whose folder holds the result of this very config is not run again.
    """
    for name, config in configs.items():
        folder = out / name
        result, error = _finished(folder, config), ""
        if result is None:
            try:
                result = execute_run(config, folder, home, partial(on_event, name))
            except (RunFailed, InvalidData, InvalidRequest) as failure:
                error = failure.message
        yield Trial(name, choices[name], folder, result, error)


def varied(base: Mapping[str, Any], choice: Mapping[str, Any]) -> RunConfig:
    """Return a run's config with the chosen values in their fields."""
    copied = json.loads(json.dumps(base))
    return run_config([f"{path}={json.dumps(value)}" for path, value in choice.items()], **copied)


def _finished(folder: Path, config: RunConfig) -> RunResult | None:
    result, ran = folder / RESULT_NAME, folder / CONFIG_NAME
    if not (result.is_file() and ran.is_file()):
        return None
    if RunConfig.model_validate_json(ran.read_text()) != config:
        return None
    return RunResult.model_validate_json(result.read_text())


def best_trial(trials: Sequence[Trial], split: str) -> Trial | None:
    """Return the one with the highest primary metric on a split; of equals, the first."""
    scored = [trial for trial in trials if trial.score(split) is not None]
    return max(scored, key=lambda trial: trial.score(split) or 0.0, default=None)


def trial_rows(trials: Sequence[Trial], split: str) -> list[dict[str, Any]]:
    """Return each trial in numbers: choice, metrics of the split, pace, memory, and what went wrong."""
    return [
        {
            "name": t.name,
            **t.choice,
            **_numbers(t, split),
            **({"error": t.error} if t.error else {}),
        }
        for t in trials
    ]


def _numbers(trial: Trial, split: str) -> dict[str, Any]:
    result = trial.result
    if result is None:
        return {}
    fit = result.seconds.get("fit", 0.0)
    test = result.seconds.get("test after", 0.0)
    return {
        **result.metrics.get(split, {}),
        "fit_seconds": round(fit, 1),
        "train_tokens_per_second": round(result.num_tokens / fit) if fit else None,
        "test_rows_per_second": round(result.num_test_rows / test, 1) if test else None,
        "peak_mb": round(result.peak_bytes / 1e6),
    }


def trial_table(rows: Sequence[Mapping[str, Any]], best: str | None) -> Table:
    """Return the trials as a table; the best is marked."""
    table = Table()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column, justify="left" if column in ("name", "error") else "right")
    for row in rows:
        style = "bold" if row["name"] == best else ""
        cells = [Text(_shown(row.get(column))) for column in columns]  # errors may look like markup
        table.add_row(*cells, style=style)
    return table


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
