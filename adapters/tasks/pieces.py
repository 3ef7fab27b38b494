"""A long text as pieces that end where sentences do, and short texts joined to one."""

from __future__ import annotations

import re
from bisect import bisect_left
from itertools import pairwise

from adapters.tasks.words import has_characters_for_words

# A blank line or line end, a blank behind a mark that ends sentences, or such a mark of Chinese and Japanese.
_SENTENCE_END = re.compile(r"\n+|(?<=[.!?])\s+|(?<=[。！？])")
_BLANK = re.compile(r"\s+")


def split_text(text: str, num_pieces: int) -> list[str]:
    """Return pieces of about equal length that make up the text again; blank ones are left out.

    A border is moved by at most an eighth of a piece: to the nearest end of a sentence, else to the nearest blank.
    Where neither is so near, it stands between two characters.
    """
    ends = [[match.end() for match in each.finditer(text)] for each in (_SENTENCE_END, _BLANK)]
    slack = len(text) // (8 * num_pieces)
    borders = [0]
    for i in range(1, num_pieces):
        goal = len(text) * i // num_pieces
        near = (_nearest(places, goal, slack) for places in ends)
        borders.append(next((place for place in near if place is not None), goal))
    borders.append(len(text))
    pieces = [text[a:b] for a, b in pairwise(borders)]
    return [piece for piece in pieces if piece.strip()]


def _nearest(places: list[int], goal: int, slack: int) -> int | None:
    """Return which of the places, in order, is nearest to a goal and within ``slack`` of it."""
    at = bisect_left(places, goal)
    near = [place for place in places[max(at - 1, 0) : at + 1] if abs(place - goal) <= slack]
    return min(near, key=lambda place: abs(place - goal), default=None)


def join_texts(texts: list[str]) -> str:
    """Return texts as one, with a blank between those that set blanks between words."""
    joined = ""
    for text in filter(None, (text.strip() for text in texts)):
        is_unspaced = not joined or has_characters_for_words(text[0])
        joined += text if is_unspaced else f" {text}"
    return joined
