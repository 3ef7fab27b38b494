"""Words and the spans that BIO tags mark among them; places count code points, [start, end)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

Place = tuple[int, int]

# Chinese and Japanese set no blanks between words, so each character is one.
KANA = "\u3040-\u30ff"
CJK = KANA + "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHUNK = re.compile(rf"[{CJK}]|[^\s{CJK}]+")
_CHARACTER = re.compile(f"([{CJK}])")
# Thai, Lao, Burmese and Khmer set none either.
_UNSPACED = re.compile(rf"[{CJK}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
# They begin words of their own kind: a user, a topic, a price.
_LEADING = "@#$€£"


@dataclass(frozen=True, slots=True)
class Span:
    """An entity: its label and its words, ``first`` to ``last``, both in it."""

    label: str
    first: int
    last: int


def split_words(text: str) -> list[Place]:
    """Return the places of a text's words; marks around a word are words of their own."""
    places: list[Place] = []
    for chunk in _CHUNK.finditer(text):
        start, end = chunk.span()
        while start < end - 1 and _is_mark(text[start]) and text[start] not in _LEADING:
            places.append((start, start + 1))
            start += 1
        closing = end
        while closing > start + 1 and _is_mark(text[closing - 1]):
            closing -= 1
        places.append((start, closing))
        places += [(i, i + 1) for i in range(closing, end)]
    return places


def has_characters_for_words(text: str) -> bool:
    """Tell whether a text holds Chinese or Japanese characters."""
    return _CHARACTER.search(text) is not None


def is_unspaced(text: str) -> bool:
    """Tell whether a text is written, for more than a third, in scripts that set no blanks between words."""
    return len(_UNSPACED.findall(text)) > len(text) / 3


def split_characters(text: str) -> str:
    """Return a text with a blank on either side of each Chinese or Japanese character."""
    return _CHARACTER.sub(r" \1 ", text)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith(("P", "S"))


def join_words(words: Sequence[str]) -> tuple[str, list[Place]]:
    """Return words joined by one space, and their places in that text."""
    places: list[Place] = []
    start = 0
    for word in words:
        places.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), places


def read_spans(tags: Sequence[str]) -> list[Span]:
    """Return the spans that BIO tags mark, in order, as conlleval and seqeval read them.

    An ``I-`` that continues nothing of its own label begins a span, too.
    """
    spans: list[Span] = []
    is_open = False
    for i, tag in enumerate(tags):
        prefix, _, label = tag.partition("-")
        if prefix == "I" and is_open and spans[-1].label == label:
            spans[-1] = Span(label, spans[-1].first, i)
        elif prefix != "O":
            spans.append(Span(label, i, i))
        is_open = prefix != "O"
    return spans


def write_tags(spans: Sequence[Span], num_words: int) -> list[str]:
    """Return the BIO tags of spans that do not overlap."""
    tags = ["O"] * num_words
    for span in spans:
        tags[span.first : span.last + 1] = [
            f"{'B' if i == span.first else 'I'}-{span.label}"
            for i in range(span.first, span.last + 1)
        ]
    return tags
