"""``headstock bench …``: this machine, beside other systems."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters.errors import EnvironmentProblem, InvalidRequest
from service.commands.options import BackboneName, Home, load

if TYPE_CHECKING:
    from benchmarks.session import Session
    from training.contract import BackTranslationSettings

app = typer.Typer(help="Measure this machine, beside other systems.", no_args_is_help=True)


@app.command("serving")
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
    with _source_tree():
        from benchmarks.choice import chosen_workloads
        from benchmarks.serving import WORKLOADS, run_serving
        from benchmarks.session import Options
    names = chosen_workloads(only, WORKLOADS)
    settings = load(home=home, backbone=backbone)
    given: dict[str, Any] = {"encoder": encoder, "threads": threads}
    options = Options(
        decoder=settings.backbone,
        dtype=dtype,
        runs=1 if quick else runs,
        is_quick=quick,
        **{name: value for name, value in given.items() if value is not None},
    )
    run_serving(options, names, settings.home, json_file)


@app.command("registry")
def bench_registry(
    only: Annotated[str | None, typer.Option(help="Workloads, such as R1,R2.")] = None,
    json_file: Annotated[Path, typer.Option("--json", help="Where the report goes.")] = Path(
        "bench-registry.json"
    ),
    database_url: Annotated[
        str | None,
        typer.Option(
            help="An empty database of PostgreSQL, to be filled and emptied.",
            envvar="HEADSTOCK_BENCH_DATABASE_URL",
        ),
    ] = None,
    runs: Annotated[int, typer.Option(help="Timed rounds; the median counts.", min=1)] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="Less of everything, one round.")] = False,
    backbone: BackboneName = None,
    home: Home = None,
) -> None:
    """Measure registering, listing and claiming: milliseconds, and jobs a second."""
    with _source_tree():
        from benchmarks.choice import chosen_workloads
        from benchmarks.registry import WORKLOADS, run_registry
    names = chosen_workloads(only, WORKLOADS)
    decoder = load(home=home, backbone=backbone).backbone
    with _session(home, decoder=decoder, runs=1 if quick else runs, is_quick=quick) as session:
        run_registry(session, names, database_url, json_file)


Data = Annotated[
    Path, typer.Option("--data", help="Folder of data sets, NAME/train.jsonl and NAME/test.jsonl.")
]


@app.command("training")
def bench_training(
    data: Data,
    only: Annotated[str | None, typer.Option(help="Workloads, such as T1,T2.")] = None,
    json_file: Annotated[Path, typer.Option("--json", help="Where the report goes.")] = Path(
        "bench-training.json"
    ),
    runs: Annotated[int, typer.Option(help="Timed rounds; the median counts.", min=1)] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Less of everything, one round.")] = False,
    home: Home = None,
) -> None:
    """Measure fitting beside stock Trainer and peft: tokens a second, and memory."""
    with _source_tree():
        from benchmarks.choice import chosen_workloads
        from benchmarks.training import WORKLOADS, run_training
    names = chosen_workloads(only, WORKLOADS)
    with _session(home, runs=1 if quick else runs, is_quick=quick) as session:
        run_training(session, names, data, json_file)


@app.command("accuracy")
def bench_accuracy(
    data: Data,
    only: Annotated[str | None, typer.Option(help="Sets, such as banking77,squad_v2.")] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of cells; what it holds is not run again.")
    ] = Path("bench-accuracy"),
    home: Home = None,
) -> None:
    """Measure accuracy beside stock Trainer and peft, on test splits."""
    with _source_tree():
        from benchmarks.accuracy import run_accuracy, table
    names = [name.strip() for name in only.split(",")] if only else []
    with _session(home) as session:
        rows = run_accuracy(session, data, names, out)
        session.say(table(rows))


@app.command("ablation")
def bench_ablation(
    data: Data,
    only: Annotated[
        str | None, typer.Option(help="Studies or sets, such as augmentation,squad_v1.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of cells; what it holds is not run again.")
    ] = Path("bench-ablation"),
    translators: Annotated[
        str | None,
        typer.Option(help="THERE,BACK: translation adapters of a running server, to translate by."),
    ] = None,
    url: Annotated[str, typer.Option(help="Of that server.")] = "http://127.0.0.1:8000",
    home: Home = None,
) -> None:
    """Measure what augmentation, and adapting the last layers only, do to accuracy and time."""
    with _source_tree():
        from benchmarks.ablation import run_ablation, table
    names = [name.strip() for name in only.split(",")] if only else []
    with _session(home) as session:
        rows = run_ablation(session, data, names, out, _back_translation(translators, url))
        session.say(table(rows))


def _back_translation(translators: str | None, url: str) -> BackTranslationSettings | None:
    from training.contract import BackTranslationSettings

    if translators is None:
        return None
    there, _, back = translators.partition(",")
    if not there or not back:
        raise InvalidRequest(
            f"--translators '{translators}' are not two adapters. Write THERE,BACK, such as en-zh,zh-en.",
            param="translators",
        )
    return BackTranslationSettings(url=url, there=there, back=back)


@contextmanager
def _source_tree() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"'{error.name}' is not installed here, which the benchmark needs. Run it from a source tree "
            "after 'make setup' (or: pip install -e '.[bench]')."
        ) from error


@contextmanager
def _session(home: Path | None, **given: Any) -> Iterator[Session]:
    import tempfile

    from rich.console import Console

    from benchmarks.session import Options, Session

    settings = load(home=home)
    with tempfile.TemporaryDirectory(prefix="headstock-bench-") as scratch:
        yield Session(Options(**given), settings.home, Path(scratch), Console())
