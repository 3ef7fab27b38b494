"""What a run tells, as lines on a console."""

import io
import json

import httpx
import pytest
from rich.console import Console

from service.client import Client
from service.commands.jobs import _follow
from service.runs import RunProgress
from service.trials import trial_table
from training.contract import Event, EventKind


def said(title, kind, message, **data):
    console = Console(file=io.StringIO(), width=40)
    RunProgress(console, title).show(
        Event(number=1, time=0.0, kind=kind, message=message, data=data)
    )
    return console.file.getvalue()


@pytest.mark.parametrize("label", ["[/rare]", "[bold]", "[red]x[/red]", "a\\"])
def test_a_label_that_looks_like_markup_is_shown_as_it_is(label):
    message = f"Label '{label}' has only 1 training rows."
    assert said("t", EventKind.WARNING, message) == f"  t: note: {message}\n"
    assert said("t", EventKind.STAGE, message, stage="read") == f"  t: {message}\n"


def test_a_message_is_one_line_however_narrow_the_console():
    message = "word " * 40 + "end"
    assert said("t", EventKind.WARNING, message) == f"  t: note: {message}\n"


def test_a_trials_error_that_looks_like_markup_is_shown_as_it_is():
    console = Console(file=io.StringIO(), width=120)
    console.print(trial_table([{"name": "trial-001", "error": "No label '[/rare]'."}], None))
    assert "No label '[/rare]'." in console.file.getvalue()


def test_a_jobs_events_are_lines_of_their_own_in_a_pipe(capsys):
    message = "word " * 40 + "[/end]"
    event = {"created_at": 0, "level": "info", "type": "message", "message": message, "data": {}}

    def answer(request):
        if request.url.path.endswith("/events"):
            return httpx.Response(200, text=f"id: 1\ndata: {json.dumps(event)}\n\ndata: [DONE]\n\n")
        return httpx.Response(200, json={"status": "succeeded"})

    with Client() as client:
        client._http = httpx.Client(base_url="http://a", transport=httpx.MockTransport(answer))
        _follow(client, "ftjob-1")
    assert [line for line in capsys.readouterr().out.splitlines() if message in line]
