"""What a run that goes on from a bundle keeps of it; a config that asks for something else is refused."""

from __future__ import annotations

from typing import Any

from adapters.backbone import Backbone
from adapters.errors import InvalidRequest
from adapters.tasks.catalog import AnyTask, get_task
from adapters.validation import shown
from training.contract import LoraSettings
from training.trainer import target_modules

_DEFAULTS = LoraSettings()


def check_options(task: AnyTask, given: dict[str, Any]) -> None:
    """Raise `InvalidRequest` for an option that is not as the parent's task has it."""
    own = task.options.model_dump()
    asked = get_task(task.name, {**own, **given}).options.model_dump()
    for name in given:
        if asked[name] != own[name]:
            raise _differs(f"options.{name}", asked[name], f"the parent's is {shown(own[name])}")


def check_lora(backbone: Backbone, task: AnyTask, given: LoraSettings, own: LoraSettings) -> None:
    """Raise `InvalidRequest` for a setting that is neither the parent's nor the default, which nobody asked for."""
    for name in ("rank", "alpha", "dropout", "use_rslora", "init"):
        asked, has = getattr(given, name), getattr(own, name)
        if asked not in (has, getattr(_DEFAULTS, name)):
            raise _differs(f"lora.{name}", asked, f"the parent's is {shown(has)}")
    for name in ("last_layers", "target_modules"):
        asked = getattr(given, name)
        if asked == getattr(_DEFAULTS, name):
            continue
        has_head = task.head(backbone.spec.family) is not None
        if set(target_modules(backbone, given, has_head=has_head)) != set(own.target_modules):
            raise _differs(f"lora.{name}", asked, "the parent's modules are others")


def _differs(param: str, asked: object, but: str) -> InvalidRequest:
    return InvalidRequest(
        f"{param} is {shown(asked)}, but {but}, and a run that goes on from it keeps that. Leave it out, or "
        "train without the parent.",
        param=param,
    )
