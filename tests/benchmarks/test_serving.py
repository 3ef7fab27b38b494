"""The command from end to end, small, on tiny backbones: every workload in process gives its rows; none is timed."""

import json

import pytest
import torch
from rich.console import Console

from benchmarks.serving import run_serving
from benchmarks.session import Options, Session
from benchmarks.workloads.gpu import run_gpu
from tests.homes import share_finds

WANTED = {
    "W1": {("engine", 16), ("peft adapter_names", 16), ("transformers generate", 0)},
    "W2 tiny-bert": {("engine", 8), ("peft adapter_names", 8), ("one merged model a task", 8)},
    "W2 tiny-llama": {("engine", 8)},
    "W4": {("engine", 5), ("engine", 20)},
    "W4 memory": {("engine", 5), ("engine", 20)},
    "W4 cliff": {("engine, 8 slots", 8), ("engine, 8 slots", 16)},
    "GPU": {
        ("engine", 1),
        ("engine", 8),
        ("peft adapter_names", 8),
        ("engine, bare backbone", 0),
    },
    "W6": {("engine, prefix cache", 1), ("engine, no cache", 1)},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, decoder_folder, encoder_folder):
    root = tmp_path_factory.mktemp("bench")
    share_finds(root / "home")
    options = Options(
        str(decoder_folder), str(encoder_folder), "float32", threads=1, runs=1, is_quick=True
    )
    run_serving(options, ["W1", "W2", "W4", "W6", "GPU"], root / "home", root / "report.json")
    return json.loads((root / "report.json").read_text())


@pytest.mark.timeout(900)
def test_the_report_says_where_it_was_measured(saved):
    assert set(saved) == {"machine", "versions", "commit", "rows"}
    assert saved["machine"]["cores"] >= 1
    for limit in ("bf16_matmul_gflops", "fp32_matmul_gflops", "read_gb_per_second"):
        assert saved["machine"][limit] > 0
    assert {"torch", "transformers", "peft"} <= set(saved["versions"])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("workload", WANTED)
def test_each_workload_has_its_systems(saved, workload):
    rows = [row for row in saved["rows"] if row["workload"] == workload]
    assert WANTED[workload] <= {(row["system"], row["adapters"]) for row in rows}
    for row in rows:
        assert row["value"] > 0
        assert len(row["runs"]) == 1
        assert len(row["ratios"]) == len(rows) - 1


def test_without_a_gpu_its_workload_is_left_out_and_the_reader_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    session = Session(Options(), tmp_path / "home", tmp_path, Console(quiet=True))
    assert run_gpu(session) == []
    assert "no CUDA device" in session.notes[0]
