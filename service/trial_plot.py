"""A sweep as a picture: the metric against each field that was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapters.errors import EnvironmentProblem

_WIDTH, _HEIGHT = 3.6, 3.2  # inches, of one field


def plot_trials(
    rows: Sequence[Mapping[str, Any]], fields: Sequence[str], metric: str, path: Path
) -> None:
    """Write an SVG or PNG with one panel a field; each dot is a trial.

    Raises:
        EnvironmentProblem: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "matplotlib is not installed, which draws the plot. Install it (pip install 'headstock[train]')."
        ) from error
    done = [row for row in rows if metric in row]
    figure = Figure(figsize=(_WIDTH * len(fields), _HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, fields, strict=True):
        values = [row[name] for row in done]
        numeric = all(isinstance(value, int | float) for value in values)
        panel.plot(values if numeric else list(map(str, values)), [r[metric] for r in done], "o")
        panel.set_xlabel(name)
        panel.grid(alpha=0.3)
        if numeric and min(values, default=0) > 0 and max(values) / min(values) >= 8:
            panel.set_xscale("log")
        if numeric:
            tried = sorted(set(values))
            panel.set_xticks(tried, labels=[f"{value:g}" for value in tried])
            panel.minorticks_off()
    panels[0].set_ylabel(metric)
    figure.savefig(path)
