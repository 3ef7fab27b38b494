"""Going on from a parent: it decides options and LoRA, and a run that asks for others is refused."""

import pytest

from tests.bundles import classifier, save_bundle
from tests.runs import events, films_config, run
from training.contract import ExitCode

TEMPLATE = "Film: {text}"


@pytest.fixture
def config(tmp_path, decoder_folder, decoder_spec):
    """Return the config of a run that goes on from a bundle with options and settings of its own."""
    task = classifier(labels=["+", "-"], template=TEMPLATE, temperature=2.0)
    lora = {"rank": 4, "alpha": 8, "last_layers": 1}
    save_bundle(tmp_path / "parent", decoder_spec, task, **lora)
    config = films_config(tmp_path, decoder_folder)
    return {**config, "parent": str(tmp_path / "parent"), "evaluate_untrained": False}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"options": {"template": "{text}!"}},
            "options.template is '{text}!', but the parent's is",
        ),
        ({"options": {"labels": ["-", "+"]}}, "options.labels is '['-', '+']', but the parent's"),
        ({"options": {"tempalte": "{text}"}}, "unknown field 'tempalte'"),
        ({"lora": {"rank": 16}}, "lora.rank is '16', but the parent's is '4'"),
        ({"lora": {"alpha": 32}}, "lora.alpha is '32.0', but the parent's is '8.0'"),
        ({"lora": {"dropout": 0.1}}, "lora.dropout is '0.1', but the parent's is '0.0'"),
        ({"lora": {"use_rslora": True}}, "lora.use_rslora is 'True', but the parent's is 'False'"),
        ({"lora": {"init": "pissa"}}, "lora.init is 'pissa', but the parent's is 'default'"),
        ({"lora": {"last_layers": 2}}, "lora.last_layers is '2', but the parent's modules are"),
        ({"lora": {"target_modules": ["q_proj"]}}, "lora.target_modules is '['q_proj']', but"),
    ],
)
def test_what_differs_from_the_parent_is_refused_before_anything_is_fitted(
    tmp_path, config, change, said
):
    done = run(tmp_path, {**config, **change})
    assert done.returncode == ExitCode.BAD_INPUT, done.stderr
    assert said in done.stderr
    assert not any(e.data.get("stage") == "fit" for e in events(tmp_path))


def test_what_the_parent_has_may_be_given_again(tmp_path, config):
    config["options"] = {"template": TEMPLATE, "temperature": 2}
    config["lora"] = {"rank": 4, "alpha": 8, "last_layers": 1}
    config["must_learn"] = False
    done = run(tmp_path, config)
    assert done.returncode == ExitCode.DONE, done.stderr
