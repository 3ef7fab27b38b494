"""Several runs: what is varied, what was done already, which is best; and the two commands on a tiny backbone."""

import json

import pytest

from adapters.errors import InvalidRequest
from service.trial_plot import plot_trials
from service.trials import best_trial, draw_choices, read_choices, run_trials, trial_rows, varied
from tests.service.test_cli import assert_one_line, headstock

BASE = {"task": "text-classification", "data": {"train": "rows.jsonl"}}


def write_rows(path, count=60):
    words = ("good", "bad")
    rows = [{"text": f"a {words[i % 2]} film {i}", "label": "+-"[i % 2]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_choices_are_read_and_combined():
    choices = read_choices(["lora.rank=4,8", "fit.schedule=linear,cosine"])
    assert choices == {"lora.rank": [4, 8], "fit.schedule": ["linear", "cosine"]}
    every = draw_choices(choices, 10, 0)
    assert len(every) == 4
    some = draw_choices(choices, 3, 0)
    assert [choice for choice in every if choice in some] == some
    assert len(some) == 3
    config = varied(BASE, {"lora.rank": 4, "fit.learning_rate": 0.01})
    assert (config.lora.rank, config.fit.learning_rate, config.data.train) == (
        4,
        0.01,
        "rows.jsonl",
    )


@pytest.mark.parametrize("given", [["lora.rank"], ["lora.rank="], ["a=1", "a=2"]])
def test_choices_without_values_or_given_twice_are_refused(given):
    with pytest.raises(InvalidRequest, match=r"lora\.rank=4,8,16"):
        read_choices(given)


def test_a_run_that_fails_leaves_the_others_and_finished_ones_are_not_run_again(
    tmp_path, decoder_folder
):
    base = {
        "task": "text-classification",
        "backbone": str(decoder_folder),
        "dtype": "float32",
        "data": {"train": str(write_rows(tmp_path / "rows.jsonl")), "validation_share": 0.2},
    }
    choices = {
        "one": {"fit.epochs": 1, "fit.learning_rate": 1e-6},
        "bad": {"lora.target_modules": ["nowhere"]},
        "two": {"fit.epochs": 6, "fit.learning_rate": 0.01, "fit.batch_tokens": 64},
    }
    configs = {name: varied(base, choice) for name, choice in choices.items()}
    told = []

    def run():
        return list(
            run_trials(
                configs, choices, tmp_path / "out", tmp_path, lambda name, _: told.append(name)
            )
        )

    trials = run()
    assert [bool(trial.result) for trial in trials] == [True, False, True]
    assert "nowhere" in trials[1].error
    assert best_trial(trials, "validation").name == "two"
    rows = trial_rows(trials, "validation")
    assert rows[2]["accuracy"] > 0.9
    assert "error" in rows[1]
    plot_trials(rows, ["fit.epochs"], "accuracy", tmp_path / "sweep.svg")
    assert "<svg" in (tmp_path / "sweep.svg").read_text()
    told.clear()
    assert [trial.result for trial in run()] == [trial.result for trial in trials]
    assert set(told) == {"bad"}


def test_sweep_tells_the_best_and_needs_validation_rows(tmp_path, decoder_folder):
    rows = write_rows(tmp_path / "rows.jsonl")
    command = [
        "sweep",
        "text-classification",
        rows,
        "--out",
        tmp_path / "out",
        "--home",
        tmp_path / "home",
    ]
    assert_one_line(headstock(*command), "--validation-share")
    done = headstock(
        *command,
        *("--backbone", decoder_folder, "--validation-share", "0.2"),
        *("--vary", "fit.learning_rate=0.0001,0.02", "--set", "fit.batch_tokens=64"),
        *("--set", "fit.epochs=5"),
    )
    assert done.returncode == 0, done.stderr
    assert "Best: trial-002, accuracy" in done.stdout
    assert "--set fit.learning_rate=0.02" in done.stdout
    assert len(json.loads((tmp_path / "out" / "sweep.json").read_text())) == 2
    assert (tmp_path / "out" / "sweep.svg").is_file()


def test_backbones_are_compared_side_by_side(tmp_path, decoder_folder, encoder_folder):
    done = headstock(
        *("backbone", "compare", "--data", write_rows(tmp_path / "rows.jsonl")),
        *("--task", "text-classification", "--out", tmp_path / "out", "--home", tmp_path / "home"),
        *("--backbone", decoder_folder, "--backbone", encoder_folder, "--max-tokens", "400"),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert len(rows) == 2
    wanted = {"accuracy", "train_tokens_per_second", "test_rows_per_second", "peak_mb"}
    assert all(wanted <= set(row) for row in rows)
