"""Regression: scores in the data's unit outside, scaled to mean 0 and deviation 1 inside."""

import numpy as np
import pytest
from pydantic import ValidationError

from adapters.errors import InvalidRequest
from adapters.tasks.base import RowOutput
from adapters.tasks.catalog import get_task, task_class

CLASS = task_class("regression")
SCORES = [1.0, 4.5, 2.5, 5.0, 0.0]
TARGETS = [CLASS.Target(score=score) for score in SCORES]


def test_mean_and_deviation_are_those_of_the_data_unless_given():
    found = CLASS.options_from({}, TARGETS)
    assert found == pytest.approx({"mean": np.mean(SCORES), "std": np.std(SCORES)})
    given = {"mean": 0.0, "std": 1.0, "template": "A: {text}"}
    assert CLASS.options_from(given, TARGETS) == given


def test_scores_that_are_all_the_same_are_only_shifted():
    assert CLASS.options_from({}, TARGETS[:1] * 3) == {"mean": 1.0, "std": 1.0}


def test_a_perfect_head_gives_back_the_scores_it_was_taught(encoder_tokenizer):
    task = get_task("regression", CLASS.options_from({}, TARGETS))
    request = CLASS.Request(text="A dog.", text_pair="A cat.")
    encoded = task.encode(encoder_tokenizer, request, CLASS.Parameters(), 99)
    labelled = [task.label(encoder_tokenizer, encoded, target) for target in TARGETS]
    values = np.array([row.labels for row in labelled])
    assert (values.mean(), values.std()) == pytest.approx((0, 1))
    assert {row.loss for row in labelled} == {"value"}
    for value, score in zip(values, SCORES, strict=True):
        output = RowOutput(value.astype(np.float32))
        answer = task.postprocess(encoder_tokenizer, request, encoded, output)
        assert answer == {"score": pytest.approx(score, abs=1e-5)}


def test_the_pair_is_read_below_the_text_within_the_template(decoder_tokenizer):
    task = get_task("regression", {"template": "Alike? {text} ="})
    request = CLASS.Request(text="A dog.", text_pair="A cat.")
    encoded = task.encode(decoder_tokenizer, request, CLASS.Parameters(), 99)
    assert decoder_tokenizer.decode(encoded.token_ids) == "Alike? A dog.\nA cat. ="


@pytest.mark.parametrize(
    ("family", "pooling"), [("decoder", "last"), ("encoder", "mean"), ("encoder-decoder", "mean")]
)
def test_the_head_has_one_output(family, pooling):
    head = get_task("regression", {}).head(family)
    assert (head.kind, head.outputs, head.pooling) == ("sequence", 1, pooling)


def test_the_baseline_is_the_mean_of_the_training_scores():
    task = get_task("regression", {"mean": 3.0})
    baseline = task.baselines([CLASS.Request(text="x")] * 2, TARGETS[:2])["mean"]
    assert baseline == pytest.approx(
        {"pearson": 0, "spearman": 0, "rmse": np.sqrt((2**2 + 1.5**2) / 2)}
    )


@pytest.mark.parametrize("score", ["3.5", 3, 3.5, -1e12])
def test_a_number_is_a_score_also_as_the_text_of_a_csv_cell(score):
    assert CLASS.Target(score=score).score == float(score)


@pytest.mark.parametrize(
    "score", [float("nan"), "nan", float("inf"), 1e13, "high", "", None, [1.0], True]
)
def test_what_is_no_finite_number_is_no_score(score):
    with pytest.raises(ValidationError, match="score"):
        CLASS.Target(score=score)


@pytest.mark.parametrize("value", [{}, {"text": " "}, {"text": 1}, {"text": "a", "pair": "b"}])
def test_a_wrong_request_is_refused(value):
    with pytest.raises(ValidationError):
        CLASS.Request.model_validate(value)


@pytest.mark.parametrize(
    "options", [{"std": 0}, {"std": -1}, {"std": float("inf")}, {"mean": "nan"}, {"template": "x"}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(InvalidRequest, match=f"'{next(iter(options))}'"):
        get_task("regression", options)


def test_the_score_of_predictions_is_their_correlation():
    task = get_task("regression", {})
    predictions = [{"score": 2 * score + 1} for score in SCORES]
    assert task.score(predictions, TARGETS)["pearson"] == pytest.approx(1)
