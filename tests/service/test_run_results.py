"""A dry run's expectation, and how far off it was."""

from service.run_results import estimate_lines
from training.contract import Band, Estimate, RunResult

ESTIMATE = Estimate(
    config_digest="d",
    seconds={"fit": Band(low=90, high=110), "validation": Band(low=0, high=0)},
    peak_bytes=Band(low=900e6, high=1000e6),
    num_steps=40,
    num_tokens=20_000,
)


def lines(estimate=ESTIMATE, **fields):
    result = RunResult(task="t", primary_metric="accuracy", estimate=estimate, **fields)
    return list(estimate_lines(result))


def test_a_dry_run_tells_bands():
    assert lines() == [
        "steps      40, 20000 tokens",
        "time       90 to 110 s (fit 90 to 110)",
        "memory     900 to 1000 MB",
    ]


def test_a_run_tells_how_far_off_they_were():
    assert lines(seconds={"fit": 100, "test": 32}, peak_bytes=850_000_000) == [
        "took       132 s (expected 90 to 110 s, 20% more)",
        "memory     850 MB (expected 900 to 1000 MB, 6% less)",
    ]
    assert lines(seconds={"fit": 100}, peak_bytes=950_000_000) == [
        "took       100 s (expected 90 to 110 s)",
        "memory     950 MB (expected 900 to 1000 MB)",
    ]
    assert lines(estimate=None, seconds={"fit": 100}) == []
