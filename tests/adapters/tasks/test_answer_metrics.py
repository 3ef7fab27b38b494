"""Answers to questions against SQuAD's own arithmetic and, for Chinese, CMRC's segmentation."""

import re
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.tasks.answer_metrics import normalize, squad_tally, token_f1

WORDS = ["the", "The", "an", "A", "cat", "Cat,", "cats", "sat", "1843", "U.S.", "été", "-", "''"]
phrases = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
seeded = settings(max_examples=200, deadline=None, derandomize=True)


def squad_normalize(text):
    exclude = set(string.punctuation)
    text = "".join(ch for ch in text.lower() if ch not in exclude)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(prediction, truth):
    """evaluate-v2.0.py's compute_f1: as v1.1's, but two empty answers agree."""
    predicted, gold = squad_normalize(prediction).split(), squad_normalize(truth).split()
    if not predicted or not gold:
        return int(predicted == gold)
    num_same = sum((Counter(predicted) & Counter(gold)).values())
    if num_same == 0:
        return 0
    precision, recall = num_same / len(predicted), num_same / len(gold)
    return 2 * precision * recall / (precision + recall)


def v2_scores(predictions, answers):
    """evaluate-v2.0.py's get_raw_scores and make_eval_dict, whose percentages are shares here."""
    exact, f1 = [], []
    for prediction, gold in zip(predictions, answers, strict=True):
        gold = [text for text in gold if squad_normalize(text)] or [""]
        exact.append(max(int(squad_normalize(prediction) == squad_normalize(a)) for a in gold))
        f1.append(max(squad_f1(prediction, a) for a in gold))
    return exact, f1


def mean(values):
    return sum(values) / len(values)


@seeded
@given(
    st.lists(
        st.tuples(phrases | st.just(""), st.lists(phrases, max_size=3)), min_size=1, max_size=6
    )
)
def test_answers_score_as_squads_own_script_scores_them(rows):
    answers = [refs for _, refs in rows]
    ours = squad_tally([p for p, _ in rows], answers).metrics()
    exact, f1 = v2_scores([p for p, _ in rows], answers)
    expected = {"exact_match": mean(exact), "f1": mean(f1)}
    if not all(answers):
        for kind, wanted in (("has_answer", True), ("no_answer", False)):
            of_kind = [i for i, refs in enumerate(answers) if bool(refs) is wanted]
            if of_kind:
                expected[f"{kind}_exact_match"] = mean([exact[i] for i in of_kind])
                expected[f"{kind}_f1"] = mean([f1[i] for i in of_kind])
    assert ours == pytest.approx(expected)


def test_a_question_without_an_answer_wants_an_empty_one():
    scores = squad_tally(["", "Ada", "Ada"], [[], [], ["Ada"]]).metrics()
    assert scores == {
        "exact_match": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "has_answer_exact_match": 1.0,
        "has_answer_f1": 1.0,
        "no_answer_exact_match": 0.5,
        "no_answer_f1": 0.5,
    }


@pytest.mark.parametrize(
    ("predicted", "reference", "f1"),
    [
        ("北京大学", "北京", 2 * 2 / 6),
        ("《北京大学》。", "北京 大学", 1.0),
        ("2008年", "2008 年", 1.0),
        ("上海", "北京", 0.0),
        ("東京タワー", "タワー", 2 * 3 / 8),
        ("the iPhone手机", "iPhone 手机", 1.0),
    ],
)
def test_chinese_and_japanese_are_compared_by_character(predicted, reference, f1):
    assert token_f1(predicted, reference) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("predicted", "reference", "f1"),
    [
        ("Denver Broncos", "The Denver Broncos!", 1.0),
        ("the Broncos", "Denver Broncos", 2 / 3),
        ("cat cat", "cat", 2 / 3),
        ("Panthers", "Broncos", 0.0),
        ("", "Broncos", 0.0),
        ("the", "a", 1.0),
    ],
)
def test_the_f1_of_an_answer_counts_shared_words(predicted, reference, f1):
    assert token_f1(predicted, reference) == pytest.approx(f1)


def test_articles_leave_an_answer_only_as_whole_words():
    assert normalize("The theatre, a Banana & an  ant") == "theatre banana ant"


def test_predictions_and_references_of_different_number_are_an_error():
    with pytest.raises(ValueError, match="shorter"):
        squad_tally(["a", "b"], [["a"]])
