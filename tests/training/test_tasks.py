"""Every task trains, is tested and sealed on a tiny backbone, by the code that real runs go through."""

import json

import pytest
import torch

from adapters.bundle import load_bundle
from training.contract import RunConfig
from training.events import EventLog
from training.inputs import read_inputs
from training.run import Run

WORDS = ("good", "bad", "dull", "warm")
ROWS = {
    "regression": [
        {"text": f"a {word} film {i}", "text_pair": "a film", "score": 10.0 + 5 * n}
        for i in range(4)
        for n, word in enumerate(WORDS)
    ],
    "token-classification": [
        {"tokens": ["Ada", "saw", word, "Zürich", "."], "tags": ["B-person", "O", "O", tag, "O"]}
        for word in ("the", "good", "bad")
        for tag in ["B-place"] * 4
    ],
    "translation": [
        {"source": f"a {word} film", "target": target}
        for word, target in zip(WORDS, ("un bon", "un flat", "le sun", "très"), strict=True)
    ]
    * 4,
    "text-generation": [
        {"prompt": f"a {word} film", "completion": target}
        for word, target in zip(WORDS, ("yes", "no", "no way", "sun"), strict=True)
    ]
    * 4,
}
OPTIONS = {"translation": {"max_new_tokens": 8}, "text-generation": {"max_new_tokens": 8}}
CASES = [
    ("regression", "decoder"),
    ("regression", "encoder"),
    ("token-classification", "encoder"),
    ("token-classification", "decoder"),
    ("translation", "decoder"),
    ("text-generation", "decoder"),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products gain nothing from a second thread, and lose much where another process wants the core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("task", "family"), CASES)
def test_a_task_trains_and_is_sealed(task, family, tmp_path, request):
    spec = request.getfixturevalue(f"{family}_spec")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
    config = RunConfig(
        task=task,
        options=OPTIONS.get(task, {}),
        backbone=spec.folder,
        dtype="float32",
        data={"train": str(data), "test": str(data), "max_test_rows": 8},
        fit={"learning_rate": 0.02, "batch_tokens": 128, "epochs": 20},
        evaluate_untrained=True,
    )
    log = EventLog(tmp_path / "events.jsonl")
    result = Run(config, read_inputs(config, log), tmp_path, tmp_path / "home", log).execute()
    bundle = load_bundle(tmp_path / "bundle", spec)
    assert (bundle.manifest.task, bundle.digest) == (task, result.digest)
    primary = result.primary_metric
    assert result.metrics["after"][primary] > 0.8
    assert result.metrics["after"][primary] > result.metrics["before"][primary]
