"""What JSON can say and no answer can is refused by its field, wherever in a body it stands."""

import json

import pytest

from adapters.errors import InvalidRequest
from service.bodies import Body
from service.jobs.orders import JobOrder
from service.protocols.embeddings import EmbeddingsBody
from service.routes.adapters import NotesBody
from service.routes.aliases import AliasBody
from service.routes.lora import LoadBody, UnloadBody
from service.submissions import Source

FILED = r'{"model": "m", "training_file": "f"'


@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        (NotesBody, r'{"note": "May \ud83d"}', "note"),
        (NotesBody, r'{"tags": {"a": "\ud800"}}', "tags.a"),
        (NotesBody, r'{"tags": {"\udfff": "a"}}', r"tags.\udfff"),
        (AliasBody, r'{"version": 1, "promote_if": {"metric": "\ud800"}}', "promote_if.metric"),
        (LoadBody, r'{"lora_name": "a", "lora_path": "\ud800"}', "lora_path"),
        (UnloadBody, r'{"lora_name": "\ud800"}', "lora_name"),
        (EmbeddingsBody, r'{"model": "m", "input": ["a", "\ud800"]}', "input.1"),
        (Source, r'{"name": "a", "job": "\ud800"}', "job"),
        (JobOrder, FILED + r', "metadata": {"a": "\ud800"}}', "metadata.a"),
        (JobOrder, FILED + r', "task": {"options": {"a": [[], {"b": "\ud800"}]}}}', None),
        (JobOrder, FILED + r', "register": {"name": "a", "note": "\ud800"}}', "register.note"),
    ],
)
def test_half_a_surrogate_pair_is_refused_by_its_field(model, body, param):
    with pytest.raises(InvalidRequest, match="half of a character") as caught:
        model.model_validate(json.loads(body))
    told = caught.value.param.encode("utf-8", "backslashreplace").decode()
    assert told == (param or "task.options.a.1.b")


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN"])
def test_a_number_beyond_all_bounds_is_refused_by_its_field(number):
    body = FILED + f', "hyperparameters": {{"learning_rate_multiplier": {number}}}}}'
    with pytest.raises(InvalidRequest, match=r"is '-?(inf|nan)'") as caught:
        JobOrder.model_validate(json.loads(body))
    assert caught.value.param == "hyperparameters.learning_rate_multiplier"


def test_whole_characters_pass_however_deep_they_stand():
    nested: object = "\U0001f600"
    for _ in range(5000):
        nested = [nested, {"a": 1.5}]
    Body.model_validate({"any": nested})
    assert NotesBody.model_validate(json.loads(r'{"note": "\ud83d\ude00"}')).note == "\U0001f600"


def test_a_nul_is_refused_where_it_would_be_stored():
    with pytest.raises(InvalidRequest, match=r"U\+0000") as caught:
        NotesBody.model_validate({"tags": {"a": "b", "c\0": "d"}})
    assert caught.value.param == "tags.c\0"
    assert EmbeddingsBody.model_validate({"model": "m", "input": "a\0b"}).input == ["a\0b"]
