"""What a run's result says, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from training.contract import Band, Estimate, RunResult


def metric_lines(result: RunResult) -> Iterator[str]:
    """Yield each set of metrics, and how sure the primary one is after training."""
    for whose, metrics in result.metrics.items():
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        yield f"{whose:10} {shown}"
    interval = result.intervals.get(result.primary_metric)
    if interval:
        yield f"{'':10} 95 % of {result.primary_metric}: {interval[0]:.4f} to {interval[1]:.4f}"


def estimate_lines(result: RunResult) -> Iterator[str]:
    """Yield what a dry run expects; after a run, how that compares with what it took."""
    estimate = result.estimate
    if estimate is None:
        return
    if not result.seconds:
        yield from _expected(estimate)
        return
    took, peak = sum(result.seconds.values()), result.peak_bytes
    yield f"took       {took:.0f} s ({_against(took, estimate.total_seconds, ' s')})"
    yield f"memory     {peak / 1e6:.0f} MB ({_against(peak / 1e6, _megabytes(estimate), ' MB')})"


def _expected(estimate: Estimate) -> Iterator[str]:
    yield f"steps      {estimate.num_steps}, {estimate.num_tokens} tokens"
    parts = ", ".join(
        f"{stage} {_shown(band)}" for stage, band in estimate.seconds.items() if band.high
    )
    yield f"time       {_shown(estimate.total_seconds)} s ({parts})"
    yield f"memory     {_shown(_megabytes(estimate))} MB"


def _megabytes(estimate: Estimate) -> Band:
    return estimate.peak_bytes.times(1e-6)


def _shown(band: Band) -> str:
    low, high = f"{band.low:.0f}", f"{band.high:.0f}"
    return low if low == high else f"{low} to {high}"


def _against(value: float, band: Band, unit: str) -> str:
    """Tell an expectation, and by how much a value missed it."""
    expected = f"expected {_shown(band)}{unit}"
    if value > band.high:
        return f"{expected}, {value / band.high - 1:.0%} more"
    if value < band.low:
        return f"{expected}, {1 - value / band.low:.0%} less"
    return expected
