"""``python -m training`` as a command: a bundle and a result come out, or one clear line."""

import json
import math
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from adapters.bundle import load_bundle
from tests.runs import GOOD, ROOT, command, events, films_config, run, run_alone, write
from tests.servers import wait_until
from training.contract import EventKind, ExitCode, RunResult


@pytest.fixture
def config(tmp_path, decoder_folder):
    return films_config(tmp_path, decoder_folder)


def test_a_run_makes_a_bundle_that_has_learned(tmp_path, config, decoder_spec):
    done = run_alone(tmp_path, config)
    assert done.returncode == ExitCode.DONE, done.stderr
    result = RunResult.model_validate_json((tmp_path / "out" / "result.json").read_text())
    bundle = load_bundle(tmp_path / "out" / "bundle", decoder_spec)
    assert bundle.digest == result.digest
    assert bundle.manifest.metrics == result.metrics
    assert result.metrics["after"]["accuracy"] == 1.0 > result.metrics["majority"]["accuracy"]
    assert "before" in result.metrics
    predictions = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert json.loads(predictions[0])["prediction"]["label"] == "+"
    told = events(tmp_path)
    assert [event.number for event in told] == list(range(1, len(told) + 1))
    assert told[-1].kind == EventKind.FINISHED


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_run_on_a_quantised_backbone_learns_and_records_it_beside_the_fingerprint(
    tmp_path, config, decoder_spec, kind
):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes can't be imported here")
    done = run_alone(tmp_path, {**config, "dtype": kind, "evaluate_untrained": False})
    assert done.returncode == ExitCode.DONE, done.stderr
    assert "bitsandbytes" not in done.stderr
    manifest = load_bundle(tmp_path / "out" / "bundle", decoder_spec).manifest
    assert manifest.backbone.fingerprint == decoder_spec.fingerprint
    assert manifest.lineage.quantization == kind
    assert manifest.lineage.dtype in ("float32", "bfloat16")
    assert manifest.metrics["after"]["accuracy"] == 1.0


def test_the_same_run_gives_the_same_digest(tmp_path, config):
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert run(tmp_path / name, config).returncode == ExitCode.DONE
        digests.append(json.loads((tmp_path / name / "out" / "result.json").read_text())["digest"])
    assert digests[0] == digests[1]


def test_a_run_goes_on_from_a_parent_and_says_so(tmp_path, config):
    assert run(tmp_path, config).returncode == ExitCode.DONE
    child = tmp_path / "child"
    child.mkdir()
    parent = tmp_path / "out" / "bundle"
    fit = {**config["fit"], "epochs": 1, "learning_rate": 1e-4}
    done = run(child, {**config, "parent": str(parent), "fit": fit})
    assert done.returncode == ExitCode.DONE, done.stderr
    manifest = json.loads((child / "out" / "bundle" / "manifest.json").read_text())
    assert (
        manifest["lineage"]["parent"]
        == json.loads((parent / "manifest.json").read_text())["digest"]
    )
    assert manifest["metrics"]["before"]["accuracy"] == 1.0


def test_a_bundle_is_evaluated_by_itself(tmp_path, config):
    assert run(tmp_path, config).returncode == ExitCode.DONE
    other = tmp_path / "other"
    other.mkdir()
    evaluate = {
        "action": "evaluate",
        "task": config["task"],
        "backbone": config["backbone"],
        "dtype": "float32",
        "data": {"test": config["data"]["test"]},
        "bundle": str(tmp_path / "out" / "bundle"),
    }
    assert run(other, evaluate).returncode == ExitCode.DONE
    result = json.loads((other / "out" / "result.json").read_text())
    assert result["metrics"]["after"]["accuracy"] == 1.0
    assert result["num_test_rows"] == 6


def stop_in(stage, tmp_path, config):
    """Start a run, send SIGTERM once it is in a stage, and return its exit code."""
    process = subprocess.Popen(command(tmp_path, config), cwd=ROOT, stderr=subprocess.PIPE)
    path = tmp_path / "out" / "events.jsonl"
    wait_until(lambda: path.exists() and f'"{stage}"' in path.read_text(), pause=0.005)
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=60)


def test_sigterm_saves_a_checkpoint_and_the_same_run_goes_on_wherever_its_files_lie(
    tmp_path, config
):
    config["fit"]["epochs"] = 400
    assert stop_in("fit", tmp_path, config) == ExitCode.PAUSED
    assert events(tmp_path)[-1].kind == EventKind.PAUSED
    assert (tmp_path / "out" / "checkpoint.safetensors").is_file()
    assert not (tmp_path / "out" / "bundle").exists()
    other = tmp_path / "another machine's"
    config["backbone"] = str(shutil.copytree(config["backbone"], other / "backbone"))
    for name, path in config["data"].items():
        config["data"][name] = str(shutil.copy(path, other / Path(path).name))
    assert run(tmp_path, config).returncode == ExitCode.DONE
    told = events(tmp_path)
    fit = [
        event.data["done"]
        for event in told
        if event.data.get("stage") == "fit" and "done" in event.data
    ]
    assert fit == sorted(fit)
    assert [event.number for event in told] == list(range(1, len(told) + 1))
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_a_run_that_goes_on_has_the_translations_it_began_with(tmp_path, config, translator):
    """The server gives others each time, as after its adapter has changed."""
    url, calls = translator
    back = {"there": "en-de", "back": "de-en", "url": url}
    config["data"]["augmentation"] = {"back_translation": back}
    config["fit"]["epochs"] = 400
    assert stop_in("fit", tmp_path, config) == ExitCode.PAUSED
    done = run(tmp_path, config)
    assert done.returncode == ExitCode.DONE, done.stderr
    assert calls == ["en-de", "de-en"]
    assert any("changed copies" in event.message for event in events(tmp_path))


@pytest.mark.parametrize("stage", ["backbone", "test before"])
def test_sigterm_anywhere_else_pauses_too(tmp_path, config, stage):
    assert stop_in(stage, tmp_path, config) == ExitCode.PAUSED
    assert events(tmp_path)[-1].kind == EventKind.PAUSED


ONE_CLASS = [{"text": f"row {i}", "label": "+"} for i in range(20)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": [*GOOD[:3], "{not json", *GOOD]}, "Line 4 of 'train.jsonl'"),
        (
            {"train": [*GOOD[:2], {"text": "no label"}, *GOOD]},
            "Line 3 of 'train.jsonl': no field 'label'",
        ),
        ({"train": [*GOOD, {"text": "  ", "label": "+"}]}, "field 'text' is empty"),
        ({"train": ONE_CLASS, "test": ONE_CLASS}, "Every training row has the label '+'"),
        ({"train": GOOD[:4]}, "'4' rows"),
        ({"train": []}, "holds no rows"),
        ({"test": [{"text": "a", "label": "new"}]}, "Test label 'new'"),
    ],
)
def test_bad_data_ends_with_one_line_that_names_it(tmp_path, config, change, message):
    for part, rows in change.items():
        write(tmp_path / f"{part}.jsonl", rows)
    done = run(tmp_path, config)
    assert done.returncode == ExitCode.BAD_INPUT
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert events(tmp_path)[-1].kind == EventKind.FAILED
    assert not (tmp_path / "out" / "bundle").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "poetry"}, "No task 'poetry'"),
        ({"backbone": "no/such-backbone"}, "No backbone 'no/such-backbone'"),
        ({"tsak": 1}, "unknown field 'tsak'"),
        ({"lora": {"rank": 0}}, "'lora.rank' is '0'"),
        (
            {"options": {"template": "no text"}},
            "Options of 'text-classification': field 'template'",
        ),
        ({"lora": {"target_modules": ["nope"]}}, "'['nope']' match no module"),
    ],
)
def test_a_bad_config_ends_with_one_line_that_names_it(tmp_path, config, change, message):
    done = run(tmp_path, {**config, **change})
    assert done.returncode == ExitCode.BAD_INPUT
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_smoothing_of_values_is_refused_before_anything_is_fitted(tmp_path, config):
    rows = [{"text": f"a film {i}", "score": i / 10} for i in range(12)]
    config = {**config, "task": "regression", "evaluate_untrained": False}
    config["data"] = {"train": write(tmp_path / "values.jsonl", rows)}
    config["fit"] = {"label_smoothing": 0.1}
    done = run(tmp_path, config)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "label_smoothing '0.1'" in events(tmp_path)[-1].message
    assert not (tmp_path / "out" / "bundle").exists()


def test_patience_without_validation_rows_is_refused(tmp_path, config):
    config["fit"]["patience"] = 3
    done = run(tmp_path, config)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "fit.patience is '3', but there are no validation rows" in done.stderr


def test_a_dry_run_estimates_and_the_run_says_what_it_had_been_told(tmp_path, config):
    config["data"]["validation"] = write(tmp_path / "validation.jsonl", GOOD[:8])
    done = run(tmp_path, {**config, "action": "estimate"})
    assert done.returncode == ExitCode.DONE, done.stderr
    estimate = RunResult.model_validate_json(
        (tmp_path / "out" / "result.json").read_text()
    ).estimate
    assert set(estimate.seconds) == {"start", "fit", "validation", "test"}
    assert all(0 < band.low <= band.high for band in estimate.seconds.values())
    assert not (tmp_path / "out" / "bundle").exists()
    assert run(tmp_path, config).returncode == ExitCode.DONE
    result = RunResult.model_validate_json((tmp_path / "out" / "result.json").read_text())
    assert result.estimate == estimate
    assert (result.num_tokens, result.auto["epochs"]) == (estimate.num_tokens, 6)
    assert result.peak_bytes > 50e6
    assert "validation" in result.metrics
    config["fit"]["epochs"] = 2  # another run, which nobody estimated
    assert run(tmp_path, config).returncode == ExitCode.DONE
    assert json.loads((tmp_path / "out" / "result.json").read_text())["estimate"] is None


def test_one_file_is_divided_weighed_and_augmented(tmp_path, config):
    rows = [
        {"review": f"the {'good' if i % 3 else 'bad'} film {i}", "label": "+" if i % 3 else "-"}
        for i in range(60)
    ]
    config["data"] = {
        "train": write(tmp_path / "all.jsonl", rows),
        "columns": {"text": "review"},
        "validation_share": 0.2,
        "test_share": 0.2,
        "stop_words": "en",
        "class_weights": "balanced",
        "augmentation": {"delete": 0.2},
    }
    done = run(tmp_path, config)
    assert done.returncode == ExitCode.DONE, done.stderr
    result = RunResult.model_validate_json((tmp_path / "out" / "result.json").read_text())
    assert result.num_test_rows == 12
    assert {name: split.num_rows for name, split in result.data.splits.items()} == {
        "train": 36,
        "validation": 12,
        "test": 12,
    }
    manifest = json.loads((tmp_path / "out" / "bundle" / "manifest.json").read_text())
    assert set(manifest["lineage"]["data"]) == {"train", "validation", "test", "train_augmented"}
    assert manifest["options"]["stop_words"] == "en"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"test": None, "validation_share": 0.5, "test_share": 0.5}, "leave no row"),
        ({"test_share": 0.2}, "either data.test or data.test_share"),
        ({"test": None, "validation_share": 0.001}, "validation share of '0.001'"),
        ({"columns": {"text": "nowhere"}}, "'nowhere'"),
    ],
)
def test_data_that_can_not_be_divided_so_is_refused(tmp_path, config, data, said):
    config["data"] |= data
    done = run(tmp_path, config)
    assert done.returncode == ExitCode.BAD_INPUT
    assert said in done.stderr


def test_a_run_with_several_labels_a_text_learns_them_and_sets_thresholds(tmp_path, config):
    words = {"good": "praise", "bad": "blame", "long": "length"}
    rows = [
        {
            "text": " ".join(w for k, w in enumerate(words) if i >> k & 1) + f" film {i}",
            "labels": [label for k, label in enumerate(words.values()) if i >> k & 1],
        }
        for i in range(40)
    ]
    config["data"] = {
        "train": write(tmp_path / "rows.jsonl", rows),
        "validation_share": 0.2,
        "test_share": 0.2,
    }
    config["fit"] = {"learning_rate": 0.01, "batch_tokens": 64, "epochs": 20}
    done = run(tmp_path, {**config, "evaluate_untrained": False})
    assert done.returncode == ExitCode.DONE, done.stderr
    result = RunResult.model_validate_json((tmp_path / "out" / "result.json").read_text())
    assert result.metrics["after"]["micro_f1"] > 0.8 > result.metrics["majority"]["micro_f1"]
    manifest = json.loads((tmp_path / "out" / "bundle" / "manifest.json").read_text())
    assert manifest["options"]["multi_label"] is True
    assert set(manifest["options"]["thresholds"]) == set(words.values())
    low, high = result.intervals["micro_f1"]
    assert low <= result.metrics["after"]["micro_f1"] <= high


def test_a_run_with_validation_rows_calibrates_its_scores(tmp_path, config):
    # One is wrong, for rows that are all right tell nothing of how sure is too sure.
    rows = [*GOOD[:9], {**GOOD[0], "label": GOOD[1]["label"]}]
    config["data"]["validation"] = write(tmp_path / "validation.jsonl", rows)
    assert run(tmp_path, config).returncode == ExitCode.DONE
    result = RunResult.model_validate_json((tmp_path / "out" / "result.json").read_text())
    manifest = json.loads((tmp_path / "out" / "bundle" / "manifest.json").read_text())
    assert manifest["options"]["temperature"] == result.calibration["temperature"] != 1
    assert result.metrics["validation"]["ece"] <= result.calibration["ece_before"]
    assert set(result.metrics) >= {"before", "after", "majority", "tfidf", "validation"}


def test_a_run_that_learned_nothing_fails_with_the_reason_and_leaves_its_report(tmp_path, config):
    config["fit"] = {"learning_rate": 1e-9, "epochs": 1}
    config["evaluate_untrained"] = False
    done = run(tmp_path, config)
    assert done.returncode == ExitCode.FAILED
    assert "baseline 'majority'" in done.stderr
    last = events(tmp_path)[-1]
    assert (last.kind, last.data["code"]) == (EventKind.FAILED, "did_not_learn")
    assert "baseline" in (tmp_path / "out" / "report.html").read_text()
    done = run(tmp_path, {**config, "must_learn": False})
    assert done.returncode == ExitCode.DONE, done.stderr
    assert events(tmp_path)[-2].kind == EventKind.WARNING


def test_what_is_written_has_a_perplexity_on_the_test_rows(tmp_path, config):
    rows = [{"source": f"a film {i}", "target": f"ein Film {i}"} for i in range(20)]
    path = write(tmp_path / "pairs.jsonl", rows)
    config |= {"task": "translation", "data": {"train": path, "test": path, "max_test_rows": 4}}
    config["options"] = {"max_new_tokens": 4}
    config["fit"] = {"epochs": 2, "batch_tokens": 64}
    done = run(tmp_path, {**config, "evaluate_untrained": False})
    assert done.returncode == ExitCode.DONE, done.stderr
    result = RunResult.model_validate_json((tmp_path / "out" / "result.json").read_text())
    after = result.metrics["after"]
    assert after["perplexity"] == pytest.approx(math.exp(after["loss"]))
    assert 1 < after["perplexity"] < 1000
    low, high = result.intervals["perplexity"]
    assert low <= after["perplexity"] <= high
    card = (tmp_path / "out" / "bundle" / "README.md").read_text()
    assert f"| after | perplexity | {after['perplexity']:.4f} | {low:.4f} to {high:.4f} |" in card
