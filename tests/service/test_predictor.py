"""From inputs to rows: what each task takes, as an object or a bare string, and how a wrong one is refused."""

import pytest

from adapters.errors import InvalidRequest
from adapters.registry.blobs import BlobStore
from adapters.registry.database import Database
from adapters.registry.registry import Registry
from adapters.runtime.rows import RowResult
from adapters.tasks.base import RowOutput
from adapters.tasks.catalog import get_task
from service.predictor import Predictor
from service.protocols.native import PredictItem
from tests.bundles import save_bundle

TASKS = {
    "score": get_task("regression", {}),
    "ner": get_task("token-classification", {"labels": ["a"]}),
    "german": get_task("translation", {"max_new_tokens": 8}),
    "chat": get_task("text-generation", {"max_new_tokens": 8}),
}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory, decoder_spec, decoder_tokenizer):
    root = tmp_path_factory.mktemp("predictor")
    registry = Registry(
        Database(f"sqlite:///{root / 'registry.db'}"),
        BlobStore(str(root / "blobs"), root / "cache"),
    )
    registry.add_backbone(decoder_spec)
    for name, task in TASKS.items():
        save_bundle(root / name, decoder_spec, task)
        registry.create_version(name, root / name)
    return Predictor(registry, decoder_tokenizer, decoder_spec, 4096)


@pytest.mark.parametrize("name", TASKS)
def test_a_bare_string_is_the_request_of_a_task_that_reads_one_text(predictor, name):
    field = {"german": "source", "chat": "prompt"}.get(name, "text")
    bare, whole = predictor.prepare(
        [PredictItem(adapter=name, input=given) for given in ("a film", {field: "a film"})]
    )
    assert [row.token_ids for row in bare.rows] == [row.token_ids for row in whole.rows]


def test_what_a_row_asks_for_reaches_the_engine_and_comes_back(predictor, decoder_tokenizer):
    asked = {"temperature": 0.5, "seed": 7, "stop": "sun", "logprobs": True, "max_new_tokens": 4}
    (item,) = predictor.prepare([PredictItem(adapter="chat", input="hello", parameters=asked)])
    generation = item.rows[0].generation
    assert (generation.max_new_tokens, generation.stop, generation.num_logprobs) == (4, ("sun",), 0)
    assert (generation.sampling.temperature, generation.sampling.seed) == (0.5, 7)
    ids = tuple(decoder_tokenizer.encode("warm sun", add_special=False).ids)
    (answer,) = predictor.finish(
        [item], [RowResult(item.rows[0].row_id, RowOutput(None, ids, "stop"))]
    )
    assert (answer["text"], answer["finish_reason"], answer["logprobs"]) == ("warm ", "stop", [])


@pytest.mark.parametrize(
    ("name", "given", "parameters", "said", "param"),
    [
        ("chat", {}, {}, "give either 'prompt' or 'messages'", "input"),
        ("chat", 3, {}, "'3' is not an object with the fields 'prompt', 'messages'", "input"),
        ("chat", {"messages": []}, {}, "field 'messages' is", "input.messages"),
        ("chat", "a", {"stop": [""]}, "'stop.0' is empty", "parameters.stop.0"),
        ("chat", "a", {"top_logprobs": 2}, "set logprobs to true", "parameters.top_logprobs"),
        ("german", "a", {"temperature": 3}, "'temperature' is '3'", "parameters.temperature"),
        ("ner", {"tokens": []}, {}, "field 'tokens' is", "input.tokens"),
        ("ner", "a", {"temperature": 1}, "unknown field 'temperature'", "parameters.temperature"),
        ("score", {"text": ""}, {}, "field 'text' is empty", "input.text"),
    ],
)
def test_a_wrong_input_is_refused_by_its_field(predictor, name, given, parameters, said, param):
    item = PredictItem(adapter=name, input=given, parameters=parameters)
    (error,) = predictor.prepare([item])
    assert isinstance(error, InvalidRequest)
    assert said in error.message
    assert error.param == param
