"""What homes that tests make have in common: compiled kernels and described backbones, which take seconds each."""

import os
import tempfile
from pathlib import Path

SHARED = Path(tempfile.gettempdir()) / f"headstock-tests-{os.getuid()}"


def share_finds(home: Path) -> None:
    """Have a home find what another test's process has found out; names of files tell what they hold for."""
    SHARED.mkdir(mode=0o700, exist_ok=True)
    assert SHARED.stat().st_uid == os.getuid(), f"'{SHARED}' is another user's: compiled code."
    home.mkdir(parents=True, exist_ok=True)
    for name in ("kernels", "specs"):
        (SHARED / name).mkdir(exist_ok=True)
        if not (home / name).exists():
            (home / name).symlink_to(SHARED / name)
