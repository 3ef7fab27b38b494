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
from adapters.tasks.base import Observation, RowOutput
from adapters.tasks.catalog import get_task, task_class
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


def peaked(num_tokens, *places, height=20.0):
    logits = np.zeros((num_tokens, 2), np.float32)
    logits[places, (0, 1)] = height
    return RowOutput(logits)


def windows(tokenizer, context, limit, question="Who?", truncate=False, **options):
    """Return the request, its rows, and the task that made them."""
    task = get_task("question-answering", options)
    request = CLASS.Request(question=question, context=context)
    parameters = CLASS.Parameters(truncate=truncate)
    return request, task.encode_parts(tokenizer, request, parameters, limit), task


@seeded
@given(context=contexts, data=st.data())
def test_a_labelled_answer_reads_back_as_the_slice_around_it(
    context, data, decoder_tokenizer, encoder_tokenizer
):
    assume(context.strip())
    start = data.draw(st.integers(0, len(context) - 1))
    stop = data.draw(st.integers(start + 1, len(context)))
    given = context[start:stop]
    assume(given.strip())
    inside = (start + len(given) - len(given.lstrip()), start + len(given.rstrip()))
    for tokenizer in (decoder_tokenizer, encoder_tokenizer):
        request, encoded = encode(tokenizer, context)
        labelled = TASK.label(tokenizer, encoded, answer_of(given, start))
        first, last = (place - encoded.read[0] for place in labelled.labels)
        begin, end = encoded.offsets[first][0], encoded.offsets[last][1]
        assert begin <= inside[0] < encoded.offsets[first][1]
        assert encoded.offsets[last][0] < inside[1] <= end
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


def test_blanks_around_an_answer_take_no_word_beside_it_in(decoder_tokenizer):
    for text, start in (("Ada ", 0), (" wrote ", 3), ("it ", 10)):
        request, encoded = encode(decoder_tokenizer, "Ada wrote it ")
        row = TASK.label(decoder_tokenizer, encoded, answer_of(text, start))
        output = peaked(len(encoded.token_ids), *row.labels)
        found = TASK.postprocess(decoder_tokenizer, request, encoded, output)
        assert found["answer"] == text.strip()
    with pytest.raises(InvalidData, match="finds nothing to read in the answer ' '"):
        TASK.label(decoder_tokenizer, encoded, answer_of(" ", 3))


@pytest.mark.parametrize("normalizer", [normalizers.NFC(), normalizers.BertNormalizer()])
def test_an_answer_keeps_the_accent_that_the_tokenizer_reads_otherwise(normalizer):
    inner = Inner(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=inner), [0])
    for context in ("au cafe\u0301", "cafe\u0301 noir"):
        start = context.index("c")
        request, encoded = encode(tokenizer, context)
        row = TASK.label(tokenizer, encoded, answer_of("cafe\u0301", start))
        output = peaked(len(encoded.token_ids), *row.labels)
        found = TASK.postprocess(tokenizer, request, encoded, output)
        assert (found["answer"], found["end"]) == ("cafe\u0301", start + 5)


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
        (CLASS.Target, {}),
        (CLASS.Options, {"stride": -1}),
        (CLASS.Options, {"no_answer_threshold": float("nan")}),
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


# Characters of one to four bytes, so that a tokenizer of bytes makes several tokens of one of them.
long_contexts = st.text("ab .é北京🙂👩\u200d\n", min_size=20, max_size=300)


@seeded
@given(context=long_contexts, limit=st.integers(18, 60), stride=st.integers(0, 40), data=st.data())
def test_windows_neither_lose_nor_shift_an_answer(
    context, limit, stride, data, decoder_tokenizer, encoder_tokenizer
):
    assume(context.strip())
    start = data.draw(st.integers(0, len(context) - 1))
    answer = context[start : start + data.draw(st.integers(1, 4))]
    assume(answer.strip())
    for tokenizer in (decoder_tokenizer, encoder_tokenizer):
        try:
            request, parts, task = windows(
                tokenizer, context, limit, stride=stride, max_answer_tokens=1000
            )
        except TextTooLong:  # no room, or more than MAX_PARTS
            continue
        assert all(len(part.token_ids) <= limit for part in parts)
        covered = {i for part in parts for s, e in part.offsets for i in range(s, e)}
        assert covered == set(range(len(context)))
        try:
            rows = task.label_parts(tokenizer, parts, answer_of(answer, start))
        except TextTooLong:
            _, whole = encode(tokenizer, context)
            end = start + len(answer)
            num_tokens = sum(s < end and e > start for s, e in whole.offsets)
            first, stop = parts[0].read
            room = limit - (len(parts[0].token_ids) - (stop - first))
            assert num_tokens > min(stride, room // 2) + 1
            continue
        holders = [i for i, row in enumerate(rows) if row.labels[0] != row.no_answer]
        assert holders
        for holder in holders:
            outputs = [peaked(len(row.token_ids), *[row.no_answer or 0] * 2) for row in rows]
            outputs[holder] = peaked(len(rows[holder].token_ids), *rows[holder].labels)
            found = task.postprocess_parts(tokenizer, request, parts, outputs)
            assert context[found["start"] : found["end"]] == found["answer"]
            assert answer.strip() in found["answer"]
            assert found["start"] <= start + len(answer) - len(answer.lstrip())


@pytest.mark.parametrize("name", ["decoder_tokenizer", "encoder_tokenizer"])
def test_each_window_has_the_whole_question_and_a_token_for_no_answer(name, request):
    tokenizer = request.getfixturevalue(name)
    question = "Who wrote the first program?"
    whole = " ".join(CORPUS[:3])
    _, parts, _ = windows(tokenizer, whole, 60, question, stride=10)
    assert len(parts) > 2
    for part in parts:
        begin = tokenizer.decode(part.token_ids[: part.read[0]])
        assert begin.startswith(f"Question: {question}\nContext:")
        assert not part.read[0] <= part.no_answer < part.read[1]
        assert not part.truncated
    place = 0 if name == "encoder_tokenizer" else len(parts[0].token_ids) - 1
    assert {
        part.no_answer - (len(part.token_ids) - len(parts[0].token_ids)) * bool(place)
        for part in parts
    } == {place}


def test_the_token_for_no_answer_of_a_decoder_changes_no_token_before_it(decoder_tokenizer):
    request = CLASS.Request(question="Who?", context="Ada wrote it")
    may_lack = get_task("question-answering", {"unanswerable": True})
    rows = [
        task.encode(decoder_tokenizer, request, CLASS.Parameters(), 100)
        for task in (TASK, may_lack)
    ]
    assert rows[1].token_ids[: len(rows[0].token_ids)] == rows[0].token_ids
    assert rows[0].read == rows[1].read
    assert rows[0].no_answer is None
    assert rows[1].no_answer == len(rows[1].token_ids) - 1


def test_windows_without_the_answer_are_taught_that_they_lack_it(decoder_tokenizer):
    whole = " ".join(CORPUS[:3])
    start = whole.index("Grace Hopper")
    _, parts, task = windows(decoder_tokenizer, whole, 50, stride=8)
    rows = task.label_parts(decoder_tokenizer, parts, answer_of("Grace Hopper", start))
    texts = [
        None
        if row.labels[0] == row.no_answer
        else whole[
            part.offsets[row.labels[0] - part.read[0]][0] : part.offsets[
                row.labels[1] - part.read[0]
            ][1]
        ].strip()
        for part, row in zip(parts, rows, strict=True)
    ]
    assert set(texts) == {None, "Grace Hopper"}


def test_a_long_answer_that_no_window_holds_is_refused(decoder_tokenizer):
    whole = " ".join(CORPUS[:3])
    _, parts, task = windows(decoder_tokenizer, whole, 50, stride=2)
    with pytest.raises(TextTooLong, match="lies whole in no window of the context"):
        task.label_parts(decoder_tokenizer, parts, answer_of(whole, 0))


def test_more_windows_than_a_request_may_have_are_refused_or_cut(decoder_tokenizer):
    context = "The sun. " * 2000
    with pytest.raises(TextTooLong, match="windows; at most 64 are read") as caught:
        windows(decoder_tokenizer, context, 50)
    assert caught.value.param == "context"
    _, parts, _ = windows(decoder_tokenizer, context, 50, truncate=True)
    assert len(parts) == 64
    assert all(part.truncated and len(part.token_ids) <= 50 for part in parts)
    _, parts, _ = windows(decoder_tokenizer, "x" * 10**6, 40, truncate=True)
    assert len(parts) == 64


def test_a_question_that_leaves_no_room_is_refused_by_name(decoder_tokenizer):
    with pytest.raises(TextTooLong, match="'question' takes") as caught:
        windows(decoder_tokenizer, "Ada. " * 50, 40, "who? " * 40)
    assert caught.value.param == "question"


def unanswerable(tokenizer, threshold=0.0, context="Ada wrote it"):
    task = get_task("question-answering", {"unanswerable": True, "no_answer_threshold": threshold})
    request = CLASS.Request(question="Who?", context=context)
    return task, request, task.encode(tokenizer, request, CLASS.Parameters(), 200)


@pytest.mark.parametrize("name", ["decoder_tokenizer", "encoder_tokenizer"])
def test_no_answer_is_given_from_the_threshold_on(name, request):
    tokenizer = request.getfixturevalue(name)
    task, asked, encoded = unanswerable(tokenizer)
    first = encoded.read[0]
    output = peaked(len(encoded.token_ids), first, first, height=5)
    output.logits[encoded.no_answer] = 4.0
    found = task.postprocess(tokenizer, asked, encoded, output)
    assert found["has_answer"]
    assert found["no_answer_score"] == pytest.approx(-2)
    assert found["answer"] == asked.context[found["start"] : found["end"]] != ""
    strict, _, _ = unanswerable(tokenizer, -2.5)
    none = strict.postprocess(tokenizer, asked, encoded, output)
    assert none == {
        "answer": "",
        "start": None,
        "end": None,
        "score": pytest.approx(found["score"] * np.exp(-2)),
        "has_answer": False,
        "no_answer_score": found["no_answer_score"],
    }


def test_a_question_without_an_answer_is_taught_the_token_for_it(encoder_tokenizer):
    task, _, encoded = unanswerable(encoder_tokenizer)
    row = task.label(encoder_tokenizer, encoded, CLASS.Target(answers=[]))
    assert row.labels == [0, 0]
    assert row.no_answer == 0
    with pytest.raises(
        InvalidData, match="'answers' is '\\[\\]', and the option 'unanswerable' is"
    ):
        TASK.label(encoder_tokenizer, encoded, CLASS.Target(answers=[]))


def test_whether_questions_may_lack_an_answer_is_told_by_the_data_unless_given():
    with_one, without = answer_of("Ada", 0), CLASS.Target(answers=[])
    assert CLASS.options_from({}, [with_one]) == {"unanswerable": False}
    assert CLASS.options_from({}, [with_one, without]) == {"unanswerable": True}
    assert CLASS.options_from({"unanswerable": False}, [without]) == {"unanswerable": False}


def test_the_threshold_is_tuned_on_what_was_observed(encoder_tokenizer):
    task, request, encoded = unanswerable(encoder_tokenizer)
    first = encoded.read[0]
    observed = []
    for none, target in ((-1, "Ada"), (2, "Ada"), (3, None), (9, None)):
        output = peaked(len(encoded.token_ids), first, first + 1)
        output.logits[encoded.no_answer] = 20 + none / 2
        answers = CLASS.Target(answers=[]) if target is None else answer_of(target, 0)
        observed.append(Observation(request, answers, [encoded], [output]))
    options = task.calibrated(encoder_tokenizer, observed)
    assert options == {**task.options.model_dump(), "no_answer_threshold": pytest.approx(2.5)}
    for unfit in (observed[:2], observed[2:], []):
        assert task.calibrated(encoder_tokenizer, unfit) == task.options.model_dump()
    assert TASK.calibrated(encoder_tokenizer, observed) == TASK.options.model_dump()


def test_never_answering_is_the_baseline_of_unanswerable_questions():
    none = CLASS.Target(answers=[])
    assert TASK.baselines([], [answer_of("Ada", 0)]) == {}
    assert TASK.baselines([], [answer_of("Ada", 0), none])["never_answer"]["f1"] == 0.5
