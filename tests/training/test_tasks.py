"""Every task trains, is tested and sealed on a tiny backbone, by the code that real runs go through."""

import json

import pytest
import torch

from adapters.bundle import load_bundle
from adapters.tasks.room import row_room
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
CONTEXT = "The dog sleeps. Ada saw {}. The sun is warm."
ROWS["question-answering"] = [
    {"question": q, "context": CONTEXT.format(place), "answers": answers}
    for place in ("Zürich", "北京", "Rome", "été")
    for q, answers in (
        ("Where?", [{"text": place, "answer_start": CONTEXT.index("{")}]),
        ("Who flew?", []),
    )
] * 2
OPTIONS = {"translation": {"max_new_tokens": 8}, "text-generation": {"max_new_tokens": 8}}
RATES = {"question-answering": 0.005}
SEQUENCE_RATE = 0.01
CASES = [
    ("regression", "decoder"),
    ("regression", "encoder"),
    ("token-classification", "encoder"),
    ("token-classification", "decoder"),
    ("question-answering", "encoder"),
    ("question-answering", "decoder"),
    ("translation", "decoder"),
    ("text-generation", "decoder"),
    ("regression", "encoder_decoder"),
    ("token-classification", "encoder_decoder"),
    ("question-answering", "encoder_decoder"),
    ("translation", "encoder_decoder"),
    ("text-generation", "encoder_decoder"),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products gain nothing from a second thread, and lose much where another process wants the core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(task, family, spec, folder, **more):
    """Return the result of a run on a task's rows, and the bundle it made."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
    rate = SEQUENCE_RATE if family == "encoder_decoder" else RATES.get(task, 0.02)
    fields = {
        "options": OPTIONS.get(task, {}),
        "backbone": spec.folder,
        "dtype": "float32",
        "data": {"train": str(data), "test": str(data), "max_test_rows": 8},
        "fit": {"learning_rate": rate, "batch_tokens": 128, "epochs": 20},
    }
    config = RunConfig(task=task, **{**fields, **more})
    log = EventLog(folder / "events.jsonl")
    result = Run(config, read_inputs(config, log), folder, folder / "home", log).execute()
    return result, load_bundle(folder / "bundle", spec)


@pytest.mark.parametrize(("task", "family"), CASES)
def test_a_task_trains_and_is_sealed(task, family, tmp_path, request):
    spec = request.getfixturevalue(f"{family}_spec")
    result, bundle = trained(task, family, spec, tmp_path, evaluate_untrained=True)
    assert (bundle.manifest.task, bundle.digest) == (task, result.digest)
    primary = result.primary_metric
    assert result.metrics["after"][primary] > 0.8, result.metrics
    assert result.metrics["after"][primary] > result.metrics["before"][primary]


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_answers_in_windows_are_learned_with_questions_that_have_none(family, tmp_path, request):
    spec = request.getfixturevalue(f"{family}_spec")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS["question-answering"]))
    config = RunConfig(
        task="question-answering",
        options={"max_tokens": 48, "stride": 16},
        backbone=spec.folder,
        dtype="float32",
        data={"train": str(data), "test": str(data), "validation": str(data)},
        fit={"learning_rate": RATES["question-answering"], "batch_tokens": 128, "epochs": 30},
    )
    log = EventLog(tmp_path / "events.jsonl")
    result = Run(config, read_inputs(config, log), tmp_path, tmp_path / "home", log).execute()
    task = load_bundle(tmp_path / "bundle", spec).task()
    assert task.options.unanswerable
    tokenizer = request.getfixturevalue(f"{family}_tokenizer")
    asked = task.Request(**{k: ROWS[task.name][0][k] for k in ("question", "context")})
    assert (
        len(task.encode_parts(tokenizer, asked, task.Parameters(), 256)) == 1
    )  # without the limit
    room = row_room(task, spec, task.Parameters())
    assert len(task.encode_parts(tokenizer, asked, task.Parameters(), room)) > 1
    after = result.metrics["after"]
    assert after["has_answer_f1"] > 0.8
    assert after["no_answer_f1"] > 0.8
    assert result.metrics["never_answer"]["f1"] == 0.5
