"""Room of a row: the smallest of what task, backbone and caller allow; an encoder-decoder's two sides are apart."""

import pytest

from adapters.errors import TextTooLong
from adapters.tasks.catalog import get_task
from adapters.tasks.room import row_room

WRITER = get_task("summarization", {"max_new_tokens": 10})


@pytest.mark.parametrize(
    ("family", "options", "bound", "room"),
    [
        ("decoder", {}, None, 256),
        ("decoder", {}, 100, 100),
        ("decoder", {"max_tokens": 50}, 100, 50),
        ("encoder-decoder", {}, None, 266),
        ("encoder-decoder", {}, 100, 100),
        ("encoder-decoder", {"max_tokens": 50}, None, 60),
    ],
)
def test_the_smallest_bound_counts(decoder_spec, family, options, bound, room):
    task = get_task("summarization", {"max_new_tokens": 10, **options})
    spec = decoder_spec.model_copy(update={"family": family})
    assert row_room(task, spec, task.Parameters(), bound) == room


def test_the_prompt_of_an_encoder_decoder_fills_its_own_side(decoder_spec, encoder_tokenizer):
    spec = decoder_spec.model_copy(update={"family": "encoder-decoder", "max_tokens": 60})
    parameters = WRITER.Parameters(truncate=True)
    request = WRITER.Request(text="The sun. " * 40)
    encoded = WRITER.encode(
        encoder_tokenizer, request, parameters, row_room(WRITER, spec, parameters)
    )
    assert 50 < len(encoded.token_ids) <= 60


def test_an_answer_beyond_its_own_side_is_refused(decoder_spec):
    spec = decoder_spec.model_copy(update={"family": "encoder-decoder"})
    with pytest.raises(TextTooLong, match="max_new_tokens is '257', but an answer") as caught:
        row_room(WRITER, spec, WRITER.Parameters(max_new_tokens=257))
    assert caught.value.param == "max_new_tokens"
