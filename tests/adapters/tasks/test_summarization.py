"""Summaries of long texts: refused, cut, or made in parts that are joined and summarized again."""

import pytest
from pydantic import ValidationError

from adapters.errors import TextTooLong
from adapters.tasks.base import RowOutput
from adapters.tasks.catalog import get_task, task_class
from adapters.validation import first_problem
from tests.tiny import CORPUS

CLASS = task_class("summarization")
TASK = get_task("summarization", {"max_new_tokens": 12})
TEXT = " ".join(CORPUS * 8)


def encode(tokenizer, text=TEXT, limit=100, **parameters):
    request = CLASS.Request(text=text)
    return TASK.encode_parts(tokenizer, request, CLASS.Parameters(**parameters), limit)


def test_a_long_text_is_refused_unless_told_otherwise(decoder_tokenizer):
    for parameters in ({}, {"long_text": "refuse"}):
        with pytest.raises(TextTooLong, match="'text' makes a prompt of") as caught:
            encode(decoder_tokenizer, **parameters)
        assert caught.value.param == "text"


def test_a_long_text_is_cut_if_told_so(decoder_tokenizer):
    cut, truncated = (
        encode(decoder_tokenizer, long_text="cut"),
        encode(decoder_tokenizer, truncate=True),
    )
    assert cut == truncated
    assert [part.truncated for part in cut] == [True]


@pytest.mark.parametrize("text", [TEXT, CORPUS[3] * 20, "🙂" * 200])
def test_parts_hold_the_whole_text_and_fit(decoder_tokenizer, text):
    parts = encode(decoder_tokenizer, text, long_text="parts")
    assert len(parts) > 1
    assert all(len(part.token_ids) + 12 <= 100 and not part.truncated for part in parts)
    shell = decoder_tokenizer.decode(encode(decoder_tokenizer, "|")[0].token_ids).split("|")
    read = [decoder_tokenizer.decode(part.token_ids) for part in parts]
    pieces = [each.removeprefix(shell[0]).removesuffix(shell[1]) for each in read]
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_a_text_that_fits_is_one_part(decoder_tokenizer):
    assert encode(decoder_tokenizer, CORPUS[0], long_text="parts") == encode(
        decoder_tokenizer, CORPUS[0]
    )


@pytest.mark.parametrize("text", [TEXT * 20, "x" * 10**6])
def test_a_text_of_too_many_parts_is_refused(decoder_tokenizer, text):
    with pytest.raises(
        TextTooLong, match="more than 64 parts hold in rows of 100 tokens"
    ) as caught:
        encode(decoder_tokenizer, text, long_text="parts")
    assert caught.value.param == "text"


def test_an_answer_without_room_is_refused_as_ever(decoder_tokenizer):
    with pytest.raises(TextTooLong, match="max_new_tokens is '100'"):
        encode(decoder_tokenizer, long_text="parts", max_new_tokens=100)


def answered(tokenizer, summaries, reasons, **given):
    parameters = CLASS.Parameters(long_text="parts", **given)
    request = CLASS.Request(text=TEXT)
    parts = TASK.encode_parts(tokenizer, request, parameters, 100)[: len(summaries)]
    outputs = [
        RowOutput(None, tuple(tokenizer.encode(text, add_special=False).ids), reason)
        for text, reason in zip(summaries, reasons, strict=True)
    ]
    answer = TASK.postprocess_parts(tokenizer, request, parts, outputs)
    return answer, TASK.follow_up(tokenizer, request, parameters, parts, answer)


def test_summaries_of_parts_are_joined(decoder_tokenizer):
    answer, again = answered(decoder_tokenizer, [" The dog.", "The sun. "], ["stop", "length"])
    assert answer == {"summary": "The dog. The sun.", "finish_reason": "length"}
    assert again is None
    answer, _ = answered(decoder_tokenizer, ["a", "b"], ["stop"] * 2, logprobs=True)
    assert answer["logprobs"] == []


def test_joined_summaries_longer_than_one_may_be_are_summarized_again(decoder_tokenizer):
    summaries = CORPUS[:2]
    _, again = answered(decoder_tokenizer, summaries, ["stop"] * 2)
    assert again == CLASS.Request(text=" ".join(summaries))
    _, again = answered(decoder_tokenizer, ["A dog.", "A sun."], ["stop"] * 2)
    assert again is None
    # As long as more than half of the text: a further round would not end.
    _, again = answered(decoder_tokenizer, [TEXT[:600], TEXT[600:1400]], ["stop"] * 2)
    assert again is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"long_text": "split"}, "'long_text' is 'split'"),
        ({"long_text": "parts", "truncate": True}, "long_text 'parts' does not; give one"),
        ({"long_text": "refuse", "truncate": True}, "long_text 'refuse' does not; give one"),
    ],
)
def test_a_wrong_parameter_is_refused(given, said):
    with pytest.raises(ValidationError) as caught:
        CLASS.Parameters.model_validate(given)
    assert said in first_problem(caught.value)[0]
