"""The native protocol: one form of call or the other, inputs in order, one status for the whole answer."""

import json

import pytest
from pydantic import ValidationError

from adapters.errors import (
    InvalidRequest,
    NotFound,
    Overloaded,
    PredictionFailed,
    TextTooLong,
    TooLarge,
    Unavailable,
)
from adapters.tasks.catalog import task_class
from adapters.validation import first_problem
from service.protocols.native import PredictBody, answer, items_of

GOOD = {"label": "pos", "score": 0.9}


def items(body, max_rows=4):
    parsed = items_of(PredictBody.model_validate(body), max_rows)
    return [(item.adapter, item.input, item.parameters) for item in parsed]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ({"text": "a"}, [{"text": "a"}]),
        ([{"text": "a"}, "b", 3], [{"text": "a"}, "b", 3]),
        ("", [""]),
    ],
)
def test_one_adapter_takes_one_input_or_many(inputs, expected):
    body = {"adapter": "x@next", "inputs": inputs, "parameters": {"truncate": True}}
    assert items(body) == [("x@next", each, {"truncate": True}) for each in expected]


def test_many_adapters_keep_their_order_and_their_own_parameters():
    requests = [
        {"adapter": "b", "input": "1"},
        {"adapter": "a", "input": ["2"], "parameters": {"k": 1}},
    ]
    assert items({"requests": requests}) == [("b", "1", {}), ("a", ["2"], {"k": 1})]


@pytest.mark.parametrize(
    "body",
    [{"adapter": "x", "inputs": []}, {"requests": []}, {"adapter": "x", "inputs": list("abcde")}],
)
def test_a_call_without_inputs_or_with_too_many_is_refused_with_their_number(body):
    count = len(body.get("inputs", []))
    how = "Split it" if count else "Send some text"
    with pytest.raises(InvalidRequest, match=f"has '{count}' inputs; 1 to 4 go .*{how}"):
        items(body)


def test_a_call_may_be_as_large_as_the_limit():
    assert len(items({"adapter": "x", "inputs": list("abcd")})) == 4


ONE = {"adapter": "x", "inputs": "a"}
REQUESTS = [{"adapter": "y", "input": "z"}]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"adapter": "x"},
        {"inputs": "a"},
        {"adapter": "x", "inputs": None},
        {"adapter": "x", "inputs": "a", "requests": REQUESTS},
        {"adapter": "x", "input": "a"},
        {"adapter": "x", "inputs": "a", "parameter": {}},
        {"adapter": 3, "inputs": "a"},
        {"adapter": "x", "inputs": "a", "parameters": []},
        {"requests": {}},
        {"requests": [{"adapter": "x"}]},
        {"requests": [{"input": "x"}]},
        {"requests": [{"adapter": "x", "input": "a", "truncate": True}]},
        pytest.param({"adapter": "x", "requests": REQUESTS}),
        pytest.param({"inputs": "a", "requests": REQUESTS}),
        pytest.param({"parameters": {"truncate": True}, "requests": REQUESTS}),
    ],
    ids=str,
)
def test_a_body_of_no_known_form_is_refused(body):
    with pytest.raises(ValidationError):
        PredictBody.model_validate(body)


def shown(results):
    response = answer(results)
    return response.status_code, json.loads(response.body), response.headers


def test_errors_stand_in_their_rows_place_beside_the_answers():
    error = TextTooLong("too long", param="text")
    status, body, _ = shown([GOOD, error, GOOD])
    assert status == 200
    told = {"code": "text_too_long", "message": "too long", "param": "text"}
    assert body == {"predictions": [GOOD, {"error": told}, GOOD]}


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (InvalidRequest, 400),
        (TextTooLong, 400),
        (NotFound, 404),
        (TooLarge, 413),
        (Overloaded, 429),
        (PredictionFailed, 500),
        (Unavailable, 503),
    ],
)
def test_a_call_whose_rows_all_failed_has_the_first_ones_status(kind, status):
    code, body, headers = shown([kind("first"), Unavailable("second")])
    assert code == status
    assert body["error"] == {"code": kind.code, "message": "first", "param": None}
    assert [each["error"]["message"] for each in body["predictions"]] == ["first", "second"]
    assert headers.get("Retry-After") == ("1" if status in (429, 503) else None)


def test_a_stream_carries_one_input_in_either_form():
    for form in ({"adapter": "x", "inputs": "a"}, {"requests": [{"adapter": "x", "input": "a"}]}):
        assert items({**form, "stream": True, "timeout_seconds": 2.5}) == [("x", "a", {})]
    with pytest.raises(InvalidRequest, match="'2' inputs and asks for a stream"):
        items({"adapter": "x", "inputs": ["a", "b"], "stream": True})


@pytest.mark.parametrize("seconds", [0, -1, 3600.5, float("nan"), float("inf"), "soon"])
def test_a_timeout_out_of_range_is_refused_with_its_value(seconds):
    with pytest.raises(ValidationError) as caught:
        PredictBody.model_validate({"adapter": "x", "inputs": "a", "timeout_seconds": seconds})
    assert f"'{seconds}'" in first_problem(caught.value)[0]


@pytest.mark.parametrize("body", [{"x" * 10**6: 1}, {f"{i}" * 10**5: 1 for i in range(50)}])
def test_what_is_wrong_with_a_body_is_told_in_few_words_however_long_it_is(body):
    for model in (PredictBody, task_class("text-classification").Request):
        with pytest.raises(ValidationError) as caught:
            model.model_validate(body)
        message, path = first_problem(caught.value)
        assert len(message) < 2000
        assert len(path) < 100


def test_an_error_is_sent_at_a_bounded_length():
    _, body, _ = shown([GOOD, InvalidRequest("x" * 10**6, param="y" * 10**6)])
    error = body["predictions"][1]["error"]
    assert error["message"] == "x" * 4000 + "…"
    assert error["param"] == "y" * 200 + "…"


def test_more_parameters_than_any_task_has_are_refused():
    with pytest.raises(ValidationError) as caught:
        PredictBody.model_validate({**ONE, "parameters": {f"p{i}": 1 for i in range(65)}})
    message, path = first_problem(caught.value)
    assert "at most 64 items" in message
    assert path == "parameters"


def test_of_many_wrong_requests_the_first_is_told():
    with pytest.raises(ValidationError) as caught:
        PredictBody.model_validate({"requests": [*REQUESTS, 1, 2]})
    assert caught.value.error_count() == 1
    assert first_problem(caught.value)[1] == "requests.1"


@pytest.mark.parametrize("row", [r'{"text": "\ud800"}', r'{"text": "a", "\udfff": 1}'])
def test_half_a_surrogate_pair_is_refused_in_words_that_can_be_sent(row):
    with pytest.raises(ValidationError) as caught:
        task_class("text-classification").Request.model_validate(json.loads(row))
    status, body, _ = shown([InvalidRequest(first_problem(caught.value)[0])])
    assert status == 400
    assert body["error"]["code"] == "invalid_request"
