"""fit_prompt: always within the limit, the text cut at its end only, all around it kept whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import TextTooLong
from adapters.tasks.base import Prompt, encode_prompt, fit_prompt
from adapters.tasks.prompts import instruction_prompt
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
