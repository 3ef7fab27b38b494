"""Commands that serve, and ask what is served."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from adapters.imports import many_imports
from service.commands.options import BackboneName, Home, Url, load, warn_of_misspelt


def demo(
    home: Home = None,
    out: Annotated[Path, typer.Option(help="Folder for runs and report.")] = Path("demo"),
) -> None:
    """Train three adapters, serve them together, swap one while requests run, and report."""
    from service.demo import run_demo

    sys.exit(0 if run_demo(load(home=home), out) else 1)


def serve(
    host: Annotated[str | None, typer.Option(help="127.0.0.1, 0.0.0.0 or ::.")] = None,
    port: Annotated[int | None, typer.Option()] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the engine.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16, float16, int8 or nf4.")
    ] = None,
    backbone: BackboneName = None,
    home: Home = None,
) -> None:
    """Serve every registered adapter of one backbone."""
    settings = load(
        host=host, port=port, threads=threads, dtype=dtype, backbone=backbone, home=home
    )
    warn_of_misspelt()
    with many_imports():
        from service.server import run_server
    run_server(settings)


def predict(
    adapter: Annotated[str, typer.Argument(help="name, name@alias or name:version.")],
    text: Annotated[str, typer.Argument(help="The text, or the request as a JSON object.")],
    url: Url = "http://127.0.0.1:8000",
) -> None:
    """Ask a running server."""
    from service.client import Client, ClientError
    from service.run_configs import json_or_text

    given = json_or_text(text) if text.startswith("{") else text
    with Client(url) as client:
        (answer,) = client.predict(adapter, [given])
    if "error" in answer:
        raise ClientError(400, **answer["error"])
    typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
