"""Notes and tags, what people write beside a version: bounded, so that a listing stays small."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.errors import InvalidRequest
from adapters.reference import check_name

MOST_NOTE, MOST_TAGS, MOST_TAG = 2000, 32, 256


def check_note(note: str) -> None:
    """Raise InvalidRequest if a note is longer than 2,000 code points."""
    if len(note) > MOST_NOTE:
        raise InvalidRequest(
            f"The note '{note[:40]}…' has {len(note)} characters; at most {MOST_NOTE} are kept. Shorten it.",
            param="note",
        )


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise InvalidRequest if there are too many tags, a key is no name, or a value is too long."""
    if len(tags) > MOST_TAGS:
        raise InvalidRequest(
            f"'{len(tags)}' tags; at most {MOST_TAGS} are kept. Leave some out.", param="tags"
        )
    for key, value in tags.items():
        check_name(key, what="tag")
        if len(value) > MOST_TAG:
            raise InvalidRequest(
                f"Tag '{key}' is '{value[:40]}…', {len(value)} characters; at most {MOST_TAG} are kept. Shorten it.",
                param="tags",
            )
