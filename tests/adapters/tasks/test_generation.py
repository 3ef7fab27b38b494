"""Summarization: the instruction around the text, room for the answer, and the completion as labels."""

import pytest
from pydantic import ValidationError
from rouge_score.rouge_scorer import RougeScorer

from adapters.errors import TextTooLong
from adapters.tasks.base import Encoded, RowOutput
from adapters.tasks.catalog import get_task, task_class
from adapters.tasks.generation import first_sentence, instruction_prompt
from tests.tiny import CORPUS

CLASS = task_class("summarization")
TASK = get_task("summarization", {"instruction": "Sum up.", "max_new_tokens": 12})
TEXT = " ".join(CORPUS)


def encode(tokenizer, limit, **parameters):
    request = CLASS.Request(text=TEXT)
    return TASK.encode(tokenizer, request, CLASS.Parameters(**parameters), limit)


def test_a_backbone_that_chats_is_asked_in_its_own_form(decoder_tokenizer):
    prompt = instruction_prompt(decoder_tokenizer, "Sum up.", "Some text.")
    assert prompt.text == "<|start|>user\nSum up.\n\nSome text.<|end|>\n<|start|>assistant\n"
    assert prompt.text[prompt.start : prompt.stop] == "Some text."
    ids = TASK.encode(decoder_tokenizer, CLASS.Request(text="a"), CLASS.Parameters(), 99).token_ids
    assert ids.count(1) == 2  # the two of the template, none added


def test_a_backbone_that_does_not_chat_gets_the_instruction_as_plain_text(encoder_tokenizer):
    prompt = instruction_prompt(encoder_tokenizer, "Sum up.", "Some text.")
    assert prompt.text == "Sum up.\n\nSome text.\n\n"
    assert prompt.text[prompt.start : prompt.stop] == "Some text."


def test_the_longest_answer_always_has_room_behind_the_prompt(decoder_tokenizer):
    size = len(encode(decoder_tokenizer, 10_000).token_ids)
    assert len(encode(decoder_tokenizer, size + 12).token_ids) == size
    assert not encode(decoder_tokenizer, size + 3, max_new_tokens=3).truncated
    with pytest.raises(TextTooLong, match=f"prompt of {size} tokens; at most {size - 1} fit"):
        encode(decoder_tokenizer, size + 11)
    cut = encode(decoder_tokenizer, size + 11, truncate=True)
    assert cut.truncated
    assert len(cut.token_ids) < size
    assert decoder_tokenizer.decode(cut.token_ids).endswith("assistant\n")


def test_an_answer_longer_than_all_room_is_refused_as_the_fault_of_its_parameter(decoder_tokenizer):
    with pytest.raises(TextTooLong) as caught:
        encode(decoder_tokenizer, 100, max_new_tokens=1000)
    assert "max_new_tokens" in caught.value.message


def test_the_labels_are_the_summary_and_the_token_that_ends_it(decoder_tokenizer):
    encoded = encode(decoder_tokenizer, 10_000)
    labelled = TASK.label(decoder_tokenizer, encoded, CLASS.Target(summary="A fox jumps."))
    assert labelled.labels[-1] == decoder_tokenizer.end_ids[0]
    assert decoder_tokenizer.decode(labelled.labels) == "A fox jumps."
    assert labelled.token_ids == encoded.token_ids + labelled.labels


@pytest.mark.parametrize(("asked", "limit"), [({}, 12), ({"max_new_tokens": 40}, 40)])
def test_a_request_may_change_the_length_of_its_answer(decoder_tokenizer, asked, limit):
    generation = TASK.generation(decoder_tokenizer, CLASS.Parameters(**asked))
    assert (generation.max_new_tokens, generation.end_ids) == (limit, decoder_tokenizer.end_ids)


def test_the_answer_is_the_decoded_text_without_edges_or_special_tokens(decoder_tokenizer):
    ids = (*decoder_tokenizer.encode(" A fox.\n").ids, 2)
    output = RowOutput(token_ids=ids, finish_reason="stop")
    answer = TASK.postprocess(decoder_tokenizer, CLASS.Request(text="x"), Encoded([1]), output)
    assert answer == {"summary": "A fox.", "finish_reason": "stop"}


def test_the_task_needs_no_head():
    assert TASK.head("decoder") is None


def test_the_baseline_is_the_texts_first_sentence():
    summary = "The fox jumps over a dog."
    baseline = TASK.baselines([CLASS.Request(text=TEXT)], [CLASS.Target(summary=summary)])
    score = RougeScorer(["rougeL"], use_stemmer=True).score(summary, CORPUS[0])["rougeL"]
    assert baseline["lead_1"]["rouge_l"] == pytest.approx(score.fmeasure)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One. Two.", "One."),
        ("  One? Two.", "One?"),
        ("One!\nTwo.", "One!"),
        ("Version 1.5 is out. Get it.", "Version 1.5 is out."),
        ("No end", "No end"),
    ],
)
def test_a_sentence_ends_at_its_mark_before_a_space(text, first):
    assert first_sentence(text) == first


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (CLASS.Request, {"text": " "}),
        (CLASS.Request, {"text": 1}),
        (CLASS.Request, {"document": "a"}),
        (CLASS.Target, {"summary": ""}),
        (CLASS.Target, {"summary": None}),
        (CLASS.Parameters, {"max_new_tokens": 0}),
        (CLASS.Parameters, {"max_new_tokens": 1025}),
        (CLASS.Parameters, {"temperature": 0.5}),
        (CLASS.Options, {"instruction": ""}),
    ],
)
def test_a_wrong_field_is_refused(model, value):
    with pytest.raises(ValidationError):
        model.model_validate(value)
