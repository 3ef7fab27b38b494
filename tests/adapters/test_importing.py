"""Stock PEFT folders become bundles that answer as stock peft does, or are refused."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from adapters.bundle import load_bundle
from adapters.errors import BackboneMismatch, InvalidBundle
from adapters.importing import import_stock
from tests.bundles import classifier, save_bundle

IDS = torch.tensor([[5, 9, 33, 70, 12]])


def save_stock(folder, backbone, auto_class, **config):
    """Save an adapter with random weights through peft; returns logits and hidden states that it gives."""
    model = auto_class.from_pretrained(backbone)
    config = {"r": 4, "target_modules": ["q_proj", "down_proj"], **config}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**config)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2, generator=generator)
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return adapted(IDS)[0]


@pytest.fixture
def target(tmp_path):
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def test_the_auto_model_form_answers_as_it_did(tmp_path, target, decoder_folder, decoder_spec):
    hidden = save_stock(tmp_path / "stock", decoder_folder, transformers.AutoModel)
    import_stock(tmp_path / "stock", target, [decoder_spec])
    assert load_bundle(target, decoder_spec).manifest.task == "text-generation"
    causal = transformers.AutoModelForCausalLM.from_pretrained(decoder_folder)
    loaded = peft.PeftModel.from_pretrained(causal, target).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, causal.lm_head(hidden))


def test_the_causal_form_keeps_its_weights(tmp_path, target, decoder_folder, decoder_spec):
    save_stock(tmp_path / "stock", decoder_folder, transformers.AutoModelForCausalLM)
    import_stock(tmp_path / "stock", target, [decoder_spec])
    before = load_file(tmp_path / "stock" / "adapter_model.safetensors")
    after = load_file(target / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_in_bf16_stay_what_they_are(tmp_path, target, decoder_folder, decoder_spec):
    save_stock(tmp_path / "stock", decoder_folder, transformers.AutoModel)
    path = tmp_path / "stock" / "adapter_model.safetensors"
    weights = {name: weight.bfloat16() for name, weight in load_file(path).items()}
    save_file(weights, path)
    import_stock(tmp_path / "stock", target, [decoder_spec])
    after = load_file(target / "adapter_model.safetensors")
    for name, weight in weights.items():
        renamed = name.replace("base_model.model.", "base_model.model.model.")
        assert torch.equal(after[renamed], weight)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"task_type": "SEQ_CLS"}, InvalidBundle, "'SEQ_CLS'"),
        ({"use_dora": True}, InvalidBundle, "'use_dora'"),
        ({"base_model_name_or_path": "org/other"}, BackboneMismatch, "'org/other'"),
        ({"base_model_name_or_path": None}, BackboneMismatch, "''"),
    ],
)
def test_what_would_be_served_wrong_is_refused(
    tmp_path, target, decoder_folder, decoder_spec, change, error, told
):
    stock = tmp_path / "stock"
    save_stock(stock, decoder_folder, transformers.AutoModelForCausalLM)
    config = json.loads((stock / "adapter_config.json").read_text())
    (stock / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(error, match=told):
        import_stock(stock, target, [decoder_spec])
    assert list(target.iterdir()) == []


def test_a_backbone_of_another_name_can_be_said(tmp_path, target, decoder_folder, decoder_spec):
    elsewhere = shutil.copytree(decoder_folder, tmp_path / "renamed")
    save_stock(tmp_path / "stock", elsewhere, transformers.AutoModelForCausalLM)
    with pytest.raises(BackboneMismatch, match="renamed"):
        import_stock(tmp_path / "stock", target, [decoder_spec])
    import_stock(tmp_path / "stock", target, [decoder_spec], decoder_spec.name)
    assert load_bundle(target, decoder_spec)


def test_two_backbones_of_one_name_are_not_guessed_between(
    tmp_path, target, decoder_folder, decoder_spec
):
    save_stock(tmp_path / "stock", decoder_folder, transformers.AutoModelForCausalLM)
    twin = decoder_spec.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(BackboneMismatch, match="'2' backbones"):
        import_stock(tmp_path / "stock", target, [decoder_spec, twin])


def test_an_encoder_writes_no_text(tmp_path, target, encoder_folder, encoder_spec):
    save_stock(tmp_path / "stock", encoder_folder, transformers.AutoModel, target_modules=["query"])
    with pytest.raises(BackboneMismatch, match="can't write text"):
        import_stock(tmp_path / "stock", target, [encoder_spec])


def test_a_bundle_that_lost_its_manifest_does_not_lose_its_head_too(tmp_path, target, decoder_spec):
    save_bundle(tmp_path / "bundle", decoder_spec, classifier())
    (tmp_path / "bundle" / "manifest.json").unlink()
    with pytest.raises(InvalidBundle, match=r"head\.safetensors"):
        import_stock(tmp_path / "bundle", target, [decoder_spec])


def test_pickled_weights_are_not_read(tmp_path, target, decoder_folder, decoder_spec):
    stock = tmp_path / "stock"
    save_stock(stock, decoder_folder, transformers.AutoModelForCausalLM)
    (stock / "adapter_model.safetensors").rename(stock / "adapter_model.bin")
    with pytest.raises(InvalidBundle, match=r"adapter_model\.bin"):
        import_stock(stock, target, [decoder_spec])
