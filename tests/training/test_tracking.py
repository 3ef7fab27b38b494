"""Trackers: what TensorBoard's own reader and MLflow's own client find is what the run told."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adapters.errors import EnvironmentProblem
from training.contract import EventKind, RunConfig
from training.events import EventLog, Pace
from training.tracking import mlflow_tracker, tensorboard_tracker

CONFIG = RunConfig.model_validate({"task": "text-classification", "data": {}})


def tell_a_fit(log):
    progress = log.progress("fit", 2)
    progress.update(2, loss=0.5, learning_rate=1e-3, rows_per_second=9.0)
    log.progress("test after", 3).update(3)
    found = {"accuracy": 0.75, "loss": 0.6}
    log.emit(EventKind.METRICS, "", of="fit", split="validation", step=2, metrics=found)
    log.emit(EventKind.METRICS, "", of="before", split="test", metrics={"accuracy": 0.1})
    log.emit(EventKind.METRICS, "", of="after", split="test", metrics={"accuracy": 0.7})
    log.emit(EventKind.FINISHED, "Finished", result={})


def test_tensorboard_reads_the_fit_and_its_metrics(tmp_path):
    tell_a_fit(EventLog(tmp_path / "events.jsonl", [tensorboard_tracker(tmp_path / "tb")]))
    read = EventAccumulator(str(tmp_path / "tb")).Reload()
    values = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert values == {
        "fit/loss": [(2, pytest.approx(0.5))],
        "fit/learning_rate": [(2, pytest.approx(1e-3))],
        "fit/rows_per_second": [(2, pytest.approx(9.0))],
        "validation/accuracy": [(2, pytest.approx(0.75))],
        "validation/loss": [(2, pytest.approx(0.6))],
        "test/accuracy": [(0, pytest.approx(0.7))],
    }


def test_mlflow_is_told_if_it_is_configured(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed here")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert mlflow_tracker(CONFIG, tmp_path) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "films")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tell_a_fit(EventLog(tmp_path / "events.jsonl", [mlflow_tracker(CONFIG, tmp_path / "one")]))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("films")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "one"
    assert run.info.status == "FINISHED"
    assert run.data.params["lora.rank"] == "8"
    assert run.data.metrics["validation/accuracy"] == 0.75
    assert [m.step for m in client.get_metric_history(run.info.run_id, "fit/loss")] == [2]


def test_mlflow_that_takes_no_run_is_told_before_anything_is_read(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed here")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")
    with pytest.raises(EnvironmentProblem, match="'gopher://nowhere'"):
        mlflow_tracker(CONFIG, tmp_path)


def test_a_listener_that_fails_is_left_out_and_the_run_goes_on(tmp_path):
    told = []

    def broken(event):
        raise OSError("no space left")

    log = EventLog(tmp_path / "events.jsonl", [broken, told.append])
    log.emit(EventKind.STAGE, "one", stage="fit")
    log.emit(EventKind.STAGE, "two", stage="test")
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert "Tracking ended: OSError: no space left" in lines[1]
    assert sorted(event.number for event in told) == [1, 2, 3]


def test_a_pace_counts_rows_and_tokens(monkeypatch):
    clock = iter([10.0, 12.0, 14.0])
    monkeypatch.setattr("training.events.time.monotonic", lambda: next(clock))
    pace = Pace()
    assert pace.update(4, 100) == {"rows_per_second": 2.0, "tokens_per_second": 50.0}
    assert pace.update(4, 300) == {"rows_per_second": 2.0, "tokens_per_second": 100.0}


def test_the_time_left_of_a_run_that_goes_on_is_told_by_its_own_pace(tmp_path, monkeypatch):
    clock = iter([0.0, 10.0, 12.0])
    monkeypatch.setattr("training.events.time.monotonic", lambda: next(clock))
    told = []
    progress = EventLog(tmp_path / "events.jsonl", [told.append]).progress("fit", 100)
    progress.update(51)
    progress.update(53)
    assert told[-1].data["eta_seconds"] == 47.0
