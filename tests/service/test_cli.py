"""The command line: instant help, one line for what a person can put right."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapters.reference import parse_reference
from tests.bundles import classifier, save_bundle, summarizer
from tests.registries import open_registry, stores_in

ROOT = Path(__file__).parent.parent.parent


def headstock(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def assert_one_line(done, *parts):
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    "command", [[], ["train"], ["serve"], ["adapters"], ["backbone"], ["jobs"], ["worker"]]
)
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys; from typer.testing import CliRunner; from service.cli import app;"
        f"print(CliRunner().invoke(app, {[*command, '--help']!r}).exit_code,"
        "[m for m in ('torch', 'transformers', 'litserve', 'sqlalchemy', 'fastapi') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0 []"


def test_help_answers_at_once():
    begin = time.perf_counter()
    done = headstock("--help")
    seconds = time.perf_counter() - begin
    assert done.returncode == 0
    assert seconds < 5  # half a second on an idle machine; this one may be busy


@pytest.fixture
def file_instead_of_home(tmp_path):
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "home"


def test_an_unwritable_home_is_said_in_one_line(file_instead_of_home):
    for command in (["adapters", "list"], ["serve"], ["backbone", "prepare"], ["demo"]):
        done = headstock(*command, HEADSTOCK_HOME=str(file_instead_of_home))
        assert_one_line(done, str(file_instead_of_home), "HEADSTOCK_HOME")


def test_a_port_in_use_is_said_in_one_line(tmp_path, decoder_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = headstock("serve", "--port", port, "--backbone", decoder_folder)
    assert_one_line(done, str(port), "--port")


def test_a_server_tells_of_a_misspelt_variable(tmp_path):
    backbone = tmp_path / "none"
    done = headstock("serve", "--backbone", backbone, HEADSTOCK_REQUIRE_KEY="true")
    assert "Was 'HEADSTOCK_REQUIRE_KEYS' meant?" in done.stderr.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["serve", "--port", "80"], ["'80'"]),
        (["serve", "--backbone", "no/where"], ["'no/where'", "--backbone"]),
        (["predict", "a", "text", "--url", "http://127.0.0.1:9"], ["headstock serve"]),
        (["adapters", "show", "nobody"], ["No adapter named 'nobody'"]),
        (["adapters", "show", "No Body"], ["'No Body'"]),
        (["adapters", "alias", "nobody", "production", "1"], ["No adapter named 'nobody'"]),
        (["train", "poetry", "x.jsonl", "--out", "{tmp}"], ["No task 'poetry'"]),
        (["train", "text-classification", "x.jsonl", "--out", "{tmp}"], ["x.jsonl"]),
        (["train", "text-classification", "x.xlsx", "--out", "{tmp}"], [".jsonl"]),
        (["train", "summarization", "x.jsonl", "--out", "{tmp}", "--rank", "0"], ["'0'"]),
        (["train", "summarization", "x.jsonl", "--out", "{tmp}", "--option", "x"], ["key=value"]),
        (
            [
                *("sweep", "summarization", "x.jsonl", "--out", "{tmp}"),
                *("--validation-share", "0.1", "--set", "fit.epochs"),
            ],
            ["--set 'fit.epochs'", "path=value"],
        ),
        (
            [
                *("backbone", "compare", "--data", "x.jsonl", "--task", "summarization"),
                *("--out", "{tmp}", "--set", "fit.epochs"),
            ],
            ["--set 'fit.epochs'", "path=value"],
        ),
        (["data", "check", "x.jsonl", "--task", "poetry"], ["No task 'poetry'", "regression"]),
        (["jobs", "submit", "{tmp}/none.jsonl", "--name", "a"], ["none.jsonl", "Check the path"]),
        (["evaluate", "{tmp}", "x.jsonl", "--out", "{tmp}"], ["manifest.json"]),
    ],
)
def test_what_a_person_can_put_right_ends_with_one_line_and_2(tmp_path, arguments, parts):
    done = headstock(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert_one_line(done, *parts)


def test_push_list_alias_and_show(tmp_path, decoder_folder, decoder_spec):
    save_bundle(tmp_path / "bundle", decoder_spec, classifier())
    pushed = headstock(
        "adapters", "push", "labels", tmp_path / "bundle", "--backbone", decoder_folder
    )
    assert "Registered labels:1" in pushed.stdout, pushed.stderr
    assert (
        "labels@production -> 1" in headstock("adapters", "alias", "labels", "production", 1).stdout
    )
    assert (
        headstock("adapters", "list").stdout == "labels:1  text-classification  production -> 1\n"
    )
    shown = json.loads(headstock("adapters", "show", "labels@production").stdout)
    assert (shown["name"], shown["version"], shown["task"]) == ("labels", 1, "text-classification")


def test_a_stock_folder_is_pushed_pulled_and_exported(tmp_path, decoder_folder, decoder_spec):
    stock = tmp_path / "stock"
    save_bundle(stock, decoder_spec, summarizer())
    (stock / "manifest.json").unlink()
    pushed = headstock("adapters", "push", "writer", stock, "--backbone", decoder_folder)
    assert "Registered writer:1" in pushed.stdout, pushed.stderr
    assert headstock("adapters", "pull", "writer", tmp_path / "out").stdout.startswith("writer:1 ")
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert_one_line(headstock("adapters", "pull", "writer", tmp_path / "out"), "is not empty")
    merged = headstock("adapters", "export", "writer", tmp_path / "merged", "--as", "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file(), merged.stderr


def test_annotate_diff_rollback_delete_and_gc(tmp_path, decoder_folder, decoder_spec):
    for seed in (0, 1):
        save_bundle(tmp_path / str(seed), decoder_spec, classifier(), seed=seed)
        headstock("adapters", "push", "labels", tmp_path / str(seed), "--backbone", decoder_folder)
    noted = headstock("adapters", "annotate", "labels:1", "--note", "May", "--tag", "owner=ana")
    assert noted.stdout == "labels:1  May  owner=ana\n"
    told = headstock("adapters", "diff", "labels:1", "labels:2").stdout
    assert "digest: " in told
    assert "files.head.safetensors: " in told
    assert "task" not in told
    assert "one digest" in headstock("adapters", "diff", "labels:1", "labels:1").stdout
    for number in (1, 2):
        headstock("adapters", "alias", "labels", "production", number)
    assert headstock("adapters", "rollback", "labels").stdout == "labels@production -> 1\n"
    assert_one_line(headstock("adapters", "rollback", "labels"), "no version before '1'")
    assert_one_line(headstock("adapters", "delete", "labels:1"), "'production' at version 1")
    assert_one_line(headstock("adapters", "delete", "labels@production"), "is an alias")
    assert headstock("adapters", "delete", "labels:2").stdout == "Deleted labels:2\n"
    assert "0 bundles removed" in headstock("adapters", "gc").stdout
    assert "1 bundles removed" in headstock("adapters", "gc", "--min-hours", "0").stdout
    assert headstock("adapters", "list").stdout.startswith("labels:1 ")


def test_commands_change_the_adapter_of_the_namespace_that_is_named(
    tmp_path, decoder_folder, decoder_spec
):
    """Another one of the same name is in namespace 'default'."""
    save_bundle(tmp_path / "bundle", decoder_spec, classifier())
    headstock("adapters", "push", "labels", tmp_path / "bundle", "--backbone", decoder_folder)
    home = Path(os.environ["HEADSTOCK_HOME"])
    registry = open_registry(stores_in(home), decoder_spec)
    registry.create_version("labels", tmp_path / "bundle", namespace="team-a")
    for command in (
        ["annotate", "team-a/labels:1", "--note", "May"],
        ["promote", "team-a/labels:1", "--alias", "tried"],
        ["alias", "team-a/labels", "production", 1],
    ):
        done = headstock("adapters", *command)
        assert done.returncode == 0, done.stderr
    assert registry.resolve(parse_reference("labels")).note == ""
    listed = headstock("adapters", "list", "--namespace", "team-a").stdout
    assert listed == "labels:1  text-classification  production -> 1, tried -> 1\n"
    assert headstock("adapters", "list").stdout == "labels:1  text-classification\n"
    assert_one_line(headstock("adapters", "alias", "labels:1", "production", 1), "'labels:1'")
    assert_one_line(headstock("adapters", "rollback", "team-a/labels"), "no version before '1'")
    assert headstock("adapters", "delete", "team-a/labels", "--force").returncode == 0
    assert headstock("adapters", "list").stdout == "labels:1  text-classification\n"
    assert headstock("adapters", "list", "--namespace", "team-a").stdout == ""


def test_a_damaged_bundle_is_not_pushed(tmp_path, decoder_folder, decoder_spec):
    save_bundle(tmp_path / "bundle", decoder_spec, classifier())
    (tmp_path / "bundle" / "head.safetensors").unlink()
    done = headstock(
        "adapters", "push", "labels", tmp_path / "bundle", "--backbone", decoder_folder
    )
    assert_one_line(done, "head.safetensors")
    assert headstock("adapters", "list").stdout == ""


def test_train_registers_what_it_made(tmp_path, decoder_folder):
    rows = [{"text": f"{w} film {i}", "label": w} for i in range(10) for w in ("good", "bad")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = headstock(
        *("train", "text-classification", tmp_path / "data.jsonl", "--out", tmp_path / "out"),
        *("--test", tmp_path / "data.jsonl", "--name", "films", "--backbone", decoder_folder),
    )
    assert "Registered films:1" in done.stdout, done.stderr
    assert "majority" in done.stdout
    assert headstock("adapters", "list").stdout.startswith("films:1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("fit.epochs", "is not path=value"),
        ("fit.epochs=none", "epochs"),
        ("fit.speed=3", "speed"),
        ("task.name=3", "'task' holds no fields"),
    ],
)
def test_a_change_that_fits_no_field_of_the_run_is_refused(tmp_path, change, said):
    done = headstock(
        "train", "text-classification", tmp_path / "none.jsonl", "--out", tmp_path, "--set", change
    )
    assert_one_line(done, said)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--epochs", "0", "'0'"), ("--learning-rate", "0", "'0.0'"), ("--name", "A b", "'A b'")],
)
def test_what_a_run_could_not_use_is_refused_before_it(tmp_path, option, value, said):
    arguments = ["summarization", tmp_path / "none.jsonl", "--out", tmp_path / "out"]
    assert_one_line(headstock("train", *arguments, option, value), said)
    assert not (tmp_path / "out").exists()


def test_any_field_of_a_run_can_be_set():
    from service.run_configs import run_config

    changes = ["fit.schedule=cosine", 'lora.target_modules=["q_proj"]']
    config = run_config(changes, task="regression", data={"train": "a"}, fit={"epochs": 3})
    assert (config.fit.schedule, config.fit.epochs) == ("cosine", 3)
    assert config.lora.target_modules == ["q_proj"]


def test_data_check_shows_columns_and_numbers_and_ends_with_2_if_training_can_not_work(tmp_path):
    lines = [{"review": f"text {i}", "stars": i % 2} for i in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    good = headstock("data", "check", tmp_path / "a.jsonl", "--column", "label=stars")
    assert good.returncode == 0, good.stderr
    assert "text = 'review', label = 'stars'" in good.stdout
    assert "train labels: 0 6, 1 6" in good.stdout
    (tmp_path / "b.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": ""}\n')
    bad = headstock("data", "check", tmp_path / "b.jsonl", "--json")
    assert bad.returncode == 2
    report = json.loads(bad.stdout)
    assert report["files"]["train"]["problems"][0]["line"] == 2
    assert {f["code"] for f in report["findings"]} >= {"bad_lines"}


def test_data_check_counts_a_backbones_tokens(tmp_path, decoder_folder):
    lines = [{"text": f"some words {i}", "label": "ab"[i % 2]} for i in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = headstock(
        "data",
        "check",
        tmp_path / "a.jsonl",
        "--json",
        "--backbone",
        decoder_folder,
        "--home",
        tmp_path / "home",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["splits"]["train"]["lengths"]["tokens"]["p50"] > 0
