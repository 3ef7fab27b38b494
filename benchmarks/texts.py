"""Real texts to measure with: short ones to classify, long ones to read and to go on from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from adapters.tokenizer import Tokenizer

DATA = Path(__file__).parent / "data"
EXAMPLES = Path(__file__).parent.parent / "examples" / "data"
SETS = ("banking77", "clinc150", "sentence_polarity", "sms_spam")


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the text that answers it."""

    question: str
    context: str


def short_texts(name: str) -> list[str]:
    """Return the texts of one of `SETS`."""
    return [row["text"] for row in _rows(DATA / f"{name}.jsonl")]


def questions() -> list[Question]:
    """Return questions with their contexts (SQuAD 1.1)."""
    rows = _rows(EXAMPLES / "squad_v1" / "test.jsonl")
    return [Question(row["question"], row["context"]) for row in rows]


def abstracts() -> list[str]:
    """Return scientific abstracts (SciTLDR)."""
    return [row["text"] for row in _rows(EXAMPLES / "scitldr" / "test.jsonl")]


def prompts(tokenizer: Tokenizer, count: int, num_tokens: int) -> list[list[int]]:
    """Return different prompts of exactly ``num_tokens`` tokens, cut from running text."""
    text = " ".join([*abstracts(), *dict.fromkeys(question.context for question in questions())])
    ids = tokenizer.encode(text, add_special=False).ids
    # Each starts a little further on; beyond the text's length they overlap, but none is another's start.
    step = max(1, min(num_tokens, (len(ids) - num_tokens) // max(1, count)))
    return [ids[i * step : i * step + num_tokens] for i in range(count)]


@cache
def _rows(path: Path) -> tuple[dict[str, str], ...]:
    with path.open() as file:
        return tuple(json.loads(line) for line in file)
