"""Requests that several rows answer, over HTTP: answers in windows, tags in windows, summaries in parts."""

import pytest

from adapters.tasks.catalog import get_task
from adapters.tasks.pieces import join_texts, split_text
from service.client import ClientError
from tests.bundles import save_bundle, summarizer
from tests.servers import running_server
from tests.tiny import CORPUS

TEXT = " ".join(CORPUS * 6) + " 🙂"
ROOM = 100
TASKS = {
    "answers": get_task("question-answering", {"unanswerable": True, "stride": 20}),
    "never": get_task("question-answering", {"unanswerable": True, "no_answer_threshold": -1000.0}),
    "always": get_task("question-answering", {"no_answer_threshold": -1000.0}),
    "tags": get_task("token-classification", {"labels": ["a"], "stride": 20}),
    "summary": summarizer(),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory, decoder_folder, decoder_spec):
    root = tmp_path_factory.mktemp("parts")
    with running_server(
        root / "home", str(decoder_folder), dtype="float32", max_row_tokens=ROOM
    ) as (client, _):
        for name, task in TASKS.items():
            save_bundle(root / name, decoder_spec, task, seed=len(name))
            client.create_version(name, root / name)
        yield client


def test_a_long_context_is_answered_in_windows(client):
    question = {"question": "Who wrote it?", "context": TEXT}
    answer, never, always = (
        client.predict(name, question)[0] for name in ("answers", "never", "always")
    )
    assert answer["usage"]["prompt_tokens"] > 3 * ROOM
    assert not answer["truncated"]
    assert answer["has_answer"] is (answer["no_answer_score"] <= 0)
    assert (never["answer"], never["start"], never["has_answer"]) == ("", None, False)
    assert never["no_answer_score"] > -1000
    assert 0 < never["score"] < 1
    assert always["answer"] == TEXT[always["start"] : always["end"]] != ""
    assert (always["has_answer"], always["no_answer_score"]) == (True, None)


def test_a_context_of_too_many_windows_is_refused_or_cut(client):
    question = {"question": "Who wrote it?", "context": TEXT * 20}
    with pytest.raises(ClientError, match="windows; at most 64 are read") as caught:
        client.predict("answers", question)
    assert (caught.value.status, caught.value.code) == (400, "text_too_long")
    assert client.predict("answers", question, truncate=True)[0]["truncated"]


def test_a_long_text_is_tagged_in_windows(client):
    (answer,) = client.predict("tags", TEXT)
    assert answer["usage"]["prompt_tokens"] > 3 * ROOM
    assert answer["entities"]
    assert all(TEXT[e["start"] : e["end"]] == e["text"] for e in answer["entities"])
    assert max(e["end"] for e in answer["entities"]) > len(TEXT) * 0.8


def test_a_long_text_is_refused_cut_or_summarized_in_parts(client):
    with pytest.raises(ClientError, match="makes a prompt of") as caught:
        client.predict("summary", TEXT)
    assert caught.value.code == "text_too_long"
    (cut,) = client.predict("summary", TEXT, long_text="cut")
    assert cut["truncated"]
    (parts,) = client.predict("summary", TEXT, long_text="parts")
    assert not parts["truncated"]
    assert parts["usage"]["prompt_tokens"] > 3 * ROOM > cut["usage"]["prompt_tokens"]


def test_summaries_of_parts_are_summarized_again(client, decoder_tokenizer):
    task = TASKS["summary"]
    (whole,) = client.predict("summary", TEXT, long_text="parts")
    request, parameters = task.Request(text=TEXT), task.Parameters(long_text="parts")
    parts = task.encode_parts(decoder_tokenizer, request, parameters, ROOM)
    pieces = split_text(TEXT, len(parts))
    firsts = [client.predict("summary", piece)[0] for piece in pieces]
    joined = join_texts([first["summary"] for first in firsts])
    assert len(joined) < len(TEXT) / 2
    (last,) = client.predict("summary", joined, long_text="parts")
    assert whole["summary"] == last["summary"] != joined
    tokens = sum(each["usage"]["prompt_tokens"] for each in [*firsts, last])
    assert whole["usage"]["prompt_tokens"] == tokens


def test_a_stream_carries_one_part(client):
    body = {
        "adapter": "summary",
        "inputs": TEXT,
        "parameters": {"long_text": "parts"},
        "stream": True,
    }
    response = client._http.post("/v1/predict", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stream"
