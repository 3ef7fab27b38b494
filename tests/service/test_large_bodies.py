"""Bodies of many small parts: refused before each part costs something, for the event loop waits meanwhile."""

import tracemalloc

import pytest
from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.testclient import TestClient

from adapters.errors import InvalidRequest, TooLarge
from adapters.tasks.catalog import TASKS
from adapters.validation import first_problem, shown
from service.limits import Gatekeeper, Traffic
from service.protocols.embeddings import EmbeddingsBody
from service.protocols.native import PredictBody, PredictItem, items_of
from service.routes.adapters import NotesBody

MANY = 10_000
UNKNOWN = {f"k{i}": 1 for i in range(MANY)}
ONE = {"adapter": "x", "input": "a"}


def peak_of(act):
    """Return the most bytes that were taken while it was done."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (PredictBody, UNKNOWN),
        (PredictBody, {"adapter": "x", "inputs": "a", **UNKNOWN}),
        (PredictBody, {"requests": [ONE, {**ONE, **UNKNOWN}]}),
        (PredictBody, {"requests": [{**ONE, f"k{i}": 1} for i in range(MANY)]}),
        (PredictBody, {"requests": [ONE] * (MANY + 1)}),
        *((task.Request, UNKNOWN) for task in TASKS.values()),
        *((task.Parameters, UNKNOWN) for task in TASKS.values()),
        (TASKS["token-classification"].Request, {"tokens": [1] * MANY}),
        (TASKS["text-generation"].Request, {"messages": [{"role": 1}] * MANY}),
        (TASKS["text-generation"].Parameters, {"stop": [1] * MANY}),
    ],
)
def test_of_much_that_is_wrong_few_errors_are_made(model, body):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    assert caught.value.error_count() <= 10
    message, path = first_problem(caught.value)
    assert len(message) < 300
    assert len(path) < 100


def test_too_many_fields_are_told_by_their_number():
    with pytest.raises(ValidationError) as caught:
        PredictBody.model_validate(UNKNOWN)
    assert "'10000' fields" in first_problem(caught.value)[0]


def test_too_many_inputs_are_refused_before_each_is_made_a_request():
    body = PredictBody.model_validate({"adapter": "x", "inputs": [""] * 10 * MANY})
    peaks = []

    def refuse():
        with pytest.raises(InvalidRequest, match="has '100000' inputs; 1 to 256"):
            items_of(body, 256)

    peaks.append(peak_of(refuse))
    assert peaks[0] < 1e6
    assert len(items_of(PredictBody(adapter="x", inputs=["", "a"]), 2)) == 2


@pytest.mark.parametrize(
    "value", [None, True, 1.5, "a", [], {}, [1, "b", [None]], {"a": {"b": [1.5, {}]}, "c": "d"}]
)
def test_a_short_value_is_shown_whole(value):
    assert shown(value) == f"'{value}'"


def test_of_a_long_or_deep_value_only_the_beginning_is_read():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in ([{"a": 1}] * 1_000_000, UNKNOWN, deep):
        assert peak_of(lambda value=value: shown(value)) < 50_000
    assert shown([1, "b"] * MANY) == "'" + str([1, "b"] * 20)[:60] + "…'"
    assert shown(deep) == "'" + "[" * 60 + "…'"
    while deep:  # from its outside: Python would take it apart by recursion
        deep = deep[0]


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (NotesBody, {"tags": {f"k{i}": 1 for i in range(60_000)}}),
        (EmbeddingsBody, {"model": "m", "input": [""] * 60_000}),
        (EmbeddingsBody, {"model": "m", "input": [[[""]] * 30_000]}),
    ],
)
def test_a_body_of_too_many_values_is_refused_as_too_large(model, body):
    with pytest.raises(TooLarge, match="more than '50000' values"):
        model.model_validate(body)


def test_a_body_of_too_many_lists_objects_and_keys_is_not_parsed():
    app = FastAPI()

    @app.post("/count")
    async def count(request: Request) -> int:
        return len((await request.json())["a"])

    app.add_middleware(Gatekeeper, 2**20, Traffic())
    most = 2**20 // 16
    with TestClient(app) as client:
        assert client.post("/count", json={"a": [[]] * 1000}).json() == 1000
        for part, num_marks in (("[],", 1), ("{},", 1), ('{"":1},', 2), ('{"" : 1},', 2)):
            count = most // num_marks
            body = '{"a": [' + part * count + "1]}"
            answer = client.post("/count", content=body)
            assert answer.status_code == 413
            assert f"'{most}' times" in answer.json()["error"]["message"]
            fits = body.replace(part, "", 3)  # there are three beside
            assert client.post("/count", content=fits).json() == count - 2


def test_a_good_body_is_taken_as_it_is():
    item = PredictItem.model_validate({**ONE, "parameters": {"k": 1}})
    assert (item.adapter, item.input, item.parameters) == ("x", "a", {"k": 1})
