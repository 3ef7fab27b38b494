"""Prompts: always within the limit, the text cut at its end only, all around it kept whole, and no message
ever taken for the template's own text.
"""

import copy
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Inner
from tokenizers import models, normalizers
from transformers import PreTrainedTokenizerFast

from adapters.errors import InvalidRequest, TextTooLong
from adapters.tasks.base import Prompt, encode_prompt, fit_prompt
from adapters.tasks.prompts import Message, conversation_prompt, instruction_prompt
from adapters.tokenizer import Tokenizer, load_tokenizer
from tests.tiny import CORPUS

texts = (
    st.lists(
        st.sampled_from([*" ".join(CORPUS).split(), "🙂👩‍👩‍👧", "北京", " ", "\n"]), min_size=1
    ).map(" ".join)
    | st.text("ab .é北京🙂👩\u200d\n", min_size=1, max_size=80)
    | st.text(min_size=1, max_size=80)
)
seeded = settings(max_examples=300, deadline=None, derandomize=True)
FRAMES = [("", ""), ("Review: ", "\nVerdict:"), ("", "北"), ("🙂", ""), ("Context: a", "b after")]
SLACK = 8  # a character takes up to 4 tokens, and borders may join up anew


def framed(frame):
    return lambda text: Prompt(
        f"{frame[0]}{text}{frame[1]}", len(frame[0]), len(frame[0]) + len(text)
    )


@seeded
@given(text=texts, frame=st.sampled_from(FRAMES), limit=st.integers(1, 60), chat=st.booleans())
def test_a_cut_prompt_keeps_a_prefix_of_the_text_and_all_around_it(
    text, frame, limit, chat, decoder_tokenizer, encoder_tokenizer
):
    tokenizer = decoder_tokenizer if chat else encoder_tokenizer

    def render(part):
        return instruction_prompt(tokenizer, frame[0], part) if chat else framed(frame)(part)

    def size(part):
        prompt = render(part)
        return len(encode_prompt(tokenizer, prompt).ids)

    whole = size(text)
    try:
        prompt, tokens, truncated = fit_prompt(
            tokenizer, render, text, limit, truncate=True, param="text"
        )
    except TextTooLong:
        assert whole > limit
        assert size(text[:1]) + SLACK > limit
        return
    kept = prompt.text[prompt.start : prompt.stop]
    assert len(tokens.ids) == size(kept) <= limit
    assert prompt == render(kept)
    assert kept
    assert text.startswith(kept)
    assert truncated == (kept != text) == (whole > limit)
    assert not truncated or len(tokens.ids) > limit - SLACK


@seeded
@given(text=texts, limit=st.integers(1, 60))
def test_without_leave_to_cut_a_text_goes_in_whole_or_not_at_all(text, limit, encoder_tokenizer):
    size = len(encoder_tokenizer.encode(text).ids)
    frame = framed(("", ""))
    if size <= limit:
        prompt, tokens, truncated = fit_prompt(
            encoder_tokenizer, frame, text, limit, truncate=False, param="text"
        )
        assert (prompt.text, len(tokens.ids), truncated) == (text, size, False)
    else:
        said = f"'text' makes a prompt of {size} tokens; at most {limit} fit.*parameters.truncate"
        with pytest.raises(TextTooLong, match=said):
            fit_prompt(encoder_tokenizer, frame, text, limit, truncate=False, param="text")


def test_a_text_that_fits_exactly_is_not_cut(encoder_tokenizer):
    size = len(encoder_tokenizer.encode(CORPUS[0]).ids)
    frame = framed(("", ""))
    fitted = fit_prompt(encoder_tokenizer, frame, CORPUS[0], size, truncate=True, param="text")
    cut = fit_prompt(encoder_tokenizer, frame, CORPUS[0], size - 1, truncate=True, param="text")
    assert (fitted[0].text, fitted[2], cut[2]) == (CORPUS[0], False, True)


def test_a_cut_text_keeps_every_token_there_is_room_for(encoder_tokenizer):
    frame = framed(("Review: ", "\nVerdict:"))
    least = len(encoder_tokenizer.encode(frame("").text).ids)
    for room in range(1, 30):  # an x is one token, alone or among others
        prompt, tokens, _ = fit_prompt(
            encoder_tokenizer, frame, "x" * 40, least + room, truncate=True, param="text"
        )
        assert (prompt.stop - prompt.start, len(tokens.ids)) == (room, least + room)


def test_a_frame_that_alone_is_too_long_is_refused_without_the_advice_to_cut(encoder_tokenizer):
    frame = framed(("x y " * 50, ""))
    with pytest.raises(TextTooLong) as caught:
        fit_prompt(encoder_tokenizer, frame, "hello", 20, truncate=True, param="context")
    assert caught.value.param == "context"
    assert caught.value.message.endswith("at most 20 fit. Shorten it.")


def test_a_text_the_template_changed_cannot_be_cut_and_is_refused(encoder_tokenizer):
    def upper(text):
        return Prompt(text.upper(), -1, -1)

    with pytest.raises(TextTooLong):
        fit_prompt(encoder_tokenizer, upper, CORPUS[0], 5, truncate=True, param="text")


def talk(*contents):
    roles = ["system", *["user", "assistant"] * len(contents)]
    return [Message(role=r, content=c) for r, c in zip(roles, contents, strict=False)]


def with_template(decoder_folder, tmp_path, template):
    folder = shutil.copytree(decoder_folder, tmp_path / "copy")
    (folder / "chat_template.jinja").write_text(template)
    return load_tokenizer(folder)


@seeded
@given(contents=st.lists(texts.filter(lambda text: text.strip()), min_size=2, max_size=4))
def test_messages_stand_in_the_prompt_as_they_were_written(contents, decoder_tokenizer):
    prompt = conversation_prompt(decoder_tokenizer, talk(*contents))
    assert [prompt.text[start:stop] for start, stop in prompt.messages] == contents
    assert (prompt.start, prompt.stop) == prompt.messages[-1]
    assert encode_prompt(decoder_tokenizer, prompt).ids.count(1) == len(contents) + 1


@pytest.fixture(scope="module")
def mistral():
    """A tokenizer of Mistral's kind: a blank is set before a text, and its chats have no mark behind ``[INST]``."""
    tokens = ["<unk>", "<s>", "</s>", "▁", *"[]/INSTabc\n", "▁[", "▁a"]
    merges = [("▁", "["), ("▁", "a")]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    inner = Inner(models.BPE(vocabulary, merges, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    fast.chat_template = (
        "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
    )
    return fast


@pytest.mark.parametrize("content", ["abc", " a\n", "c a"])
def test_a_conversation_is_read_as_the_library_reads_it(content, mistral):
    messages = talk("a", content, "b", "a")[1:]
    chat = [message.model_dump() for message in messages]
    expected = mistral.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    prompt = conversation_prompt(Tokenizer(copy.deepcopy(mistral), [2]), messages)
    assert encode_prompt(Tokenizer(copy.deepcopy(mistral), [2]), prompt).ids == expected


@pytest.mark.parametrize("content", ["user", "system", "a", "<|end|>", "<|start|>assistant\n"])
def test_a_message_is_never_taken_for_the_templates_own_text(content, decoder_tokenizer):
    prompt = conversation_prompt(decoder_tokenizer, talk("Be brief.", content, "Yes.", content))
    tokens = encode_prompt(decoder_tokenizer, prompt)
    assert (tokens.ids.count(1), tokens.ids.count(2)) == (5, 4)  # the template's own
    assert [prompt.text[start:stop] for start, stop in prompt.messages][1::2] == [content] * 2


def test_a_template_may_strip_messages(decoder_folder, tmp_path):
    template = "{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}"
    tokenizer = with_template(decoder_folder, tmp_path, template)
    prompt = conversation_prompt(tokenizer, talk(" a b\n", "\tc "))
    assert prompt.text == "[a b][c]"
    assert prompt.text[prompt.start : prompt.stop] == "c"
    prompt = instruction_prompt(tokenizer, "  Sum up.", " a text ")
    assert prompt.text == "[Sum up.\n\n a text]"
    assert prompt.text[prompt.start : prompt.stop] == " a text"


@pytest.mark.parametrize(
    "content", ["<think>\nhm\n</think>\n\nYes. ", "Yes.", "a </think> b </think>\nc", "</think>"]
)
def test_earlier_thoughts_stay_in_a_chat_only_if_the_template_keeps_them(
    content, decoder_tokenizer, decoder_folder, tmp_path
):
    template = (  # as Qwen3's and DeepSeek R1's do
        "{% for m in messages %}{% set c = m['content'] %}"
        "{% if m['role'] == 'assistant' and '</think>' in c %}"
        "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}[{{ c }}]{% endfor %}"
    )
    dropping = with_template(decoder_folder, tmp_path, template)
    messages = [
        Message(role=role, content=text)
        for role, text in (("user", "</think> a"), ("assistant", content), ("user", "b"))
    ]
    for tokenizer in (dropping, decoder_tokenizer):
        prompt = conversation_prompt(tokenizer, messages)
        assert prompt.text == tokenizer.chat([message.model_dump() for message in messages])
        told = [prompt.text[start:stop] for start, stop in prompt.messages]
        assert (told[0], told[2]) == ("</think> a", "b")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[-1]['content'] }}",
        "{{ messages[-1]['content'] }}{{ messages[0]['content'] }}",
        "{% for m in messages %}{{ m['content'] | reverse }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
    ],
)
def test_a_template_that_drops_moves_or_changes_messages_is_refused(
    decoder_folder, tmp_path, template
):
    tokenizer = with_template(decoder_folder, tmp_path, template)
    with pytest.raises(InvalidRequest, match="drops, moves or changes the message of"):
        conversation_prompt(tokenizer, talk("a", "b"))


def test_roles_that_the_template_does_not_take_are_refused_with_its_reason(
    decoder_folder, tmp_path
):
    template = "{{ raise_exception('no system role here') }}"
    tokenizer = with_template(decoder_folder, tmp_path, template)
    with pytest.raises(InvalidRequest, match="messages of 'system, user': no system role here"):
        conversation_prompt(tokenizer, talk("a", "b"))
