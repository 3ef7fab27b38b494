"""Fitting: it learns, it pauses and goes on exactly, and it touches nothing but LoRA and head."""

import re
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from adapters.architectures import ARCHITECTURES
from adapters.backbone import describe_backbone, load_backbone
from adapters.errors import InvalidRequest, RunFailed, RunPaused
from adapters.runtime.engine import Engine
from adapters.runtime.rows import Row
from adapters.tasks.base import Labelled
from tests.bundles import answerer, classifier, save_bundle, summarizer
from tests.tiny import save_backbone
from training.batches import make_batches
from training.contract import FitSettings, LoraSettings
from training.fitting import Fit, Hooks
from training.trainer import build_trainee, target_modules

ROWS = {
    "text-classification": [
        Labelled([7 + i % 5, 20 + 30 * (i % 2), 9], [i % 2]) for i in range(40)
    ],
    "question-answering": [
        Labelled([5, 6, 7 + i % 9, 44, 8, 9], [3, 3], (1, 6)) for i in range(40)
    ],
    "summarization": [Labelled([5 + i % 7, 6, 50, 51, 2], [50, 51, 2]) for i in range(40)],
}
TASKS = {
    "text-classification": classifier,
    "question-answering": answerer,
    "summarization": summarizer,
}
SETTINGS = FitSettings(learning_rate=5e-3, batch_tokens=40, epochs=4)


def run(spec, task, tmp_path, settings=SETTINGS, pause_at=None, lora=None, score=None):
    """Fit the rows of a task; return the trainee and its losses."""
    backbone = load_backbone(spec, "float32")
    head = TASKS[task]().head(spec.family)
    trainee = build_trainee(
        backbone, lora or LoraSettings(rank=4, dropout=0.1), head, settings.seed
    )
    losses = []
    batches = make_batches(
        ROWS[task],
        settings.batch_tokens,
        seed=settings.seed,
        epochs=settings.epochs,
        max_tokens=None,
    )
    hooks = Hooks(
        should_pause=lambda: len(losses) == pause_at,
        on_step=lambda step, data: losses.append(data["loss"]),
        score=score,
    )
    fit = Fit(
        trainee,
        batches,
        settings,
        settings.learning_rate,
        checkpoint=tmp_path / "checkpoint.safetensors",
        run_digest=task,
        hooks=hooks,
    )
    try:
        fit.run()
    except RunPaused:
        assert len(losses) == pause_at
    return trainee, losses


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_goes_down(decoder_spec, tmp_path, task):
    _, losses = run(decoder_spec, task, tmp_path)
    assert losses[-1] < 0.5 * losses[0]


def test_an_encoder_learns_too(encoder_spec, tmp_path):
    _, losses = run(encoder_spec, "text-classification", tmp_path)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_can_learn_in_each_of_its_layers(tmp_path, model_type):
    spec = describe_backbone(save_backbone(tmp_path / model_type, model_type))
    trainee = build_trainee(
        load_backbone(spec, "float32"), LoraSettings(rank=4), classifier().head(spec.family), 0
    )
    loss, num_labels = trainee.loss(ROWS["text-classification"][:2])
    loss.backward()
    moved = moved_parameters(trainee)
    # A head reads the encoder of an encoder-decoder.
    read = [name for name in spec.modules if "decoder" not in name.split(".")]
    wanted = read if spec.family == "encoder-decoder" else list(spec.modules)
    assert sum("lora_B" in name for name in moved) == len(wanted)
    assert {"head.weight", "head.bias"} <= moved
    assert num_labels == 2


def moved_parameters(trainee):
    return {name for name, p in trainee.parameters().items() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize(("model_type", "most"), [("llama", 2), ("bert", 2), ("t5", 3)])
def test_more_last_layers_than_there_are_are_refused(tmp_path, model_type, most):
    """An encoder-decoder has two stacks; the deeper one bounds them."""
    spec = describe_backbone(save_backbone(tmp_path / model_type, model_type))
    backbone = load_backbone(spec, "float32")
    names = target_modules(backbone, LoraSettings(last_layers=most), has_head=False)
    assert sorted(names) == sorted(spec.modules)
    with pytest.raises(InvalidRequest, match=f"last_layers is '4', but '{model_type}' has {most}"):
        target_modules(backbone, LoraSettings(last_layers=4), has_head=False)


@pytest.mark.parametrize("model_type", ["t5", "mt5", "bart", "mbart", "marian", "pegasus"])
def test_what_an_encoder_decoder_learns_to_write_has_the_librarys_loss_and_gradients(
    tmp_path, model_type
):
    spec = describe_backbone(save_backbone(tmp_path / model_type, model_type))
    trainee = build_trainee(load_backbone(spec, "float32"), LoraSettings(rank=4), None, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainee.parameters().values():
            parameter.normal_(0, 0.1, generator=generator)
    trainee.backbone.model.eval()
    rows = [Labelled([7 + i, *range(9, 12 + 9 * i), 50 + i, 2], [50 + i, 2]) for i in range(3)]
    loss, num_labels = trainee.loss(rows)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in trainee.parameters().items()}
    assert num_labels == 6
    assert len(moved_parameters(trainee)) == 2 * len(spec.modules)

    trainee.undo()
    total = 0
    for parameter in trainee.parameters().values():
        parameter.grad = None
    for row in rows:
        stock = trainee.backbone.model(
            input_ids=torch.tensor([row.token_ids[:-2]]),
            decoder_input_ids=torch.tensor([[*trainee.backbone.start_ids, *row.labels[:-1]]]),
        )
        logits = stock.logits[0, -len(row.labels) :]
        each = cross_entropy(logits, torch.tensor(row.labels), reduction="sum")
        each.backward()
        total += each.detach()
    torch.testing.assert_close(loss.detach(), total, atol=1e-4, rtol=1e-5)
    for name, p in trainee.parameters().items():
        scale = float(p.grad.abs().max())
        torch.testing.assert_close(ours[name], p.grad, atol=2e-4 * scale, rtol=1e-3)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_the_last_layers_of_an_encoder_decoder_are_those_of_both_its_sides(tmp_path, model_type):
    spec = describe_backbone(save_backbone(tmp_path / model_type, model_type))
    lora = LoraSettings(rank=4, last_layers=1)
    trainee = build_trainee(load_backbone(spec, "float32"), lora, None, 0)
    adapted = {
        n.split(".lora_")[0].removeprefix("base_model.model.")
        for n in trainee.parameters()
        if ".lora_" in n
    }
    layers = {re.search(r"(encoder|decoder)\.\w+\.\d+", name).group() for name in adapted}
    stack = "block" if model_type == "t5" else "layers"
    assert layers == {f"encoder.{stack}.1", f"decoder.{stack}.2"}


def test_a_backbone_that_runs_padded_has_no_frozen_cache(tmp_path):
    spec = describe_backbone(save_backbone(tmp_path / "t5", "t5"))
    lora = LoraSettings(rank=4, last_layers=1)
    with pytest.raises(InvalidRequest, match=r"frozen_cache_bytes '9'.*padded"):
        build_trainee(load_backbone(spec, "float32"), lora, None, 0, frozen_bytes=9)


def test_what_gpt2_learned_is_what_stock_peft_and_the_engine_answer(tmp_path):
    spec = describe_backbone(save_backbone(tmp_path / "gpt2", "gpt2"))
    manifest = save_bundle(tmp_path / "bundle", spec, classifier(2), rank=4)
    row = Row("a", [5, 6, 7, 8], "bundle")
    engine = Engine(load_backbone(spec, "float32", fuse=True), lambda name: tmp_path / name)
    stock = AutoModelForCausalLM.from_pretrained(spec.folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(stock, tmp_path / "bundle").eval()
    with torch.no_grad():
        hidden = model(torch.tensor([row.token_ids]), output_hidden_states=True).hidden_states[-1]
    head = load_file(tmp_path / "bundle" / "head.safetensors")
    expected = hidden[0, -1] @ head["weight"].T + head["bias"]
    actual = torch.from_numpy(engine.run([row])[0].output.logits)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert manifest.head.outputs == 2


def test_only_lora_and_head_change_and_lora_b_does(decoder_spec, tmp_path):
    trainee, _ = run(decoder_spec, "text-classification", tmp_path)
    bare = load_backbone(decoder_spec, "float32").model.state_dict()
    assert all(float(v.norm()) > 0 for k, v in trainee.lora_state().items() if "lora_B" in k)
    trainee.release()
    after = trainee.backbone.model.state_dict()
    assert after.keys() == bare.keys()
    assert all(torch.equal(after[key], bare[key]) for key in bare)


@pytest.mark.parametrize("pause_at", [1, 5])
def test_a_paused_run_goes_on_to_the_very_same_weights(decoder_spec, tmp_path, pause_at):
    task = "text-classification"
    (tmp_path / "whole").mkdir()
    whole, losses = run(decoder_spec, task, tmp_path / "whole")
    _, first = run(decoder_spec, task, tmp_path, pause_at=pause_at)
    resumed, second = run(decoder_spec, task, tmp_path)
    assert first + second == losses
    for key, value in whole.lora_state().items():
        assert torch.equal(value, resumed.lora_state()[key])
    assert torch.equal(whole.head.weight, resumed.head.weight)


def test_another_runs_checkpoint_is_refused(decoder_spec, tmp_path):
    run(decoder_spec, "text-classification", tmp_path, pause_at=2)
    with pytest.raises(InvalidRequest, match="another config"):
        run(decoder_spec, "summarization", tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_reason(decoder_spec, tmp_path):
    settings = FitSettings(learning_rate=1e30, batch_tokens=40, epochs=1, max_grad_norm=1e30)
    with pytest.raises(RunFailed, match="learning_rate"):
        run(decoder_spec, "text-classification", tmp_path, settings)


@pytest.mark.parametrize("model_type", ["llama", "bert", "bloom", "gptj", "mpnet", "t5", "marian"])
def test_a_batch_loss_is_the_sum_of_its_rows_alone(tmp_path, model_type):
    spec = describe_backbone(save_backbone(tmp_path / model_type, model_type))
    backbone = load_backbone(spec, "float32")
    for name, make in TASKS.items():
        task = make()
        if spec.family not in task.families:
            continue
        trainee = build_trainee(backbone, LoraSettings(), task.head(spec.family), 0)
        backbone.model.eval()
        some = [lengthened(row, i) for i, row in enumerate(ROWS[name][:7])]
        with torch.no_grad():
            total, num_labels = trainee.loss(some)
            alone = [trainee.loss([row]) for row in some]
        assert num_labels == sum(n for _, n in alone)
        torch.testing.assert_close(total, sum(loss for loss, _ in alone), atol=1e-4, rtol=1e-4)
        trainee.release()


def lengthened(row, number):
    """The row with so many times five tokens before it, so that rows of a batch differ in length."""
    more = [20 + number] * 5 * number
    first, stop = (place + len(more) for place in row.read)
    labels = row.labels
    if row.read != (0, 0):
        labels = [label + len(more) for label in labels]
    return replace(row, token_ids=more + row.token_ids, labels=labels, read=(first, stop))


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        (LoraSettings(last_layers=1), {"layers.1."}),
        (
            LoraSettings(target_modules=["q_proj"]),
            {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"},
        ),
    ],
)
def test_only_the_named_modules_are_adapted(decoder_spec, settings, layers):
    trainee = build_trainee(load_backbone(decoder_spec, "float32"), settings, None, 0)
    names = set(trainee.lora_state())
    assert names
    assert all(any(part in name for part in layers) for name in names)


@pytest.mark.parametrize("given", [["query"], ["q_proj", "query"], []])
def test_target_modules_that_match_nothing_are_refused_with_what_there_is(decoder_spec, given):
    """Also one of several: the others would be adapted, and nobody would know."""
    with pytest.raises(InvalidRequest, match=r"target_modules '\[('query')?\]' match.*down_proj"):
        build_trainee(
            load_backbone(decoder_spec, "float32"), LoraSettings(target_modules=given), None, 0
        )


@pytest.mark.parametrize("task", TASKS)
def test_smoothed_labels_weigh_what_the_library_gives_them(decoder_spec, task):
    """Smoothing by s takes (1 - s) of the plain loss and s of the mean over all that could be answered."""
    trainee = build_trainee(
        load_backbone(decoder_spec, "float32"), LoraSettings(), TASKS[task]().head("decoder"), 0
    )
    row = ROWS[task][0]
    with torch.no_grad():
        hidden, bounds = trainee.hidden_states([row])
        plain, num = trainee.loss([row])
        trainee.smoothing = 0.1
        smoothed, _ = trainee.loss([row])
        validation, _ = trainee.loss_of(hidden, bounds, [row])
        if task == "summarization":
            logits = trainee.backbone.next_token_logits(hidden[1:-1])
        elif task == "question-answering":
            logits = trainee.head(hidden, bounds)[row.read[0] : row.read[1]].T
        else:
            logits = trainee.head(hidden, bounds)
    mean = -logits.log_softmax(-1).mean(-1).sum()
    torch.testing.assert_close(smoothed, 0.9 * plain + 0.1 * mean)
    torch.testing.assert_close(validation, plain)
    assert num == len(logits)


def test_rslora_scales_by_the_root_of_the_rank(decoder_spec, tmp_path):
    lora = LoraSettings(rank=4, alpha=8, use_rslora=True)
    trainee, losses = run(decoder_spec, "summarization", tmp_path, lora=lora)
    config = trainee.peft_model.peft_config["default"]
    layers = [m for m in trainee.peft_model.modules() if isinstance(m, LoraLayer)]
    assert config.use_rslora
    assert {layer.scaling["default"] for layer in layers} == {8 / 2}
    assert losses[-1] < 0.5 * losses[0]


def test_a_rows_weight_multiplies_its_loss(decoder_spec):
    trainee = build_trainee(
        load_backbone(decoder_spec, "float32"), LoraSettings(), classifier().head("decoder"), 0
    )
    light, heavy = ROWS["text-classification"][:2]
    heavy = Labelled(heavy.token_ids, heavy.labels, weight=3.0)
    with torch.no_grad():
        (both, num), (one, _) = trainee.loss([light, heavy]), trainee.loss([light])
        other, _ = trainee.loss([Labelled(heavy.token_ids, heavy.labels)])
    torch.testing.assert_close(both, one + 3 * other)
    assert num == 2
