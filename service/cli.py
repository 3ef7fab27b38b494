"""The command line. Nothing heavy is imported at the top, so that --help answers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters.errors import EnvironmentProblem, HeadstockError

if TYPE_CHECKING:
    from adapters.registry.registry import Registry
    from service.settings import Settings
    from training.contract import RunConfig, RunResult

app = typer.Typer(
    help="One frozen backbone, every task: train, keep and serve LoRA adapters with task heads.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
backbone_app = typer.Typer(help="The frozen models that adapters share.", no_args_is_help=True)
adapters_app = typer.Typer(help="The registry: adapters, versions, aliases.", no_args_is_help=True)
app.add_typer(backbone_app, name="backbone")
app.add_typer(adapters_app, name="adapters")
bench_app = typer.Typer(help="Measure this machine, beside other systems.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

Home = Annotated[Path | None, typer.Option(help="Folder of all state (HEADSTOCK_HOME).")]
BackboneName = Annotated[
    str | None, typer.Option("--backbone", help="Packaged name, folder, or Hub id.")
]
Url = Annotated[str, typer.Option(help="Where the server listens.", envvar="HEADSTOCK_URL")]


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


@app.command()
def demo(
    home: Home = None,
    out: Annotated[Path, typer.Option(help="Folder for runs and report.")] = Path("demo"),
) -> None:
    """Train three adapters, serve them together, swap one while requests run, and report."""
    from service.demo import run_demo

    sys.exit(0 if run_demo(_settings(home=home), out) else 1)


@app.command()
def train(
    task: Annotated[str, typer.Argument(help="Such as text-classification.")],
    data: Annotated[str, typer.Argument(help="JSONL or CSV file of examples.")],
    out: Annotated[Path, typer.Option(help="Folder for events and bundle.")],
    test: Annotated[str | None, typer.Option(help="File of examples to report on.")] = None,
    validation: Annotated[
        str | None, typer.Option(help="File of examples to choose weights and thresholds by.")
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
    from service.run_configs import options_from, run_config
    from training.contract import BUNDLE_NAME

    settings = _settings(home=home, backbone=backbone)
    config = run_config(
        action="estimate" if dry_run else "train",
        task=task,
        options=options_from(option or []),
        backbone=settings.backbone,
        dtype=settings.dtype,
        data={
            "train": data,
            "test": test,
            "validation": validation,
            "max_row_tokens": max_row_tokens,
        },
        lora={"rank": rank, "last_layers": last_layers},
        fit={
            "epochs": epochs or "auto",
            "learning_rate": learning_rate or "auto",
            "max_tokens": max_tokens,
            "seed": seed,
        },
        parent=parent,
        evaluate_untrained=bool(test),
        changes=setting or [],
    )
    result = _execute(config, out, settings)
    if dry_run:
        return
    typer.echo(f"Bundle: {out / BUNDLE_NAME} (digest {str(result.digest)[:12]})")
    if name:
        version = _open_registry(settings, config.backbone).create_version(name, out / BUNDLE_NAME)
        typer.echo(f"Registered {version.name}:{version.number}")


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    data: Annotated[str, typer.Argument(help="JSONL or CSV file of examples.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions and result.")],
    backbone: BackboneName = None,
    home: Home = None,
) -> None:
    """Test a bundle on a file of examples."""
    from adapters.bundle import read_manifest
    from service.run_configs import run_config

    settings = _settings(home=home, backbone=backbone)
    config = run_config(
        action="evaluate",
        task=read_manifest(bundle).task,
        backbone=settings.backbone,
        dtype=settings.dtype,
        data={"test": data},
        bundle=str(bundle),
    )
    _execute(config, out, settings)


@app.command()
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
    settings = _settings(
        host=host, port=port, threads=threads, dtype=dtype, backbone=backbone, home=home
    )
    from service.server import run_server

    run_server(settings)


@app.command()
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


@backbone_app.command("prepare")
def prepare_backbone(
    name: Annotated[str, typer.Argument(help="Packaged name, folder, or Hub id.")] = "",
    home: Home = None,
) -> None:
    """Make a backbone ready on this machine, once."""
    from adapters.backbone import find_backbone
    from service.settings import prepare_home

    settings = _settings(home=home, backbone=name or None)
    prepare_home(settings.home)
    typer.echo(f"{settings.backbone}: {find_backbone(settings.backbone, settings.home)}")


@backbone_app.command("show")
def show_backbone(
    name: Annotated[str, typer.Argument(help="Packaged name, folder, or Hub id.")] = "",
    home: Home = None,
) -> None:
    """Print what a backbone is."""
    from adapters.backbone import backbone_name, describe_backbone, find_backbone

    settings = _settings(home=home, backbone=name or None)
    spec = describe_backbone(
        find_backbone(settings.backbone, settings.home), backbone_name(settings.backbone)
    )
    shown = spec.model_dump(exclude={"modules"}) | {"num_modules": len(spec.modules)}
    typer.echo(json.dumps(shown, indent=2))


@adapters_app.command("list")
def list_adapters(home: Home = None) -> None:
    """List adapters with their newest version and aliases."""
    for adapter in _open_registry(_settings(home=home)).list_adapters():
        aliases = ", ".join(f"{alias.name} -> {alias.version}" for alias in adapter.aliases)
        typer.echo(f"{adapter.name}:{adapter.latest}  {adapter.task}  {aliases}".rstrip())


@adapters_app.command("show")
def show_adapter(
    reference: Annotated[str, typer.Argument(help="name, name@alias or name:version.")],
    home: Home = None,
) -> None:
    """Print a version's manifest."""
    from adapters.reference import parse_reference

    version = _open_registry(_settings(home=home)).resolve(parse_reference(reference))
    manifest = version.manifest.model_dump(mode="json")
    typer.echo(json.dumps({"name": version.name, "version": version.number, **manifest}, indent=2))


@adapters_app.command("push")
def push_adapter(
    name: Annotated[str, typer.Argument(help="Name of the adapter.")],
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    backbone: BackboneName = None,
    home: Home = None,
) -> None:
    """Add a bundle as the next version of an adapter."""
    settings = _settings(home=home, backbone=backbone)
    version = _open_registry(settings, settings.backbone).create_version(name, bundle)
    typer.echo(f"Registered {version.name}:{version.number} (digest {version.digest[:12]})")


@adapters_app.command("alias")
def move_alias(
    name: Annotated[str, typer.Argument(help="Name of the adapter.")],
    alias: Annotated[str, typer.Argument(help="Such as production.")],
    version: Annotated[int, typer.Argument(help="Version number.", min=1)],
    home: Home = None,
) -> None:
    """Point an alias at a version."""
    moved = _open_registry(_settings(home=home)).set_alias(name, alias, version)
    typer.echo(f"{name}@{moved.name} -> {moved.version}")


@bench_app.command("serving")
def bench_serving(
    only: Annotated[str | None, typer.Option(help="Workloads, such as W1,W2.")] = None,
    json_file: Annotated[Path, typer.Option("--json", help="Where the report goes.")] = Path(
        "bench-serving.json"
    ),
    runs: Annotated[int, typer.Option(help="Timed rounds; the median counts.", min=1)] = 5,
    quick: Annotated[
        bool, typer.Option("--quick", help="Less of everything, one round, nothing to install.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of every system's backbone.")] = "bfloat16",
    threads: Annotated[int | None, typer.Option(help="CPU threads of every system.")] = None,
    backbone: BackboneName = None,
    encoder: Annotated[str | None, typer.Option(help="Encoder that W2 scores on.")] = None,
    home: Home = None,
) -> None:
    """Measure serving: speed, scale, cold start and memory."""
    try:
        from benchmarks.serving import chosen_workloads, run_serving
        from benchmarks.session import Options
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"'{error.name}' is not installed here, which the benchmark needs. Run it from a source tree "
            "after 'make setup' (or: pip install -e '.[bench]')."
        ) from error

    names = chosen_workloads(only)
    settings = _settings(home=home, backbone=backbone)
    given: dict[str, Any] = {"encoder": encoder, "threads": threads}
    options = Options(
        decoder=settings.backbone,
        dtype=dtype,
        runs=1 if quick else runs,
        is_quick=quick,
        **{name: value for name, value in given.items() if value is not None},
    )
    run_serving(options, names, settings.home, json_file)


def _settings(**given: object) -> Settings:
    from service.settings import load_settings

    return load_settings(**given)


def _open_registry(settings: Settings, backbone: str | None = None) -> Registry:
    """Return the registry; with a backbone, one that knows it."""
    from service.opening import open_registry

    registry = open_registry(settings)
    if backbone is not None:
        from adapters.backbone import backbone_name, describe_backbone, find_backbone

        registry.add_backbone(
            describe_backbone(find_backbone(backbone, settings.home), backbone_name(backbone))
        )
    return registry


def _execute(config: RunConfig, out: Path, settings: Settings) -> RunResult:
    from rich.console import Console

    from service.run_results import estimate_lines
    from service.runs import RunProgress, execute_run
    from service.settings import prepare_home

    prepare_home(settings.home)
    with RunProgress(Console(), config.task) as progress:
        result = execute_run(config, out, settings.home, progress.show)
    for whose, metrics in result.metrics.items():
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        typer.echo(f"{whose:10} {shown}")
    for line in estimate_lines(result):
        typer.echo(line)
    return result


if __name__ == "__main__":
    main()
