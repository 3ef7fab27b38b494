"""The promotion gate: whether a version gains enough over the one an alias points at, on the same test rows.

Metrics are those in the manifests, measured by the run that made each bundle; they lie outside the digest.
"""

from __future__ import annotations

from dataclasses import dataclass

from adapters.bundle import Manifest
from adapters.errors import Conflict, InvalidRequest
from adapters.registry.records import Alias
from adapters.tasks.catalog import get_task

_ROUNDING = 1e-9  # 0.57 - 0.56 is less than 0.01 in floating point
_LESS_IS_BETTER = frozenset({"ece", "loss", "perplexity", "rmse"})


@dataclass(frozen=True, slots=True)
class Rule:
    """What a version must be better by.

    Args:
        metric: in both manifests; None for the task's primary one.
        min_gain: in the metric's own unit; 0 asks to be no worse, and below 0 allows for as much of a loss.
    """

    metric: str | None = None
    min_gain: float = 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions by one metric; ``current`` is None where the alias was not there yet.

    Args:
        gain: how much better the candidate is, above 0 whichever way the metric counts.
    """

    metric: str
    candidate: float | None
    current: float | None
    gain: float | None
    is_met: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Promotion:
    """What came of a promotion; ``alias`` is as it is afterwards, None if it is not there."""

    alias: Alias | None
    is_moved: bool
    comparison: Comparison


def compare(candidate: Manifest, current: Manifest | None, rule: Rule) -> Comparison:
    """Compare a version with the one that serves.

    Raises:
        Conflict: they were not tested on the same rows, or one has no such metric.
    """
    metric = rule.metric or get_task(candidate.task, candidate.options).primary_metric
    if current is None:
        value = candidate.metrics.get("after", {}).get(metric)
        return Comparison(metric, value, None, None, True, "The alias pointed at no version yet.")
    _check_rows(candidate, current)
    ours, theirs = _value(candidate, metric), _value(current, metric)
    gain = theirs - ours if metric in _LESS_IS_BETTER else ours - theirs
    is_met = gain >= rule.min_gain - _ROUNDING
    told = f"{metric} is {ours:.4f} against {theirs:.4f}, a gain of {gain:+.4f}"
    reason = f"{told}; at least {rule.min_gain:+.4f} was asked."
    return Comparison(metric, ours, theirs, gain, is_met, reason)


def check_rule(rule: Rule) -> None:
    """Raise InvalidRequest if a rule's gain is no number."""
    if not abs(rule.min_gain) < float("inf"):
        raise InvalidRequest(
            f"min_gain is '{rule.min_gain}'; give a number, such as 0.005.", param="min_gain"
        )


def _check_rows(candidate: Manifest, current: Manifest) -> None:
    ours, theirs = (manifest.lineage.data.get("test") for manifest in (candidate, current))
    if ours is None or theirs is None:
        which = "The candidate" if ours is None else "The current version"
        raise Conflict(
            f"{which} was not tested on a split of its own, so the two can't be compared. Train it with a test "
            "file, or move the alias without promote_if.",
            param="promote_if",
        )
    if ours != theirs:
        raise Conflict(
            f"The candidate was tested on rows with fingerprint '{ours[:12]}…', the current version on "
            f"'{theirs[:12]}…'. Test both on the same file, or move the alias without promote_if.",
            param="promote_if",
        )


def _value(manifest: Manifest, metric: str) -> float:
    found = manifest.metrics.get("after", {})
    if metric not in found:
        known = ", ".join(f"'{name}'" for name in found) or "none"
        raise Conflict(
            f"Version '{manifest.digest[:12]}…' has no metric '{metric}' after training. It has {known}.",
            param="promote_if",
        )
    return found[metric]
