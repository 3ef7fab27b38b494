"""The data gate: what stops a run before it begins, and what it only warns of."""

import pytest

from adapters.errors import InvalidData
from adapters.tasks.catalog import task_class
from training.data import Example
from training.gate import MIN_ROWS, check_examples

CLASSES = task_class("text-classification")
ANSWERS = task_class("question-answering")


def labelled(labels, prefix="row"):
    return [
        Example(CLASSES.Request(text=f"{prefix} {i}"), CLASSES.Target(label=label), i + 1)
        for i, label in enumerate(labels)
    ]


def answered(count, *, answer="Ada", start=0):
    target = ANSWERS.Target(answers=[{"text": answer, "answer_start": start}])
    return [
        Example(ANSWERS.Request(question=f"Who {i}?", context="Ada Lovelace."), target, i + 1)
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (labelled("abababababab"), ()),
        (labelled("abababababab"), labelled("ab", "test")),
        (answered(MIN_ROWS), ()),
    ],
)
def test_good_data_passes_without_a_warning(train, test):
    assert check_examples(train, test) == []


@pytest.mark.parametrize("count", [0, 1, MIN_ROWS - 1])
def test_too_few_rows_stop_the_run_with_their_number(count):
    with pytest.raises(InvalidData, match=f"has '{count}' rows; a run needs at least 8") as caught:
        check_examples(labelled("ab" * 8)[:count])
    assert caught.value.param == "data.train"


def test_the_least_number_of_rows_may_be_set():
    assert len(check_examples(labelled("ab"), min_rows=2)) == 2
    with pytest.raises(InvalidData, match="at least 3"):
        check_examples(labelled("ab"), min_rows=3)


def test_a_single_class_stops_the_run_by_its_name():
    with pytest.raises(InvalidData, match="Every training row has the label 'spam'") as caught:
        check_examples(labelled(["spam"] * 20))
    assert caught.value.param == "data.train"


def test_a_test_label_that_is_never_trained_stops_the_run():
    with pytest.raises(InvalidData, match=r"'c' is in no training row. Known: a, b\.") as caught:
        check_examples(labelled("ab" * 5), labelled("abc", "test"))
    assert caught.value.param == "data.test"


def test_rare_labels_are_warned_of_up_to_five_rows():
    warnings = check_examples(labelled("aaaaaabbbbbccccd"))
    assert warnings == [
        "Label 'c' has only 4 training rows.",
        "Label 'd' has only 1 training rows.",
    ]


def test_repeated_inputs_are_counted_even_with_another_label():
    train = labelled("ababababab")
    train += [Example(train[0].request, CLASSES.Target(label="b"), 11), train[1], train[1]]
    assert check_examples(train) == ["3 training rows repeat another one's input."]


def test_test_rows_that_stand_in_the_training_file_are_counted():
    train = labelled("ababababab")
    test = [*train[:3], *labelled("ab", "other")]
    assert check_examples(train, test) == [
        "3 test rows stand in the training file: the test is too easy."
    ]


@pytest.mark.parametrize(("answer", "start"), [("Ada", 4), ("Grace", 0)])
def test_an_answer_that_does_not_stand_in_its_context_is_found(answer, start):
    try:
        found = check_examples(answered(MIN_ROWS, answer=answer, start=start))
    except InvalidData as error:
        found = [error.message]
    assert any(answer in message for message in found)
