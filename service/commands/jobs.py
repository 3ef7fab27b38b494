"""``headstock jobs …``: training jobs of a running server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands.options import Url, load

app = typer.Typer(help="Training jobs of a running server.", no_args_is_help=True)
_URL = "http://127.0.0.1:8000"
Job = Annotated[str, typer.Argument(help="Id of the job.")]


@app.command("submit")
def submit(
    data: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet file of examples.")],
    name: Annotated[str, typer.Option(help="Name of the adapter.")],
    model: Annotated[
        str | None,
        typer.Option(help="Backbone, or adapter to go on from; HEADSTOCK_BACKBONE, if not set."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="By the columns, if not set.")] = None,
    validation: Annotated[Path | None, typer.Option(help="File of validation rows.")] = None,
    test: Annotated[Path | None, typer.Option(help="File of test rows.")] = None,
    alias: Annotated[str | None, typer.Option(help="Point it at the new version.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any field of the order, as training.epochs=3; may repeat."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show events until it ends.")
    ] = False,
    url: Url = _URL,
) -> None:
    """Send files and order an adapter."""
    from adapters.backbone import backbone_name
    from adapters.errors import InvalidRequest
    from service.client import Client
    from service.run_configs import changed

    for path in (data, validation, test):  # all of them before the first is sent
        if path is not None and not path.is_file():
            raise InvalidRequest(f"No file '{path}'. Check the path.")
    with Client(url) as client:
        order: dict[str, Any] = {
            "model": model or backbone_name(load().backbone),
            "training_file": client.create_file(data)["id"],
            "register": {"name": name, **({"alias": alias} if alias else {})},
            "task": {"type": task} if task else {},
        }
        if validation:
            order["validation_file"] = client.create_file(validation)["id"]
        if test:
            order["task"]["test_file"] = client.create_file(test)["id"]
        job = client.create_job(changed(order, setting or []))
        typer.echo(job["id"])
        if follow:
            _follow(client, job["id"])


@app.command("list")
def list_jobs(limit: Annotated[int, typer.Option(min=1, max=1000)] = 20, url: Url = _URL) -> None:
    """List the newest jobs."""
    from service.client import Client

    with Client(url) as client:
        for job in client.list_jobs(limit):
            made = job["fine_tuned_model"] or job["adapter"]
            typer.echo(f"{job['id']}  {_status(job):10} {job['task']['type']}  {made}")


@app.command("show")
def show(job: Job, url: Url = _URL) -> None:
    """Print a job."""
    from service.client import Client

    with Client(url) as client:
        typer.echo(json.dumps(client.get_job(job), indent=2, ensure_ascii=False))


@app.command("logs")
def logs(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    url: Url = _URL,
) -> None:
    """Print a job's events; with -f, a bar while it trains, and exit code 1 if it fails."""
    from service.client import Client

    with Client(url) as client:
        if follow:
            _follow(client, job)
            return
        for event in client.job_events(job):
            typer.echo(_line(event))


@app.command("cancel")
def cancel(job: Job, url: Url = _URL) -> None:
    """End a job for good."""
    _change(job, "cancel", url)


@app.command("pause")
def pause(job: Job, url: Url = _URL) -> None:
    """Stop a job with a checkpoint, until it is resumed."""
    _change(job, "pause", url)


@app.command("resume")
def resume(job: Job, url: Url = _URL) -> None:
    """Let a paused job go on."""
    _change(job, "resume", url)


def _change(job: str, how: Any, url: str) -> None:
    from service.client import Client

    with Client(url) as client:
        typer.echo(f"{job}  {_status(client.change_job(job, how))}")


def _status(job: dict[str, Any]) -> str:
    return "paused" if job["paused"] else str(job["status"])


def _line(event: dict[str, Any]) -> str:
    from datetime import datetime

    at = datetime.fromtimestamp(event["created_at"]).strftime("%H:%M:%S")
    mark = "" if event["level"] == "info" else f"{event['level']}: "
    loss = event["data"].get("train_loss") if event["type"] == "metrics" else None
    return f"{at}  {mark}{event['message']}" + (f"  loss {loss:.4f}" if loss is not None else "")


def _follow(client: Any, job: str) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(), transient=True) as bars:
        bar = bars.add_task("waiting", total=None)
        for event in client.job_events(job, follow=True):
            data = event["data"]
            if "total_steps" in data:
                told = f"step {data['step']:.0f} of {data['total_steps']:.0f}"
                bars.update(
                    bar, total=data["total_steps"], completed=data["step"], description=told
                )
            bars.console.print(_line(event), highlight=False, markup=False, soft_wrap=True)
    if client.get_job(job)["status"] != "succeeded":
        raise typer.Exit(1)
