"""Commands that start runs: train and evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.commands.options import BackboneName, Home, load, open_registry_of

if TYPE_CHECKING:
    from service.settings import Settings
    from training.contract import RunConfig, RunResult


def train(
    task: Annotated[str, typer.Argument(help="Such as text-classification.")],
    data: Annotated[str, typer.Argument(help="JSONL, CSV or Parquet file of examples.")],
    out: Annotated[Path, typer.Option(help="Folder for events and bundle.")],
    test: Annotated[str | None, typer.Option(help="File of examples to report on.")] = None,
    validation: Annotated[
        str | None, typer.Option(help="File of examples to choose weights and thresholds by.")
    ] = None,
    validation_share: Annotated[
        float, typer.Option(help="Or: share of the examples to use for that.")
    ] = 0.0,
    test_share: Annotated[float, typer.Option(help="Share of the examples to report on.")] = 0.0,
    column: Annotated[
        list[str] | None, typer.Option(help="Our field = the file's column; may repeat.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Add the result to this adapter.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="A task option, as key=value; may repeat.")
    ] = None,
    rank: Annotated[int, typer.Option(help="LoRA rank.")] = 8,
    last_layers: Annotated[int | None, typer.Option(help="Adapt the last layers only.")] = None,
    epochs: Annotated[int | None, typer.Option(help="By the data, if not set.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="By the backbone's size, if not set.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Stop after so many tokens.")] = None,
    max_row_tokens: Annotated[int | None, typer.Option(help="Leave longer rows out.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    parent: Annotated[str | None, typer.Option(help="Bundle folder to go on from.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any field of the run, as fit.schedule=cosine; may repeat."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a few steps; tell time and memory.")
    ] = False,
    backbone: BackboneName = None,
    home: Home = None,
) -> None:
    """Train an adapter on a file of examples."""
    from adapters.reference import check_name
    from service.run_configs import options_from, pairs, run_config
    from training.contract import BUNDLE_NAME

    if name:
        check_name(name, what="adapter name")  # now, not when the run is over
    settings = load(home=home, backbone=backbone)
    config = run_config(
        action="estimate" if dry_run else "train",
        task=task,
        options=options_from(option or []),
        backbone=settings.backbone,
        dtype=settings.dtype,
        device=settings.device,
        data={
            "train": data,
            "test": test,
            "validation": validation,
            "validation_share": validation_share,
            "test_share": test_share,
            "columns": pairs(column or [], "--column"),
            "max_row_tokens": max_row_tokens,
        },
        lora={"rank": rank, "last_layers": last_layers},
        fit={
            "epochs": "auto" if epochs is None else epochs,
            "learning_rate": "auto" if learning_rate is None else learning_rate,
            "max_tokens": max_tokens,
            "seed": seed,
        },
        parent=parent,
        evaluate_untrained=bool(test or test_share),
        changes=setting or [],
    )
    result = execute(config, out, settings)
    if dry_run:
        return
    typer.echo(f"Bundle: {out / BUNDLE_NAME} (digest {str(result.digest)[:12]})")
    if name:
        version = open_registry_of(settings, config.backbone).create_version(
            name, out / BUNDLE_NAME
        )
        typer.echo(f"Registered {version.name}:{version.number}")


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    data: Annotated[str, typer.Argument(help="JSONL, CSV or Parquet file of examples.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions and result.")],
    backbone: BackboneName = None,
    home: Home = None,
) -> None:
    """Test a bundle on a file of examples."""
    from adapters.bundle import read_manifest
    from service.run_configs import run_config

    settings = load(home=home, backbone=backbone)
    config = run_config(
        action="evaluate",
        task=read_manifest(bundle).task,
        backbone=settings.backbone,
        dtype=settings.dtype,
        device=settings.device,
        data={"test": data},
        bundle=str(bundle),
    )
    execute(config, out, settings)


def execute(config: RunConfig, out: Path, settings: Settings) -> RunResult:
    from rich.console import Console

    from service.run_results import estimate_lines, metric_lines
    from service.runs import RunProgress, execute_run
    from service.settings import prepare_home
    from training.contract import PAGE_NAME

    prepare_home(settings.home)
    with RunProgress(Console(), config.task) as progress:
        result = execute_run(config, out, settings.home, progress.show)
    for line in (*metric_lines(result), *estimate_lines(result)):
        typer.echo(line)
    if config.action != "estimate":
        typer.echo(f"Report: {out / PAGE_NAME}")
    return result
