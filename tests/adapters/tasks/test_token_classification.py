"""Token classification: words to their first tokens, tags to entities with places in code points."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters.errors import InvalidData, InvalidRequest, TextTooLong
from adapters.tasks.base import NO_LABEL, RowOutput
from adapters.tasks.catalog import get_task, task_class
from adapters.validation import first_problem

CLASS = task_class("token-classification")
TASK = get_task("token-classification", {"labels": ["person", "place"]})
TOKENS = ["Ada", "Lovelace", "lived", "in", "été", "北京", "."]
TAGS = ["B-person", "I-person", "O", "O", "O", "B-place", "O"]


def encode(tokenizer, limit=200, truncate=False, **request):
    parameters = CLASS.Parameters(truncate=truncate)
    return TASK.encode(tokenizer, CLASS.Request(**request), parameters, limit)


def answer(tokenizer, tags, limit=200, **request):
    """Return the entities of an output that gives each word's first token its tag."""
    encoded = encode(tokenizer, limit, truncate=True, **request)
    logits = np.zeros((len(encoded.token_ids), len(TASK.tags)), np.float32)
    logits[:, TASK.tags.index("B-place")] = 1  # whatever is not read must not count
    for tag, first in zip(tags, encoded.first_tokens, strict=True):
        if first is not None:
            logits[first, TASK.tags.index(tag)] = 9
    output = RowOutput(logits)
    return TASK.postprocess(tokenizer, CLASS.Request(**request), encoded, output)["entities"]


def test_each_label_has_two_tags_beside_that_of_other_words():
    assert TASK.tags == ["O", "B-person", "I-person", "B-place", "I-place"]
    assert TASK.head("encoder").model_dump() == {"kind": "token", "outputs": 5, "pooling": "last"}


def test_labels_are_those_of_the_data_unless_given():
    targets = [CLASS.Target(tokens=["a", "b"], tags=tags) for tags in (["I-z", "O"], ["B-b-c"] * 2)]
    assert CLASS.options_from({}, targets) == {"labels": ["b-c", "z"]}
    assert CLASS.options_from({"labels": ["z"]}, targets) == {"labels": ["z"]}


@pytest.mark.parametrize("name", ["decoder_tokenizer", "encoder_tokenizer"])
def test_the_first_token_of_each_word_carries_its_label(name, request):
    tokenizer = request.getfixturevalue(name)
    encoded = encode(tokenizer, tokens=TOKENS)
    row = TASK.label(tokenizer, encoded, CLASS.Target(tokens=TOKENS, tags=TAGS))
    assert (row.token_ids, row.loss) == (encoded.token_ids, "tags")
    assert len(row.labels) == len(row.token_ids)
    tokens = tokenizer.encode(" ".join(TOKENS))
    start = 0
    for word, tag in zip(TOKENS, TAGS, strict=True):
        first, end = tokens.between(start, start + len(word))
        assert row.labels[first:end] == [TASK.tags.index(tag)] + [NO_LABEL] * (end - first - 1)
        start += len(word) + 1
    assert sum(label != NO_LABEL for label in row.labels) == len(TOKENS)


def test_entities_of_tokens_have_their_places_in_the_joined_text(encoder_tokenizer):
    found = answer(encoder_tokenizer, TAGS, tokens=TOKENS)
    probability = torch.tensor([9.0, 1, 0, 0, 0]).softmax(0)[0].item()
    last = torch.tensor([9.0, 0, 0, 0, 0]).softmax(0)[0].item()
    assert found == [
        {
            "label": "person",
            "text": "Ada Lovelace",
            "start": 0,
            "end": 12,
            "score": pytest.approx(probability),
        },
        {"label": "place", "text": "北京", "start": 26, "end": 28, "score": pytest.approx(last)},
    ]


def test_entities_of_a_text_are_slices_of_it(decoder_tokenizer):
    text = " Ada  Lovelace, lived in (Zürich)! 🙂"
    tags = ["B-person", "I-person", *["O"] * 4, "B-place", "O", "O", "O"]
    found = answer(decoder_tokenizer, tags, text=text)
    assert [(e["text"], e["label"]) for e in found] == [
        ("Ada  Lovelace", "person"),
        ("Zürich", "place"),
    ]
    assert all(text[e["start"] : e["end"]] == e["text"] for e in found)


def test_words_that_begin_in_one_token_are_one(decoder_tokenizer):
    class Greedy:
        def encode(self, text):
            tokens = decoder_tokenizer.encode(text)
            return type(tokens)([7], [(0, len(text))])

    encoded = encode(Greedy(), text="北京市")
    assert (encoded.offsets, encoded.first_tokens) == ([(0, 3)], [0])


def test_words_behind_the_cut_are_in_no_entity(encoder_tokenizer):
    tokens = ["word"] * 40
    encoded = encode(encoder_tokenizer, 30, truncate=True, tokens=tokens)
    assert encoded.truncated
    assert len(encoded.token_ids) <= 30
    num_read = sum(first is not None for first in encoded.first_tokens)
    assert 0 < num_read < 40
    found = answer(encoder_tokenizer, ["B-place"] * 40, 30, tokens=tokens)
    assert len(found) == num_read
    with pytest.raises(TextTooLong, match="'tokens' makes a prompt of"):
        encode(encoder_tokenizer, 30, tokens=tokens)


def test_answers_score_by_whole_spans(encoder_tokenizer):
    target = CLASS.Target(tokens=TOKENS, tags=TAGS)
    tags = ["B-person", "O", "O", "O", "O", "B-place", "O"]  # the person's span is too short
    predictions = [
        {"entities": answer(encoder_tokenizer, each, tokens=TOKENS)} for each in (TAGS, tags)
    ]
    assert TASK.score(predictions[:1], [target])["f1"] == 1
    scores = TASK.score(predictions, [target, target])
    assert scores == pytest.approx({"precision": 0.75, "recall": 0.75, "f1": 0.75})
    assert TASK.score([{"entities": []}], [target])["f1"] == 0


def test_a_tag_of_no_known_label_is_refused(encoder_tokenizer):
    encoded = encode(encoder_tokenizer, tokens=["Ada"])
    target = CLASS.Target(tokens=["Ada"], tags=["B-ship"])
    with pytest.raises(
        InvalidData, match="Tag 'B-ship' is of none of the labels 'person', 'place'"
    ):
        TASK.label(encoder_tokenizer, encoded, target)


def test_a_text_the_tokenizer_makes_nothing_of_is_refused(encoder_tokenizer):
    class Deaf:
        def encode(self, text):
            return encoder_tokenizer.encode("")

    with pytest.raises(InvalidRequest, match="finds nothing to read"):
        encode(Deaf(), text="\u200b")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "1 tags for 2 tokens"),
        ({"tokens": ["a"], "tags": []}, "0 tags for 1 tokens"),
        ({"tokens": ["a"], "tags": ["S-person"]}, "'S-person' is no BIO tag"),
        ({"tokens": ["a"], "tags": ["person"]}, "'person' is no BIO tag"),
        ({"tokens": ["a"], "tags": ["B-"]}, "'B-' is no BIO tag"),
        ({"tokens": ["a"], "tags": [""]}, "'tags.0' is empty"),
        ({"tokens": ["a"], "tags": [3]}, "'tags.0' is '3'"),
        ({"tokens": ["a"], "tags": "O"}, "'tags' is 'O'"),
        ({"tags": ["O"]}, "no field 'tokens'"),
    ],
)
def test_wrong_tags_are_refused_with_what_is_wrong(value, said):
    with pytest.raises(ValidationError) as caught:
        CLASS.Target.model_validate(value)
    assert said in first_problem(caught.value)[0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "give either 'text' or 'tokens'"),
        ({"text": "a", "tokens": ["a"]}, "give either 'text' or 'tokens'"),
        ({"text": " "}, "'text' is empty"),
        ({"text": 1}, "'text' is '1'"),
        ({"tokens": []}, "'tokens' is '[]'"),
        ({"tokens": ["a", " "]}, "'tokens.1' is empty"),
        ({"tokens": [None]}, "'tokens.0' is 'None'"),
        ({"tokens": "Ada"}, "'tokens' is 'Ada'"),
        ({"text": "a", "tags": ["O"]}, "unknown field 'tags'"),
    ],
)
def test_a_wrong_request_is_refused_with_what_is_wrong(value, said):
    with pytest.raises(ValidationError) as caught:
        CLASS.Request.model_validate(value)
    assert said in first_problem(caught.value)[0]


@pytest.mark.parametrize("labels", [[], ["a", "a"], [""], "ab"])
def test_wrong_labels_are_refused(labels):
    with pytest.raises(InvalidRequest, match="Options of 'token-classification': field 'labels"):
        get_task("token-classification", {"labels": labels})


WORDS = st.text("ab.é北京🙂👩\u200d", min_size=1, max_size=12)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    words=st.lists(WORDS, min_size=1, max_size=60),
    limit=st.integers(9, 50),
    stride=st.integers(0, 30),
    data=st.data(),
)
def test_windows_answer_each_word_once_where_it_has_most_context(
    words, limit, stride, data, decoder_tokenizer, encoder_tokenizer
):
    task = get_task("token-classification", {"labels": ["person", "place"], "stride": stride})
    tags = data.draw(st.lists(st.sampled_from(task.tags), min_size=len(words), max_size=len(words)))
    request = CLASS.Request(tokens=words)
    for tokenizer in (decoder_tokenizer, encoder_tokenizer):
        whole = task.encode(tokenizer, request, CLASS.Parameters(), 10**6)
        try:
            parts = task.encode_parts(tokenizer, request, CLASS.Parameters(), limit)
        except TextTooLong:  # more than MAX_PARTS
            continue
        assert all(len(part.token_ids) <= limit for part in parts)
        for word, first in enumerate(whole.first_tokens):
            owners = [part for part in parts if part.first_tokens[word] is not None]
            assert len(owners) == (first is not None)
            for part in owners:
                assert part.token_ids[part.first_tokens[word]] == whole.token_ids[first]
        rows = task.label_parts(tokenizer, parts, CLASS.Target(tokens=words, tags=tags))
        outputs = []
        for row in rows:
            logits = np.zeros((len(row.token_ids), len(task.tags)), np.float32)
            for token, label in enumerate(row.labels):
                logits[token, label if label != NO_LABEL else 1] = 9
            outputs.append(RowOutput(logits))
        found = task.postprocess_parts(tokenizer, request, parts, outputs)
        text = " ".join(words)
        assert all(text[e["start"] : e["end"]] == e["text"] for e in found["entities"])
        read = [
            "O" if first is None else tag
            for tag, first in zip(tags, whole.first_tokens, strict=True)
        ]
        expected = CLASS.Target(tokens=words, tags=read)
        assert task.score([found], [expected])["f1"] == float(any(tag != "O" for tag in read))


def test_a_word_in_two_windows_belongs_to_the_one_with_more_around_it(encoder_tokenizer):
    task = get_task("token-classification", {"labels": ["a"], "stride": 10})
    words = ["a"] * 45
    request = CLASS.Request(tokens=words)
    parts = task.encode_parts(encoder_tokenizer, request, CLASS.Parameters(), 32)
    assert len(parts) == 2
    owned = [[at for at in part.first_tokens if at is not None] for part in parts]
    for part, places in zip(parts, owned, strict=True):
        ends = [min(places) - 1, len(part.token_ids) - 2 - max(places)]
        assert min(ends) == 0
        assert max(ends) >= 4  # half of what the windows share


def test_a_text_of_too_many_windows_is_refused_or_cut(encoder_tokenizer):
    request = CLASS.Request(text="word " * 3000)
    with pytest.raises(TextTooLong, match=r"'text' of .* windows") as caught:
        TASK.encode_parts(encoder_tokenizer, request, CLASS.Parameters(), 30)
    assert caught.value.param == "text"
    parts = TASK.encode_parts(encoder_tokenizer, request, CLASS.Parameters(truncate=True), 30)
    assert all(part.truncated for part in parts)
    assert any(all(p.first_tokens[i] is None for p in parts) for i in range(3000))
