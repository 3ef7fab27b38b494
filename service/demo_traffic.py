"""The demo's requests: a burst that mixes all tasks, and a version swapped while requests run."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from service.client import Client, ClientError

CONCURRENCY = 24
SETTLE_SECONDS = 3.0  # traffic before the alias moves, and after
MIN_DIFFERENCE = 0.02  # in score: less than this, and two versions' answers look alike


@dataclass(frozen=True, slots=True)
class Answered:
    """One request that was answered or failed (then ``answer`` is None); times in seconds."""

    text: str
    begin: float
    end: float
    answer: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class BurstResult:
    sent: int
    failed: int


@dataclass(slots=True)
class SwapResult:
    """``wrong_before`` and ``wrong_after`` count answers from the version that should not have answered."""

    sent: int = 0
    failed: int = 0
    old_version: int = 0
    new_version: int = 0
    telling_texts: int = 0
    answers_before: int = 0
    answers_after: int = 0
    wrong_before: int = 0
    wrong_after: int = 0
    checks: dict[str, bool] = field(default_factory=dict)


def send_burst(
    url: str, requests: Sequence[tuple[str, Any]], on_answer: Callable[[], None]
) -> BurstResult:
    """Send (adapter, input) pairs, each a request of its own, `CONCURRENCY` at a time, shuffled."""
    order = list(requests)
    random.Random(0).shuffle(order)

    def send(client: Client, adapter: str, given: Any) -> bool:
        answer = _ask(client, adapter, given)
        on_answer()
        return answer is not None

    with Client(url) as client, ThreadPoolExecutor(CONCURRENCY) as pool:
        good = list(pool.map(lambda pair: send(client, *pair), order))
    return BurstResult(len(good), good.count(False))


def swap_version(
    url: str, adapter: str, bundle: str, texts: Sequence[str], announce: Callable[[str], None]
) -> SwapResult:
    """Register a bundle and move ``production`` to it while requests run; compare answers with both versions'.

    Requests that ended before the move must hold the old version's number and score, requests that began
    after it the new one's. Scores are compared on texts where the two differ by `MIN_DIFFERENCE`.
    """
    answered: list[Answered] = []
    stop = threading.Event()
    with Client(url) as client, ThreadPoolExecutor(4) as pool:
        old = int(client.get_adapter(adapter)["aliases"]["production"]["version"])
        workers = [
            pool.submit(_keep_asking, client, adapter, texts, stop, answered) for _ in range(4)
        ]
        try:
            stop.wait(SETTLE_SECONDS)
            announce(f"requests run on {adapter}:{old}; registering a new version")
            new = int(client.create_version(adapter, bundle)["version"])
            expected = {v: _scores(client, f"{adapter}:{v}", texts) for v in (old, new)}
            begin = time.monotonic()
            client.set_alias(adapter, "production", new)
            end = time.monotonic()
            announce(f"production moved from {adapter}:{old} to {adapter}:{new}")
            stop.wait(SETTLE_SECONDS)
        finally:
            stop.set()
        for worker in workers:
            worker.result()
    return _judge(answered, old, new, expected, begin, end)


def _ask(client: Client, adapter: str, given: Any) -> dict[str, Any] | None:
    try:
        (answer,) = client.predict(adapter, [given])
    except ClientError:
        return None
    return None if "error" in answer else answer


def _keep_asking(
    client: Client,
    adapter: str,
    texts: Sequence[str],
    stop: threading.Event,
    answered: list[Answered],
) -> None:
    rng = random.Random(threading.get_ident())
    while not stop.is_set():
        text = rng.choice(texts)
        begin = time.monotonic()
        answer = _ask(client, adapter, text)
        answered.append(Answered(text, begin, time.monotonic(), answer))


def _scores(client: Client, reference: str, texts: Sequence[str]) -> dict[str, float]:
    answers = client.predict(reference, list(texts))
    return {text: _score(answer) for text, answer in zip(texts, answers, strict=True)}


def _score(answer: dict[str, Any]) -> float:
    """Return the probability of the label that sorts first: one number that tells two versions apart."""
    scores: dict[str, float] = answer["scores"]
    return scores[min(scores)]


def _judge(
    answered: Sequence[Answered],
    old: int,
    new: int,
    expected: dict[int, dict[str, float]],
    begin: float,
    end: float,
) -> SwapResult:
    telling = {
        t for t in expected[old] if abs(expected[old][t] - expected[new][t]) > MIN_DIFFERENCE
    }
    before = [a for a in answered if a.answer and a.end < begin]
    after = [a for a in answered if a.answer and a.begin > end]
    result = SwapResult(
        sent=len(answered),
        failed=sum(a.answer is None for a in answered),
        old_version=old,
        new_version=new,
        telling_texts=len(telling),
        answers_before=sum(a.text in telling for a in before),
        answers_after=sum(a.text in telling for a in after),
        wrong_before=sum(not _is_from(a, old, new, expected, telling) for a in before),
        wrong_after=sum(not _is_from(a, new, old, expected, telling) for a in after),
    )
    result.checks = {
        "no request failed during the swap": result.failed == 0,
        "the versions differ on texts that were asked": min(
            result.answers_before, result.answers_after
        )
        > 0,
        "answers before the move are the old version's": result.wrong_before == 0,
        "answers after the move are the new version's": result.wrong_after == 0,
    }
    return result


def _is_from(
    answered: Answered,
    version: int,
    other: int,
    expected: dict[int, dict[str, float]],
    telling: set[str],
) -> bool:
    """Tell whether an answer has a version's number and, where that can be told, its score."""
    assert answered.answer is not None
    if answered.answer["version"] != version:
        return False
    if answered.text not in telling:
        return True
    score = _score(answered.answer)
    return abs(score - expected[version][answered.text]) < abs(
        score - expected[other][answered.text]
    )
