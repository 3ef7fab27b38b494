"""The launchers that the settings set up, by name."""

from __future__ import annotations

from service.launchers.base import Launcher
from service.launchers.process import ProcessLauncher
from service.settings import Settings


def set_up_launchers(_: Settings) -> dict[str, Launcher]:
    """Return what runs can be started by; each is ready only when it is used."""
    return {"process": ProcessLauncher()}
