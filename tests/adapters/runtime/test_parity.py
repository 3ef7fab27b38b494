"""The parity matrix: every architecture, packed and padded, adapters of many ranks in one batch, against stock peft.

The reference is the stock model with stock peft, each row by itself, heads applied by hand, greedy decoding
without any cache.
"""

import functools
import json
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from adapters.architectures import ARCHITECTURES, can_pack
from adapters.backbone import describe_backbone, load_backbone
from adapters.bundle import BackboneReference, Lineage, seal_bundle
from adapters.runtime.engine import Engine
from adapters.runtime.kernels import load_kernels
from adapters.runtime.limits import EngineLimits
from adapters.runtime.rows import Row
from adapters.tasks.base import Generation
from adapters.tokenizer import load_tokenizer
from tests.bundles import answerer, classifier, summarizer
from tests.rows import TEXTS
from tests.tiny import MODELS, save_backbone

# Name of an adapter: its task and its rank.
SCORING = {"two": (classifier(2), 4), "many": (classifier(77), 8), "spans": (answerer(), 64)}
WRITING = {f"summary-{rank}": (summarizer(), rank) for rank in (4, 8, 64)}
# Each architecture, and what of its config changes how attention or generation works.
CASES = {
    **{model_type: (model_type, {}) for model_type in ARCHITECTURES},
    "mistral-windowed": ("mistral", {"sliding_window": 24}),
    "qwen2-windowed": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "opt-projected": ("opt", {"word_embed_proj_dim": 16}),
    "gpt2-scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "t5-gated": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart-forced": ("bart", {}),
}
# What a checkpoint says about generation, beside the token that its decoder starts with.
GENERATION = {
    "bart-forced": {"forced_bos_token_id": 7},
    "marian": {"bad_words_ids": [[token] for token in (0, *range(10, 200))]},
}
# How the engine runs: as a server does, and on torch alone with the library's own layers.
WAYS = {
    "packed": {"is_packed": True, "fuse": True, "use_kernels": True},
    "padded": {"is_packed": False, "fuse": False, "use_kernels": False},
    "padded-fused": {"is_packed": False, "fuse": True, "use_kernels": True},
}
PADDED_ONLY = {
    *(model_type for model_type, a in ARCHITECTURES.items() if not a.is_packed),
    *("mistral-windowed", "qwen2-windowed", "t5-gated", "bart-forced"),
}
MATRIX = [
    (case, way) for case in CASES for way in WAYS if way != "packed" or case not in PADDED_ONLY
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models as small as these are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class World:
    """A backbone, its bundles, rows for them, and what stock peft answers."""

    spec: object
    root: object
    rows: list
    expected: list


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Make each case's world once, for all ways."""

    @functools.cache
    def world(case):
        model_type, fields = CASES[case]
        root = tmp_path_factory.mktemp("parity") / case
        save_backbone(root / "backbone", model_type, seed=3, **fields)
        change_generation(root / "backbone", GENERATION.get(case, {}))
        spec = describe_backbone(root / "backbone")
        adapters = SCORING if spec.family == "encoder" else {**SCORING, **WRITING}
        for seed, (name, (task, rank)) in enumerate(adapters.items()):
            write_bundle(root / name, spec, task, rank, seed)
        rows = rows_for(load_tokenizer(root / "backbone"), spec, adapters)
        return World(spec, root, rows, stock_answers(spec, root, adapters, rows))

    return world


def change_generation(folder, settings):
    path = folder / "generation_config.json"
    if settings:
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def stock_model(spec):
    return MODELS[spec.model_type][0].from_pretrained(spec.folder, dtype=torch.float32).eval()


def write_bundle(folder, spec, task, rank, seed):
    """Write and seal a bundle by stock peft alone, with weights large enough to matter."""
    torch.manual_seed(seed)
    model = stock_model(spec)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(spec.modules),
        fan_in_fan_out=spec.model_type == "gpt2",
    )
    peft_model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.6 / rank**0.5)
    peft_model.save_pretrained(folder)
    (folder / "README.md").unlink()
    head = task.head(spec.family)
    if head is not None:
        weight = torch.randn(head.outputs, spec.hidden_size)
        save_file(
            {"weight": weight, "bias": torch.randn(head.outputs)}, folder / "head.safetensors"
        )
    reference = BackboneReference(
        name=spec.name, fingerprint=spec.fingerprint, tokenizer=spec.tokenizer
    )
    seal_bundle(folder, task=task, head=head, backbone=reference, metrics={}, lineage=Lineage())


def rows_for(tokenizer, spec, adapters):
    """Return rows of each adapter and of none, of different lengths, one of them longer than a chunk."""
    texts = [*TEXTS, " ".join(TEXTS[:2])]
    rows = []
    for i, name in enumerate([*adapters, None, *adapters]):
        ids = tokenizer.encode(texts[i % len(texts)]).ids
        if spec.model_type == "mpnet":  # whose padding token is 1, whatever its config says
            ids = [3 if token == 1 else token for token in ids]
        is_scored = name in SCORING or (name is None and spec.family == "encoder")
        rows.append(
            Row(
                f"row-{i}",
                ids,
                name,
                None if is_scored else Generation(6, tokenizer.end_ids, num_logprobs=0),
                embed="mean" if name is None and is_scored else None,
            )
        )
    return rows


def stock_answers(spec, root, adapters, rows):
    model = stock_model(spec)
    for name in adapters:
        model = (
            model.load_adapter(root / name, adapter_name=name) and model
            if isinstance(model, PeftModel)
            else PeftModel.from_pretrained(model, root / name, adapter_name=name)
        )
    model.eval()
    answers = []
    for row in rows:
        with torch.no_grad():
            if row.adapter is None:
                with model.disable_adapter():
                    answers.append(stock_answer(model, spec, root, row))
            else:
                model.set_adapter(row.adapter)
                answers.append(stock_answer(model, spec, root, row))
    return answers


def stock_answer(model, spec, root, row):
    """Return the logits or embedding of a row that is scored, tokens and log-probabilities of one that generates."""
    ids = torch.tensor([list(row.token_ids)])
    if row.generation is not None:
        return greedy(model, spec, row)
    hidden = last_hidden(model, spec, ids)
    if row.adapter is None:
        return hidden.mean(0)
    head = load_file(root / row.adapter / "head.safetensors")
    if row.adapter != "spans":
        hidden = hidden[-1] if spec.family == "decoder" else hidden.mean(0)
    return hidden @ head["weight"].T + head["bias"]


def last_hidden(model, spec, ids):
    if spec.family == "encoder":
        return model(ids).last_hidden_state[0]
    if spec.family == "decoder":
        return model(ids, output_hidden_states=True).hidden_states[-1][0]
    return model.get_encoder()(ids).last_hidden_state[0]


def greedy(model, spec, row):
    source = torch.tensor([list(row.token_ids)])
    settings = model.generation_config
    written = []
    if spec.family == "encoder-decoder":
        written.append(settings.decoder_start_token_id)
        if settings.forced_bos_token_id is not None:
            written.append(settings.forced_bos_token_id)
    begin, logprobs = len(written), []
    while len(written) - begin < row.generation.max_new_tokens:
        if spec.family == "encoder-decoder":
            out = model(input_ids=source, decoder_input_ids=torch.tensor([written]))
        else:
            out = model(torch.cat([source, torch.tensor([written], dtype=torch.long)], 1))
        logits = out.logits[0, -1]
        for words in settings.bad_words_ids or ():
            logits[words] = -torch.inf
        token = int(logits.argmax())
        if token in row.generation.end_ids:
            break
        written.append(token)
        logprobs.append(logits.log_softmax(0)[token])
    return written[begin:], torch.tensor(logprobs)


def test_the_architectures_that_must_run_packed_do():
    required = {"llama", "qwen3", "gpt2", "bert", "roberta", "distilbert"}
    assert required <= {case for case, way in MATRIX if way == "packed"}


@pytest.mark.parametrize(("case", "way"), MATRIX)
def test_a_mixed_batch_equals_stock_peft_row_by_row(worlds, case, way):
    world = worlds(case)
    settings = WAYS[way]
    backbone = load_backbone(
        world.spec, "float32", fuse=settings["fuse"], is_packed=settings["is_packed"]
    )
    assert backbone.is_packed == settings["is_packed"]
    if way == "packed":
        assert can_pack(backbone.config)
    # Steps so short that rows start one after the other, and decode at different places.
    limits = EngineLimits(step_tokens=128, chunk_tokens=24, cache_bytes=2**21, prefix_bytes=2**19)
    engine = Engine(
        backbone, lambda name: world.root / name, limits, use_kernels=settings["use_kernels"]
    )
    for _ in range(4):  # adapters come in, and passes that come again are recorded
        engine.run(world.rows)
    results = engine.run(world.rows)
    assert engine.stats.largest.adapters >= 3
    if way == "packed" and world.spec.family == "decoder" and load_kernels() is not None:
        recordings = engine._forward._graphs._recordings.values()
        assert any(recording.replay.num_replays > 2 for recording in recordings)
    for row, result, expected in zip(world.rows, results, world.expected, strict=True):
        assert result.error is None, result.error
        if row.generation is not None:
            tokens, logprobs = expected
            assert list(result.output.token_ids) == tokens
            assert_close(
                torch.tensor([chosen.logprob for chosen in result.output.logprobs]), logprobs
            )
        else:
            output = result.output
            actual = output.logits if output.embedding is None else output.embedding
            assert_close(torch.from_numpy(actual), expected)


def assert_close(actual, expected):
    """The one tolerance rule: |a - b| <= 1e-4 * max(1, |b|)."""
    if not len(expected):
        return
    worst = ((actual - expected).abs() / expected.abs().clamp(min=1)).max()
    assert worst <= 1e-4, worst
