"""``headstock adapters …``: the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.commands.options import BackboneName, Home, load, open_registry_of

if TYPE_CHECKING:
    from adapters.reference import Reference

Name = Annotated[str, typer.Argument(help="Name of the adapter, after namespace/ if not default.")]
ExportForm = Literal["peft", "merged"]
ExportDtype = Literal["float32", "bfloat16"]
app = typer.Typer(help="The registry: adapters, versions, aliases.", no_args_is_help=True)


@app.command("list")
def list_adapters(
    namespace: Annotated[str, typer.Option(help="Whose adapters.")] = "default",
    home: Home = None,
) -> None:
    """List adapters with their newest version and aliases."""
    for adapter in open_registry_of(load(home=home)).list_adapters(namespace):
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
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle, or of a stock PEFT adapter.")],
    backbone: BackboneName = None,
    home: Home = None,
) -> None:
    """Add a bundle, or a stock PEFT folder for text-generation, as the next version of an adapter."""
    from adapters.backbone import backbone_name

    settings = load(home=home, backbone=backbone)
    registry = open_registry_of(settings, settings.backbone)
    named = None if backbone is None else backbone_name(backbone)
    version = registry.create_version(name, bundle, backbone=named)
    typer.echo(f"Registered {version.name}:{version.number} (digest {version.digest[:12]})")


@app.command("pull")
def pull_adapter(
    reference: Annotated[str, typer.Argument(help="name, name@alias or name:version.")],
    out: Annotated[Path, typer.Argument(help="New folder for the bundle.")],
    home: Home = None,
) -> None:
    """Copy a version's bundle out of the registry."""
    from adapters.exporting import export_bundle
    from adapters.reference import parse_reference

    registry = open_registry_of(load(home=home))
    version = registry.resolve(parse_reference(reference))
    export_bundle(registry.fetch(version), out)
    typer.echo(f"{version.name}:{version.number} (digest {version.digest[:12]}) is in {out}")


@app.command("export")
def export_adapter(
    reference: Annotated[str, typer.Argument(help="name, name@alias or name:version.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    form: Annotated[
        ExportForm, typer.Option("--as", help="A plain PEFT folder, or a whole model.")
    ] = "peft",
    dtype: Annotated[ExportDtype, typer.Option(help="Of a merged model's weights.")] = "float32",
    home: Home = None,
) -> None:
    """Write a version for other programs: a plain PEFT folder, or a model with the adapter merged into it."""
    from adapters.exporting import export_merged, export_peft
    from adapters.reference import parse_reference

    registry = open_registry_of(load(home=home))
    version = registry.resolve(parse_reference(reference))
    folder = registry.fetch(version)
    if form == "peft":
        left_out = export_peft(folder, out)
        told = f"; left out: {', '.join(left_out)}" if left_out else ""
    else:
        spec = registry.get_backbone(version.manifest.backbone.fingerprint)
        beside = export_merged(folder, spec, out, dtype)
        told = f"; beside it: {', '.join(beside)}" if beside else ""
    typer.echo(f"{version.name}:{version.number} is in {out}{told}")


@app.command("alias")
def move_alias(
    name: Name,
    alias: Annotated[str, typer.Argument(help="Such as production.")],
    version: Annotated[int, typer.Argument(help="Version number.", min=1)],
    home: Home = None,
) -> None:
    """Point an alias at a version."""
    adapter = _named(name)
    moved = open_registry_of(load(home=home)).set_alias(
        adapter.name, alias, version, namespace=adapter.namespace
    )
    typer.echo(f"{name}@{moved.name} -> {moved.version}")


@app.command("promote")
def promote(
    reference: Annotated[str, typer.Argument(help="name:version.")],
    alias: Annotated[str, typer.Option(help="Such as production.")] = "production",
    metric: Annotated[str | None, typer.Option(help="The task's primary one, if not set.")] = None,
    min_gain: Annotated[float, typer.Option(help="In the metric's own unit.")] = 0.0,
    home: Home = None,
) -> None:
    """Point an alias at a version if it gains enough on the same test rows; exit code 1 if not."""
    from adapters.reference import parse_reference
    from adapters.registry.promotion import Rule

    registry = open_registry_of(load(home=home))
    found = registry.resolve(parse_reference(reference))
    rule = Rule(metric, min_gain)
    done = registry.promote(found.name, alias, found.number, rule, namespace=found.namespace)
    outcome = "->" if done.is_moved else "was not moved to"
    typer.echo(f"{found.name}@{alias} {outcome} {found.number}: {done.comparison.reason}")
    if not done.is_moved:
        raise typer.Exit(1)


@app.command("rollback")
def roll_back(
    name: Name,
    alias: Annotated[str, typer.Argument(help="Such as production.")] = "production",
    home: Home = None,
) -> None:
    """Point an alias back at the version before; once more goes one further back."""
    adapter = _named(name)
    moved = open_registry_of(load(home=home)).roll_back(
        adapter.name, alias, namespace=adapter.namespace
    )
    typer.echo(f"{name}@{moved.name} -> {moved.version}")


@app.command("annotate")
def annotate(
    reference: Annotated[str, typer.Argument(help="name:version, name@alias or name.")],
    note: Annotated[str | None, typer.Option(help="Replaces the note.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="key=value; may repeat; replaces all tags.")
    ] = None,
    home: Home = None,
) -> None:
    """Write a note or tags beside a version."""
    from adapters.reference import parse_reference
    from service.run_configs import pairs

    registry = open_registry_of(load(home=home))
    found = registry.resolve(parse_reference(reference))
    tags = None if tag is None else pairs(tag, "--tag")
    version = registry.annotate(
        found.name, found.number, note=note, tags=tags, namespace=found.namespace
    )
    told = " ".join(f"{key}={value}" for key, value in version.tags.items())
    typer.echo(f"{version.name}:{version.number}  {version.note}  {told}".rstrip())


@app.command("delete")
def delete(
    reference: Annotated[str, typer.Argument(help="name:version, or a name for all versions.")],
    force: Annotated[bool, typer.Option(help="Take away the aliases that point there.")] = False,
    home: Home = None,
) -> None:
    """Delete a version, or a whole adapter; `gc` removes the bytes later."""
    from adapters.errors import InvalidRequest
    from adapters.reference import parse_reference

    target = parse_reference(reference)
    if target.alias is not None:
        raise InvalidRequest(
            f"'{reference}' is an alias. Delete a version by its number, as '{target.name}:1'.",
            param="reference",
        )
    registry = open_registry_of(load(home=home))
    if target.version is None:
        registry.delete_adapter(target.name, force=force, namespace=target.namespace)
    else:
        registry.delete_version(
            target.name, target.version, force=force, namespace=target.namespace
        )
    typer.echo(f"Deleted {reference}")


@app.command("diff")
def show_difference(
    first: Annotated[str, typer.Argument(help="name:version, name@alias or name.")],
    second: Annotated[str, typer.Argument(help="What to compare it with.")],
    home: Home = None,
) -> None:
    """Print in which fields two versions' manifests differ."""
    from adapters.reference import parse_reference
    from adapters.registry.differences import differences

    registry = open_registry_of(load(home=home))
    versions = [registry.resolve(parse_reference(each)) for each in (first, second)]
    if versions[0].digest == versions[1].digest:
        typer.echo("The same weights, task and backbone: one digest.")
    for path, one, other in differences(*(version.manifest for version in versions)):
        typer.echo(f"{path}: {one} -> {other}")


@app.command("gc")
def collect(
    min_hours: Annotated[
        float, typer.Option(min=0, help="Keep what was deleted or stored less long ago.")
    ] = 24.0,
    home: Home = None,
) -> None:
    """Remove the stored bytes that no version needs any more."""
    from datetime import timedelta

    gone = open_registry_of(load(home=home)).collect(timedelta(hours=min_hours))
    for digest in gone:
        typer.echo(f"Removed {digest}")
    typer.echo(f"{len(gone)} bundles removed.")


def _named(name: str) -> Reference:
    """Return an adapter's name and namespace.

    Raises:
        InvalidRequest: it is no name, or one with an alias or a version.
    """
    from adapters.errors import InvalidRequest
    from adapters.reference import parse_reference

    found = parse_reference(name)
    if found.alias is not None or found.version is not None:
        raise InvalidRequest(
            f"'{name}' names a version. Write the adapter's name alone, '{found.name}'."
        )
    return found
