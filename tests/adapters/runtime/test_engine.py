"""The engine: same answer in any company, and equal to stock transformers and peft."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from adapters.backbone import load_backbone
from adapters.runtime.engine import Engine
from adapters.runtime.kernels import load_kernels
from adapters.runtime.limits import EngineLimits
from adapters.runtime.rows import Row
from tests.bundles import classifier, reseal, save_bundle
from tests.rows import TEXTS, assert_same, rows_of


def test_a_mixed_batch_equals_each_row_alone(engine, decoder_tokenizer):
    mix = [
        "two",
        None,
        "many",
        "summary",
        "spans",
        "other",
        "two",
        None,
        "summary",
        "many",
        "spans",
    ]
    rows = rows_of(decoder_tokenizer, mix)
    engine.run(rows)  # brings the adapters in; from now on all rows start together
    mixed = engine.run(rows)
    largest = engine.stats.largest
    assert (largest.rows, largest.adapters) == (11, 5)
    assert largest.tasks == ("question-answering", "summarization", "text-classification")
    for row, result in zip(rows, mixed, strict=True):
        assert_same(result, engine.run([row])[0])


def test_in_bf16_a_mixed_batch_gives_every_row_what_it_gets_alone_within_rounding(
    decoder_spec, decoder_tokenizer, bundles
):
    engine = Engine(load_backbone(decoder_spec, "bfloat16"), lambda name: bundles / name)
    rows = rows_of(decoder_tokenizer, ["two", "many", "spans", None, "other", "summary"] * 2)
    for row, result in zip(rows, engine.run(rows), strict=True):
        if row.generation is None:
            alone = engine.run([row])[0].output.logits
            actual = torch.from_numpy(result.output.logits)
            torch.testing.assert_close(actual, torch.from_numpy(alone), atol=0.1, rtol=0.05)


def test_with_kernels_for_all_layers_a_rows_numbers_do_not_depend_on_its_company_at_all(
    decoder_spec, decoder_tokenizer, bundles
):
    """Each token's numbers come from one order of operations, so that even bf16 is equal to the last bit."""
    kernels = load_kernels()
    if kernels is None or not kernels.fits_linear(torch.ones(16, 16, dtype=torch.bfloat16)):
        pytest.skip("This processor multiplies matrices of bf16: oneDNN computes linear layers.")
    limits = EngineLimits(chunk_tokens=16, prefix_bytes=0)
    backbone = load_backbone(decoder_spec, "bfloat16", fuse=True)
    engine = Engine(backbone, lambda name: bundles / name, limits)
    names = [None, "summary", "two", "spans", "many", "summary", "other", None] * 6
    rows = [
        row if row.generation is None
        else replace(row, generation=replace(row.generation, end_ids=(), num_logprobs=3))
        for row in rows_of(decoder_tokenizer, names)
    ]  # fmt: skip
    for mixed, row in zip(engine.run(rows), rows, strict=True):
        (alone,) = engine.run([row])
        assert mixed.output.token_ids == alone.output.token_ids
        assert mixed.output.logprobs == alone.output.logprobs
        np.testing.assert_array_equal(mixed.output.logits, alone.output.logits)


def test_two_adapters_with_2_and_77_labels_share_a_batch(engine, decoder_tokenizer):
    rows = rows_of(decoder_tokenizer, ["two", "many"])
    engine.run(rows)
    results = engine.run(rows)
    assert [result.output.logits.shape for result in results] == [(2,), (77,)]
    assert engine.stats.largest.rows == 2


def test_rows_without_an_adapter_equal_stock_transformers_generate(
    engine, decoder_spec, decoder_tokenizer
):
    rows = rows_of(decoder_tokenizer, [None, "two", None, "summary", None])
    results = engine.run(rows)
    stock = AutoModelForCausalLM.from_pretrained(decoder_spec.folder, dtype=torch.float32)
    for row, result in zip(rows, results, strict=True):
        if row.adapter is None:
            assert list(result.output.token_ids) == stock_generate(stock, row)


def test_a_generating_adapter_equals_stock_peft(engine, bundles, decoder_spec, decoder_tokenizer):
    row = rows_of(decoder_tokenizer, ["summary"])[0]
    result = engine.run([row, *rows_of(decoder_tokenizer, [None, "two", "many"])[1:]])[0]
    stock = AutoModelForCausalLM.from_pretrained(decoder_spec.folder, dtype=torch.float32)
    peft_model = PeftModel.from_pretrained(stock, bundles / "summary").eval()
    assert list(result.output.token_ids) == stock_generate(peft_model, row)


def stock_generate(model, row):
    """Greedy decoding by hand over stock logits: transformers' own cache code is not needed to be right."""
    ids = list(row.token_ids)
    for _ in range(row.generation.max_new_tokens):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in row.generation.end_ids:
            break
        ids.append(token)
    return ids[len(row.token_ids) :]


@pytest.mark.parametrize("name", ["two", "many", "spans"])
def test_scores_agree_with_stock_peft_and_a_hand_made_head(
    engine, bundles, decoder_spec, decoder_tokenizer, name
):
    rows = rows_of(decoder_tokenizer, [name, "other", None, name, "summary"])
    results = engine.run(rows)
    stock = AutoModelForCausalLM.from_pretrained(decoder_spec.folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(stock, bundles / name).eval()
    head = load_file(bundles / name / "head.safetensors")
    for row, result in zip(rows, results, strict=True):
        if row.adapter == name:
            with torch.no_grad():
                out = model(torch.tensor([list(row.token_ids)]), output_hidden_states=True)
            hidden = out.hidden_states[-1][0]
            hidden = hidden if name == "spans" else hidden[-1]
            expected = hidden @ head["weight"].T + head["bias"]
            actual = torch.from_numpy(result.output.logits)
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_an_encoder_agrees_with_stock_peft_in_a_mixed_batch(
    tmp_path, encoder_spec, encoder_tokenizer
):
    for seed, labels in enumerate((2, 77)):
        save_bundle(tmp_path / str(labels), encoder_spec, classifier(labels), seed=seed)
    engine = Engine(load_backbone(encoder_spec, "float32"), lambda name: tmp_path / name)
    rows = [
        Row(f"{i}", encoder_tokenizer.encode(text).ids, "2" if i % 2 else "77")
        for i, text in enumerate(TEXTS)
    ]
    engine.run(rows)
    steps = engine.stats.steps
    results = engine.run(rows)
    assert engine.stats.steps == steps + 1
    for row, result in zip(rows, results, strict=True):
        stock = AutoModel.from_pretrained(encoder_spec.folder, dtype=torch.float32)
        model = PeftModel.from_pretrained(stock, tmp_path / row.adapter).eval()
        head = load_file(tmp_path / row.adapter / "head.safetensors")
        with torch.no_grad():
            hidden = model(torch.tensor([list(row.token_ids)])).last_hidden_state[0].mean(0)
        expected = hidden @ head["weight"].T + head["bias"]
        actual = torch.from_numpy(result.output.logits)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_rows_beyond_the_cache_wait_and_are_answered_the_same(
    decoder_spec, decoder_tokenizer, bundles
):
    rows = rows_of(decoder_tokenizer, [None, "summary"] * 6)
    limits = EngineLimits(cache_bytes=2**15, step_tokens=48, max_running=3)
    tight = Engine(load_backbone(decoder_spec, "float32"), lambda name: bundles / name, limits)
    wide = Engine(load_backbone(decoder_spec, "float32"), lambda name: bundles / name)
    for left, right in zip(tight.run(rows), wide.run(rows), strict=True):
        assert_same(left, right)
    assert tight.stats.steps > wide.stats.steps


@pytest.mark.parametrize("use_kernels", [False, True])
def test_what_lies_in_unused_cells_does_not_matter(
    decoder_spec, bundles, decoder_tokenizer, use_kernels
):
    engine = Engine(
        load_backbone(decoder_spec, "float32"),
        lambda name: bundles / name,
        EngineLimits(prefix_bytes=0),
        use_kernels=use_kernels,
    )
    rows = rows_of(decoder_tokenizer, [None, "summary", None, "summary"])
    engine.run(rows)
    expected = engine.run(rows)
    engine._cache.keys.fill_(float("nan"))
    engine._cache.values.fill_(float("nan"))
    for left, right in zip(engine.run(rows), expected, strict=True):
        assert_same(left, right)


def test_a_bank_with_room_for_one_adapter_serves_many(decoder_spec, decoder_tokenizer, bundles):
    rows = rows_of(decoder_tokenizer, ["two", "other", "two", "other", "two"])
    one = EngineLimits(bank_bytes=20_000)
    tight = Engine(load_backbone(decoder_spec, "float32"), lambda name: bundles / name, one)
    results = tight.run(rows)
    assert tight.stats.largest.adapters == 1
    wide = Engine(load_backbone(decoder_spec, "float32"), lambda name: bundles / name)
    for left, right in zip(results, wide.run(rows), strict=True):
        assert_same(left, right)


def test_the_bundle_is_read_on_another_thread(decoder_spec, decoder_tokenizer, bundles):
    threads = []

    def fetch(name):
        threads.append(threading.current_thread())
        return bundles / name

    engine = Engine(load_backbone(decoder_spec, "float32"), fetch)
    engine.run(rows_of(decoder_tokenizer, ["two", "two", "two"]))
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


def test_closing_gives_the_backbone_its_own_layers_back(decoder_spec, bundles):
    backbone = load_backbone(decoder_spec, "float32")
    before = dict(backbone.model.named_modules())
    Engine(backbone, lambda name: bundles / name).close()
    assert dict(backbone.model.named_modules()) == before


def test_rslora_scaling_agrees_with_stock_peft(tmp_path, decoder_spec, decoder_tokenizer):
    folder = tmp_path / "rs"
    manifest = save_bundle(folder, decoder_spec, classifier(2), seed=3, rank=8, alpha=8)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    reseal(folder, load_file(folder / "adapter_model.safetensors"))
    row = Row("a", decoder_tokenizer.encode(TEXTS[0]).ids, "rs")
    engine = Engine(load_backbone(decoder_spec, "float32"), lambda name: tmp_path / name)
    stock = AutoModelForCausalLM.from_pretrained(decoder_spec.folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(stock, folder).eval()
    with torch.no_grad():
        out = model(torch.tensor([list(row.token_ids)]), output_hidden_states=True)
    head = load_file(folder / "head.safetensors")
    expected = out.hidden_states[-1][0, -1] @ head["weight"].T + head["bias"]
    actual = torch.from_numpy(engine.run([row])[0].output.logits)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert manifest.head.outputs == 2
