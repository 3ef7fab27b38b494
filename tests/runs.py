"""Runs of training on a tiny backbone, by the command or in this process."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

from training.__main__ import main
from training.contract import Event

ROOT = Path(__file__).parent.parent
GOOD = [
    {"text": f"a {word} film {i}", "label": label}
    for i in range(12)
    for word, label in (("good", "+"), ("bad", "-"))
]


def write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


def films_config(tmp_path, decoder_folder):
    """Return the config of a small run that learns."""
    return {
        "task": "text-classification",
        "backbone": str(decoder_folder),
        "dtype": "float32",
        "data": {
            "train": write(tmp_path / "train.jsonl", GOOD),
            "test": write(tmp_path / "test.jsonl", GOOD[:6]),
        },
        "fit": {"learning_rate": 0.01, "batch_tokens": 64, "epochs": 6},
        "evaluate_untrained": True,
    }


def command(tmp_path, config):
    (tmp_path / "run.json").write_text(json.dumps(config))
    return [
        sys.executable,
        "-m",
        "training",
        str(tmp_path / "run.json"),
        "--out",
        str(tmp_path / "out"),
    ]


def run_alone(tmp_path, config):
    """Run in a process of its own, as a user does."""
    return subprocess.run(
        command(tmp_path, config), cwd=ROOT, capture_output=True, text=True, check=False
    )


def run(tmp_path, config):
    """Run the same in this process, which has imported already what a run needs for seconds."""
    stderr, heeded = io.StringIO(), signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stderr(stderr), warnings.catch_warnings():
            code = main(command(tmp_path, config)[3:])
    except Exception:
        code = 1
        traceback.print_exc(file=stderr)
    finally:
        signal.signal(signal.SIGTERM, heeded)
    return SimpleNamespace(returncode=code, stderr=stderr.getvalue())


def events(tmp_path):
    lines = (tmp_path / "out" / "events.jsonl").read_text().splitlines()
    return [Event.model_validate_json(line) for line in lines]
