"""The tasks' metrics against scikit-learn, numpy, rouge-score, conlleval's numbers, and the papers' own arithmetic."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import accuracy_score, classification_report, f1_score, matthews_corrcoef

from adapters.tasks.answer_metrics import squad_tally
from adapters.tasks.metrics import (
    calibration_tally,
    classification_tally,
    completion_tally,
    multi_label_tally,
    regression_tally,
    rouge_tally,
    span_tally,
    translation_tally,
)


def metrics_of(make):
    return lambda *answers: make(*answers).metrics()


classification_metrics, completion_metrics, regression_metrics = map(
    metrics_of, (classification_tally, completion_tally, regression_tally)
)
rouge_metrics, span_metrics, translation_metrics = map(
    metrics_of, (rouge_tally, span_tally, translation_tally)
)

WORDS = [
    "the",
    "The",
    "an",
    "A",
    "cat",
    "Cat,",
    "cats",
    "sat",
    "1843",
    "U.S.",
    "été",
    "北京",
    "-",
    "''",
]
phrases = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
ascii_phrases = st.lists(
    st.sampled_from([word for word in WORDS if word.isascii()]), max_size=6
).map(" ".join)
seeded = settings(max_examples=200, deadline=None, derandomize=True)


@seeded
@given(st.lists(st.tuples(*[st.sampled_from("abcd")] * 2), min_size=1, max_size=30))
def test_accuracy_and_macro_f1_are_those_of_scikit_learns_report(pairs):
    predicted, actual = map(list, zip(*pairs, strict=True))
    report = classification_report(actual, predicted, output_dict=True, zero_division=0)
    right = sum(p == a for p, a in pairs) / len(pairs)
    ours = classification_metrics(predicted, actual)
    expected = {"accuracy": right, "macro_f1": report["macro avg"]["f1-score"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one label only
        expected["mcc"] = matthews_corrcoef(actual, predicted)
    assert ours == pytest.approx(expected)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(ascii_phrases, ascii_phrases), min_size=1, max_size=3))
def test_rouge_is_the_mean_of_googles_f_measures_with_stemming(pairs):
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(target=r, prediction=p) for p, r in pairs]
    expected = {
        ours: sum(score[theirs].fmeasure for score in scores) / len(scores)
        for ours, theirs in [("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")]
    }
    predicted, references = zip(*pairs, strict=True)
    assert rouge_metrics(predicted, references) == pytest.approx(expected)


def test_rouge_takes_word_forms_as_one_and_minds_the_order():
    scores = rouge_metrics(["dogs jumped over"], ["dog jumps over"])
    assert scores == pytest.approx({"rouge_1": 1.0, "rouge_2": 1.0, "rouge_l": 1.0})
    assert rouge_metrics(["b a"], ["a b"]) == pytest.approx(
        {"rouge_1": 1.0, "rouge_2": 0.0, "rouge_l": 0.5}
    )


def test_a_completion_is_exact_but_for_blanks_at_its_edges():
    scores = completion_metrics(["a b\n", "a  b", "A b"], ["a b", "a b", "a b"])
    assert scores["exact_match"] == pytest.approx(1 / 3)
    assert scores["rouge_l"] == pytest.approx(1)


@seeded
@given(
    st.lists(st.tuples(*[st.integers(-3, 3).map(float)] * 2), min_size=3, max_size=12).filter(
        lambda pairs: all(len(set(side)) > 1 for side in zip(*pairs, strict=True))
    )
)
def test_correlations_and_error_are_those_of_plain_arithmetic(pairs):
    predicted, actual = (np.array(side) for side in zip(*pairs, strict=True))

    def ranks(values):
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    assert regression_metrics(list(predicted), list(actual)) == pytest.approx(
        {
            "pearson": np.corrcoef(predicted, actual)[0, 1],
            "spearman": np.corrcoef(ranks(predicted), ranks(actual))[0, 1],
            "rmse": np.sqrt(((predicted - actual) ** 2).mean()),
        },
        abs=1e-9,
    )


@pytest.mark.parametrize("predicted", [[2.0, 2.0, 2.0], [2.0]])
def test_what_is_constant_correlates_with_nothing(predicted):
    scores = regression_metrics(predicted, [1.0, 2.0, 3.0][: len(predicted)])
    assert (scores["pearson"], scores["spearman"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("actual", "predicted", "precision", "recall"),
    [
        (["B-a", "I-a", "O"], ["B-a", "I-a", "O"], 1, 1),
        (["B-a", "I-a", "O"], ["B-a", "O", "O"], 0, 0),
        (["B-a", "I-a", "O"], ["I-a", "I-a", "O"], 1, 1),  # conlleval: a lone I- begins a span
        (["B-a", "B-a", "O"], ["B-a", "I-a", "O"], 0, 0),
        (["B-a", "B-b", "O"], ["B-a", "B-a", "B-b"], 1 / 3, 1 / 2),
        (["O", "O", "O"], ["O", "O", "B-a"], 0, 0),
        (["O", "O", "B-a"], ["O", "O", "O"], 0, 0),
    ],
)
def test_a_span_is_right_only_as_a_whole(actual, predicted, precision, recall):
    total = precision + recall
    assert span_metrics([predicted], [actual]) == pytest.approx(
        {
            "f1": 2 * precision * recall / total if total else 0,
            "precision": precision,
            "recall": recall,
        }
    )


def test_a_translation_scores_as_the_papers_define():
    same = translation_metrics(["the dog sleeps in the sun"], ["the dog sleeps in the sun"])
    assert same == pytest.approx({"chrf": 1, "bleu": 1})
    # BLEU of Papineni et al. by hand: precisions 5/6, 3/5, 2/4, 1/3, and no brevity penalty.
    scores = translation_metrics(["the dog sleeps in a sun"], ["the dog sleeps in the sun"])
    assert scores["bleu"] == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_chinese_translations_are_compared_by_character():
    scores = translation_metrics(["你能在这里签名"], ["你能在这里签字"])
    assert scores["bleu"] == pytest.approx((6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)


@pytest.mark.parametrize("metric", [rouge_metrics, completion_metrics, translation_metrics])
def test_predictions_and_references_of_different_number_are_an_error(metric):
    with pytest.raises(ValueError, match="shorter"):
        metric(["a", "b"], ["a"])


def test_rouge_reads_every_script():
    scores = rouge_metrics(["北京的天气", "été chaud"], ["北京天气", "été froid"])
    assert scores["rouge_1"] == pytest.approx((2 * 4 / 9 + 1 / 2) / 2)
    # Marks belong to the word before them.
    assert rouge_metrics(["नमस्ते दुनिया"], ["नमस्ते जगत"])["rouge_1"] == pytest.approx(1 / 2)


def test_a_corpus_scores_as_sacrebleu_scores_it():
    predicted = ["the dog sleeps here", "a cat", "我们去北京"]
    references = ["the dog sleeps in the sun", "the cat sat", "我们到北京去"]
    for rows, tokenizer in ((slice(0, 2), "13a"), (slice(2, 3), "zh")):
        scores = translation_metrics(predicted[rows], references[rows])
        chrf = CHRF().corpus_score(predicted[rows], [references[rows]]).score
        bleu = BLEU(tokenize=tokenizer).corpus_score(predicted[rows], [references[rows]]).score
        assert scores == pytest.approx({"chrf": chrf / 100, "bleu": bleu / 100})


@seeded
@given(st.lists(st.tuples(*[st.tuples(*[st.booleans()] * 3)] * 2), min_size=1, max_size=20))
def test_metrics_of_several_labels_are_scikit_learns(pairs):
    predicted, actual = (np.array(side, float) for side in zip(*pairs, strict=True))
    assert metrics_of(multi_label_tally)(predicted, actual) == pytest.approx(
        {
            "micro_f1": f1_score(actual, predicted, average="micro", zero_division=0),
            "macro_f1": f1_score(actual, predicted, average="macro", zero_division=0),
            "accuracy": accuracy_score(actual, predicted),
        }
    )


def test_the_calibration_error_is_that_of_the_paper_by_hand():
    # Bins (0.6, 0.667] with 1 of 2 right at 0.65, and (0.933, 1] with 2 of 2 right at 0.95.
    tally = calibration_tally([0.65, 0.65, 0.95, 0.95], [True, False, True, True])
    assert tally.metrics()["ece"] == pytest.approx(0.5 * 0.15 + 0.5 * 0.05)


TALLIES = {
    "classification": lambda p, a: classification_tally(p, a),
    "regression": lambda p, a: regression_tally(
        [len(x) + ord(x[0]) for x in p], [ord(x[0]) for x in a]
    ),
    "rouge": lambda p, a: rouge_tally(p, a),
    "translation": lambda p, a: translation_tally(p, a),
    "span": lambda p, a: span_tally([[f"B-{x}"] for x in p], [[f"B-{x}"] for x in a]),
    "answers": lambda p, a: squad_tally(p, [[x] if x != "aa" else [] for x in a]),
}


@pytest.mark.parametrize("name", TALLIES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(*[st.sampled_from(["aa", "bb cc", "bb"])] * 2), min_size=3, max_size=8),
    st.randoms(use_true_random=False),
)
def test_rows_drawn_again_count_as_if_they_stood_there_as_often(name, pairs, random):
    drawn = [random.randrange(len(pairs)) for _ in pairs]
    predicted, actual = zip(*pairs, strict=True)
    counts = np.bincount(drawn, minlength=len(pairs))[None].astype(float)
    weighed = TALLIES[name](list(predicted), list(actual)).weigh(counts)
    again = TALLIES[name]([predicted[i] for i in drawn], [actual[i] for i in drawn]).metrics()
    for metric, value in again.items():
        assert weighed[metric][0] == pytest.approx(value, abs=1e-9), metric
