"""The one folder that Headstock keeps its state in."""

from __future__ import annotations

import os
from pathlib import Path


def default_home() -> Path:
    """Return ``HEADSTOCK_HOME``, or ``~/.local/share/headstock``."""
    return Path(os.environ.get("HEADSTOCK_HOME") or "~/.local/share/headstock").expanduser()
