"""Bundles: what is saved is what is loaded, and nothing bad gets in."""

import json
import pickle
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from adapters.bundle import load_bundle, read_manifest, seal_bundle
from adapters.errors import BackboneMismatch, InvalidBundle
from adapters.runtime.weights import to_torch
from tests.bundles import classifier, save_bundle, summarizer


@pytest.fixture(scope="module")
def sealed(tmp_path_factory, decoder_spec):
    folder = tmp_path_factory.mktemp("sealed") / "bundle"
    save_bundle(folder, decoder_spec, classifier(3), rank=4)
    return folder


@pytest.fixture
def bundle(sealed, tmp_path):
    return shutil.copytree(sealed, tmp_path / "bundle")


def reseal(folder):
    manifest = read_manifest(folder)
    seal_bundle(
        folder,
        task=classifier(3),
        head=manifest.head,
        backbone=manifest.backbone,
        metrics={"test": {"accuracy": 0.5}},
        lineage=manifest.lineage,
    )


def change_weights(folder, change, name="adapter_model.safetensors"):
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    reseal(folder)


def test_what_is_loaded_is_what_was_saved(bundle, decoder_spec):
    loaded = load_bundle(bundle, decoder_spec)
    saved = load_file(bundle / "adapter_model.safetensors")
    assert len(loaded.modules) * 2 == len(saved) == 28
    for name, module in loaded.modules.items():
        assert torch.equal(to_torch(module.a), saved[f"base_model.model.{name}.lora_A.weight"])
        assert module.scale == 2.0
    assert torch.equal(
        to_torch(loaded.head["weight"]), load_file(bundle / "head.safetensors")["weight"]
    )
    assert loaded.task().options.labels == ["label-0", "label-1", "label-2"]


def test_stock_peft_loads_the_lora_part_with_every_weight_in_place(bundle, decoder_spec):
    stock = AutoModelForCausalLM.from_pretrained(decoder_spec.folder)
    model = PeftModel.from_pretrained(stock, bundle)
    state = {k.replace(".default", ""): v for k, v in model.state_dict().items() if "lora_" in k}
    saved = load_file(bundle / "adapter_model.safetensors")
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[key], saved[key]) for key in saved)


def test_an_encoder_bundle_loads_in_stock_peft(tmp_path, encoder_spec):
    save_bundle(tmp_path / "bundle", encoder_spec, classifier(2))
    stock = AutoModel.from_pretrained(encoder_spec.folder)
    model = PeftModel.from_pretrained(stock, tmp_path / "bundle")
    state = {k.replace(".default", ""): v for k, v in model.state_dict().items() if "lora_" in k}
    saved = load_file(tmp_path / "bundle" / "adapter_model.safetensors")
    assert all(torch.equal(state[key], saved[key]) for key in saved)


def test_the_digest_covers_what_decides_an_answer_and_nothing_else(bundle):
    digest = read_manifest(bundle).digest
    reseal(bundle)  # other metrics
    assert read_manifest(bundle).digest == digest
    config = json.loads((bundle / "adapter_config.json").read_text())
    (bundle / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 9}))
    reseal(bundle)
    other_alpha = read_manifest(bundle).digest
    change_weights(bundle, lambda t: t["bias"].add_(1), "head.safetensors")
    assert len({digest, other_alpha, read_manifest(bundle).digest}) == 3


def test_no_path_of_this_machine_is_in_a_bundle(bundle, tmp_path):
    for name in ("adapter_config.json", "manifest.json", "README.md"):
        text = (bundle / name).read_text()
        assert str(tmp_path.parent) not in text
        assert "/tmp" not in text


@pytest.mark.parametrize(
    "name",
    ["adapter_config.json", "adapter_model.safetensors", "head.safetensors", "manifest.json"],
)
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(InvalidBundle, match=name):
        load_bundle(bundle)


def test_a_changed_file_is_found_by_its_hash(bundle):
    path = bundle / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidBundle, match="SHA-256"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors"])
def test_a_registered_bundles_changed_weights_are_found_by_its_digest(bundle, decoder_spec, name):
    load_bundle(bundle, decoder_spec, is_registered=True)
    tensors = load_file(bundle / name)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, bundle / name)
    with pytest.raises(InvalidBundle, match="Seal the bundle again"):
        load_bundle(bundle, decoder_spec, is_registered=True)


def test_a_registered_bundles_changed_config_is_found_by_its_digest(bundle):
    config = json.loads((bundle / "adapter_config.json").read_text())
    (bundle / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 99}))
    with pytest.raises(InvalidBundle, match="Seal the bundle again"):
        load_bundle(bundle, is_registered=True)


def test_a_changed_manifest_is_found_by_its_digest(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["options"]["labels"] = ["b", "a", "c"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidBundle, match="digest"):
        load_bundle(bundle)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors"])
def test_numbers_that_are_not_finite_are_refused(bundle, name, value):
    change_weights(
        bundle, lambda t: max(t.values(), key=torch.numel).view(-1)[3].fill_(value), name
    )
    with pytest.raises(InvalidBundle, match="NaN or infinity"):
        load_bundle(bundle)


@pytest.mark.parametrize("metrics", ['{"loss": NaN}', '{"loss": 1e999}', r'{"\ud800": 1}'])
def test_a_manifest_that_no_answer_can_repeat_is_refused(bundle, metrics):
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text()) | {"metrics": {"after": {}}}
    path.write_text(json.dumps(manifest).replace('{"after": {}}', f'{{"after": {metrics}}}'))
    with pytest.raises(InvalidBundle, match=r"'manifest.json' is not JSON"):
        read_manifest(bundle)


def test_what_was_measured_and_is_no_number_is_left_out(tmp_path, decoder_spec):
    measured = {"accuracy": 0.5, "perplexity": float("inf")}
    save_bundle(tmp_path / "bundle", decoder_spec, classifier(3), metrics=measured)
    assert read_manifest(tmp_path / "bundle").metrics == {"after": {"accuracy": 0.5}}


def test_weights_that_match_no_module_are_refused(bundle, decoder_spec):
    def rename(tensors):
        for key in [k for k in tensors if "layers.1.mlp.up_proj" in k]:
            tensors[key.replace("model.layers", "layers")] = tensors.pop(key)

    change_weights(bundle, rename)
    with pytest.raises(BackboneMismatch, match=r"layers\.1\.mlp\.up_proj"):
        load_bundle(bundle, decoder_spec)


def test_an_adapter_without_any_weight_is_refused_rather_than_served_as_the_backbone(bundle):
    change_weights(bundle, lambda tensors: tensors.clear())
    with pytest.raises(InvalidBundle, match="no weights"):
        load_bundle(bundle)


def test_weights_for_another_backbone_are_refused(bundle, encoder_spec, decoder_spec):
    with pytest.raises(BackboneMismatch, match="tiny-bert"):
        load_bundle(bundle, encoder_spec)
    other = decoder_spec.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(BackboneMismatch, match="000000000000"):
        load_bundle(bundle, other)
    with pytest.raises(BackboneMismatch, match="tokenizer"):
        load_bundle(bundle, decoder_spec.model_copy(update={"tokenizer": "0" * 64}))


def test_weights_of_another_size_are_refused(bundle, decoder_spec):
    sizes = {name: (size[0] + 1, size[1]) for name, size in decoder_spec.modules.items()}
    with pytest.raises(BackboneMismatch, match="features"):
        load_bundle(bundle, decoder_spec.model_copy(update={"modules": sizes}))


@pytest.mark.parametrize("name", ["adapter_model.bin", "weights.pt", "code.py", "notes.txt"])
def test_a_file_that_does_not_belong_is_refused(bundle, name):
    (bundle / name).write_bytes(pickle.dumps({"weights": [1, 2]}))
    with pytest.raises(InvalidBundle, match=name):
        load_bundle(bundle)


def test_a_pickle_under_a_safetensors_name_is_refused(bundle):
    (bundle / "adapter_model.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))
    manifest = json.loads((bundle / "manifest.json").read_text())
    from adapters.tensors import file_digest

    manifest["files"]["adapter_model.safetensors"] = file_digest(
        bundle / "adapter_model.safetensors"
    )
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidBundle, match="not a safetensors file"):
        load_bundle(bundle)


def test_a_link_out_of_the_bundle_is_refused(bundle, tmp_path):
    (tmp_path / "secret").write_text("x")
    (bundle / "README.md").unlink()
    (bundle / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidBundle, match="plain file"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("peft_type", "IA3"),
        ("modules_to_save", ["score"]),
        ("r", 5),
        ("lora_alpha", "much"),
    ],
)
def test_what_would_be_served_wrong_is_refused(bundle, option, value):
    config = json.loads((bundle / "adapter_config.json").read_text())
    (bundle / "adapter_config.json").write_text(json.dumps({**config, option: value}))
    reseal(bundle)
    with pytest.raises(InvalidBundle):
        load_bundle(bundle)


def test_a_head_that_does_not_fit_its_labels_is_refused(bundle, decoder_spec):
    change_weights(bundle, lambda t: t.update(weight=torch.zeros(2, 32)), "head.safetensors")
    with pytest.raises(InvalidBundle, match=r"head\.safetensors"):
        load_bundle(bundle, decoder_spec)


def test_a_bundle_is_checked_by_itself_whatever_the_family(tmp_path, encoder_spec):
    save_bundle(tmp_path / "bundle", encoder_spec, classifier(2))
    assert load_bundle(tmp_path / "bundle").manifest.head.pooling == "mean"


def test_a_task_without_a_head_has_no_head_file(tmp_path, decoder_spec):
    save_bundle(tmp_path / "bundle", decoder_spec, summarizer())
    assert not (tmp_path / "bundle" / "head.safetensors").exists()
    assert load_bundle(tmp_path / "bundle", decoder_spec).head == {}
