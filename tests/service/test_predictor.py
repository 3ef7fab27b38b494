"""From inputs to rows: what each task takes, as an object or a bare string, and how a wrong one is refused."""

import json

import numpy as np
import pytest

from adapters.errors import InvalidRequest
from adapters.registry.blobs import BlobStore
from adapters.registry.database import Database
from adapters.registry.registry import Registry
from adapters.runtime.rows import RowResult
from adapters.tasks import catalog
from adapters.tasks.base import RowOutput, TokenLogprob
from adapters.tasks.catalog import get_task
from service.predictor import Predictor
from service.protocols.native import PredictItem, answer
from service.protocols.predictions import PredictAnswer
from tests.bundles import answerer, classifier, save_bundle, summarizer

TASKS = {
    "labels": classifier(3),
    "several": classifier(3, multi_label=True),
    "unsure": classifier(3, abstain_below=1.0),
    "answers": answerer(),
    "tldr": summarizer(),
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


GOES_ON = get_task("text-generation", {"chat": False, "max_new_tokens": 8})


def test_a_text_that_is_gone_on_with_is_read_behind_some_other(
    predictor, decoder_tokenizer, decoder_spec, tmp_path
):
    save_bundle(tmp_path / "story", decoder_spec, GOES_ON)
    predictor._registry.create_version("story", tmp_path / "story")
    prepared = predictor.prepare_stream(PredictItem(adapter="story", input="Once"))
    assert prepared.rows[0].generation.context == decoder_tokenizer.context
    text = predictor.stream_text(prepared)
    ids = decoder_tokenizer.encode(" upon", add_special=False).ids
    assert text.feed(ids) + text.finish() == " upon"
    asked = predictor.prepare_stream(PredictItem(adapter="chat", input="Once"))
    assert asked.rows[0].generation.context == ()


BARE = [name for name in TASKS if name != "answers"]


@pytest.mark.parametrize("name", BARE)
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


QUESTION = {"question": "who?", "context": "a film by nobody"}
WRITTEN = {"logprobs": True, "top_logprobs": 1}
FORMS = {
    "labels": ("a film", {}, "Classification"),
    "several": ("a film", {}, "MultiLabelClassification"),
    "unsure": ("a film", {}, "Classification"),
    "score": ("a film", {}, "Regression"),
    "ner": ("a film", {}, "TokenClassification"),
    "answers": (QUESTION, {}, "QuestionAnswering"),
    "tldr": ("a film", WRITTEN, "Summarization"),
    "german": ("a film", {}, "Translation"),
    "chat": ("a film", WRITTEN, "TextGeneration"),
}


def output_of(row, task):
    """Return what the engine may give for a row: its last logits so large that a tag or a span stands out."""
    if row.generation is not None:
        tokens = (TokenLogprob(5, -0.5, ((6, -1.5),)),) if row.generation.num_logprobs else ()
        return RowOutput(None, (5,), "stop", logprobs=tokens)
    head = task.head("decoder")
    shape = (len(row.token_ids), head.outputs) if head.kind == "token" else (head.outputs,)
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    logits[..., -1] += 4
    return RowOutput(logits)


@pytest.mark.parametrize("name", FORMS)
def test_the_openapi_document_s_predictions_are_those_that_tasks_make(predictor, name):
    given, parameters, form = FORMS[name]
    item, failed = predictor.prepare(
        [
            PredictItem(adapter=name, input=given, parameters=parameters),
            PredictItem(adapter=name, input=3),
        ]
    )
    results = [RowResult(row.row_id, output_of(row, TASKS[name])) for row in item.rows]
    body = json.loads(answer(predictor.finish([item, failed], results)).body)
    told = PredictAnswer.model_validate(body)
    assert [type(each).__name__ for each in told.predictions] == [form, "ErrorAnswer"]
    assert told.model_dump(exclude_unset=True) == body


def test_each_task_has_its_prediction_in_the_openapi_document():
    assert {task.name for task in TASKS.values()} == set(catalog.TASKS)
    assert set(FORMS) == set(TASKS)
