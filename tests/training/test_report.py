"""The report: what it holds, that text from outside is only text, and pictures of every form of data."""

import json
import math
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
import yaml

from adapters.bundle import BackboneReference, Lineage, Manifest
from training.contract import EventKind, RunConfig, RunResult
from training.events import EventLog
from training.model_card import model_card
from training.plots import curve_plot, matrix_plot
from training.report import confusion, read_curves, write_report

EVIL = "<script>alert('1')</script> $x$ & \"quotes\""


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def write_run(out, labels, result=None):
    log = EventLog(out / "events.jsonl")
    progress = log.progress("fit", 2)
    progress.update(2, loss=0.5, learning_rate=1e-3)
    log.emit(
        EventKind.METRICS,
        "",
        of="fit",
        split="validation",
        step=2,
        metrics={"loss": 1.0, "f1": 0.5},
    )
    lines = [
        {
            "line": i + 1,
            "text": f"{EVIL} {i}",
            "label": label,
            "prediction": {"label": labels[0], "score": 0.5 + i / 100, "scores": {}},
            "row_metric": float(label == labels[0]),
        }
        for i, label in enumerate(labels)
    ]
    (out / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = RunConfig.model_validate({"task": "text-classification", "data": {"train": EVIL}})
    result = result or RunResult(
        task="text-classification",
        primary_metric="accuracy",
        digest="d" * 64,
        metrics={"after": {"accuracy": 0.5}, "majority": {"accuracy": 0.4}},
        intervals={"accuracy": (0.4, 0.6)},
        problems=[EVIL],
    )
    return write_report(out, config, result)


def test_the_page_shows_everything_and_text_from_outside_stays_text(tmp_path):
    path = write_run(tmp_path, [EVIL, "b", "b"])
    page = Tags()
    page.feed(path.read_text())
    assert "script" not in page.tags
    assert page.tags.count("svg") == 3
    text = "".join(page.text)
    assert text.count(EVIL) >= 4
    assert "0.5000 (0.400 to 0.600)" in text
    assert "Confusion" in text
    assert "http" not in path.read_text().replace("http://www.w3.org", "").split("<svg")[0]


def test_what_is_no_number_is_null_in_the_json_and_blank_on_the_page(tmp_path):
    metrics = {"after": {"accuracy": 0.5, "loss": math.nan}}
    result = RunResult(task="text-classification", primary_metric="accuracy", metrics=metrics)
    path = write_run(tmp_path, ["a", "b"], result)
    text = (path.parent / "report.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["result"]["metrics"]["after"]["loss"] is None
    assert "nan" not in path.read_text()


def test_the_json_holds_curves_confusion_and_the_worst_answers(tmp_path):
    write_run(tmp_path, ["a", "b", "b"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) == {"config", "result", "versions", "curves", "worst", "confusion"}
    assert report["curves"]["loss"] == [[2, 0.5]]
    assert report["curves"]["validation f1"] == [[2, 0.5]]
    assert [row["line"] for row in report["worst"]] == [
        3,
        2,
    ]  # the surest mistake first, no right answer
    assert report["confusion"] == {"labels": ["a", "b"], "counts": [[1, 0], [2, 0]]}


def test_a_text_with_line_ends_of_unicode_is_one_row(tmp_path):
    write_run(tmp_path, ["a\u2028b\x85", "b"])
    path = tmp_path / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    result = RunResult(task="text-classification", primary_metric="accuracy")
    write_report(tmp_path, RunConfig(task="text-classification", data={}), result)
    assert "a\u2028b\x85" in (tmp_path / "report.json").read_text()
    assert len(json.loads((tmp_path / "report.json").read_text())["worst"]) == 1


def test_of_many_classes_the_rare_ones_are_one():
    pairs = [(f"class {i:02}", f"class {i:02}") for i in range(30) for _ in range(40 - i)]
    found = confusion([*pairs, ("class 00", None), ("class 29", "class 28")])
    assert found["labels"][-2:] == ["… all others", "… no answer"]
    assert len(found["labels"]) == 27
    assert sum(map(sum, found["counts"])) == len(pairs) + 2


def test_a_label_called_other_is_one_like_any():
    found = confusion([("other", "other"), ("a", "other"), ("a", "a")])
    assert found == {"labels": ["a", "other"], "counts": [[1, 1], [0, 1]]}


@pytest.mark.parametrize("names", [["a", "b"], ["$x", "^{"], ["北京", "a" * 80]])
def test_pictures_are_whole_svgs_whatever_their_names(names):
    for text in (
        matrix_plot(names, [[1, 0], [0, 2]]),
        curve_plot({name: [(1, 2.0), (2, 1.0)] for name in names}, "loss"),
    ):
        assert ElementTree.fromstring(text.strip()).tag.endswith("svg")


def manifest_on(backbone):
    return Manifest.model_validate(
        {
            "task": "text-classification",
            "options": {},
            "head": None,
            "backbone": BackboneReference(name=backbone, fingerprint="f" * 64, tokenizer="t" * 64),
            "files": {},
            "metrics": {"after": {"accuracy": 0.75}, "majority": {"accuracy": 0.5}},
            "lineage": Lineage(data={"test": "s" * 64}, seed=3),
            "digest": "d" * 64,
        }
    )


def test_the_card_is_what_the_hub_reads():
    card = model_card(manifest_on("b: {x}"), {"accuracy": (0.7, 0.8)})
    _, header, body = card.split("---\n", 2)
    read = yaml.safe_load(header)
    assert read["base_model"] == "b: {x}"
    (results,) = read["model-index"][0]["results"]
    assert results["metrics"] == [{"type": "accuracy", "value": 0.75}]
    assert results["dataset"]["revision"] == "s" * 64
    assert "PeftModel.from_pretrained" in body
    assert "| after | accuracy | 0.7500 | 0.7000 to 0.8000 |" in body
    assert "| majority | accuracy | 0.5000 |  |" in body


def test_the_card_names_a_packaged_backbone_as_the_hub_does():
    header = model_card(manifest_on("all-minilm-l6-v2"), {}).split("---\n", 2)[1]
    assert yaml.safe_load(header)["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"


def test_curves_are_those_of_the_last_run_and_of_what_it_goes_on_from(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    curves = []
    for is_new, steps in ((True, (1, 2, 3, 4)), (True, (1, 2)), (False, (2, 3))):
        log.emit(EventKind.STARTED, "", is_new=is_new)
        for step in steps:
            log.emit(EventKind.PROGRESS, "", stage="fit", done=step, loss=0.5, learning_rate=0.1)
        curves.append([step for step, _ in read_curves(tmp_path / "events.jsonl")["loss"]])
    assert curves == [[1, 2, 3, 4], [1, 2], [1, 2, 3]]
