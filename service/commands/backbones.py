"""``headstock backbone …``: the frozen models that adapters share."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from service.commands.options import Home, load

app = typer.Typer(help="The frozen models that adapters share.", no_args_is_help=True)


@app.command("prepare")
def prepare_backbone(
    name: Annotated[str, typer.Argument(help="Packaged name, folder, or Hub id.")] = "",
    home: Home = None,
) -> None:
    """Make a backbone ready on this machine, once."""
    from adapters.backbone import find_backbone
    from service.settings import prepare_home

    settings = load(home=home, backbone=name or None)
    prepare_home(settings.home)
    typer.echo(f"{settings.backbone}: {find_backbone(settings.backbone, settings.home)}")


@app.command("show")
def show_backbone(
    name: Annotated[str, typer.Argument(help="Packaged name, folder, or Hub id.")] = "",
    home: Home = None,
) -> None:
    """Print what a backbone is."""
    from adapters.descriptions import describe_source

    settings = load(home=home, backbone=name or None)
    spec = describe_source(settings.backbone, settings.home)
    shown = spec.model_dump(exclude={"modules"}) | {"num_modules": len(spec.modules)}
    typer.echo(json.dumps(shown, indent=2))
