"""Pictures of a run as SVG text, to stand in a page: curves over steps, and a matrix of counts."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

_SALT = "headstock"  # of the ids in an SVG: the same run gives the same picture


def curve_plot(curves: Mapping[str, Sequence[tuple[float, float]]], label: str) -> str:
    """Return curves over steps; one of few points has its points marked."""
    figure, panel = _figure(7.5, 3.2)
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        panel.plot(steps, values, marker="o" if len(points) < 20 else "", label=name, linewidth=1.4)
    panel.set_xlabel("step")
    panel.set_ylabel(label)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    return _svg(figure)


def matrix_plot(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Return counts by right label (down) and answer (across), each row coloured by its shares."""
    import numpy as np

    counts_CC = np.array(counts, np.float64)
    shares_CC = counts_CC / np.maximum(1, counts_CC.sum(1, keepdims=True))
    size = 2.2 + 0.42 * len(labels)
    figure, panel = _figure(size + 1, size)
    panel.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    # matplotlib would read dollars as the borders of a formula.
    names = [_short(label).replace("$", r"\$") for label in labels]
    panel.set_xticks(range(len(labels)), labels=names, rotation=90)
    panel.set_yticks(range(len(labels)), labels=names)
    panel.set_xlabel("answer")
    panel.set_ylabel("right")
    for (row, column), count in np.ndenumerate(counts_CC):
        if count:
            colour = "white" if shares_CC[row, column] > 0.5 else "black"
            panel.text(column, row, f"{count:.0f}", ha="center", va="center", color=colour, size=8)
    return _svg(figure)


def _short(label: str) -> str:
    return label if len(label) <= 24 else f"{label[:23]}…"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # slow to load, and not needed to train

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any) -> str:
    import matplotlib

    text = io.StringIO()
    # Text stays text: the reader's fonts know scripts that matplotlib's own has no glyphs for.
    with (
        matplotlib.rc_context({"svg.hashsalt": _SALT, "svg.fonttype": "none"}),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", UserWarning)  # of those glyphs
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<!DOCTYPE")[2].partition(">")[2]
