"""Frozen lower layers: what is kept is what they would compute, it is used, and it stays within its bytes."""

import pytest
import torch

from adapters.backbone import load_backbone
from adapters.errors import RunPaused
from adapters.tasks.base import Labelled
from tests.bundles import classifier
from training.contract import FitSettings, LoraSettings
from training.fitting import Fit, Hooks
from training.frozen import FrozenLayers, frozen_layers
from training.trainer import build_trainee

ROWS = [Labelled([5, 6, 7 + i] + [8] * (i % 3), [i % 2]) for i in range(12)]


def trainee(spec, frozen_bytes=0, last_layers=1):
    lora = LoraSettings(rank=4, last_layers=last_layers)
    backbone = load_backbone(spec, "float32")
    return build_trainee(
        backbone, lora, classifier().head(spec.family), 0, frozen_bytes=frozen_bytes
    )


def fitted(spec, tmp_path, frozen_bytes):
    made = trainee(spec, frozen_bytes)
    for module in made.backbone.model.modules():
        if isinstance(
            module, torch.nn.Dropout
        ):  # kept layers draw nothing, which the rest would see
            module.p = 0.0
    batches = [sorted(ROWS[i::3], key=lambda row: len(row.token_ids)) for i in range(3)] * 4
    path = tmp_path / f"{frozen_bytes}.safetensors"
    settings = FitSettings(batch_tokens=64)
    Fit(made, batches, settings, 1e-2, checkpoint=path, run_digest="x").run()
    return made


@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_a_fit_from_kept_layers_ends_with_the_same_weights(
    family, decoder_spec, encoder_spec, tmp_path
):
    spec = decoder_spec if family == "decoder" else encoder_spec
    plain, kept = (fitted(spec, tmp_path, size) for size in (0, 2**20))
    assert kept.frozen is not None
    for name, tensor in plain.lora_state().items():
        torch.testing.assert_close(kept.lora_state()[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_a_fit_that_goes_on_without_what_was_kept_ends_with_the_very_same_weights(
    family, decoder_spec, encoder_spec, tmp_path
):
    spec = decoder_spec if family == "decoder" else encoder_spec
    batches = [sorted(ROWS[i::3], key=lambda row: len(row.token_ids)) for i in range(3)] * 4

    def fit(path, pause=None):
        made, steps = trainee(spec, 2**20), []
        hooks = Hooks(lambda: len(steps) == pause, lambda step, _: steps.append(step))
        Fit(made, batches, FitSettings(), 1e-2, checkpoint=path, run_digest="x", hooks=hooks).run()
        assert made.frozen._kept
        return made.parameters()

    whole = fit(tmp_path / "whole")
    with pytest.raises(RunPaused):
        fit(tmp_path / "parts", pause=7)
    resumed = fit(tmp_path / "parts")
    assert all(torch.equal(parameter, resumed[name]) for name, parameter in whole.items())


def test_known_rows_begin_at_the_first_adapted_layer(decoder_spec):
    made = trainee(decoder_spec, 2**20)
    calls = []
    first = frozen_layers(made.backbone.model, ["model.layers.1.x"])[0]
    first.self_attn.register_forward_hook(lambda *_: calls.append(1))
    rows = sorted(ROWS[:4], key=lambda row: len(row.token_ids))
    loss, _ = made.loss(rows)
    again, _ = made.loss(rows[::-1][::-1])
    torch.testing.assert_close(loss, again)
    assert len(calls) == 1
    made.loss(sorted([ROWS[0], ROWS[7]], key=lambda row: len(row.token_ids)))  # one is new
    assert len(calls) == 2


def test_what_is_kept_has_no_draw_of_dropout_in_it(encoder_spec):
    """Else a row would be learned under one draw, and a run that goes on would have another."""
    made = trainee(encoder_spec, 2**20)
    made.backbone.model.train()
    rows = sorted(ROWS[:4], key=lambda row: len(row.token_ids))
    kept = []
    for _ in range(2):
        made.loss(rows)
        kept.append(dict(made.frozen._kept))
        made.frozen._kept.clear()
    assert len(kept[0]) == 4
    for key, hidden in kept[0].items():
        torch.testing.assert_close(hidden, kept[1][key], atol=0, rtol=0)


def test_bytes_are_bounded(decoder_spec):
    made = trainee(decoder_spec, 2 * 3 * 32 * 4)  # two rows of three tokens, 32 fp32 numbers each
    rows = [Labelled([5, 6, 7 + i], [0]) for i in range(4)]
    made.loss(rows)
    assert len(made.frozen._kept) == 2


def test_there_is_nothing_to_keep_below_the_lowest_layer(decoder_spec):
    assert trainee(decoder_spec, 2**20, last_layers=2).frozen is None
    assert trainee(decoder_spec, 0).frozen is None
    model = load_backbone(decoder_spec, "float32").model
    assert frozen_layers(model, ["lm_head"]) == []
    assert len(frozen_layers(model, ["model.layers.1.self_attn.q_proj"])) == 1
    assert isinstance(trainee(decoder_spec, 2**20).frozen, FrozenLayers)
