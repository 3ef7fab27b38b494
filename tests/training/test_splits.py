"""Splits: nothing lost, nothing twice, each class in proportion, and the same whatever the order of the file."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidData
from adapters.tasks.catalog import task_class
from training.data import Example
from training.splits import split_examples

CLASSES = task_class("text-classification")
ANSWERS = task_class("question-answering")


def rows(labels, texts=None):
    texts = texts or [f"text {i}" for i in range(len(labels))]
    return [
        Example(CLASSES.Request(text=text), CLASSES.Target(label=label), i + 1)
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]


def contents(examples):
    return {(e.request.text, e.target.label) for e in examples}


SHARES = st.floats(0.1, 0.4)


@given(
    st.lists(st.sampled_from("abc"), min_size=20, max_size=80), SHARES, SHARES, st.integers(0, 5)
)
def test_splits_are_disjoint_cover_all_and_keep_each_class_in_proportion(labels, dev, test, seed):
    examples = rows(labels)
    splits = split_examples(examples, validation_share=dev, test_share=test, seed=seed)
    lines = [e.line for part in (splits.train, splits.validation, splits.test) for e in part]
    assert sorted(lines) == list(range(1, len(examples) + 1))
    assert {e.target.label for e in splits.train} == set(labels)
    for label, count in Counter(labels).items():
        for share, part in ((dev, splits.validation), (test, splits.test)):
            drawn = sum(e.target.label == label for e in part)
            assert abs(drawn - share * count) <= 1 or drawn < share * count  # one stays in training


@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_a_rows_split_does_not_depend_on_the_order_of_the_file(random, seed):
    examples = rows("abcabbccaa" * 4)
    shuffled = list(examples)
    random.shuffle(shuffled)
    one, other = (
        split_examples(each, validation_share=0.2, test_share=0.2, seed=seed)
        for each in (examples, shuffled)
    )
    assert contents(one.test) == contents(other.test)
    assert contents(one.validation) == contents(other.validation)


def test_another_seed_draws_other_rows_and_the_test_split_stays_beside_a_validation_split():
    examples = rows("ab" * 50)
    first = split_examples(examples, validation_share=0, test_share=0.2, seed=0)
    second = split_examples(examples, validation_share=0, test_share=0.2, seed=1)
    both = split_examples(examples, validation_share=0.3, test_share=0.2, seed=0)
    assert contents(first.test) != contents(second.test)
    assert contents(first.test) == contents(both.test)


@given(st.integers(0, 50))
def test_rows_with_the_same_input_stay_on_one_side(seed):
    texts = ["Good film", "good  FILM", "a", "b", "c", "d", "e", "f", "g", "h"] * 2
    splits = split_examples(
        rows("ab" * 10, texts), validation_share=0.25, test_share=0.25, seed=seed
    )
    sides = [
        {e.request.text.casefold().replace("  ", " ") for e in part}
        for part in splits.parts().values()
    ]
    assert not any(a & b for i, a in enumerate(sides) for b in sides[i + 1 :])


def test_questions_on_one_context_stay_on_one_side():
    examples = [
        Example(
            ANSWERS.Request(question=f"q{i}", context=f"context {i // 5}"),
            ANSWERS.Target(answers=[{"text": "context", "answer_start": 0}]),
            i,
        )
        for i in range(50)
    ]
    splits = split_examples(examples, validation_share=0, test_share=0.3, seed=0)
    sides = [{e.request.context for e in part} for part in (splits.train, splits.test)]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_a_share_that_gives_no_row_is_refused():
    with pytest.raises(InvalidData, match=r"test share of '0\.01' of 10 rows"):
        split_examples(rows("ab" * 5), validation_share=0, test_share=0.01, seed=0)
