"""Question answering: labelled spans, the best span, and answers that are slices of the context."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer as Inner
from tokenizers import models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adapters.errors import InvalidData, InvalidRequest, TextTooLong
from adapters.tasks.base import RowOutput
from adapters.tasks.catalog import get_task, task_class
from adapters.tasks.question_answering import best_span
from adapters.tokenizer import Tokenizer
from tests.tiny import CORPUS

CLASS = task_class("question-answering")
TASK = get_task("question-answering", {})
contexts = (
    st.text("ab .é北京🙂👩\u200d\n\u3000", min_size=1, max_size=60)
    | st.text(min_size=1)
    | st.sampled_from(CORPUS)
)
seeded = settings(max_examples=200, deadline=None, derandomize=True)


def encode(tokenizer, context, question="Who?", limit=10_000, truncate=False):
    request = CLASS.Request(question=question, context=context)
    return request, TASK.encode(tokenizer, request, CLASS.Parameters(truncate=truncate), limit)


def answer_of(text, start):
    return CLASS.Target(answers=[{"text": text, "answer_start": start}])


def peaked(num_tokens, *places):
    logits = np.zeros((num_tokens, 2), np.float32)
    logits[places, (0, 1)] = 20.0
    return RowOutput(logits)


@seeded
@given(context=contexts, data=st.data())
def test_a_labelled_answer_reads_back_as_the_slice_around_it(
    context, data, decoder_tokenizer, encoder_tokenizer
):
    assume(context.strip())
    start = data.draw(st.integers(0, len(context) - 1))
    stop = data.draw(st.integers(start + 1, len(context)))
    for tokenizer in (decoder_tokenizer, encoder_tokenizer):
        request, encoded = encode(tokenizer, context)
        labelled = TASK.label(tokenizer, encoded, answer_of(context[start:stop], start))
        first, last = (place - encoded.read[0] for place in labelled.labels)
        begin, end = encoded.offsets[first][0], encoded.offsets[last][1]
        assert begin <= start < encoded.offsets[first][1]
        assert encoded.offsets[last][0] < stop <= end
        assert len(encoded.offsets) == encoded.read[1] - encoded.read[0]
        if last - first < TASK.options.max_answer_tokens:
            output = peaked(len(encoded.token_ids), *labelled.labels)
            answer = TASK.postprocess(tokenizer, request, encoded, output)
            assert answer["answer"] == context[begin:end].strip()
            if answer["answer"]:
                assert answer["answer"] == context[answer["start"] : answer["end"]]
            else:
                assert answer["start"] is answer["end"] is None


@seeded
@given(context=contexts)
def test_the_readable_tokens_are_the_context_and_nothing_else(context, encoder_tokenizer):
    assume(context.strip())
    _, encoded = encode(encoder_tokenizer, context)
    covered = {i for start, end in encoded.offsets for i in range(start, end)}
    assert covered == set(range(len(context)))
    assert encoder_tokenizer.decode(encoded.token_ids[: encoded.read[0]]).startswith(
        "Question: Who?"
    )
    assert encoded.token_ids[encoded.read[1] :] == [2]


pairs = st.tuples(*[st.floats(-20, 20, width=32)] * 2)


@seeded
@given(st.lists(pairs, min_size=1, max_size=20), st.integers(1, 25))
def test_the_best_span_is_the_one_found_by_trying_them_all(rows, limit):
    logits = np.array(rows, np.float32)
    exact = logits.astype(np.float64)
    start, end = (np.exp(exact[:, i]) / np.exp(exact[:, i]).sum() for i in (0, 1))
    spans = {
        (i, j): start[i] * end[j]
        for i in range(len(rows))
        for j in range(i, min(i + limit, len(rows)))
    }
    first, last, score = best_span(logits, limit)
    assert spans[first, last] == pytest.approx(max(spans.values()), rel=1e-4)
    assert score == pytest.approx(max(spans.values()), rel=1e-4)


def test_an_answer_never_ends_before_it_begins_nor_runs_beyond_its_limit():
    logits = np.zeros((5, 2), np.float32)
    logits[4, 0] = logits[0, 1] = 5
    first, last, _ = best_span(logits, 2)
    assert first <= last < first + 2


def test_the_question_stands_before_the_context_and_is_never_cut(decoder_tokenizer):
    question = "Who wrote the first program?"
    _, encoded = encode(decoder_tokenizer, " ".join(CORPUS), question, limit=50, truncate=True)
    prompt = decoder_tokenizer.decode(encoded.token_ids)
    assert encoded.truncated
    assert prompt.startswith(f"Question: {question}\nContext: {CORPUS[0][:10]}")


def test_a_context_that_is_too_long_is_refused_by_name(decoder_tokenizer):
    with pytest.raises(TextTooLong, match="'context' makes a prompt of") as caught:
        encode(decoder_tokenizer, " ".join(CORPUS), limit=50)
    assert caught.value.param == "context"


@pytest.mark.parametrize(("text", "start"), [("lazy", 3), ("beyond", 30), ("x", 4)])
def test_an_answer_beyond_the_contexts_end_is_refused(decoder_tokenizer, text, start):
    _, encoded = encode(decoder_tokenizer, "Ada.")
    with pytest.raises(InvalidData, match=f"'{text}' at {start} lies beyond"):
        TASK.label(decoder_tokenizer, encoded, answer_of(text, start))


def test_a_context_the_tokenizer_drops_whole_is_refused():
    inner = Inner(models.WordPiece({"[UNK]": 0, "question": 1}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()  # drops zero-width and control characters
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=inner), [0])
    with pytest.raises(InvalidRequest):
        encode(tokenizer, "\u200b")


def test_the_score_takes_the_best_of_several_answers():
    answers = [{"text": text, "answer_start": 0} for text in ("Ada", "Ada Lovelace")]
    targets = [CLASS.Target(answers=answers)]
    assert TASK.score([{"answer": "ada lovelace"}], targets) == {"exact_match": 1.0, "f1": 1.0}


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (CLASS.Request, {"question": "a"}),
        (CLASS.Request, {"question": " ", "context": "a"}),
        (CLASS.Request, {"question": "a", "context": "\n"}),
        (CLASS.Request, {"question": "a", "context": 1}),
        (CLASS.Request, {"question": "a", "context": "b", "text": "c"}),
        (CLASS.Target, {"answers": []}),
        (CLASS.Target, {"answers": ["a"]}),
        (CLASS.Target, {"answers": [{"text": "a"}]}),
        (CLASS.Target, {"answers": [{"text": "", "answer_start": 0}]}),
        (CLASS.Target, {"answers": [{"text": "a", "answer_start": -1}]}),
        (CLASS.Target, {"answers": [{"text": "a", "answer_start": 0.5}]}),
        (CLASS.Parameters, {"max_answer_tokens": 3}),
        (CLASS.Options, {"max_answer_tokens": 0}),
    ],
)
def test_a_wrong_field_is_refused(model, value):
    with pytest.raises(ValidationError):
        model.model_validate(value)
