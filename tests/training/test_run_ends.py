"""How a run ends, whatever comes between."""

import os
import signal

import pytest

from tests.runs import events, films_config, run
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
