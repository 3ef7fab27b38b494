"""Text generation: prompts and conversations in the backbone's own form, and what is learned from them."""

import copy

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from adapters.errors import TextTooLong
from adapters.tasks.base import RowOutput
from adapters.tasks.catalog import get_task, task_class
from adapters.text_stream import StreamText
from adapters.tokenizer import Tokenizer
from adapters.validation import first_problem
from tests.tiny import sentencepiece_tokenizer

CLASS = task_class("text-generation")
TASK = get_task("text-generation", {"max_new_tokens": 8})
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who wrote the first program?"},
    {"role": "assistant", "content": "Ada."},
    {"role": "user", "content": "And the first compiler?"},
]


def encode(tokenizer, task=TASK, limit=200, truncate=False, **request):
    parameters = CLASS.Parameters(truncate=truncate)
    return task.encode(tokenizer, CLASS.Request(**request), parameters, limit)


def test_a_conversation_is_rendered_as_transformers_renders_it(decoder_tokenizer):
    expected = decoder_tokenizer._inner.apply_chat_template(
        TALK, add_generation_prompt=True, return_dict=False
    )
    assert encode(decoder_tokenizer, messages=TALK).token_ids == expected


def test_a_prompt_is_asked_as_a_users_message(decoder_tokenizer):
    talk = [{"role": "user", "content": "Who?"}]
    asked = encode(decoder_tokenizer, messages=talk)
    assert encode(decoder_tokenizer, prompt="Who?").token_ids == asked.token_ids


def test_a_prompt_is_gone_on_with_where_the_options_say_so(decoder_tokenizer):
    task = get_task("text-generation", {"chat": False, "max_new_tokens": 8})
    encoded = encode(decoder_tokenizer, task, prompt="Once <|end|> upon")
    assert decoder_tokenizer.decode(encoded.token_ids) == "Once <|end|> upon"
    talk = encode(decoder_tokenizer, task, messages=TALK)
    assert talk == encode(decoder_tokenizer, messages=TALK)


def test_without_a_chat_template_messages_stand_below_each_other(encoder_tokenizer):
    encoded = encode(encoder_tokenizer, messages=TALK)
    whole = "\n\n".join(message["content"] for message in TALK)
    assert encoder_tokenizer.decode(encoded.token_ids) == whole


def test_only_the_last_message_is_cut(decoder_tokenizer):
    talk = [*TALK[:3], {"role": "user", "content": "And the first compiler? " * 20}]
    encoded = encode(decoder_tokenizer, limit=100, truncate=True, messages=talk)
    text = decoder_tokenizer.decode(encoded.token_ids)
    assert encoded.truncated
    assert len(encoded.token_ids) <= 92
    assert "Be brief." in text
    assert "Ada." in text
    assert text.endswith("assistant\n")
    with pytest.raises(TextTooLong, match="'messages' makes a prompt of"):
        encode(decoder_tokenizer, limit=100, messages=talk)


def test_training_is_on_the_completion_only(decoder_tokenizer):
    encoded = encode(decoder_tokenizer, prompt="Who?")
    row = TASK.label(decoder_tokenizer, encoded, CLASS.Target(completion="Ada."))
    assert row.token_ids == encoded.token_ids + row.labels
    assert decoder_tokenizer.decode(row.labels) == "Ada."
    assert row.labels[-1] == decoder_tokenizer.end_ids[0]


def test_the_text_keeps_its_blanks(decoder_tokenizer):
    ids = tuple(decoder_tokenizer.encode(" a\n", add_special=False).ids)
    request = CLASS.Request(prompt="x")
    encoded = encode(decoder_tokenizer, prompt="x")
    answer = TASK.postprocess(decoder_tokenizer, request, encoded, RowOutput(None, ids, "length"))
    assert answer == {"text": " a\n", "finish_reason": "length"}


def test_answers_score_by_rouge_and_exact_match():
    targets = [CLASS.Target(completion="Ada wrote it."), CLASS.Target(completion="Grace.")]
    scores = TASK.score([{"text": "Ada wrote it.\n"}, {"text": "Ada."}], targets)
    assert (scores["exact_match"], scores["rouge_l"]) == (0.5, 0.5)
    assert TASK.primary_metric in scores


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "give either 'prompt' or 'messages'"),
        ({"prompt": "a", "messages": TALK}, "give either 'prompt' or 'messages'"),
        ({"prompt": "  "}, "'prompt' is empty"),
        ({"prompt": 1}, "'prompt' is '1'"),
        ({"messages": []}, "'messages' is '[]'"),
        ({"messages": "Hi"}, "'messages' is 'Hi'"),
        ({"messages": TALK[:3]}, "the last message is the assistant's own"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "'messages.0.role' is 'tool'"),
        ({"messages": [{"role": "user", "content": ""}]}, "'messages.0.content' is empty"),
        ({"messages": [{"role": "user"}]}, "no field 'messages.0.content'"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "'messages.0.name'"),
        ({"text": "a"}, "unknown field 'text'"),
    ],
)
def test_a_wrong_request_is_refused_with_what_is_wrong(value, said):
    with pytest.raises(ValidationError) as caught:
        CLASS.Request.model_validate(value)
    assert said in first_problem(caught.value)[0]


@pytest.mark.parametrize("value", [{"completion": ""}, {"completion": None}, {"text": "a"}])
def test_a_wrong_target_is_refused(value):
    with pytest.raises(ValidationError):
        CLASS.Target.model_validate(value)


@pytest.fixture(scope="module")
def stock():
    """A tokenizer of Llama 2's kind, as transformers loads it."""
    return PreTrainedTokenizerFast(tokenizer_object=sentencepiece_tokenizer(), eos_token="</s>")


@pytest.fixture(scope="module")
def llama(stock):
    return Tokenizer(copy.deepcopy(stock), [stock.eos_token_id])


GOES_ON = get_task("text-generation", {"chat": False, "max_new_tokens": 8})
CONTINUATIONS = [" ab", "  ab", "ab", "b", " b a", "\n ab", "北 a", "é", " é", "\n", " "]


@pytest.mark.parametrize("prompt", ["b", "a b", "北", "é\n"])
@pytest.mark.parametrize("text", CONTINUATIONS)
def test_a_continuation_is_what_transformers_adds_to_the_prompt(prompt, text, stock, llama):
    whole = stock(prompt + text, add_special_tokens=False)["input_ids"]
    encoded = encode(llama, GOES_ON, prompt=prompt)
    assert whole[: len(encoded.token_ids)] == encoded.token_ids
    ids = tuple(whole[len(encoded.token_ids) :])
    expected = stock.decode(whole)[len(stock.decode(encoded.token_ids)) :]
    output = RowOutput(None, ids, "length")
    request = CLASS.Request(prompt=prompt)
    assert GOES_ON.postprocess(llama, request, encoded, output)["text"] == expected == text
    stream = StreamText(llama.decode, (), encoded.context)
    assert "".join([*(stream.feed([each]) for each in ids), stream.finish()]) == text


@pytest.mark.parametrize("text", [text for text in CONTINUATIONS if text.strip()])
def test_what_is_learned_to_go_on_with_is_read_back(text, llama, decoder_tokenizer):
    for tokenizer in (llama, decoder_tokenizer):
        encoded = encode(tokenizer, GOES_ON, prompt="a b")
        labels = GOES_ON.label(tokenizer, encoded, CLASS.Target(completion=text)).labels
        assert tokenizer.decode([*encoded.token_ids, *labels]) == "a b" + text
        output = RowOutput(None, tuple(labels), "stop")
        request = CLASS.Request(prompt="a b")
        assert GOES_ON.postprocess(tokenizer, request, encoded, output)["text"] == text


def test_an_answer_in_a_conversation_has_no_blank_of_the_tokenizers_own(llama):
    asked = encode(llama, prompt="a")
    labels = TASK.label(llama, asked, CLASS.Target(completion="ab")).labels
    answer = TASK.postprocess(llama, None, asked, RowOutput(None, tuple(labels), "stop"))
    assert answer["text"] == "ab"


def test_what_starts_anew_behind_its_prompt_goes_on_with_nothing(encoder_tokenizer):
    assert encoder_tokenizer.closes_texts
    assert encode(encoder_tokenizer, GOES_ON, prompt="Ada").context == ()
