"""Fits that are compared: the same rows for all, chosen by hash, and stock Trainer's answers read by the task."""

import json

import numpy as np
import pytest
from rich.console import Console

from adapters.backbone import describe_backbone
from adapters.errors import InvalidRequest
from adapters.tokenizer import load_tokenizer
from benchmarks.ablation import Study, Variant, run_ablation, run_study
from benchmarks.accuracy import OURS, STOCK, _row, table
from benchmarks.cells import Cell
from benchmarks.fits import FitSet, cut_set, prepare_work
from benchmarks.peers import fit_ours, fit_trainer
from benchmarks.peers.fit_job import OUTCOME_NAME
from benchmarks.session import Model, Options, Session
from training.contract import FitSettings

ROWS = {
    "text-classification": [
        # U+2028 may stand in JSON as it is, and ends no line.
        {"text": f"a {'good' if i % 2 else 'bad'}\u2028film {i}", "label": "+" if i % 2 else "-"}
        for i in range(24)
    ],
    "regression": [{"text": f"a film {i}", "score": i / 4} for i in range(24)],
    "token-classification": [
        {"tokens": ["in", f"City{i}", "now"], "tags": ["O", "B-place", "O"]} for i in range(24)
    ],
    "question-answering": [
        {
            "question": "where",
            "context": f"it is in City{i} now",
            "answers": [{"text": f"City{i}", "answer_start": 9}],
        }
        for i in range(24)
    ],
    "translation": [{"source": f"a film {i}", "target": f"ein Film {i}"} for i in range(24)],
}


@pytest.fixture
def model(decoder_folder):
    return Model("tiny", describe_backbone(decoder_folder), load_tokenizer(decoder_folder))


def write_set(data, name, rows):
    folder = data / name
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines))


def prepared(model, tmp_path, task, settings=None):
    write_set(tmp_path / "data", "set", ROWS[task])
    cut = cut_set(tmp_path / "data", "set", 10_000, 6, model, tmp_path / "rows")
    options = {"max_new_tokens": 4} if task == "translation" else {}
    settings = settings or FitSettings(epochs=2, batch_tokens=64, learning_rate=5e-3)
    return prepare_work(FitSet("set", task, "tiny", options), model, cut, settings)


def test_rows_are_chosen_by_hash_whatever_their_order(model, tmp_path):
    rows = ROWS["text-classification"]
    write_set(tmp_path / "a", "set", rows)
    write_set(tmp_path / "b", "set", rows[::-1])
    cuts = [cut_set(tmp_path / n, "set", 60, 5, model, tmp_path / "rows" / n) for n in "ab"]
    assert cuts[0].train.read_text() == cuts[1].train.read_text()
    assert cuts[0].test.read_text() == cuts[1].test.read_text()
    assert 0 < cuts[0].train.read_text().count("\n") < len(rows)
    assert cuts[0].test.read_text().count("\n") == 5


def test_a_folder_without_the_set_is_told_with_what_it_should_hold(model, tmp_path):
    with pytest.raises(InvalidRequest, match="NAME/train"):
        cut_set(tmp_path, "nowhere", 10, 5, model, tmp_path / "rows")


@pytest.mark.parametrize("task", ROWS)
def test_both_systems_learn_as_many_tokens_and_stocks_answers_are_read(
    model, tmp_path, task, monkeypatch
):
    work = prepared(model, tmp_path, task)
    job = work.job("float32", 1, 0, answer=True)
    outcomes = {}
    for system in (fit_trainer, fit_ours):
        out = tmp_path / system.__name__
        out.mkdir()
        job.save(out / "job.json")
        monkeypatch.setattr("sys.argv", ["fit", str(out / "job.json"), str(out)])
        system.main()
        outcomes[system] = json.loads((out / OUTCOME_NAME).read_text())
    assert outcomes[fit_ours]["tokens"] == pytest.approx(outcomes[fit_trainer]["tokens"], rel=0.1)
    assert all(np.isfinite(each["loss"]) for each in outcomes.values())
    predictions = work.predictions(tmp_path / fit_trainer.__name__)
    scores = work.task.score(predictions, [e.target for e in work.examples])
    assert len(predictions) == 6
    assert work.task.primary_metric in scores


def cells(work, system, labels):
    predictions = [{"label": label} for label in labels]
    metrics = work.task.score(predictions, [e.target for e in work.examples])
    return [
        Cell(
            "set",
            "t",
            "tiny",
            system,
            0,
            "float32",
            "accuracy",
            metrics,
            1,
            6,
            1.0,
            {},
            predictions,
        )
    ]


def test_a_difference_has_an_interval_over_rows_drawn_alike(model, tmp_path):
    work = prepared(model, tmp_path, "text-classification")
    right = [example.target.label for example in work.examples]
    wrong = ["+" if label == "-" else "-" for label in right]
    fit_set = FitSet("set", "text-classification", "tiny")
    same = _row(fit_set, work, cells(work, OURS, right), cells(work, STOCK, right))
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    half = right[:3] + wrong[3:]
    row = _row(fit_set, work, cells(work, OURS, right), cells(work, STOCK, half))
    assert row.difference == pytest.approx(50)
    assert 0 <= row.low < 50 < row.high <= 100
    assert "| set | tiny | accuracy | 1 |" in table([row])
    assert "+50.0" in table([row])


@pytest.fixture
def session(tmp_path):
    return Session(Options(threads=1), tmp_path / "home", tmp_path / "scratch", Console(quiet=True))


def test_a_study_compares_variants_with_the_plain_run_and_goes_on(
    session, decoder_folder, tmp_path
):
    write_set(tmp_path / "data", "set", ROWS["text-classification"])
    fit_set = FitSet("set", "text-classification", str(decoder_folder))
    last = Variant("swap-last-1", {"swap": 0.5}, last_layers=1, keeps_frozen=True)
    variants = (Variant("plain"), last)
    study = Study("tiny", fit_set, 2_000, 800, 2, variants)
    rows = run_study(session, study, tmp_path / "data", tmp_path / "out")
    assert [row.variant for row in rows] == ["plain", "swap-last-1"]
    assert rows[0].difference == 0
    assert all(row.seeds == 2 and row.speed > 0 for row in rows)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert len(kept) == 4
    assert run_study(session, study, tmp_path / "data", tmp_path / "out") == rows
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_unknown_study_is_refused_with_those_there_are(session, tmp_path):
    with pytest.raises(InvalidRequest, match=r"'nothing'.*augmentation.*layers"):
        run_ablation(session, tmp_path, ["nothing"], tmp_path / "out")
