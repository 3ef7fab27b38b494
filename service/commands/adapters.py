"""``headstock adapters …``: the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from service.commands.options import BackboneName, Home, load, open_registry_of

app = typer.Typer(help="The registry: adapters, versions, aliases.", no_args_is_help=True)


@app.command("list")
def list_adapters(home: Home = None) -> None:
    """List adapters with their newest version and aliases."""
    for adapter in open_registry_of(load(home=home)).list_adapters():
        aliases = ", ".join(f"{alias.name} -> {alias.version}" for alias in adapter.aliases)
        typer.echo(f"{adapter.name}:{adapter.latest}  {adapter.task}  {aliases}".rstrip())


@app.command("show")
def show_adapter(
    reference: Annotated[str, typer.Argument(help="name, name@alias or name:version.")],
    home: Home = None,
) -> None:
    """Print a version's manifest."""
    from adapters.reference import parse_reference

    version = open_registry_of(load(home=home)).resolve(parse_reference(reference))
    manifest = version.manifest.model_dump(mode="json")
    typer.echo(json.dumps({"name": version.name, "version": version.number, **manifest}, indent=2))


@app.command("push")
def push_adapter(
    name: Annotated[str, typer.Argument(help="Name of the adapter.")],
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    backbone: BackboneName = None,
    home: Home = None,
) -> None:
    """Add a bundle as the next version of an adapter."""
    settings = load(home=home, backbone=backbone)
    version = open_registry_of(settings, settings.backbone).create_version(name, bundle)
    typer.echo(f"Registered {version.name}:{version.number} (digest {version.digest[:12]})")


@app.command("alias")
def move_alias(
    name: Annotated[str, typer.Argument(help="Name of the adapter.")],
    alias: Annotated[str, typer.Argument(help="Such as production.")],
    version: Annotated[int, typer.Argument(help="Version number.", min=1)],
    home: Home = None,
) -> None:
    """Point an alias at a version."""
    moved = open_registry_of(load(home=home)).set_alias(name, alias, version)
    typer.echo(f"{name}@{moved.name} -> {moved.version}")
