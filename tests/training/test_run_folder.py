"""Several runs in one folder, one after the other: what goes on, and what a new one leaves nothing of."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.runs import events, films_config, run, write
from training.contract import ExitCode


@pytest.fixture
def config(tmp_path, decoder_folder):
    return {**films_config(tmp_path, decoder_folder), "evaluate_untrained": False}


def report_of(tmp_path):
    return json.loads((tmp_path / "out" / "report.json").read_text())


def test_another_run_in_the_same_folder_is_told_without_the_first(tmp_path, config):
    assert run(tmp_path, config).returncode == ExitCode.DONE
    first = report_of(tmp_path)
    assert "confusion" in first
    config["data"].pop("test")
    config["fit"]["epochs"] = 1
    assert run(tmp_path, {**config, "must_learn": False}).returncode == ExitCode.DONE
    second = report_of(tmp_path)
    steps = [step for step, _ in second["curves"]["loss"]]
    assert steps[-1] < [step for step, _ in first["curves"]["loss"]][-1]
    assert not {"worst", "confusion"} & set(second)
    assert not (tmp_path / "out" / "predictions.jsonl").exists()
    told = events(tmp_path)  # whoever follows them counts on what was there
    assert [event.number for event in told] == list(range(1, len(told) + 1))
    read = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    assert [event.step for event in read.Scalars("fit/loss")] == steps


def test_a_run_that_fails_leaves_no_result_of_the_one_before(tmp_path, config):
    assert run(tmp_path, config).returncode == ExitCode.DONE
    write(tmp_path / "train.jsonl", ["no object"])
    assert run(tmp_path, config).returncode == ExitCode.BAD_INPUT
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {"result.json", "report.json", "report.html", "predictions.jsonl"} & left


def test_a_dry_run_or_an_evaluation_leaves_the_checkpoint_of_a_stopped_run(tmp_path, config):
    assert run(tmp_path, config).returncode == ExitCode.DONE
    bundle = (tmp_path / "out" / "bundle").rename(tmp_path / "bundle")
    checkpoint = tmp_path / "out" / "checkpoint.safetensors"
    checkpoint.write_bytes(b"of a run that was stopped")
    assert run(tmp_path, {**config, "action": "estimate"}).returncode == ExitCode.DONE
    evaluate = {**config, "action": "evaluate", "bundle": str(bundle)}
    assert run(tmp_path, evaluate).returncode == ExitCode.DONE
    assert checkpoint.read_bytes() == b"of a run that was stopped"
