"""A run's report: ``report.json`` with all of it, and ``report.html``, one page with pictures, for people."""

from __future__ import annotations

import html
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from training.contract import (
    EVENTS_NAME,
    PAGE_NAME,
    PREDICTIONS_NAME,
    REPORT_NAME,
    Event,
    EventKind,
    RunConfig,
    RunResult,
)
from training.plots import curve_plot, matrix_plot

_WORST, _MOST_CLASSES = 20, 25
_LONGEST = 300  # code points of a text on the page
_ALL_RIGHT = 1.0
# Not to be taken for labels, which have no reason to begin so.
_REST, _NONE = "… all others", "… no answer"
_LIBRARIES = ("headstock", "torch", "transformers", "peft", "scikit-learn", "numpy")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
td, th { border: 1px solid #ddd; padding: 0.25rem 0.6rem; }
th { background: #f5f5f5; text-align: left; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.problem { background: #fdecea; padding: 0.5rem 1rem; } .warning { color: #8a6d00; }
svg { max-width: 100%; height: auto; }
td.text { white-space: pre-wrap; max-width: 28rem; overflow-wrap: anywhere; }
"""


def write_report(out: Path, config: RunConfig, result: RunResult) -> Path:
    """Write both files into a run's folder, from what lies there already; returns the page."""
    report = {
        "config": config.model_dump(mode="json"),
        # Through JSON: what is no number becomes null, which every reader of JSON takes.
        "result": json.loads(result.model_dump_json()),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "curves": read_curves(out / EVENTS_NAME),
        **_errors(out / PREDICTIONS_NAME),
    }
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (out / REPORT_NAME).write_text(text + "\n")
    (out / PAGE_NAME).write_text(page(report))
    return out / PAGE_NAME


def read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Return (step, value) pairs by name: loss and rate of the fit, and each metric of validation."""
    curves: dict[str, dict[float, float]] = {}
    for line in _lines(path):
        event = Event.model_validate_json(line)
        if event.kind == EventKind.STARTED and event.data.get("is_new"):
            curves.clear()  # what stands before is another run's
        elif event.kind == EventKind.PROGRESS and event.data.get("stage") == "fit":
            for name in ("loss", "learning_rate"):
                curves.setdefault(name, {})[event.data["done"]] = event.data[name]
        elif event.kind == EventKind.METRICS and event.data["of"] == "fit":
            for name, value in event.data["metrics"].items():
                curves.setdefault(f"validation {name}", {})[event.data["step"]] = value
    # A run that went on tells some steps twice; the last word counts.
    return {name: sorted(points.items()) for name, points in curves.items()}


def _errors(path: Path) -> dict[str, Any]:
    """Return the worst answers of the test rows and, of classes, how often which was taken for which."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in _lines(path)]
    wrong = [row for row in rows if row["row_metric"] < _ALL_RIGHT]
    found: dict[str, Any] = {"worst": sorted(wrong, key=_badness)[:_WORST]}
    if rows and isinstance(rows[0].get("label"), str) and "label" in rows[0]["prediction"]:
        found["confusion"] = confusion([(r["label"], r["prediction"]["label"]) for r in rows])
    return found


def _lines(path: Path) -> list[str]:
    # Not splitlines(), which also parts at U+2028 and its like; they may stand in a text.
    return path.read_text().rstrip("\n").split("\n") if path.stat().st_size else []


def _badness(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["row_metric"], -float(row["prediction"].get("score") or 0.0)


def confusion(pairs: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    """Return counts by right label (row) and answer (column), of the commonest labels and of the rest together."""
    common = [label for label, _ in Counter(r for r, _ in pairs).most_common(_MOST_CLASSES)]
    kept = sorted(common)
    names = [*kept, _REST, _NONE]

    def shown(label: str | None) -> str:
        return _NONE if label is None else label if label in kept else _REST

    counts = Counter((shown(right), shown(answer)) for right, answer in pairs)
    used = [n for n in names if any(counts[n, m] + counts[m, n] for m in names)]
    return {"labels": used, "counts": [[counts[r, p] for p in used] for r in used]}


def page(report: Mapping[str, Any]) -> str:
    """Return the report as one HTML page; all text from outside is escaped."""
    body = "\n".join(_sections(report))
    title = html.escape(f"{report['result']['task']} on {report['config']['backbone']}")
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def _sections(report: Mapping[str, Any]) -> Iterator[str]:
    result, curves = report["result"], report["curves"]
    yield from (f'<p class="problem">{html.escape(each)}</p>' for each in result["problems"])
    yield "<h2>Metrics</h2>" + _metrics_table(result)
    losses = {n: p for n, p in curves.items() if n.endswith("loss") and p}
    scores = {n: p for n, p in curves.items() if n.startswith("validation ") and n not in losses}
    if losses:
        yield "<h2>Loss</h2>" + curve_plot(losses, "loss")
    if scores:
        yield "<h2>Validation</h2>" + curve_plot(scores, "metric")
    if "confusion" in report:
        yield "<h2>Confusion</h2>" + matrix_plot(**report["confusion"])
    if report.get("worst"):
        yield "<h2>Worst answers on the test rows</h2>" + _worst_table(report["worst"])
    if result.get("data"):
        yield "<h2>Data</h2>" + _data_section(result["data"])
    yield "<h2>Run</h2>" + _table(_run_rows(result))
    config = json.dumps(report["config"], indent=2, ensure_ascii=False)
    yield f"<details><summary>Config</summary><pre>{html.escape(config)}</pre></details>"


def _metrics_table(result: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name for each in result["metrics"].values() for name in each))
    rows = [["of", *names]]
    for whose, values in result["metrics"].items():
        cells = ["" if values.get(name) is None else f"{values[name]:.4f}" for name in names]
        if whose == "after":
            cells = [
                f"{cell} ({' to '.join(f'{v:.3f}' for v in result['intervals'][name])})"
                if name in result["intervals"]
                else cell
                for cell, name in zip(cells, names, strict=True)
            ]
        rows.append([whose, *cells])
    return _table(rows) + "<p>In brackets: 95 % by bootstrap over the test rows.</p>"


def _worst_table(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [["line", "row", "answer"]]
    for row in rows:
        given = {
            k: v for k, v in row.items() if k not in ("line", "prediction", "row_metric") and v
        }
        answer = {k: v for k, v in row["prediction"].items() if k != "scores"}
        shown.append([str(row["line"]), _cut(given), _cut(answer)])
    return _table(shown, text_columns=(1, 2))


def _data_section(data: Mapping[str, Any]) -> str:
    rows = [["split", "rows", "fingerprint"]]
    rows += [[n, str(s["num_rows"]), s["fingerprint"][:16]] for n, s in data["splits"].items()]
    found = "".join(
        f'<p class="{f["level"]}">{html.escape(f["code"])}: {html.escape(f["message"])}</p>'
        for f in data["findings"]
    )
    return _table(rows) + found


def _run_rows(result: Mapping[str, Any]) -> list[list[str]]:
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in result["seconds"].items())
    auto = ", ".join(f"{name} {value:g}" for name, value in result["auto"].items())
    return [
        ["", ""],
        ["digest", str(result["digest"])],
        ["training rows, tokens", f"{result['num_train_rows']}, {result['num_tokens']}"],
        ["optimisation", auto],
        ["best step", str(result["best_step"] or "the last")],
        ["seconds", seconds],
        ["peak memory", f"{result['peak_bytes'] / 1e6:.0f} MB"],
    ]


def _table(rows: Sequence[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    head, *body = rows
    lines = (
        [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"]
        if any(head)
        else []
    )
    for row in body:
        cells = [
            f'<td class="{"text" if i in text_columns else "number" if i else ""}">{html.escape(cell)}</td>'
            for i, cell in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _cut(value: Mapping[str, Any]) -> str:
    text = "\n".join(
        f"{k}: {v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}"
        for k, v in value.items()
    )
    return text if len(text) <= _LONGEST else "".join(islice(text, _LONGEST)) + "…"
