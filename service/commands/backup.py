"""``headstock backup`` and ``restore``: all state in one file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.options import Home, load


def backup(
    file: Annotated[Path, typer.Argument(help="The tar file to be written.")], home: Home = None
) -> None:
    """Write database and store to one file, while servers go on. It holds keys' hashes and examples: keep it safe."""
    from service.backup import write_backup
    from service.opening import open_state

    state = open_state(load(home=home))
    made = write_backup(state.database, state.objects, file)
    size = file.stat().st_size / 1e6
    typer.echo(f"Wrote {file}: {_count(made.rows)} rows, {made.num_objects} objects, {size:.1f} MB")


def restore(
    file: Annotated[Path, typer.Argument(help="A file that 'headstock backup' wrote.")],
    home: Home = None,
) -> None:
    """Fill an empty database and its store from a backup; of SQLite to PostgreSQL, too."""
    from service.backup import restore_backup
    from service.opening import open_state

    state = open_state(load(home=home))
    made = restore_backup(state.database, state.objects, file)
    typer.echo(
        f"Restored {_count(made.rows)} rows and {made.num_objects} objects of {made.created_at}"
    )


def _count(rows: object) -> int:
    assert isinstance(rows, dict)
    return sum(rows.values())
