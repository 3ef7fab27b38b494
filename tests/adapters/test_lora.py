"""LoRA weights: paired and scaled as PEFT does it, checked against the backbone, refused if not plain."""

import json
import math

import pytest
import torch
from torch import nn

from adapters.errors import BackboneMismatch, InvalidBundle
from adapters.lora import LoraModule, check_against_backbone, check_plain_lora, read_lora
from adapters.tensors import RawTensor, read_tensors

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def raw(*shape):
    return RawTensor("F32", shape, bytes(4 * math.prod(shape)))


def weights(module="layers.0.q_proj", rank=4, size=(6, 5)):
    key = f"base_model.model.{module}.lora_"
    return {f"{key}A.weight": raw(rank, size[0]), f"{key}B.weight": raw(size[1], rank)}


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(6, 6), "up": nn.Linear(6, 6)}) for _ in range(2)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer["up"](layer["q_proj"](x))
        return x


def save_peft(folder, **options):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up"], **options})
    model = get_peft_model(Stack(), config)
    model.save_pretrained(folder)
    stored = json.loads((folder / "adapter_config.json").read_text())
    return model, stored, read_tensors(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"up": 2}},
        {"rank_pattern": {"layers.1.up": 3, "up": 2}, "alpha_pattern": {"q_proj": 5}},
        {"rank_pattern": {"layers.1.up": 2}, "alpha_pattern": {"p": 99}, "use_rslora": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys")
def test_modules_ranks_and_scales_are_those_of_peft(tmp_path, options):
    model, config, tensors = save_peft(tmp_path, **options)
    modules = read_lora(config, tensors)
    theirs = {
        name.removeprefix("base_model.model."): (layer.r["default"], layer.scaling["default"])
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A")
    }
    assert {name: (module.rank, module.scale) for name, module in modules.items()} == theirs


@pytest.mark.parametrize(
    "init",
    [
        True,
        "gaussian",
        "orthogonal",
        *[
            pytest.param(
                each,
            )
            for each in ("pissa", "olora")
        ],
    ],
)
def test_an_adapter_is_refused_or_answers_as_peft_does(tmp_path, init):
    from peft import PeftModel

    _, config, tensors = save_peft(tmp_path, init_lora_weights=init)
    try:
        modules = read_lora(config, tensors)
    except InvalidBundle:
        return
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    ours = Stack()
    with torch.no_grad():
        for name, module in modules.items():
            a, b = (
                torch.frombuffer(bytearray(t.data), dtype=torch.float32).reshape(t.shape)
                for t in (module.a, module.b)
            )
            ours.get_submodule(name).weight += module.scale * b @ a
    torch.testing.assert_close(ours(x), PeftModel.from_pretrained(Stack(), tmp_path)(x))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "only 'LORA'"),
        ({"use_dora": True}, "sets 'use_dora'"),
        ({"use_qalora": True}, "sets 'use_qalora'"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "head.safetensors"),
        ({"r": 8}, "has rank 4, but adapter_config.json says '8'"),
        ({"r": None}, "says 'None'"),
        ({"rank_pattern": {"q_proj": 2}}, "says '2'"),
        ({"lora_alpha": None}, "must be a number below"),
        ({"lora_alpha": "8"}, "must be a number below"),
        ({"lora_alpha": math.inf}, "must be a number below"),
        ({"lora_alpha": math.nan}, "must be a number below"),
        ({"alpha_pattern": {"q_proj": math.nan}}, "must be a number below"),
    ],
    ids=str,
)
def test_a_config_that_is_not_plain_lora_is_refused(change, said):
    with pytest.raises(InvalidBundle, match=said):
        read_lora({**CONFIG, **change}, weights())


@pytest.mark.parametrize(
    "change",
    [
        {"rank_pattern": {r"layers\.[1]": 4}},
        {"rank_pattern": {"(": 4}},
        {"rank_pattern": ["up"]},
        {"lora_alpha": 10**400},
    ],
    ids=["a regular expression", "no regular expression", "no mapping", "beyond floats"],
)
def test_a_config_with_damaged_values_is_refused(change):
    with pytest.raises(InvalidBundle):
        read_lora({**CONFIG, **change}, weights())


A, B = "base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({A: raw(4, 6)}, "'x' has only lora_A; both are needed"),
        ({B: raw(6, 4)}, "'x' has only lora_B; both are needed"),
        ({A: raw(4, 6), B: raw(6, 3)}, r"lora_A \[4, 6\] and lora_B \[6, 3\] of 'x' disagree"),
        ({A: raw(4), B: raw(6, 4)}, "disagree"),
        ({A: raw(4, 6), B: raw(6, 4, 1)}, "disagree"),
        ({A: raw(0, 6), B: raw(6, 0)}, "has rank 0; ranks go from 1 to 512"),
        ({A: raw(513, 1), B: raw(1, 513)}, "has rank 513"),
        ({"base_model.model.x.lora_B.bias": raw(4)}, "no LoRA weight of a module"),
        ({"base_model.model.x.lora_embedding_A": raw(4, 4)}, "no LoRA weight of a module"),
        ({"x.lora_A.weight": raw(4, 6)}, r"Expected base_model.model.<module>.lora_A.weight"),
    ],
)
def test_weights_that_make_no_pairs_are_refused(tensors, said):
    with pytest.raises(InvalidBundle, match=said):
        read_lora(CONFIG, tensors)


def test_every_module_of_the_backbone_may_be_adapted_at_its_own_size(decoder_spec):
    modules = {
        name: LoraModule(raw(2, takes), raw(gives, 2), 1.0)
        for name, (takes, gives) in decoder_spec.modules.items()
    }
    check_against_backbone(modules, decoder_spec)


def test_an_adapter_of_another_backbone_is_refused_by_its_modules(decoder_spec, encoder_spec):
    modules = {name: LoraModule(raw(2, 32), raw(32, 2), 1.0) for name in encoder_spec.modules}
    count = len(modules)
    with pytest.raises(BackboneMismatch, match=f"{count} of {count} adapted modules, such as"):
        check_against_backbone(modules, decoder_spec)


@pytest.mark.parametrize("size", [(33, 32), (32, 33)])
def test_a_module_of_another_size_is_refused_with_both_sizes(decoder_spec, size):
    name = next(name for name in decoder_spec.modules if name.endswith("q_proj"))
    modules = {name: LoraModule(raw(2, size[0]), raw(size[1], 2), 1.0)}
    with pytest.raises(BackboneMismatch, match=rf"\[32, 32\].*\[{size[0]}, {size[1]}\]"):
        check_against_backbone(modules, decoder_spec)


def test_a_start_by_eva_is_plain_lora_with_what_it_was_set_up_by(tmp_path):
    from peft import EvaConfig, LoraConfig

    LoraConfig(init_lora_weights="eva", eva_config=EvaConfig()).save_pretrained(tmp_path)
    check_plain_lora(json.loads((tmp_path / "adapter_config.json").read_text()))
