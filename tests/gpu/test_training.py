"""Whole runs on CUDA, each task; skipped where there is no device."""

import json

import pytest
import torch

from adapters.bundle import load_bundle
from tests.training.test_tasks import CASES, OPTIONS, RATES, ROWS, SEQUENCE_RATE
from training.contract import RunConfig
from training.events import EventLog
from training.inputs import read_inputs
from training.run import Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("dtype", ["float32", "nf4"])
@pytest.mark.parametrize(("task", "family"), CASES)
def test_a_task_trains_on_cuda_and_is_served_there(task, family, dtype, tmp_path, request):
    if dtype == "nf4" and family != "decoder":
        pytest.skip("quantised backbones are tested on the decoder")
    spec = request.getfixturevalue(f"{family}_spec")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
    rate = SEQUENCE_RATE if family == "encoder_decoder" else RATES.get(task, 0.02)
    config = RunConfig(
        task=task,
        options=OPTIONS.get(task, {}),
        backbone=spec.folder,
        dtype=dtype,
        device="cuda",
        data={"train": str(data), "test": str(data), "max_test_rows": 8},
        fit={"learning_rate": rate, "batch_tokens": 128, "epochs": 20},
    )
    log = EventLog(tmp_path / "events.jsonl")
    result = Run(config, read_inputs(config, log), tmp_path, tmp_path / "home", log).execute()
    assert load_bundle(tmp_path / "bundle", spec).digest == result.digest
    assert result.problems == []
    assert result.metrics["after"][result.primary_metric] > 0.7, result.metrics
