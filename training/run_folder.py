"""A run's folder: a run that was stopped goes on in it, any other begins without what the last one left."""

from __future__ import annotations

import shutil
from pathlib import Path

from training.contract import (
    CHECKPOINT_NAME,
    CONFIG_NAME,
    PAGE_NAME,
    PREDICTIONS_NAME,
    REPORT_NAME,
    RESULT_NAME,
    RunConfig,
)
from training.tracking import TENSORBOARD_NAME


def prepare_folder(out: Path, config: RunConfig) -> None:
    """Make the folder, write the run's config into it, and take away what the last run told of itself.

    Its events stay, for whoever follows them counts on what was there; its bundle, too, until there is a new one: it
    may be what the run goes on from, or evaluates.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULT_NAME).unlink(missing_ok=True)  # or it would be taken for that of the config below
    if config.action != "estimate":
        for name in (PREDICTIONS_NAME, REPORT_NAME, PAGE_NAME):
            (out / name).unlink(missing_ok=True)
    if config.action == "train" and begins_anew(out):
        shutil.rmtree(out / TENSORBOARD_NAME, ignore_errors=True)
    write_whole(out / CONFIG_NAME, config.model_dump_json(indent=2) + "\n")


def begins_anew(out: Path) -> bool:
    """Tell whether there is nothing to go on from; whose a checkpoint is, the fit finds out."""
    return not (out / CHECKPOINT_NAME).is_file()


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is never there by half."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)
