"""Exported versions answer in stock programs as they do here."""

import peft
import pytest
import torch
import transformers

from adapters.errors import Conflict, InvalidBundle
from adapters.exporting import export_bundle, export_merged, export_peft
from adapters.importing import import_stock
from tests.bundles import classifier, save_bundle, summarizer
from tests.tiny import save_backbone

IDS = torch.tensor([[5, 9, 33, 70, 12]])


def stock_logits(backbone, folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(backbone)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, folder).eval()(IDS).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # gpt2 keeps its weights transposed
def test_a_merged_model_answers_as_the_adapter(tmp_path, kind):
    from adapters.backbone import describe_backbone

    folder = save_backbone(tmp_path / kind, kind)
    spec = describe_backbone(folder)
    modules = ["q_proj", "up_proj"] if kind == "llama" else ["c_attn", "c_proj"]
    save_bundle(tmp_path / "bundle", spec, summarizer(), target_modules=modules)
    assert export_merged(tmp_path / "bundle", spec, tmp_path / "merged", "float32") == []
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        logits = merged(IDS).logits
    torch.testing.assert_close(
        logits, stock_logits(folder, tmp_path / "bundle"), atol=1e-5, rtol=1e-5
    )
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")("the sun").input_ids


def test_a_merged_model_has_its_head_beside_it(tmp_path, encoder_spec):
    save_bundle(tmp_path / "bundle", encoder_spec, classifier())
    kept = export_merged(tmp_path / "bundle", encoder_spec, tmp_path / "merged", "bfloat16")
    assert kept == ["head.safetensors", "manifest.json"]
    assert all((tmp_path / "merged" / name).is_file() for name in kept)
    model = transformers.AutoModel.from_pretrained(tmp_path / "merged", dtype="auto")
    assert model.dtype == torch.bfloat16


def test_a_peft_folder_is_what_peft_reads(tmp_path, decoder_folder, decoder_spec):
    save_bundle(tmp_path / "bundle", decoder_spec, classifier())
    assert export_peft(tmp_path / "bundle", tmp_path / "out") == ["head.safetensors"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert torch.equal(
        stock_logits(decoder_folder, tmp_path / "out"),
        stock_logits(decoder_folder, tmp_path / "bundle"),
    )


def test_a_peft_folder_without_its_head_is_not_taken_for_one_that_writes(tmp_path, decoder_spec):
    save_bundle(tmp_path / "bundle", decoder_spec, classifier())
    export_peft(tmp_path / "bundle", tmp_path / "out")
    (tmp_path / "again").mkdir()
    with pytest.raises(InvalidBundle, match="'FEATURE_EXTRACTION', whose head"):
        import_stock(tmp_path / "out", tmp_path / "again", [decoder_spec])


def test_nothing_is_written_over(tmp_path, decoder_spec):
    save_bundle(tmp_path / "bundle", decoder_spec, classifier())
    export_bundle(tmp_path / "bundle", tmp_path / "out")
    for again in (export_bundle, export_peft):
        with pytest.raises(Conflict, match="not empty"):
            again(tmp_path / "bundle", tmp_path / "out")
