"""Commands that compare runs: ``sweep`` over settings, ``backbone compare`` over backbones."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters.errors import InvalidRequest, RunFailed
from service.commands.options import BackboneName, Home, load

if TYPE_CHECKING:
    from service.trials import Trial
    from training.contract import RunConfig

_DEFAULT_CHOICES = [
    "fit.learning_rate=0.0003,0.001,0.003",
    "lora.rank=4,8,16",
    "fit.epochs=1,2,4",
]

Option = Annotated[
    list[str] | None, typer.Option("--option", help="A task option, as key=value; may repeat.")
]
Setting = Annotated[
    list[str] | None, typer.Option("--set", help="Any field of the runs; may repeat.")
]


def sweep(
    task: Annotated[str, typer.Argument(help="Such as text-classification.")],
    data: Annotated[str, typer.Argument(help="JSONL, CSV or Parquet file of examples.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs, sweep.json and sweep.svg.")],
    validation: Annotated[str | None, typer.Option(help="File of examples to choose by.")] = None,
    validation_share: Annotated[
        float, typer.Option(help="Or: share of the examples to choose by.")
    ] = 0.0,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="A field and values, as lora.rank=4,8,16; may repeat."),
    ] = None,
    trials: Annotated[int, typer.Option(min=2, help="Runs at most; drawn, if there are more.")] = 9,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    option: Option = None,
    setting: Setting = None,
    backbone: BackboneName = None,
    home: Home = None,
) -> None:
    """Try settings, and tell which is best on validation rows. Given again, it goes on."""
    from service.run_configs import options_from
    from service.trial_plot import plot_trials
    from service.trials import draw_choices, read_choices, varied

    if not (validation or validation_share):
        raise InvalidRequest(
            "A sweep chooses by validation rows. Give --validation FILE or --validation-share 0.1."
        )
    settings = load(home=home, backbone=backbone)
    base = {
        "must_learn": False,  # the table shows those that did not
        "task": task,
        "options": options_from(option or []),
        "backbone": settings.backbone,
        "dtype": settings.dtype,
        "device": settings.device,
        "data": {
            "train": data,
            "validation": validation,
            "validation_share": validation_share,
        },
    }
    choices = read_choices(vary or _DEFAULT_CHOICES)
    drawn = {f"trial-{i:03}": c for i, c in enumerate(draw_choices(choices, trials, seed), 1)}
    fixed = _with(base, setting or [])
    configs = {name: varied(fixed, choice) for name, choice in drawn.items()}
    rows, best = _run(configs, drawn, out, settings.home, "validation", "sweep.json")
    metric = _metric_of(best)
    plot_trials(rows, list(choices), metric, out / "sweep.svg")
    chosen = "  ".join(f"--set {path}={json.dumps(v)}" for path, v in best.choice.items())
    typer.echo(f"Best: {best.name}, {metric} {best.score('validation'):.4f}  ({chosen})")
    typer.echo(f"Bundle: {best.folder / 'bundle'}; plot: {out / 'sweep.svg'}")


def compare(
    data: Annotated[str, typer.Option("--data", help="File of examples.")],
    task: Annotated[str, typer.Option(help="Such as text-classification.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs and compare.json.")],
    backbone: Annotated[
        list[str] | None,
        typer.Option("--backbone", help="Packaged name, folder, or Hub id; may repeat."),
    ] = None,
    test: Annotated[str | None, typer.Option(help="File of examples to report on.")] = None,
    test_share: Annotated[float, typer.Option(help="Or: share of the examples.")] = 0.2,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each short run.")] = 20_000,
    max_test_rows: Annotated[int, typer.Option(help="Test rows of each.")] = 200,
    option: Option = None,
    setting: Setting = None,
    home: Home = None,
) -> None:
    """Fit several backbones briefly: accuracy, speed and memory side by side."""
    from adapters.backbone import backbone_name
    from adapters.packaged import PACKAGED
    from service.run_configs import options_from
    from service.trials import varied

    settings = load(home=home)
    names = {backbone_name(each): each for each in backbone or list(PACKAGED)}
    base = {
        "must_learn": False,  # the table shows those that did not
        "task": task,
        "options": options_from(option or []),
        "data": {
            "train": data,
            "test": test,
            "test_share": 0.0 if test else test_share,
            "max_test_rows": max_test_rows,
        },
        "fit": {"max_tokens": max_tokens},
    }
    fixed = _with(base, setting or [])
    configs = {name: varied(fixed, {"backbone": source}) for name, source in names.items()}
    empty: dict[str, dict[str, Any]] = {name: {} for name in names}
    _, best = _run(configs, empty, out, settings.home, "after", "compare.json")
    typer.echo(f"Best: {best.name}, {_metric_of(best)} {best.score('after'):.4f}")


def _with(base: Mapping[str, Any], changes: list[str]) -> dict[str, Any]:
    from service.run_configs import run_config

    return run_config(changes, **json.loads(json.dumps(base))).model_dump(mode="json")


def _run(
    configs: Mapping[str, RunConfig],
    choices: Mapping[str, dict[str, Any]],
    out: Path,
    home: Path,
    split: str,
    file_name: str,
) -> tuple[list[dict[str, Any]], Trial]:
    """Run all, print and save their table, and return it with the best of them."""
    from rich.console import Console

    from service.runs import RunProgress
    from service.settings import make_folder, prepare_home
    from service.trials import best_trial, run_trials, trial_rows, trial_table

    prepare_home(home)
    make_folder(out)
    console = Console(width=None if sys.stdout.isatty() else 160)
    trials: list[Trial] = []
    with RunProgress(console, "run") as progress:
        for trial in run_trials(
            configs, choices, out, home, lambda name, event: progress.show(event)
        ):
            trials.append(trial)
            score = trial.score(split)
            said = trial.error if score is None else f"{score:.4f}"
            console.print(f"{trial.name}: {said}", highlight=False, markup=False)
            rows = trial_rows(trials, split)
            (out / file_name).write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    best = best_trial(trials, split)
    if best is None:
        raise RunFailed(f"No run gave a result. The first said: {trials[0].error}")
    console.print(trial_table(rows, best.name))
    return rows, best


def _metric_of(trial: Trial) -> str:
    assert trial.result is not None
    return trial.result.primary_metric
