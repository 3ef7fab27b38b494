"""What the first of several processes does alone, while the others wait."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.demo import free_port

ROOT = Path(__file__).parent.parent.parent
# A run whose processes find other scores, as on unlike machines, each of which the first likes better.
UNLIKE = """
import itertools, os, sys
from training.__main__ import main
from training.validation import Validation
count, sign = itertools.count(), 1 if os.environ["RANK"] == "0" else -1
Validation.score = lambda self, metrics: (sign * next(count),)
sys.exit(main(sys.argv[1:]))
"""
# A run whose processes give each other up after 5 s; its first one tests the untrained model for 7.
RUN = """
import sys, threading
from datetime import timedelta
import torch.distributed
torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=5))
from training.__main__ import main
from training.run import Run
real = Run._test
def slow(self, whose, *given):
    threading.Event().wait(7 if whose == "before" else 0)
    return real(self, whose, *given)
Run._test = slow
sys.exit(main(sys.argv[1:]))
"""


def start_both(script, config, out):
    path = out.parent / "run.json"
    path.write_text(json.dumps(config))
    both = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), "--out", str(out)],
            cwd=ROOT,
            env={**os.environ, **both, "RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]


@pytest.fixture
def config(tmp_path, decoder_folder):
    words = (("good", "+"), ("bad", "-"))
    rows = [{"text": f"a {w} film {i}", "label": x} for i in range(12) for w, x in words]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": "text-classification",
        "backbone": str(decoder_folder),
        "dtype": "float32",
        "data": {"train": str(tmp_path / "rows.jsonl"), "test_share": 0.25},
        "fit": {"batch_tokens": 64, "epochs": 1},
        "must_learn": False,
    }


def test_others_wait_for_the_first_longer_than_for_each_other(tmp_path, config, translator):
    url, calls = translator
    translation = {"there": "en-de", "back": "de-en", "url": url}
    config["data"]["augmentation"] = {"back_translation": translation}
    config["evaluate_untrained"] = True
    out = tmp_path / "out"
    for process in start_both(RUN, config, out):
        _, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
    assert calls == ["en-de", "de-en"]
    assert "before" in json.loads((out / "result.json").read_text())["metrics"]


def test_what_is_at_fault_with_the_first_is_told_by_all(tmp_path, config):
    translation = {"there": "en-de", "back": "de-en", "url": f"http://127.0.0.1:{free_port()}"}
    config["data"]["augmentation"] = {"back_translation": translation}
    for process in start_both(RUN, config, tmp_path / "out"):
        _, stderr = process.communicate(timeout=200)
        assert process.returncode == 2, stderr
        assert "no Headstock server answers" in stderr


def test_all_go_by_what_the_first_finds_on_validation_rows(tmp_path, config):
    config["data"] |= {"validation_share": 0.2}
    config["fit"] |= {"epochs": 3, "validations": 4, "patience": 1}
    for process in start_both(UNLIKE, config, tmp_path / "out"):
        _, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
