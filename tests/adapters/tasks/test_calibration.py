"""Temperatures and thresholds against scipy and exhaustive search, and what they do to answers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax
from scipy.special import softmax as scipy_softmax
from sklearn.metrics import f1_score

from adapters.errors import InvalidData
from adapters.tasks.base import Encoded, Observation, RowOutput
from adapters.tasks.calibration import best_f1_threshold, fit_temperature, sigmoid, softmax
from adapters.tasks.catalog import get_task, task_class
from adapters.tasks.heads import build_head, row_loss

NAME = "text-classification"
CLASS = task_class(NAME)
seeded = settings(max_examples=50, deadline=None, derandomize=True)


def task(**options):
    return get_task(NAME, {"labels": ["a", "b", "c"], **options})


def observed(logits, **target):
    output = RowOutput(logits=np.array(logits, np.float32))
    return Observation(CLASS.Request(text="x"), CLASS.Target(**target), [Encoded([1])], [output])


def answer(task, logits):
    output = RowOutput(logits=np.array(logits, np.float32))
    return task.postprocess(None, CLASS.Request(text="x"), Encoded([1]), output)


@seeded
@given(st.integers(0, 1000), st.floats(0.3, 5))
def test_the_temperature_is_what_scipys_optimiser_finds(seed, scale):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(200, 4)) * 2
    labels = np.array([rng.choice(4, p=scipy_softmax(row)) for row in logits])
    found = minimize_scalar(
        lambda t: -log_softmax(logits * scale / t, axis=1)[np.arange(200), labels].mean(),
        bounds=(0.05, 20),
        method="bounded",
        options={"xatol": 1e-6},
    )
    assert fit_temperature(logits * scale, labels) == pytest.approx(found.x, rel=2e-3)


def test_rows_that_are_all_right_leave_scores_as_they_are():
    assert fit_temperature(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])) is None
    rows = [observed(np.eye(3)[k], label="abc"[k]) for k in range(3)]
    for temperature in (1.0, 1.5):
        options = task(temperature=temperature).calibrated(None, rows)
        assert options["temperature"] == temperature


@seeded
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.8]), st.booleans()), min_size=1))
def test_a_threshold_has_the_best_f1_of_all(pairs):
    scores, right = (np.array(side) for side in zip(*pairs, strict=True))
    found = best_f1_threshold(scores.astype(float), right.astype(bool))
    if not right.any():
        assert found is None
        return
    of = [f1_score(right, scores >= t, zero_division=0) for t in (0, 0.05, 0.15, 0.35, 0.65, 0.9)]
    assert f1_score(right, scores >= found) == pytest.approx(max(of))


@seeded
@given(st.lists(st.floats(-1000, 1000), min_size=2, max_size=5))
def test_probabilities_are_scipys(logits):
    values = np.array(logits)
    assert softmax(values) == pytest.approx(scipy_softmax(values))
    assert sigmoid(values) == pytest.approx(expit(values))


def test_a_temperature_changes_scores_and_never_the_label():
    hot = answer(task(temperature=4.0), [2, 1, -1])
    assert hot["label"] == answer(task(), [2, 1, -1])["label"] == "a"
    assert list(hot["scores"].values()) == pytest.approx(
        scipy_softmax(np.array([0.5, 0.25, -0.25]))
    )


def test_calibration_brings_score_and_accuracy_together():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 3))
    labels = [rng.choice(3, p=scipy_softmax(row)) for row in logits]
    rows = [observed(each * 5, label="abc"[k]) for each, k in zip(logits, labels, strict=True)]
    before = task()
    after = get_task(NAME, before.calibrated(None, rows))
    targets = [row.target for row in rows]
    ece = [
        t.score([answer(t, row.outputs[0].logits) for row in rows], targets)["ece"]
        for t in (before, after)
    ]
    assert after.options.temperature == pytest.approx(5, rel=0.2)
    assert ece[1] < 0.06 < 0.2 < ece[0]


def test_an_unsure_answer_gives_no_label_and_counts_as_wrong():
    careful = task(abstain_below=0.6, thresholds={"a": 0.9})
    unsure, sure = answer(careful, [1.5, 0, 0]), answer(careful, [0, 5, 0])
    assert (unsure["label"], unsure["abstained"]) == (None, True)
    assert unsure["score"] == max(unsure["scores"].values())
    assert (sure["label"], sure["abstained"]) == ("b", False)
    scores = careful.score([unsure, sure], [CLASS.Target(label="a"), CLASS.Target(label="b")])
    assert (scores["accuracy"], scores["coverage"]) == (0.5, 0.5)
    assert "abstained" not in answer(task(), [1, 0, 0])


def test_the_calibration_error_is_of_scores_whether_a_label_is_given_or_not():
    logits = [[1.5, 0, 0], [0, 5, 0], [0, 0, 0.5]]
    targets = [CLASS.Target(label=label) for label in "aba"]
    found = [
        each.score([answer(each, row) for row in logits], targets)["ece"]
        for each in (task(), task(abstain_below=0.9))
    ]
    assert found[0] == found[1]


def test_several_labels_are_given_each_by_its_own_score():
    several = task(multi_label=True, thresholds={"c": 0.1})
    found = answer(several, [3, -3, -1])
    assert found["labels"] == ["a", "c"]
    assert list(found["scores"].values()) == pytest.approx(expit(np.array([3, -3, -1])))
    assert answer(several, [-9, -9, -9])["labels"] == []
    targets = [CLASS.Target(labels=["a", "c"]), CLASS.Target(labels=[])]
    scores = several.score([found, found], targets)
    assert scores["accuracy"] == 0.5
    assert several.baselines([None] * 2, targets)["majority"]["accuracy"] == 0.5


def test_options_come_from_the_targets_and_thresholds_from_observations():
    targets = [CLASS.Target(labels=["b", "a"]), CLASS.Target(labels=[])]
    options = CLASS.options_from({}, targets)
    assert options == {"labels": ["a", "b"], "multi_label": True}
    several = get_task(NAME, options)
    rows = [observed([i - 5, i - 2], labels=["a"] * (i > 5) + ["b"] * (i > 3)) for i in range(10)]
    tuned = get_task(NAME, several.calibrated(None, rows))
    answers = [answer(tuned, row.outputs[0].logits)["labels"] for row in rows]
    assert answers == [row.target.labels for row in rows]


def test_the_loss_of_several_labels_is_torchs_binary_cross_entropy(decoder_tokenizer):
    several = task(multi_label=True)
    head = build_head(several.head("decoder"), 8)
    rows = [
        several.label(decoder_tokenizer, Encoded([1, 2]), CLASS.Target(labels=labels))
        for labels in (["a", "c"], [])
    ]
    hidden, bounds = torch.randn(4, 8), torch.tensor([0, 2, 4])
    loss, num = row_loss(head, None, hidden, bounds, rows)
    expected = torch.nn.BCEWithLogitsLoss()(
        head(hidden, bounds), torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    )
    torch.testing.assert_close(loss / num, expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"thresholds": {"z": 0.5}}, "'z'"),
        ({"multi_label": True, "abstain_below": 0.5}, "abstain_below"),
        ({"temperature": 0}, "temperature"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        CLASS.Options.model_validate({"labels": ["a", "b"], **options})


@pytest.mark.parametrize("target", [{}, {"label": "a", "labels": ["a"]}])
def test_a_target_is_a_label_or_labels(target):
    with pytest.raises(ValidationError, match=r"'label' (or|and) 'labels'"):
        CLASS.Target(**target)


def test_labels_for_an_adapter_of_one_are_refused(decoder_tokenizer):
    with pytest.raises(InvalidData, match="multi_label"):
        task().label(decoder_tokenizer, Encoded([1]), CLASS.Target(labels=["a"]))
    with pytest.raises(InvalidData, match="'z'"):
        task(multi_label=True).label(decoder_tokenizer, Encoded([1]), CLASS.Target(labels=["z"]))
