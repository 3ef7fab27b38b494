"""Backbones: found by folder, fingerprinted by content, refused with a reason."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from adapters.backbone import describe_backbone, find_backbone, load_backbone
from adapters.dtype import resolve_dtype
from adapters.errors import EnvironmentProblem, RunPaused, UnsupportedBackbone
from adapters.runtime.pack import pack_rows
from tests.tiny import save_backbone


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def test_a_fingerprint_follows_the_weights_and_not_the_folder(
    tmp_path, decoder_folder, decoder_spec
):
    copy = shutil.copytree(decoder_folder, tmp_path / "copy")
    assert describe_backbone(copy).fingerprint == decoder_spec.fingerprint
    change_config(copy, transformers_version="9.9")
    assert describe_backbone(copy).fingerprint == decoder_spec.fingerprint
    change_config(copy, rms_norm_eps=0.1)
    assert describe_backbone(copy).fingerprint != decoder_spec.fingerprint
    other = save_backbone(tmp_path / "other", "llama", seed=7)
    assert describe_backbone(other).fingerprint != decoder_spec.fingerprint


def test_a_spec_names_every_linear_layer_but_the_language_head(decoder_spec, encoder_spec):
    assert len(decoder_spec.modules) == 14
    assert decoder_spec.modules["model.layers.0.mlp.down_proj"] == (48, 32)
    assert not any("lm_head" in name for name in decoder_spec.modules)
    assert len(encoder_spec.modules) == 12
    assert not any("pooler" in name for name in encoder_spec.modules)


def test_what_is_nowhere_is_said_with_what_there_is(tmp_path):
    with pytest.raises(EnvironmentProblem, match="smollm2-135m-instruct"):
        find_backbone("no/where", tmp_path)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model_type": "deberta-v2"}, "type 'deberta-v2'.* llama"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"is_causal": False}, "'is_causal': false"),
        ({"model_type": "bert", "is_causal": True}, "'is_causal': true"),
        ({"model_type": "bart", "is_causal": False}, "'is_causal': false"),
        ({"model_type": "internlm2"}, "'copy' is of type 'internlm2'"),
        ({"model_type": "new", "auto_map": {"AutoConfig": "own.Config"}}, "is of type 'new'"),
        ({"model_type": None}, "is of type 'None'"),
        ({"num_attention_heads": "four"}, "config.json of backbone 'copy'.*num_attention_heads"),
        ({"position_embedding_type": "relative_key"}, "positions of type 'relative_key'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised.*'gptq'"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_att"),
    ],
)
def test_an_architecture_that_cannot_be_served_is_refused(tmp_path, decoder_folder, fields, told):
    folder = shutil.copytree(decoder_folder, tmp_path / "copy")
    change_config(folder, **fields)
    with pytest.raises(UnsupportedBackbone, match=told):
        describe_backbone(folder)


def test_a_config_that_is_no_json_is_refused(tmp_path, decoder_folder):
    folder = shutil.copytree(decoder_folder, tmp_path / "copy")
    (folder / "config.json").write_text("{")
    with pytest.raises(UnsupportedBackbone, match=r"config\.json of backbone 'copy'"):
        describe_backbone(folder)


def test_a_signal_while_a_config_is_read_is_none_of_its_faults(decoder_folder, monkeypatch):
    def pause(*_, **__):
        raise RunPaused("a signal came")

    monkeypatch.setattr(AutoConfig, "from_pretrained", pause)
    with pytest.raises(RunPaused):
        describe_backbone(decoder_folder)


def test_pickled_weights_are_not_read(tmp_path, decoder_folder):
    folder = shutil.copytree(decoder_folder, tmp_path / "copy")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedBackbone, match="safetensors"):
        describe_backbone(folder)


@pytest.mark.parametrize(
    ("changes", "dropped", "told"),
    [
        ({"num_hidden_layers": 3}, None, "lacks 9 of.*'model.layers.2"),
        ({"intermediate_size": 64}, None, "lacks 6 of.*'model.layers.0.mlp"),
        ({}, "lm_head.weight", "lacks 1 of.*'lm_head.weight'"),
    ],
)
def test_weights_that_a_folder_does_not_hold_are_not_made_up(
    tmp_path, decoder_folder, changes, dropped, told
):
    folder = shutil.copytree(decoder_folder, tmp_path / "copy")
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if k != dropped}, path, {"format": "pt"})
    change_config(folder, **changes)
    with pytest.raises(UnsupportedBackbone, match=told):
        load_backbone(describe_backbone(folder), "float32")


@pytest.mark.parametrize(
    ("model_type", "dropped", "renamed"),
    [
        ("bart", ("final_logits_bias",), "model."),  # as BartModel saves it
        ("pegasus", ("embed_positions", "final_logits_bias"), ""),
        ("gpt2", (), "transformer."),
    ],
)
def test_weights_that_follow_from_others_may_be_left_out(tmp_path, model_type, dropped, renamed):
    """As in many folders of the Hub."""
    folder = save_backbone(tmp_path / model_type, model_type)
    path = folder / "model.safetensors"
    weights = load_file(path)
    kept = {k: v for k, v in weights.items() if not any(part in k for part in dropped)}
    save_file({k.removeprefix(renamed): v for k, v in kept.items()}, path, {"format": "pt"})
    loaded = load_backbone(describe_backbone(folder), "float32").model.state_dict()
    for name, weight in kept.items():
        assert torch.equal(loaded[name], weight), name
    positions = [loaded[name] for name in weights if "embed_positions" in name and name not in kept]
    for table in positions:  # sines, then cosines
        torch.testing.assert_close(table[:, 0], torch.arange(len(table)).float().sin())


def test_auto_is_measured_once_and_every_process_then_agrees(tmp_path, monkeypatch):
    chosen = resolve_dtype("auto", "cpu", tmp_path)
    assert chosen in ("float32", "bfloat16")
    other = {"float32": "bfloat16", "bfloat16": "float32"}[chosen]
    monkeypatch.setattr("adapters.dtype._measure", lambda device: other)
    assert resolve_dtype("auto", "cpu", tmp_path) == chosen
    assert resolve_dtype("auto", "cpu", tmp_path / "elsewhere") == other
    assert resolve_dtype("float16", "cpu", tmp_path) == "float16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_backbone_is_frozen_and_has_the_dtype_asked_for(decoder_spec, dtype):
    backbone = load_backbone(decoder_spec, dtype)
    assert backbone.dtype == getattr(torch, dtype)
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    hidden = backbone.hidden_states(torch.arange(5, 9), pack_rows([4]))
    assert backbone.next_token_logits(hidden).dtype == torch.float32
