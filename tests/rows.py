"""Rows for the engine's tests, and what it means that two results are the same."""

import torch

from adapters.runtime.rows import Row
from adapters.tasks.base import Generation

TEXTS = [
    "A wonderful film.",
    "Dull, flat, and far too long for what little it has to say about the sun.",
    "北京是中国的首都。",
    "Who wrote the first program? Ada Lovelace wrote the first program in 1843.",
    "x",
]


def rows_of(tokenizer, adapters, max_new_tokens=12):
    rows = []
    for i, adapter in enumerate(adapters):
        ids = tokenizer.encode(TEXTS[i % len(TEXTS)]).ids
        generates = adapter in (None, "summary")
        generation = Generation(max_new_tokens, tokenizer.end_ids) if generates else None
        rows.append(Row(f"row-{i}", ids, adapter, generation))
    return rows


def assert_same(left, right):
    assert left.error is None, left.error
    assert right.error is None, right.error
    assert left.output.token_ids == right.output.token_ids
    assert left.output.finish_reason == right.output.finish_reason
    if left.output.logits is not None:
        torch.testing.assert_close(
            torch.from_numpy(left.output.logits),
            torch.from_numpy(right.output.logits),
            atol=1e-4,
            rtol=1e-4,
        )
