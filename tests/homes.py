"""The compiled kernels of homes that tests make: one folder for all, for compiling takes longer than most tests."""

import getpass
import tempfile
from pathlib import Path

SHARED = Path(tempfile.gettempdir()) / f"headstock-tests-{getpass.getuser()}" / "kernels"


def share_kernels(home: Path) -> None:
    """Have a home find the kernels that another test's process has compiled; their names tell what they are."""
    SHARED.mkdir(parents=True, exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "kernels").exists():
        (home / "kernels").symlink_to(SHARED)
