"""The default backbone, for real: prepared from its package, trained on, served, mixed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapters.backbone import describe_backbone, load_backbone
from adapters.packaged import DEFAULT_BACKBONE, packaged_folder
from adapters.runtime.engine import Engine
from adapters.runtime.rows import Row
from adapters.tasks.base import Generation
from adapters.tokenizer import load_tokenizer
from tests.bundles import answerer, save_bundle, summarizer
from tests.servers import running_server

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT / "examples" / "data"


def headstock(home, *arguments):
    command = [sys.executable, "-m", "service.cli", *map(str, arguments), "--home", str(home)]
    # In bf16 a server, whose norms are kernels, and a run's evaluation may round a last bit differently.
    environment = {**os.environ, "HEADSTOCK_DTYPE": "float32"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("default-backbone")
    headstock(home, "backbone", "prepare")
    return home


@pytest.fixture(scope="module")
def trained(home):
    """A sentiment adapter, trained for a few steps and registered; the folder of its run."""
    rows = (DATA / "sentence_polarity" / "test.jsonl").read_text().splitlines()[:30]
    (home / "test.jsonl").write_text("\n".join(rows) + "\n")
    headstock(
        *(home, "train", "text-classification", DATA / "sentence_polarity" / "train.jsonl"),
        *("--test", home / "test.jsonl", "--out", home / "run", "--name", "sentiment"),
        *("--max-tokens", 3000, "--last-layers", 3),
    )
    return home / "run"


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's maps from /proc")
def test_a_server_that_prepares_its_backbone_does_not_keep_torch(tmp_path):
    with running_server(tmp_path, DEFAULT_BACKBONE) as (_, process):
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    assert packaged_folder(DEFAULT_BACKBONE, tmp_path).is_dir()


def test_the_server_gives_the_very_answers_that_evaluation_gave(home, trained):
    spec = describe_backbone(packaged_folder(DEFAULT_BACKBONE, home), DEFAULT_BACKBONE)
    for name, task in (("squad", answerer()), ("tldr", summarizer())):
        save_bundle(home / name, spec, task, last_layers=2)
    lines = (trained / "predictions.jsonl").read_text().splitlines()
    evaluated = [json.loads(line) for line in lines]
    question = json.loads((DATA / "squad_v1" / "test.jsonl").read_text().splitlines()[0])
    with running_server(home, DEFAULT_BACKBONE, dtype="float32") as (client, _):
        for name in ("squad", "tldr"):
            client.create_version(name, home / name)
        others = [
            {"adapter": "squad", "input": {k: question[k] for k in ("question", "context")}},
            {"adapter": "tldr", "input": question["context"]},
        ]
        asked = [{"adapter": "sentiment", "input": row["text"]} for row in evaluated]
        client.predict_many(others + asked[:1])  # from now on all three are resident
        answers = client.predict_many(others + asked)
        largest = client.stats()["largest"]
    assert [a["adapter"] for a in answers[:2]] == ["squad", "tldr"]
    assert answers[0]["answer"] == question["context"][answers[0]["start"] : answers[0]["end"]]
    for row, answer in zip(evaluated, answers[2:], strict=True):
        assert answer["scores"] == pytest.approx(row["prediction"]["scores"], abs=1e-4)
    assert (largest["adapters"], len(largest["tasks"])) == (3, 3)


def test_a_second_preparation_is_instant_and_changes_nothing(home):
    folder = packaged_folder(DEFAULT_BACKBONE, home)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert str(folder) in headstock(home, "backbone", "prepare")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


# Where a processor has no bf16, torch multiplies a tenth as fast; our kernels don't.
FEWER = 1 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 12


@pytest.mark.parametrize(
    ("by_kernels", "num_texts"),
    [(True, 150), (False, 100 // FEWER)],
    ids=["as served", "by torch alone"],
)
def test_in_bf16_company_changes_no_answer_but_near_ties(home, trained, by_kernels, num_texts):
    """Labels and spans of a real split, mixed against alone; generation by teacher forcing on the solo tokens."""
    spec = describe_backbone(packaged_folder(DEFAULT_BACKBONE, home), DEFAULT_BACKBONE)
    for name, task in (("spans", answerer()), ("writes", summarizer())):
        save_bundle(home / name, spec, task, last_layers=2, alpha=1)
    folders = {"labels": trained / "bundle", "spans": home / "spans", "writes": home / "writes"}
    backbone = load_backbone(spec, "bfloat16", fuse=by_kernels)
    engine = Engine(backbone, folders.__getitem__, use_kernels=by_kernels)
    tokenizer = load_tokenizer(spec.folder)
    lines = (DATA / "sentence_polarity" / "test.jsonl").read_text().splitlines()[:num_texts]
    texts = [json.loads(line)["text"] for line in lines]
    rows = [
        Row(f"{kind}-{i}", tokenizer.encode(text).ids, kind)
        for i, text in enumerate(texts)
        for kind in ("labels", "spans")
    ]
    writers = [
        Row(f"w{i}", tokenizer.encode(text).ids, "writes", Generation(16, ()))
        for i, text in enumerate(texts[:12])
    ]
    alone = {row.row_id: engine.run([row])[0].output for row in [*rows, *writers]}
    mixed = engine.run([*rows, *writers])
    pairs = [
        (alone[row.row_id].logits, result.output.logits)
        for row, result in zip(rows, mixed, strict=False)
    ]
    # A step is that of the largest logit: a small one is a sum of large terms, each rounded in its own place.
    step = {n: 2**-8 * max(abs(solo).max() for solo, _ in pairs[n::2]) for n in (0, 1)}
    flips = [0, 0]
    for i, (solo, company) in enumerate(pairs):
        if i % 2 == 0:
            solo, company = solo[:, None], company[:, None]  # the choice is among labels, or tokens
        best = solo.argmax(axis=0)
        for column, choice in enumerate(company.argmax(axis=0)):
            if choice != best[column]:
                flips[i % 2] += 1
                assert solo[best[column], column] - solo[choice, column] < 2 * step[i % 2]
    assert flips[0] <= 0.01 * num_texts
    # Nobody trained the head of the spans: its choices are closer than a trained one's, how close depends on the CPU.
    assert flips[1] <= 0.05 * num_texts
    agreed = [
        forced_agreement(engine, tokens=alone[row.row_id].token_ids, row=row) for row in writers
    ]
    assert sum(agreed) / len(agreed) >= 0.95


def forced_agreement(engine, tokens, row):
    """Return the share of solo tokens that a mixed pass over the same beginning would choose as well."""
    forced = [
        Row(f"f{n}", [*row.token_ids, *tokens[:n]], row.adapter, Generation(1, ()))
        for n in range(len(tokens))
    ]
    results = engine.run(forced)
    return sum(
        r.output.token_ids == (token,) for r, token in zip(results, tokens, strict=True)
    ) / len(tokens)
