"""What training computes with is what stock peft and the library's own model code compute, gradients included."""

import pytest
import torch

from adapters.backbone import describe_backbone, load_backbone
from adapters.runtime.kernels import load_kernels
from adapters.tasks.base import Labelled
from tests.bundles import classifier
from tests.tiny import save_backbone
from training.contract import LoraSettings
from training.lora_layers import _LoraProduct
from training.trainer import build_trainee

ROWS = [Labelled([7 + i, 20, 30 + i, 9, *range(40, 40 + i)], [i % 2]) for i in range(6)]
SETTINGS = {
    "all": LoraSettings(rank=4),
    "some": None,
    "last": LoraSettings(rank=3, alpha=7, last_layers=1),
}


def some(model_type):
    modules = {"gpt2": ["c_attn"], "bert": ["query"]}.get(
        model_type, ["q_proj", "v_proj", "up_proj"]
    )
    return LoraSettings(rank=4, target_modules=modules)


def loss_and_gradients(trainee):
    loss, _ = trainee.loss(ROWS)
    loss.backward()
    found = {name: p.grad.clone() for name, p in trainee.parameters().items()}
    for parameter in trainee.parameters().values():
        parameter.grad = None
    return loss.detach(), found


def made(tmp_path, model_type, dtype, settings):
    spec = describe_backbone(save_backbone(tmp_path / model_type, model_type))
    backbone = load_backbone(spec, dtype)
    trainee = build_trainee(backbone, settings, classifier().head(spec.family), 0)
    randomise(trainee, 0)
    backbone.model.eval()  # no dropout of the backbone's own, which would draw anew each time
    return trainee


def randomise(trainee, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainee.parameters().values():
            parameter.normal_(0, 0.1, generator=generator)


def make_stock(trainee):
    """Let it compute by peft, the library's model code and torch's attention."""
    trainee.undo()
    trainee.kernels = None


@pytest.fixture(params=["kernels", "torch"])
def way(request, monkeypatch):
    """With compiled kernels, and as a machine without a C compiler would."""
    if request.param == "torch":
        monkeypatch.setattr("training.trainer.load_kernels", lambda: None)
    elif load_kernels() is None:
        pytest.skip("no C compiler on this machine")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gpt2", "bert", "modernbert"])
def test_in_fp32_loss_and_gradients_are_those_of_stock_peft(tmp_path, model_type, settings):
    if model_type == "modernbert" and settings == "some":
        pytest.skip("has none of these modules")
    settings = SETTINGS[settings] or some(model_type)
    trainee = made(tmp_path, model_type, "float32", settings)
    ours = loss_and_gradients(trainee)
    make_stock(trainee)
    stock = loss_and_gradients(trainee)
    torch.testing.assert_close(ours[0], stock[0], atol=1e-4, rtol=1e-5)
    assert ours[1].keys() == stock[1].keys()
    for name, gradient in stock[1].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(ours[1][name], gradient, atol=2e-4 * scale, rtol=1e-3)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("model_type", ["llama", "bert"])
def test_in_bf16_gradients_are_as_near_to_fp32s_as_stock_pefts(tmp_path, model_type):
    of_fp32 = made(tmp_path, model_type, "float32", SETTINGS["all"])
    trainee = made(tmp_path, model_type, "bfloat16", SETTINGS["all"])
    exact = gradients_of_several(of_fp32)
    ours = gradients_of_several(trainee)
    make_stock(trainee)
    stock = gradients_of_several(trainee)
    assert all(gradient.dtype == torch.float32 for gradient in ours[0].values())
    assert distance(ours, exact) <= 1.3 * distance(stock, exact)


def gradients_of_several(trainee):
    """The gradients at several random weights: at one of them, either may be nearer by chance."""
    return [(randomise(trainee, seed), loss_and_gradients(trainee)[1])[1] for seed in range(6)]


def distance(found, exact):
    return sum(
        float((ours[name] - gradient).norm() / gradient.norm())
        for ours, all_exact in zip(found, exact, strict=True)
        for name, gradient in all_exact.items()
    )


def test_dropout_changes_the_low_rank_part_only():
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.randn(shape, generator=generator).requires_grad_()

    x, dropped, weight, bias = leaf(5, 6), leaf(5, 6), leaf(7, 6).detach(), leaf(7).detach()
    a1, b1, a2, b2 = leaf(2, 6), leaf(3, 2), leaf(1, 6), leaf(4, 1)
    places = ((0, 3, 0.5), (3, 4, 2.0))
    parts = _LoraProduct.apply(x, dropped, weight, bias, (3, 4), places, a1, b1, a2, b2)
    ours = torch.cat(parts, dim=1)
    low = [0.5 * dropped @ a1.T @ b1.T, 2.0 * dropped @ a2.T @ b2.T]
    expected = x @ weight.T + bias + torch.cat(low, dim=1)
    torch.testing.assert_close(ours, expected)
    upstream = torch.randn(5, 7, generator=generator)
    leaves = (x, dropped, a1, b1, a2, b2)
    for left, right in zip(
        torch.autograd.grad(ours, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


@pytest.mark.usefixtures("way")
def test_a_decoders_own_attention_dropout_is_honoured_in_fitting_and_only_there(tmp_path):
    folder = save_backbone(tmp_path / "llama", "llama", attention_dropout=0.5)
    backbone = load_backbone(describe_backbone(folder), "float32")
    trainee = build_trainee(backbone, LoraSettings(), classifier().head("decoder"), 0)
    with torch.no_grad():
        assert trainee.loss(ROWS)[0] == trainee.loss(ROWS)[0]
        backbone.model.train()
        assert trainee.loss(ROWS)[0] != trainee.loss(ROWS)[0]


def test_frozen_weights_are_held_once(tmp_path):
    trainee = made(tmp_path, "llama", "float32", SETTINGS["all"])
    layer = trainee.backbone.model.model.layers[0].self_attn
    q, k = layer.q_proj.base_layer.weight, layer.k_proj.base_layer.weight
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
