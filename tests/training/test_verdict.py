"""Did it learn: a fit that changed nothing, a bundle that lost its head, and a task that guesses are all found."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from adapters.backbone import describe_backbone, load_backbone
from adapters.tasks.base import Labelled
from adapters.tasks.catalog import get_task
from tests.bundles import classifier, reseal, summarizer
from tests.tiny import save_backbone
from training.contract import LoraSettings
from training.export import seal, write_weights
from training.trainer import build_trainee
from training.verdict import lost_to_baselines, lost_weights, take_witness, unchanged_weights

ROWS = [Labelled([5, 6, 7 + i, 8], [i % 2]) for i in range(6)]
WRITTEN = [Labelled([5, 6, 7 + i, 8, 9], [8, 9]) for i in range(6)]


def trained(spec, task, dtype="float32"):
    backbone = load_backbone(spec, dtype)
    trainee = build_trainee(backbone, LoraSettings(rank=4), task.head(spec.family), 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainee.parameters().values():
            parameter.normal_(0, 0.2, generator=generator)
    return trainee


def sealed(trainee, folder, spec, task):
    write_weights(trainee, folder)
    trainee.release()
    seal(folder, task=task, spec=spec, metrics={}, data={}, dtype="float32", seed=0, parent=None)


def test_a_fit_that_changed_nothing_or_everything_to_nan_is_found(decoder_spec):
    trainee = build_trainee(load_backbone(decoder_spec, "float32"), LoraSettings(), None, 0)
    (problem,) = unchanged_weights(trainee)
    assert "still zero" in problem
    with torch.no_grad():
        next(p for n, p in trainee.parameters().items() if "lora_B" in n).fill_(float("nan"))
    (problem,) = unchanged_weights(trainee)
    assert "not finite" in problem
    assert list(unchanged_weights(trained(decoder_spec, classifier()))) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("make", "rows"), [(classifier, ROWS), (summarizer, WRITTEN)])
def test_a_bundle_that_says_what_the_model_said_passes(decoder_spec, tmp_path, make, rows, dtype):
    task = make()
    trainee = trained(decoder_spec, task, dtype)
    witness = take_witness(trainee, rows)
    has_head = trainee.head is not None
    sealed(trainee, tmp_path / "bundle", decoder_spec, task)
    assert list(lost_weights(witness, trainee.backbone, tmp_path / "bundle", has_head)) == []


def test_a_bundle_with_other_weights_is_found(decoder_spec, tmp_path):
    task = classifier()
    trainee = trained(decoder_spec, task)
    witness = take_witness(trainee, ROWS)
    sealed(trainee, tmp_path / "bundle", decoder_spec, task)
    weights = load_file(tmp_path / "bundle" / "adapter_model.safetensors")
    reseal(tmp_path / "bundle", {name: 0.5 * tensor for name, tensor in weights.items()})
    (problem,) = lost_weights(witness, trainee.backbone, tmp_path / "bundle", True)
    assert "answers otherwise" in problem


@pytest.mark.parametrize(("shift", "is_found"), [(0.15, False), (1.0, True)])
def test_a_likely_tokens_probability_may_be_off_by_what_its_logits_are_rounded_to(
    tmp_path, shift, is_found
):
    spec = describe_backbone(save_backbone(tmp_path / "sharp", sharpness=4))
    task = summarizer()
    trainee = trained(spec, task, "bfloat16")
    witness = take_witness(trainee, WRITTEN)
    assert min(witness.sizes) > 8  # where bf16 has steps of 0.0625
    assert max(float(value.abs()) for value in witness.values) < 1.5
    sealed(trainee, tmp_path / "bundle", spec, task)
    other = replace(witness, values=[value + shift for value in witness.values])
    problems = list(lost_weights(other, trainee.backbone, tmp_path / "bundle", False))
    assert bool(problems) == is_found


@pytest.mark.parametrize(
    ("metrics", "count"),
    [
        ({"accuracy": 0.8, "mcc": 0.4}, 0),
        (
            {"accuracy": 0.7, "mcc": 0.2},
            0,
        ),  # as good as always saying the common class, but not by saying it
        ({"accuracy": 0.7, "mcc": 0.0}, 1),
        ({"accuracy": 0.5, "mcc": 0.1}, 1),
    ],
)
def test_what_guesses_is_found(metrics, count):
    task = get_task("text-classification", {"labels": ["a", "b"]})
    simple = {"majority": {"accuracy": 0.7, "mcc": 0.0}, "tfidf": {"accuracy": 0.9, "mcc": 0.8}}
    problems = list(lost_to_baselines(task, "validation", metrics, simple))
    assert len(problems) == count
    assert all("'majority'" in problem for problem in problems)
