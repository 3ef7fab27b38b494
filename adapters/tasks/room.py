"""How many tokens a row may take: as the task asks, as the backbone has positions, as the caller allows."""

from __future__ import annotations

from pydantic import BaseModel

from adapters.backbone import BackboneSpec
from adapters.errors import TextTooLong
from adapters.tasks.catalog import AnyTask


def row_room(
    task: AnyTask, backbone: BackboneSpec, parameters: BaseModel, bound: int | None = None
) -> int:
    """Return the ``max_tokens`` of `Task.encode`: a prompt and the longest answer together.

    An encoder-decoder has positions of their own for the two, so the prompt may fill all of its side.

    Args:
        bound: of prompt plus answer, beside the backbone's own.

    Raises:
        TextTooLong: the longest answer alone has no room on its side of an encoder-decoder.
    """
    room = min(backbone.max_tokens, task.options.max_tokens or backbone.max_tokens)
    if backbone.family == "encoder-decoder":
        num_new = task.max_new_tokens(parameters)
        if num_new > backbone.max_tokens:
            raise TextTooLong(
                f"max_new_tokens is '{num_new}', but an answer of backbone '{backbone.name}' has room for "
                f"{backbone.max_tokens}. Ask for fewer.",
                param="max_new_tokens",
            )
        room += num_new
    return room if bound is None else min(room, bound)
