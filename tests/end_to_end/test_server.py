"""One real server on a tiny backbone: predictions, bad input, uploads, and a swap under load."""

import base64
import json
import struct
import threading

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoModel, AutoTokenizer

from tests.jobs import write_films

JSON = {"Content-Type": "application/json"}
QUESTION = {"question": "Who wrote it?", "context": "Ada Lovelace wrote the first program in 1843."}


def test_each_task_answers_in_its_own_form(client):
    (label,) = client.predict("labels", "A wonderful film.")
    assert label["label"] in label["scores"]
    assert sum(label["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert (label["adapter"], label["version"], label["truncated"]) == ("labels", 1, False)
    (answer,) = client.predict("answers", QUESTION)
    assert answer["answer"] == QUESTION["context"][answer["start"] : answer["end"]]
    (summary,) = client.predict("summary", "The dog sleeps in the warm sun.", max_new_tokens=5)
    assert summary["usage"]["completion_tokens"] <= 5
    assert summary["finish_reason"] in ("stop", "length")


def test_one_call_may_hold_many_adapters_and_one_backbone_call_all_tasks(client):
    requests = [
        {"adapter": "labels", "input": "good"},
        {"adapter": "many", "input": {"text": "bad"}},
        {"adapter": "answers", "input": QUESTION},
        {"adapter": "summary", "input": "The sun."},
    ]
    answers = client.predict_many(requests * 3)
    assert [answer["adapter"] for answer in answers[:4]] == ["labels", "many", "answers", "summary"]
    assert len(answers[1]["scores"]) == 77
    client.predict_many(requests * 5)  # everything is resident now, so all 20 rows start together
    largest = client.stats()["largest"]
    assert largest["tasks"] == ["question-answering", "summarization", "text-classification"]
    assert (largest["rows"], largest["adapters"]) == (20, 4)


@pytest.mark.parametrize(
    ("body", "status", "code", "param", "message"),
    [
        (
            {"adapter": "nope", "inputs": "x"},
            404,
            "not_found",
            "adapter",
            "No adapter named 'nope'",
        ),
        ({"adapter": "labels:9", "inputs": "x"}, 404, "not_found", "adapter", "no version '9'"),
        ({"adapter": "labels@x", "inputs": "x"}, 404, "not_found", "adapter", "no alias 'x'"),
        ({"adapter": "La bels", "inputs": "x"}, 400, "invalid_request", "adapter", "'La bels'"),
        ({"adapter": "labels", "inputs": ""}, 400, "invalid_request", "input.text", "empty"),
        (
            {"adapter": "labels", "inputs": {}},
            400,
            "invalid_request",
            "input.text",
            "no field 'text'",
        ),
        ({"adapter": "labels", "inputs": {"text": 7}}, 400, "invalid_request", "input.text", "'7'"),
        ({"adapter": "labels", "inputs": 7}, 400, "invalid_request", "input", "'7'"),
        ({"adapter": "answers", "inputs": "x"}, 400, "invalid_request", "input", "'question'"),
        (
            {"adapter": "labels", "inputs": {"text": "x", "lang": "en"}},
            400,
            "invalid_request",
            "input.lang",
            "unknown field 'lang'",
        ),
        (
            {"adapter": "labels", "inputs": "x", "parameters": {"temp": 1}},
            400,
            "invalid_request",
            "parameters.temp",
            "unknown field 'temp'",
        ),
        (
            {"adapter": "labels", "inputs": "so long " * 300},
            400,
            "text_too_long",
            "text",
            "truncate",
        ),
        ({"inputs": "x"}, 400, "invalid_request", None, "'adapter' and 'inputs'"),
        ({"adapter": "labels", "inputs": []}, 400, "invalid_request", "inputs", "'0' inputs"),
        ({"adapter": "labels", "input": "x"}, 400, "invalid_request", "input", "unknown field"),
        (
            {"adapter": "ns/labels", "inputs": "x"},
            404,
            "not_found",
            "adapter",
            "No adapter named 'ns/labels'. Known: none yet.",
        ),
    ],
)
def test_bad_input_gets_its_status_code_message_and_param(
    client, body, status, code, param, message
):
    response = client._http.post("/v1/predict", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    if param is not None:
        assert error["param"] == param
    assert message is None or message in error["message"]
    assert client.predict("labels", "still here")[0]["label"]


PLAIN = {"Content-Type": "text/plain"}


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (b"{no", JSON, "not JSON at byte 1, before 'no': Expecting property name"),
        ("{'ä': 1}".encode(), JSON, "not JSON at byte 1, before "),
        ('{"ä": x}'.encode(), JSON, "not JSON at byte 7, before 'x}': Expecting value"),
        (b'{"adapter":', JSON, "not JSON at byte 11, its end: Expecting value"),
        (b'{"adapter": "\xff"}', JSON, "not utf-8 at byte 13: invalid start byte"),
        (b'{"adapter": ' + b"1" * 5000 + b"}", JSON, "a number of more than '4300' digits"),
        (b'{"inputs": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", JSON, "too deep"),
        (b'{"adapter": "labels", "inputs": "x"}', PLAIN, "Content-Type is 'text/plain'"),
        (
            b'{"adapter": "labels", "inputs": "x"}',
            {},
            "Content-Type is ''; send 'application/json'",
        ),
        (b"", JSON, "The body is empty"),
        (b"null", JSON, "The body is 'None'; send a JSON object"),
        (b"[1]", JSON, "The body is '[1]'; send a JSON object"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_body_that_can_t_be_read_is_refused_with_the_reason(client, body, headers, said):
    paths = ["/v1/predict", "/v1/embeddings"]
    paths += ["/v1/adapters"] if headers is JSON and body[:1] == b"{" else []
    for path in paths:
        response = client._http.post(path, content=body, headers=headers)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "invalid_request")
        assert said in error["message"]
        assert error["param"] in (None, "content-type")


@pytest.mark.parametrize(
    "wrong",
    [
        {"adapter": "a" * 10**6},
        {"adapter": "labels", "parameters": {"a" * 10**6: 1}},
        {"adapter": "labels", "parameters": {"truncate": "a" * 10**6}},
    ],
)
def test_what_all_rows_share_and_is_wrong_is_not_repeated_at_length(client, wrong):
    response = client._http.post("/v1/predict", json={**wrong, "inputs": ["x"] * 256})
    assert response.status_code == 400
    assert len(response.json()["predictions"]) == 256
    assert len(response.content) < 2**18


def test_a_bad_row_fails_alone(client):
    answers = client.predict("labels", ["good", "", "x" * 5000, "bad"])
    assert ["error" in answer for answer in answers] == [False, True, True, False]
    assert answers[2]["error"]["code"] == "text_too_long"


def test_a_text_is_cut_only_when_asked_and_the_answer_says_so(client):
    (answer,) = client.predict("labels", "so long " * 300, truncate=True)
    assert answer["truncated"] is True
    assert answer["usage"]["prompt_tokens"] <= 200


def test_unknown_routes_have_the_one_error_form(client):
    response = client._http.get("/v1/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_answers_do_not_depend_on_who_else_asks(client):
    texts = [f"a film with {i} good scenes" for i in range(12)]
    alone = [client.predict("labels", text)[0]["scores"]["label-0"] for text in texts]
    found: dict[str, float] = {}

    def ask(text):
        with httpx.Client(base_url=client._http.base_url, timeout=60) as http:
            requests = [{"adapter": a, "input": text} for a in ("many", "labels", "summary")]
            answers = http.post("/v1/predict", json={"requests": requests}).json()["predictions"]
            found[text] = answers[1]["scores"]["label-0"]

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[text] for text in texts] == pytest.approx(alone, abs=1e-4)


HALF = "\ud800"


def test_half_a_surrogate_pair_is_refused_and_no_listing_breaks(client, tmp_path):
    with write_films(tmp_path / "films.jsonl").open("rb") as films:
        file = client._http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": films})
    order = {"model": "tiny-llama", "training_file": file.json()["id"]}
    for method, path, body, param in (
        ("POST", "/v1/fine_tuning/jobs", {**order, "metadata": {"a": HALF}}, "metadata.a"),
        ("POST", "/v1/fine_tuning/jobs", {**order, "training_file": HALF}, "training_file"),
        ("PATCH", "/v1/adapters/labels/versions/1", {"tags": {"a": HALF}}, "tags.a"),
        ("POST", "/v1/embeddings", {"model": "tiny-llama", "input": HALF}, "input"),
        ("POST", "/v1/adapters", {"name": "a", "job": HALF}, "job"),
    ):
        response = client._http.request(method, path, content=json.dumps(body), headers=JSON)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    for path in ("/v1/fine_tuning/jobs", "/v1/adapters/labels/versions"):
        assert client._http.get(path).status_code == 200


def test_half_a_surrogate_pair_in_a_row_is_that_row_s_fault(client):
    body = {"adapter": "labels", "inputs": ["good", HALF, {"text": "a", "text_pair": HALF}]}
    response = client._http.post("/v1/predict", content=json.dumps(body), headers=JSON)
    assert response.status_code == 200
    good, *bad = response.json()["predictions"]
    assert good["label"]
    assert [each["error"]["code"] for each in bad] == ["invalid_request"] * 2


def test_a_client_that_goes_away_takes_its_rows_along(client):
    url = client._http.base_url
    body = {
        "adapter": "summary",
        "inputs": ["The sun."] * 200,
        "parameters": {"max_new_tokens": 150},
    }
    with httpx.Client(base_url=url, timeout=0.5) as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/predict", json=body)
    while client.stats()["waiting_rows"]:
        pass  # the rows leave long before 200 x 150 tokens are made
    tokens = client.stats()["tokens"]
    client.predict("labels", "x")
    assert client.stats()["tokens"] - tokens < 100


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/v1/adapters/labels/versions/99999999999999999999", {"method": "GET"}, 400),
        ("/v1/adapters/labels/aliases/a", {"method": "PUT", "json": {"version": 10**20}}, 400),
        (
            "/v1/predict",
            {
                "method": "POST",
                "content": rb'{"adapter": "\ud800", "inputs": "x"}',
                "headers": JSON,
            },
            400,
        ),
        ("/v1/predict", {"method": "POST", "content": b"x" * (9 * 2**20)}, 413),
    ],
)
def test_odd_values_are_the_callers_fault_and_the_connection_stays_good(
    client, path, options, status
):
    response = client._http.request(url=path, **options)
    assert response.status_code == status
    assert response.json()["error"]["message"]
    assert client.predict("labels", "x")[0]["label"]


@pytest.mark.parametrize("text", ["\x00", "\u200b", "<|end|>", "\u2028", "😀" * 50])
def test_odd_texts_are_answered_or_refused_but_never_hang(client, text):
    for adapter, given in (
        ("labels", {"text": text, "text_pair": "word " * 400}),
        ("answers", {"question": "word " * 400, "context": text}),
        ("answers", {"question": "who", "context": text}),
        ("summary", {"text": text}),
    ):
        body = {"adapter": adapter, "inputs": given, "parameters": {"truncate": True}}
        assert client._http.post("/v1/predict", json=body, timeout=30).status_code in (200, 400)


def test_embeddings_have_openais_form_and_are_the_stock_models(client, decoder_folder):
    texts = ["The dog sleeps.", "北京是中国的首都。"]
    body = {"model": decoder_folder.name, "input": texts, "pooling": "mean"}
    answer = client._http.post("/v1/embeddings", json=body).json()
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    stock = AutoModel.from_pretrained(decoder_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(decoder_folder)
    for text, item in zip(texts, answer["data"], strict=True):
        with torch.no_grad():
            hidden = stock(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert item["embedding"] == pytest.approx(hidden.mean(0).tolist(), abs=1e-4)
    packed = client._http.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(
        tuple(answer["data"][0]["embedding"])
    )


@pytest.mark.parametrize(
    ("change", "status", "param", "said"),
    [
        ({"model": "gpt-9"}, 404, "model", "'gpt-9'"),
        ({"input": []}, 400, "input", "'0' inputs"),
        ({"input": ["a", " "]}, 400, "input.1", "' '"),
        ({"input": "long " * 400}, 400, "input.0", "or set truncate to true"),
        ({"input": "long " * 9000}, 400, "input.0", "or set truncate to true"),
        ({"input": 7}, 400, "input", "'7'"),
        ({"input": ["a", 7, 8]}, 400, "input.1", "'7'"),
        ({"dimensions": 9}, 400, "dimensions", "unknown field"),
    ],
)
def test_bad_input_for_embeddings_is_named(client, decoder_folder, change, status, param, said):
    body = {"model": decoder_folder.name, "input": "good", **change}
    response = client._http.post("/v1/embeddings", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert said in error["message"]


def test_a_version_can_be_warmed_pinned_and_let_go(client):
    for method, path, pinned in (
        ("POST", "warm", False),
        ("POST", "pin", True),
        ("DELETE", "pin", False),
    ):
        response = client._http.request(method, f"/v1/adapters/labels/versions/1/{path}")
        assert response.status_code in (200, 202)
        assert response.json()["is_pinned"] is pinned
    assert client._http.post("/v1/adapters/labels/versions/99/pin").status_code == 404
    digest = client._http.get("/v1/adapters/labels/versions/1").json()["digest"]
    assert digest in client.stats()["resident_adapters"]


def test_a_sampled_answer_stops_where_it_is_told_and_reports_logprobs(client):
    parameters = {"temperature": 1.0, "seed": 5, "max_new_tokens": 12, "logprobs": True}
    first, again = (client.predict("summary", "The sun.", **parameters)[0] for _ in range(2))
    assert first == again
    assert len(first["logprobs"]) == first["usage"]["completion_tokens"]
    stop = first["summary"][3:5]
    (short,) = client.predict("summary", "The sun.", **parameters, stop=[stop])
    assert short["finish_reason"] == "stop"
    assert first["summary"].startswith(short["summary"])
    assert stop not in short["summary"]


def test_metrics_are_what_prometheus_reads_and_tell_of_engine_and_jobs(client):
    client.predict("labels", "good")
    response = client._http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = {f.name: f for f in text_string_to_metric_families(response.text)}

    def value(name):
        (sample,) = families[name].samples
        return sample.value

    assert (value("headstock_engine_up"), value("headstock_waiting_rows")) == (1, 0)
    assert value("headstock_engine_rows") >= 1
    assert value("headstock_requests") == 1  # this one
    jobs = {s.labels["status"]: s.value for s in families["headstock_jobs"].samples}
    assert jobs == dict.fromkeys(("queued", "running", "succeeded", "failed", "cancelled"), 0)


def test_the_openapi_document_tells_how_errors_look_and_what_is_uploaded(client):
    document = client._call("GET", "/openapi.json")
    paths = {path: calls for path, calls in document["paths"].items() if path.startswith("/v1/")}
    answers = [call["responses"] for calls in paths.values() for call in calls.values()]
    assert len(answers) > 30
    error = {"$ref": "#/components/schemas/ErrorAnswer"}
    for each in answers:
        assert "422" not in each
        assert each["default"]["content"]["application/json"]["schema"] == error
    schemas = document["components"]["schemas"]
    told = client._http.post("/v1/predict", json={}).json()
    assert set(told) == set(schemas["ErrorAnswer"]["required"])
    assert set(told["error"]) == set(schemas["ErrorDetail"]["required"])
    for path, kinds in {"/v1/files": 1, "/v1/adapters": 4}.items():
        content = paths[path]["post"]["requestBody"]["content"]
        assert "file" in content["multipart/form-data"]["schema"]["properties"]
        assert len(content) == kinds


def test_the_openapi_document_tells_what_every_answer_holds(client):
    untyped = set()
    for path, calls in client._call("GET", "/openapi.json")["paths"].items():
        for call in calls.values() if path.startswith("/v1/") else ():
            (told,) = (each for status, each in call["responses"].items() if status[0] == "2")
            schema = told["content"].get("application/json", {}).get("schema", {})
            untyped |= set() if {"$ref", "anyOf"} & set(schema) else {path.rpartition("/")[2]}
    # Pages, text and bytes.
    assert untyped == {"report", "log", "content", "load_lora_adapter", "unload_lora_adapter"}
