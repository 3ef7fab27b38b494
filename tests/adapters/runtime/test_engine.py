"""The engine: same answer in any company, and equal to stock transformers and peft."""

import json
import shutil
import threading

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from adapters.backbone import load_backbone
from adapters.errors import InvalidRequest, PredictionFailed, TextTooLong
from adapters.runtime.engine import Engine, EngineLimits
from adapters.runtime.rows import Row
from adapters.tasks.base import Generation
from tests.bundles import answerer, classifier, save_bundle, summarizer

TEXTS = [
    "A wonderful film.",
    "Dull, flat, and far too long for what little it has to say about the sun.",
    "北京是中国的首都。",
    "Who wrote the first program? Ada Lovelace wrote the first program in 1843.",
    "x",
]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, decoder_spec):
    """Bundles of different task, rank, width and modules, by name."""
    root = tmp_path_factory.mktemp("bundles")
    backbone = load_backbone(decoder_spec, "float32")
    made = {
        "two": (classifier(2), {"rank": 4}),
        "many": (classifier(77), {"rank": 8, "target_modules": ["q_proj", "v_proj"]}),
        "spans": (answerer(), {"rank": 16, "last_layers": 1}),
        "summary": (summarizer(), {"rank": 3}),
        "other": (classifier(2), {"rank": 4}),
    }
    for seed, (name, (task, lora)) in enumerate(made.items()):
        save_bundle(root / name, decoder_spec, task, seed=seed, backbone=backbone, **lora)
    return root


@pytest.fixture
def engine(decoder_spec, bundles):
    engine = Engine(load_backbone(decoder_spec, "float32"), lambda name: bundles / name)
    yield engine
    engine.close()


def rows_of(tokenizer, adapters, max_new_tokens=12):
    rows = []
    for i, adapter in enumerate(adapters):
        ids = tokenizer.encode(TEXTS[i % len(TEXTS)]).ids
        generates = adapter in (None, "summary")
        generation = Generation(max_new_tokens, tokenizer.end_ids) if generates else None
        rows.append(Row(f"row-{i}", ids, adapter, generation))
    return rows


def assert_same(left, right):
    assert left.error is None, left.error
    assert right.error is None, right.error
    assert left.output.token_ids == right.output.token_ids
    assert left.output.finish_reason == right.output.finish_reason
    if left.output.logits is not None:
        torch.testing.assert_close(
            torch.from_numpy(left.output.logits),
            torch.from_numpy(right.output.logits),
            atol=1e-4,
            rtol=1e-4,
        )


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


def test_what_lies_in_unused_cells_does_not_matter(engine, decoder_tokenizer):
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


def test_a_popular_adapter_that_generates_lets_another_into_a_full_bank(
    decoder_spec, decoder_tokenizer, bundles, tmp_path
):
    save_bundle(tmp_path / "other", decoder_spec, summarizer(), seed=5, rank=3)
    folders = {"summary": bundles / "summary", "other": tmp_path / "other"}
    limits = EngineLimits(bank_bytes=20_000, max_running=2)
    engine = Engine(load_backbone(decoder_spec, "float32"), folders.__getitem__, limits)
    flood = rows_of(decoder_tokenizer, ["summary"] * 40, max_new_tokens=6)
    for row in flood:
        engine.submit(row)
    engine.step()
    ids = decoder_tokenizer.encode("Late.").ids
    engine.submit(Row("late", ids, "other", Generation(4, decoder_tokenizer.end_ids)))
    done = []
    while "late" not in done:
        done += [result.row_id for result in engine.step()]
        engine.wait_for_loads()
        assert engine.num_rows, "the late row must come before the flood is over"
    assert len(done) < len(flood)


def test_a_failing_installation_ends_its_own_rows_only(engine, decoder_tokenizer, monkeypatch):
    install = engine._bank.install

    def fail(digest, bundle):
        if digest == "many":
            raise MemoryError("no room")
        install(digest, bundle)

    monkeypatch.setattr(engine._bank, "install", fail)
    results = engine.run(rows_of(decoder_tokenizer, ["two", "many", None]))
    assert [result.error is None for result in results] == [True, False, True]
    assert engine.run(rows_of(decoder_tokenizer, ["two"]))[0].error is None


def test_an_adapter_larger_than_the_bank_is_an_error(decoder_spec, decoder_tokenizer, bundles):
    limits = EngineLimits(bank_bytes=8000)
    engine = Engine(load_backbone(decoder_spec, "float32"), lambda name: bundles / name, limits)
    result = engine.run(rows_of(decoder_tokenizer, ["two"]))[0]
    assert "8000" in result.error.message


def test_a_bundle_that_cannot_be_loaded_fails_its_own_rows_only(engine, decoder_tokenizer):
    rows = rows_of(decoder_tokenizer, ["two", "not-there", "many", "not-there"])
    results = engine.run(rows)
    assert [result.error is None for result in results] == [True, False, True, False]
    assert "could not be loaded" in results[1].error.message
    assert "manifest.json" in results[1].error.message


def test_a_row_whose_numbers_are_not_finite_fails_alone(
    tmp_path, decoder_spec, decoder_tokenizer, bundles
):
    shutil.copytree(bundles / "two", tmp_path / "huge")
    save_bundle(tmp_path / "huge", decoder_spec, classifier(2), seed=9)
    weights = load_file(tmp_path / "huge" / "adapter_model.safetensors")
    reseal(tmp_path / "huge", {k: torch.full_like(v, 1e30) for k, v in weights.items()})
    engine = Engine(
        load_backbone(decoder_spec, "float32"),
        lambda name: (tmp_path if name == "huge" else bundles) / name,
    )
    rows = rows_of(decoder_tokenizer, ["huge", "two", None, "many"])
    results = engine.run(rows)
    assert isinstance(results[0].error, PredictionFailed)
    for row, result in list(zip(rows, results, strict=True))[1:]:
        assert_same(result, engine.run([row])[0])


def reseal(folder, weights):
    from adapters.bundle import read_manifest, seal_bundle

    manifest = read_manifest(folder)
    save_file(weights, folder / "adapter_model.safetensors")
    seal_bundle(
        folder,
        task=classifier(2),
        head=manifest.head,
        backbone=manifest.backbone,
        metrics={},
        lineage=manifest.lineage,
    )


def test_a_cancelled_row_frees_what_it_holds(engine, decoder_tokenizer):
    rows = rows_of(decoder_tokenizer, [None, "summary", "two"], max_new_tokens=50)
    free = engine._cache.num_free_blocks
    for row in rows:
        engine.submit(row)
    while not engine._running:
        engine.step()
        engine.wait_for_loads()
    for row in rows:
        engine.cancel(row.row_id)
    assert engine.num_rows == len(engine._finished)
    assert engine._cache.num_free_blocks == free
    assert all(not r.users for r in engine._bank._residents.values())


def test_a_pass_that_fails_half_way_ends_its_rows_and_the_engine_goes_on(
    engine, decoder_tokenizer, monkeypatch
):
    rows = rows_of(decoder_tokenizer, [None, "two", "summary", "many"], max_new_tokens=3)
    good = engine.run(rows)
    monkeypatch.setattr(engine._bank, "apply_head", lambda *_: 1 / 0)
    failed = engine.run([rows[1], rows[3]])
    assert all("ZeroDivisionError" in result.error.message for result in failed)
    assert all(
        result.error is None or "Zero" in result.error.message for result in engine.run(rows)
    )
    monkeypatch.undo()
    for left, right in zip(engine.run(rows), good, strict=True):
        assert_same(left, right)


def test_aborting_ends_every_row_and_frees_what_they_held(engine, decoder_tokenizer):
    rows = rows_of(decoder_tokenizer, [None, "summary", "two"], max_new_tokens=50)
    free = engine._cache.num_free_blocks
    for row in rows:
        engine.submit(row)
    engine.step()
    ended = engine.abort(RuntimeError("no"))
    assert {result.row_id for result in ended} == {row.row_id for row in rows}
    assert engine.num_rows == 0
    assert engine._cache.num_free_blocks == free
    assert all(result.output for result in engine.run(rows))


def test_the_bundle_is_read_on_another_thread(decoder_spec, decoder_tokenizer, bundles):
    threads = []

    def fetch(name):
        threads.append(threading.current_thread())
        return bundles / name

    engine = Engine(load_backbone(decoder_spec, "float32"), fetch)
    engine.run(rows_of(decoder_tokenizer, ["two", "two", "two"]))
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (Row("a", [], "two"), InvalidRequest),
        (Row("a", [5] * 300, "two"), TextTooLong),
        (Row("a", [5] * 10, None, Generation(250, (2,))), TextTooLong),
        (Row("a", [5] * 10, None), InvalidRequest),
        (Row("a", [5, 100_000], "two"), InvalidRequest),
    ],
    ids=[
        "empty",
        "too-long",
        "no-room-for-the-answer",
        "no-adapter-and-no-generation",
        "no-such-token",
    ],
)
def test_a_row_that_nothing_could_answer_is_refused_at_once(engine, row, error):
    with pytest.raises(error):
        engine.submit(row)
    assert engine.num_rows == 0


def test_an_encoder_refuses_to_generate(encoder_spec):
    engine = Engine(load_backbone(encoder_spec, "float32"), lambda name: None)
    with pytest.raises(InvalidRequest, match="can't generate"):
        engine.submit(Row("a", [5, 6], None, Generation(4, (2,))))


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
