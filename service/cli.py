"""The command line. Nothing heavy is imported at the top, so that --help answers at once."""

from __future__ import annotations

import sys

import typer

from adapters.errors import HeadstockError
from service.commands import (
    adapters,
    backbones,
    backup,
    bench,
    data,
    jobs,
    keys,
    runs,
    search,
    serving,
    worker,
)

app = typer.Typer(
    help="One frozen backbone, every task: train, keep and serve LoRA adapters with task heads.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    serving.demo,
    runs.train,
    runs.evaluate,
    search.sweep,
    serving.serve,
    serving.predict,
    worker.worker,
    backup.backup,
    backup.restore,
):
    app.command()(command)
backbones.app.command("compare")(search.compare)
app.add_typer(backbones.app, name="backbone")
app.add_typer(adapters.app, name="adapters")
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="keys")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run a command; what a person can put right ends with one line and exit code 2."""
    try:
        app()
    except HeadstockError as error:
        typer.echo(f"Error: {error.message}", err=True)
        sys.exit(2)
    except Exception as error:
        if type(error).__name__ != "ClientError":
            raise
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
