"""PiSSA without touching the backbone: it learns what peft's own does, and what is learned is served as it is."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from adapters.backbone import load_backbone
from adapters.errors import InvalidRequest
from adapters.runtime.engine import Engine
from adapters.runtime.rows import Row
from adapters.tasks.base import Generation, Labelled
from tests.bundles import summarizer
from training.contract import FitSettings, LoraSettings, RunConfig
from training.export import seal, write_weights
from training.fitting import Fit
from training.pissa import principal_factors
from training.trainer import build_trainee

ROWS = [Labelled([5 + i % 7, 6, 20 + i, 51, 2], [20 + i, 51, 2]) for i in range(6)]
RATE, STEPS = 2e-3, 4


def stock_logits(folder, use_rslora):
    """What transformers and peft alone learn from the rows, by peft's PiSSA on the whole singular values."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    names = [
        n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"
    ]
    config = LoraConfig(
        r=4, lora_alpha=8, use_rslora=use_rslora, target_modules=names, init_lora_weights="pissa"
    )
    model = get_peft_model(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    for _ in range(STEPS):
        ids = torch.tensor([row.token_ids for row in ROWS])
        logits = model(ids).logits[:, 1:-1]
        labels = torch.tensor([row.labels for row in ROWS])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return model(torch.tensor([ROWS[0].token_ids])).logits[0]


def fitted(spec, tmp_path, use_rslora=False):
    lora = LoraSettings(rank=4, alpha=8, init="pissa", use_rslora=use_rslora)
    trainee = build_trainee(load_backbone(spec, "float32"), lora, None, 0)
    settings = FitSettings(schedule="constant", warmup_share=0)
    path = tmp_path / "checkpoint.safetensors"
    Fit(trainee, [ROWS] * STEPS, settings, RATE, checkpoint=path, run_digest="x").run()
    return trainee


@pytest.mark.parametrize("use_rslora", [False, True])
def test_it_learns_what_stock_pissa_learns_and_stock_peft_loads_it_on_the_untouched_backbone(
    decoder_spec, tmp_path, use_rslora
):
    trainee = fitted(decoder_spec, tmp_path, use_rslora)
    write_weights(trainee, tmp_path / "bundle")
    bare = AutoModelForCausalLM.from_pretrained(decoder_spec.folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(bare, tmp_path / "bundle").eval()
    assert model.peft_config["default"].r == 8
    with torch.no_grad():
        actual = model(torch.tensor([ROWS[0].token_ids])).logits[0]
    expected = stock_logits(decoder_spec.folder, use_rslora)
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=2e-3)
    with torch.no_grad(), model.disable_adapter():
        untrained = model(torch.tensor([ROWS[0].token_ids])).logits[0]
    assert (actual - untrained).abs().max() > 0.05


def test_the_engine_serves_it_as_it_was_trained(decoder_spec, tmp_path):
    trainee = fitted(decoder_spec, tmp_path)
    write_weights(trainee, tmp_path / "bundle")
    seal(
        tmp_path / "bundle",
        task=summarizer(),
        spec=decoder_spec,
        metrics={},
        data={},
        dtype="float32",
        seed=0,
        parent=None,
    )
    engine = Engine(load_backbone(decoder_spec, "float32"), lambda name: tmp_path / name)
    generation = Generation(max_new_tokens=1, end_ids=(), num_logprobs=1)
    prompt = ROWS[0].token_ids[:2]
    (answer,) = engine.run([Row("a", prompt, "bundle", generation)])
    chosen = list(answer.output.token_ids)
    with torch.no_grad():
        loss, _ = trainee.loss([Labelled([*prompt, *chosen], chosen)])
    assert answer.output.logprobs[0].logprob == pytest.approx(-float(loss), abs=1e-4)


def test_it_starts_as_no_change_and_its_frozen_half_stays(decoder_spec, tmp_path):
    plain = build_trainee(load_backbone(decoder_spec, "float32"), LoraSettings(), None, 0)
    lora = LoraSettings(rank=4, alpha=8, init="pissa")
    trainee = build_trainee(load_backbone(decoder_spec, "float32"), lora, None, 0)
    with torch.no_grad():
        untouched, _ = plain.hidden_states(ROWS)
        started, _ = trainee.hidden_states(ROWS)
    torch.testing.assert_close(started, untouched, atol=1e-5, rtol=1e-5)
    start = {k: v.clone() for k, v in trainee.lora_state().items()}
    for key, learned in fitted(decoder_spec, tmp_path).lora_state().items():
        # A holds the halves one below the other, B side by side.
        half = slice(4, None) if "lora_A" in key else (slice(None), slice(4, None))
        other = slice(4) if "lora_A" in key else (slice(None), slice(4))
        assert torch.equal(learned[half], start[key][half])
        assert not torch.equal(learned[other], start[key][other])


def test_the_factors_are_the_best_approximation_of_their_rank():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    a, b = principal_factors(weight, 5, 2.0)
    left, values, right = torch.linalg.svd(weight)
    best = left[:, :5] @ torch.diag(values[:5]) @ right[:5]
    torch.testing.assert_close(2.0 * b @ a, best, atol=1e-3, rtol=1e-3)


def test_a_rank_above_the_weights_and_a_quantised_backbone_are_refused(decoder_spec):
    with pytest.raises(InvalidRequest, match="'200'"):
        build_trainee(
            load_backbone(decoder_spec, "float32"), LoraSettings(rank=200, init="pissa"), None, 0
        )
    pytest.importorskip("bitsandbytes", reason="bitsandbytes can't be imported here")
    with pytest.raises(InvalidRequest, match="quantised"):
        build_trainee(
            load_backbone(decoder_spec, "nf4"), LoraSettings(rank=4, init="pissa"), None, 0
        )


def test_settings_that_pissa_can_not_keep_are_refused():
    with pytest.raises(ValidationError, match="'300'"):
        LoraSettings(rank=300, init="pissa")
    with pytest.raises(ValidationError, match=r"weight_decay '0\.1'"):
        RunConfig.model_validate(
            {"task": "x", "data": {}, "lora": {"init": "pissa"}, "fit": {"weight_decay": 0.1}}
        )
