"""Text classification: the prompt, the label's index, the scores, and what is refused."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.dummy import DummyClassifier
from sklearn.metrics import f1_score

from adapters.errors import InvalidData, InvalidRequest, TextTooLong
from adapters.tasks.base import Encoded, RowOutput
from adapters.tasks.catalog import get_task, task_class

NAME = "text-classification"
CLASS = task_class(NAME)


def classifier(**options):
    return get_task(NAME, {"labels": ["neg", "pos"], **options})


def encode(task, tokenizer, limit=100, truncate=False, **request):
    request = CLASS.Request(**request)
    return task.encode(tokenizer, request, CLASS.Parameters(truncate=truncate), limit)


@pytest.mark.parametrize(
    ("template", "request_", "prompt"),
    [
        ("{text}", {"text": "A film."}, "A film."),
        ("Review: {text}\nGood?", {"text": "A {text} {film}."}, "Review: A {text} {film}.\nGood?"),
        ("{text} =>", {"text": "A.", "text_pair": "B."}, "A.\nB. =>"),
    ],
)
def test_the_prompt_is_the_template_around_the_text_and_its_pair(
    decoder_tokenizer, template, request_, prompt
):
    encoded = encode(classifier(template=template), decoder_tokenizer, **request_)
    assert decoder_tokenizer.decode(encoded.token_ids) == prompt
    assert not encoded.truncated


def test_cutting_takes_the_text_and_leaves_pair_and_template(decoder_tokenizer):
    task = classifier(template="Review: {text}\nGood?")
    request = {"text": "dull film " * 30, "text_pair": "wonderful cast"}
    encoded = encode(task, decoder_tokenizer, 40, truncate=True, **request)
    prompt = decoder_tokenizer.decode(encoded.token_ids)
    assert encoded.truncated
    assert len(encoded.token_ids) <= 40
    assert prompt.startswith("Review: dull film")
    assert prompt.endswith("\nwonderful cast\nGood?")


def test_a_text_that_is_too_long_is_refused_with_its_token_count(encoder_tokenizer):
    text = "dull film " * 30
    count = len(encoder_tokenizer.encode(text).ids)
    with pytest.raises(TextTooLong, match=f"'text' makes a prompt of {count} tokens; at most 40"):
        encode(classifier(), encoder_tokenizer, 40, text=text)


def test_the_label_is_its_place_among_the_options(encoder_tokenizer):
    task = classifier(labels=["z", "a", "m"])
    encoded = encode(task, encoder_tokenizer, text="hello")
    labelled = task.label(encoder_tokenizer, encoded, CLASS.Target(label="m"))
    assert (labelled.labels, labelled.token_ids) == ([2], encoded.token_ids)


@pytest.mark.parametrize(("count", "said"), [(2, r"'0', '1'\.$"), (10, "'7' and 2 more")])
def test_an_unknown_label_is_refused_with_the_known_ones(count, said):
    task = classifier(labels=[str(i) for i in range(count)])
    with pytest.raises(InvalidData, match=f"Label 'x' is not one of .*{said}"):
        task.label(None, Encoded([1]), CLASS.Target(label="x"))


@pytest.mark.parametrize("logits", [[0.0, 0.0, 0.0], [-1e4, 3.0, 1e4], [0.1, 2.5, -3.0]])
def test_scores_are_the_softmax_in_the_order_of_the_labels(logits):
    labels = ["c", "a", "b"]
    output = RowOutput(np.array(logits, np.float32))
    answer = classifier(labels=labels).postprocess(
        None, CLASS.Request(text="x"), Encoded([1]), output
    )
    expected = torch.tensor(logits).softmax(0)
    assert list(answer["scores"]) == labels
    assert list(answer["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert answer["label"] == labels[int(expected.argmax())]
    assert answer["score"] == max(answer["scores"].values())


@pytest.mark.parametrize(("family", "pooling"), [("decoder", "last"), ("encoder", "mean")])
def test_the_head_reads_where_the_backbone_has_seen_the_whole_text(family, pooling):
    head = classifier(labels=["a", "b", "c"]).head(family)
    assert (head.kind, head.outputs, head.pooling) == ("sequence", 3, pooling)


@pytest.mark.parametrize(
    ("given", "labels"), [({}, ["a", "b"]), ({"labels": ["b", "a", "c"]}, ["b", "a", "c"])]
)
def test_labels_are_those_of_the_data_unless_given(given, labels):
    targets = [CLASS.Target(label=each) for each in "bab"]
    assert CLASS.options_from(given, targets) == {"labels": labels}


def test_the_baseline_is_the_commonest_label():
    labels = ["neg", "pos", "pos", "neg", "pos"]
    targets = [CLASS.Target(label=label) for label in labels]
    requests = [CLASS.Request(text="x") for _ in labels]
    dummy = DummyClassifier(strategy="most_frequent").fit(labels, labels)
    macro = f1_score(labels, dummy.predict(labels), average="macro", zero_division=0)
    assert classifier().baselines(requests, targets) == {
        "majority": pytest.approx(
            {"accuracy": dummy.score(labels, labels), "macro_f1": macro, "mcc": 0}
        )
    }


def test_the_score_compares_predicted_with_true_labels():
    predictions = [{"label": "pos"}, {"label": "neg"}]
    targets = [CLASS.Target(label="pos"), CLASS.Target(label="pos")]
    assert classifier().score(predictions, targets)["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no field 'labels'"),
        ({"labels": ["a"]}, "'labels' is"),
        ({"labels": "ab"}, "'labels' is 'ab'"),
        ({"labels": ["a", "b"], "template": "no place"}, "must hold {text} exactly once"),
        ({"labels": ["a", "b"], "template": "{text}{text}"}, "must hold {text} exactly once"),
        ({"labels": ["a", "b"], "lables": []}, "unknown field 'lables'"),
        ({"labels": ["a", "b"], "max_tokens": 7}, "'max_tokens' is '7'"),
        pytest.param(
            {"labels": ["a", "a"]},
            "labels",
        ),
    ],
)
def test_wrong_options_are_refused_by_name(options, said):
    with pytest.raises(InvalidRequest, match=said) as caught:
        get_task(NAME, options)
    assert caught.value.message.startswith("Options of 'text-classification':")


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (CLASS.Request, {}),
        (CLASS.Request, {"text": ""}),
        (CLASS.Request, {"text": " \n\t\u3000"}),
        (CLASS.Request, {"text": 3}),
        (CLASS.Request, {"text": None}),
        (CLASS.Request, {"text": ["a"]}),
        (CLASS.Request, {"text": "a", "text_pair": ""}),
        (CLASS.Request, {"text": "a", "label": "b"}),
        (CLASS.Target, {"label": ""}),
        (CLASS.Target, {"label": 1}),
        (CLASS.Parameters, {"truncat": True}),
        (CLASS.Parameters, {"truncate": "perhaps"}),
    ],
)
def test_a_wrong_field_of_a_row_is_refused(model, value):
    with pytest.raises(ValidationError):
        model.model_validate(value)


def test_an_unknown_task_is_answered_with_the_known_ones():
    with pytest.raises(InvalidRequest, match=r"No task 'ner'. Known: text-classification, "):
        get_task("ner", {})
