"""placeholder until the sampling branch is merged"""

from __future__ import annotations

from dataclasses import dataclass

from adapters.tasks.base import Sampling, TokenLogprob


@dataclass
class Choice:
    sampling: Sampling
    position: int
    num_logprobs: int | None


@dataclass
class Chosen:
    token_id: int
    is_finite: bool
    logprob: TokenLogprob | None


def choose(logits, choices):
    v, i = logits.max(dim=1)
    return [Chosen(t, f, None) for t, f in zip(i.tolist(), v.isfinite().tolist())]
