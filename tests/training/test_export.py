"""Going on from a bundle: a trainee of its very shape, or a reason why not."""

import json

import pytest
from safetensors.torch import load_file

from adapters.errors import InvalidBundle
from tests.bundles import classifier, reseal, save_bundle
from training.export import lora_settings_of


@pytest.fixture
def rewritten(tmp_path, decoder_spec):
    """Return what seals a bundle again with other fields in its adapter_config.json, as stock peft may write them."""
    lora = {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}
    save_bundle(tmp_path, decoder_spec, classifier(), **lora)

    def rewrite(**fields):
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        reseal(tmp_path, load_file(tmp_path / "adapter_model.safetensors"))
        return tmp_path

    return rewrite


def test_the_modules_are_those_with_weights_whatever_expression_the_config_has(rewritten):
    plain = lora_settings_of(rewritten())
    assert (plain.rank, plain.alpha, plain.use_rslora) == (4, 8.0, True)
    assert [name.rpartition(".")[2] for name in plain.target_modules] == ["q_proj", "v_proj"] * 2
    assert lora_settings_of(rewritten(target_modules=r".*\.(q|v)_proj")) == plain


def test_a_pattern_of_all_modules_counts_and_several_scales_are_refused(rewritten):
    both = {"q_proj": 32, "v_proj": 32}
    assert lora_settings_of(rewritten(alpha_pattern=both)).alpha == 32.0
    with pytest.raises(InvalidBundle, match="rank 4 at scale 4, rank 4 at scale 16"):
        lora_settings_of(rewritten(alpha_pattern={"q_proj": 32}))
