"""Runs on a GPU: what is made for it stays on it, which a disguised one shows where there is none."""

import json

import pytest
import torch
from safetensors.torch import load_file

import training.run
from tests.disguise import Disguise
from tests.training.test_tasks import OPTIONS, ROWS
from training.contract import RunConfig
from training.events import EventLog
from training.inputs import read_inputs
from training.run import Run

CASES = [
    ("text-classification", "decoder"),
    ("text-classification", "encoder"),
    ("regression", "encoder_decoder"),
    ("regression", "decoder"),
    ("token-classification", "encoder"),
    ("question-answering", "decoder"),
    ("translation", "encoder_decoder"),
    ("text-generation", "decoder"),
]
LABELS = [
    {"text": f"a {'good' if i % 2 else 'bad'} film {i}", "label": "ny"[i % 2]} for i in range(16)
]


@pytest.fixture
def fit_only(monkeypatch):
    """Leave out what the engine does after a fit: it has tests of its own, on real GPUs."""
    monkeypatch.setattr(training.run, "find_device", lambda name, rank: f"{name}:{rank}")
    monkeypatch.setattr(training.run, "lost_weights", lambda *_: [])
    monkeypatch.setattr(Run, "_test", lambda self, split, *_: {split: {}})
    monkeypatch.setattr(Run, "_calibrate", lambda *_: {"validation": {}})
    monkeypatch.setattr(Run, "_lost", lambda *_: [])


@pytest.mark.parametrize(("task", "family"), CASES)
def test_a_fit_mixes_no_devices(task, family, tmp_path, request, fit_only):
    data = tmp_path / "rows.jsonl"
    rows = LABELS if task == "text-classification" else ROWS[task]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig(
        task=task,
        options=OPTIONS.get(task, {}),
        backbone=request.getfixturevalue(f"{family}_spec").folder,
        dtype="float32",
        device="cuda",
        data={name: str(data) for name in ("train", "validation", "test")},
        lora={"dropout": 0.1},
        fit={"learning_rate": 0.01, "batch_tokens": 64, "epochs": 2, "accumulation": 2}
        | {"checkpoint_seconds": 1e-6},
    )
    log = EventLog(tmp_path / "events.jsonl")
    with Disguise() as disguise:
        run = Run(config, read_inputs(config, log), tmp_path, tmp_path / "home", log)
        result = run.execute()
        assert disguise.there
    assert result.problems == []
    weights = load_file(tmp_path / "bundle" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)


def test_a_mixed_device_is_noticed():
    with Disguise():
        there, here = torch.ones(2, device="cuda"), torch.ones(2)
        assert (there.device.type, here.device.type, there.cpu().device.type) == (
            "cuda",
            "cpu",
            "cpu",
        )
        with pytest.raises(RuntimeError, match="mixed"):
            there + here
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        loss = (there.requires_grad_() * 2).sum()
        loss.backward()
        assert there.grad.is_cuda
