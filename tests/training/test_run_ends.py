"""How a run ends, whatever comes between."""

import os
import signal

import pytest

from tests.bundles import classifier, save_bundle
from tests.runs import GOOD, events, films_config, run, write
from training.contract import EventKind, ExitCode
from training.events import EventLog


@pytest.fixture
def config(tmp_path, decoder_folder):
    return films_config(tmp_path, decoder_folder)


@pytest.mark.parametrize("kind", [EventKind.FINISHED, EventKind.WARNING])
def test_sigterm_after_the_result_does_not_undo_it(tmp_path, config, kind, monkeypatch):
    """A warning stands for the report, which comes between result and end."""
    emit = EventLog.emit

    def stop_at(self, each, message, **data):
        if each == kind and (tmp_path / "out" / "result.json").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        emit(self, each, message, **data)

    monkeypatch.setattr(EventLog, "emit", stop_at)
    if kind == EventKind.WARNING:
        config |= {"must_learn": False, "fit": {**config["fit"], "learning_rate": 1e-12}}
    done = run(tmp_path, config)
    assert done.returncode == ExitCode.DONE, done.stderr
    assert events(tmp_path)[-1].kind == EventKind.FINISHED


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_row_that_no_cut_makes_fit_is_named_before_anything_is_fitted(tmp_path, config, split):
    """Of a pair of texts only the first is ever cut."""
    rows = [*GOOD[:5], {**GOOD[5], "text_pair": "long " * 1000}]
    config["data"][split] = write(tmp_path / f"{split}.jsonl", rows)
    done = run(tmp_path, config)
    assert done.returncode == ExitCode.BAD_INPUT
    assert f"The {split} rows: Line 6 can't be answered: 'text' makes a prompt of" in done.stderr
    assert not any(e.data.get("stage") == "fit" for e in events(tmp_path))


def test_an_evaluation_on_labels_that_the_bundle_does_not_know_is_refused(
    tmp_path, config, decoder_spec
):
    save_bundle(tmp_path / "bundle", decoder_spec, classifier(labels=["+", "~"]))
    config |= {"action": "evaluate", "bundle": str(tmp_path / "bundle")}
    done = run(tmp_path, config)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "Test label '-' is none of the adapter's. Known: '+', '~'" in done.stderr
    assert not (tmp_path / "out" / "result.json").exists()
