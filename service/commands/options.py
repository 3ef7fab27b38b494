"""Options that several commands take, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from adapters.registry.registry import Registry
    from service.settings import Settings

Home = Annotated[Path | None, typer.Option(help="Folder of all state (HEADSTOCK_HOME).")]
BackboneName = Annotated[
    str | None, typer.Option("--backbone", help="Packaged name, folder, or Hub id.")
]
Url = Annotated[
    str,
    typer.Option(
        help="Where the server listens; its key is read from HEADSTOCK_API_KEY.",
        envvar="HEADSTOCK_URL",
    ),
]


def load(**given: object) -> Settings:
    """Return the settings, those given on the command line before the environment's."""
    from service.settings import load_settings

    return load_settings(**given)


def warn_of_misspelt() -> None:
    """Say which variables of the environment were probably meant as settings."""
    from service.settings import misspelt_variables

    for sentence in misspelt_variables():
        typer.echo(f"Warning: {sentence}", err=True)


def open_registry_of(settings: Settings, backbone: str | None = None) -> Registry:
    """Return the registry; with a backbone, one that knows it."""
    from service.opening import open_registry

    registry = open_registry(settings)
    if backbone is not None:
        from adapters.descriptions import describe_source

        registry.add_backbone(describe_source(backbone, settings.home))
    return registry
