"""``headstock keys …``: who may call a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from service.commands.options import Home, load

if TYPE_CHECKING:
    from service.access.keys import Key, Keys

app = typer.Typer(help="API keys: who may call a server.", no_args_is_help=True)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What the key is for, such as ci.")],
    scopes: Annotated[
        str, typer.Option(help="With commas: predict, adapters:write, jobs, admin.")
    ] = "predict",
    namespace: Annotated[
        str, typer.Option(help="Whose adapters, files and jobs it sees.")
    ] = "default",
    days: Annotated[float | None, typer.Option(help="Until it expires; never, if not set.")] = None,
    max_jobs: Annotated[
        int | None, typer.Option(help="Of its jobs that wait or run at once; no bound, if not set.")
    ] = None,
    home: Home = None,
) -> None:
    """Make a key and print it: this once."""
    given = [scope for part in scopes.split(",") if (scope := part.strip())]
    key, secret = _keys(home).create(name, given, namespace=namespace, days=days, max_jobs=max_jobs)
    typer.echo(f"Made key {key.id}. Keep it now, it is not shown again:", err=True)
    typer.echo(secret)


@app.command("list")
def list_keys(home: Home = None) -> None:
    """List keys, without their secrets."""
    for key in _keys(home).list_keys():
        typer.echo(f"{key.id}  {key.name}  {key.namespace}  {','.join(key.scopes)}  {_state(key)}")


@app.command("revoke")
def revoke(key: Annotated[str, typer.Argument(help="Id of the key.")], home: Home = None) -> None:
    """Make a key useless, within a second."""
    revoked = _keys(home).revoke(key)
    typer.echo(f"Revoked {revoked.id}  {revoked.name}")


def _keys(home: Home) -> Keys:
    from service.opening import open_state

    return open_state(load(home=home)).keys


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if not key.is_valid:
        return "expired"
    return "valid" if key.expires_at is None else f"until {key.expires_at:%Y-%m-%d}"
