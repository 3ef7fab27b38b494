"""The loop: schedules, steps of several batches, the best weights, activations computed again, several processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import get_scheduler

from adapters.backbone import load_backbone
from adapters.errors import RunPaused
from adapters.tasks.base import Labelled
from tests.bundles import classifier
from tests.servers import wait_until
from training.auto import plan_fit
from training.contract import FitSettings, LoraSettings
from training.fitting import Fit, Hooks
from training.schedule import learning_rate
from training.trainer import build_trainee
from training.world import World

ROOT = Path(__file__).parent.parent.parent
ROWS = [Labelled([7 + i % 5, *[9] * (i % 4), 20 + 30 * (i % 2), 9], [i % 2]) for i in range(24)]


def fit_of(spec, tmp_path, batches, *, lora=None, recompute=False, hooks=None, **fields):
    given = FitSettings(**{"learning_rate": 5e-3, "warmup_share": 0.0, **fields})
    backbone = load_backbone(spec, "float32")
    head = classifier(2).head(spec.family)
    trainee = build_trainee(backbone, lora or LoraSettings(), head, 0, recompute=recompute)
    return trainee, Fit(
        trainee, batches, given, given.learning_rate,
        checkpoint=tmp_path / "checkpoint.safetensors", run_digest="a", hooks=hooks,
    )  # fmt: skip


def by_length(rows):
    return sorted(rows, key=lambda row: len(row.token_ids))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_is_that_of_transformers_schedules(schedule):
    """Without a warm-up: theirs begins one at zero, and falls from its end only."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=0, num_training_steps=50)
    for step in range(50):
        ours = learning_rate(step, 50, 1.0, 0.0, schedule)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        theirs.step()


@given(
    st.sampled_from(["linear", "cosine", "constant"]),
    st.integers(1, 300),
    st.floats(0, 0.9),
)
def test_the_rate_rises_over_the_warm_up_and_never_again(schedule, num_steps, share):
    rates = [learning_rate(step, num_steps, 2.0, share, schedule) for step in range(num_steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 2.0 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert top <= max(1, round(share * num_steps))


def test_a_step_of_uneven_batches_is_the_step_of_all_their_rows(decoder_spec, tmp_path):
    whole, fit = fit_of(decoder_spec, tmp_path, [by_length(ROWS[:9])])
    fit.run()
    parts = [by_length(ROWS[:1]), by_length(ROWS[1:3]), by_length(ROWS[3:9])]
    (tmp_path / "parts").mkdir()
    divided, fit = fit_of(decoder_spec, tmp_path / "parts", parts, accumulation=3)
    assert fit.num_steps == 1
    fit.run()
    for name, parameter in whole.parameters().items():
        torch.testing.assert_close(
            parameter, divided.parameters()[name], atol=1e-5, rtol=1e-4, msg=name
        )


def test_activations_computed_again_give_the_same_gradients(decoder_spec, encoder_spec, tmp_path):
    for spec in (decoder_spec, encoder_spec):
        gradients = []
        for recompute in (False, True):
            trainee, _ = fit_of(spec, tmp_path, [], recompute=recompute)
            trainee.backbone.model.train()
            loss, _ = trainee.loss(by_length(ROWS[:6]))
            loss.backward()
            gradients.append({n: p.grad.clone() for n, p in trainee.parameters().items()})
            trainee.release()
            assert not trainee.backbone.model.is_gradient_checkpointing
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name])


def scores(*values):
    """Return a hook that gives these scores one after the other, and what it was told."""
    told = []

    def score(step):
        told.append(step)
        return (values[len(told) - 1],)

    return score, told


def test_the_best_weights_are_kept_and_a_fit_that_gets_no_better_stops(decoder_spec, tmp_path):
    batches = [by_length(ROWS[i : i + 3]) for i in range(0, 24, 3)]
    score, told = scores(0.5, 0.9, 0.9, 0.7, 0.95)
    kept = {}

    def spy(step):
        kept[step] = {n: p.detach().clone() for n, p in trainee.parameters().items()}
        return score(step)

    trainee, fit = fit_of(
        decoder_spec, tmp_path, batches, validations=8, patience=2, hooks=Hooks(score=spy)
    )
    state = fit.run()
    assert told == [1, 2, 3, 4]  # the fifth score, which is better, is never asked for
    assert (state.step, state.best_step, state.best_score) == (4, 2, (0.9,))
    for name, parameter in trainee.parameters().items():
        assert torch.equal(parameter, kept[2][name])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 50))
def test_validation_is_spread_evenly_and_the_end_is_always_scored(num_steps, validations):
    fit = Fit.__new__(Fit)
    fit._steps, fit._settings = [[]] * num_steps, FitSettings(validations=validations)
    steps = sorted(fit._scored_steps())
    assert steps[-1] == num_steps
    assert len(steps) == min(num_steps, validations)
    assert all(1 <= step <= num_steps for step in steps)


@pytest.mark.parametrize("pause_at", [1, 3, 6])
def test_a_fit_with_validation_goes_on_to_the_very_same_end(decoder_spec, tmp_path, pause_at):
    batches = [by_length(ROWS[i : i + 3]) for i in range(0, 24, 3)]
    lora = LoraSettings(dropout=0.2)
    values = {2: 0.4, 4: 0.8, 6: 0.6, 8: 0.7}

    def run(folder, pause=None):
        folder.mkdir(exist_ok=True)
        steps = []
        hooks = Hooks(
            should_pause=lambda: len(steps) == pause,
            on_step=lambda step, data: steps.append(step),
            score=lambda step: (values[step],),
        )
        trainee, fit = fit_of(decoder_spec, folder, batches, lora=lora, validations=4, hooks=hooks)
        return trainee, fit.run()

    whole, state = run(tmp_path / "whole")
    with pytest.raises(RunPaused):
        run(tmp_path / "parts", pause_at)
    resumed, again = run(tmp_path / "parts")
    assert (again.step, again.best_step, again.best_score) == (8, 4, (0.8,))
    assert state.best_step == 4
    for name, parameter in whole.parameters().items():
        assert torch.equal(parameter, resumed.parameters()[name])


@pytest.mark.parametrize(
    ("num_rows", "hidden_size", "epochs", "batch_tokens", "rate"),
    [(10, 576, 10, 256, 1e-3), (4000, 576, 5, 768, 1e-3), (100_000, 2304, 1, 4096, 5e-4)],
)
def test_auto_looks_at_the_rows_and_the_backbone(num_rows, hidden_size, epochs, batch_tokens, rate):
    plan = plan_fit(FitSettings(), [Labelled([1] * 12, [0])] * num_rows, hidden_size)
    assert (plan.epochs, plan.batch_tokens, plan.learning_rate) == (epochs, batch_tokens, rate)
    given = FitSettings(epochs=2, learning_rate=0.5, batch_tokens=99)
    plan = plan_fit(given, [Labelled([1] * 12, [0])] * num_rows, hidden_size)
    assert (plan.epochs, plan.batch_tokens, plan.learning_rate) == (2, 99, 0.5)


def test_rows_a_batch_and_a_factor_of_the_rate_are_heeded():
    rows = [Labelled([1] * length, [0]) for length in (10, 20, 30)]
    plan = plan_fit(FitSettings(batch_rows=8, rate_factor=0.5, learning_rate=0.2), rows, 576)
    assert (plan.batch_tokens, plan.learning_rate) == (160, 0.1)
    with pytest.raises(ValidationError, match=r"batch_tokens or fit\.batch_rows"):
        FitSettings(batch_rows=8, batch_tokens=64)


def test_one_process_has_all_rows(decoder_spec):
    world = World(torch.device("cpu"))
    assert (world.rank, world.size) == (0, 1)
    assert list(world.share(ROWS)) == ROWS
    assert world.any(True)
    assert not world.any(False)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def a_run(tmp_path, decoder_folder, **fit):
    rows = [
        {"text": f"a {word} film {i}", "label": label}
        for i in range(12)
        for word, label in (("good", "+"), ("bad", "-"))
    ]
    return {
        "task": "text-classification",
        "backbone": str(decoder_folder),
        "dtype": "float32",
        "data": {
            "train": write(tmp_path / "train.jsonl", rows),
            "validation": write(tmp_path / "validation.jsonl", rows[:7]),
            "test": write(tmp_path / "test.jsonl", rows[:6]),
        },
        "fit": {"learning_rate": 0.01, "batch_tokens": 64, "epochs": 4, **fit},
    }


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(config, out, rank=0, size=1, port=0):
    path = out.parent / f"{out.name}.json"
    path.write_text(json.dumps(config))
    # What `accelerate launch --cpu` sets.
    several = {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "training", str(path), "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, **(several if size > 1 else {})},
        stderr=subprocess.PIPE,
        text=True,
    )


def weights(out):
    folder = out / "bundle"
    return load_file(folder / "adapter_model.safetensors") | load_file(folder / "head.safetensors")


def test_two_processes_give_what_one_gives_within_rounding(tmp_path, decoder_folder):
    config = a_run(tmp_path, decoder_folder)
    port = free_port()
    runs = [start(config, tmp_path / "one")]
    runs += [start(config, tmp_path / "two", rank, 2, port) for rank in range(2)]
    for process in runs:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=1e-4, rtol=1e-3)
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["metrics"]["after"]["accuracy"] == 1.0
    finished = [
        line
        for line in (tmp_path / "two" / "events.jsonl").read_text().splitlines()
        if '"finished"' in line
    ]
    assert len(finished) == 1


def test_a_run_killed_time_and_again_ends_with_the_bit_identical_adapter(tmp_path, decoder_folder):
    config = a_run(tmp_path, decoder_folder, checkpoint_seconds=1e-6, validations=4, epochs=8)
    config["lora"] = {"dropout": 0.1}
    whole = start(config, tmp_path / "whole")
    assert whole.wait(timeout=300) == 0
    out = tmp_path / "killed"
    checkpoint = out / "checkpoint.safetensors"
    for after_steps in (2, 9):
        killed = start(config, out)
        wait_until(lambda n=after_steps: has_done(checkpoint, n), seconds=120, pause=0.01)
        assert killed.poll() is None, "it ended before it was killed"
        killed.kill()
        killed.wait()
    again = start(config, out)
    assert again.wait(timeout=300) == 0
    one, two = weights(tmp_path / "whole"), weights(out)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    digests = [
        json.loads((o / "result.json").read_text())["digest"] for o in (tmp_path / "whole", out)
    ]
    assert digests[0] == digests[1]


def test_two_processes_that_are_killed_go_on_to_the_bit_identical_adapter(tmp_path, decoder_folder):
    """Dropout draws in both; batches of one row leave nothing to draw for the second."""
    config = a_run(tmp_path, decoder_folder, checkpoint_seconds=1e-6, batch_tokens=16, epochs=2)
    config["lora"] = {"dropout": 0.3}
    del config["data"]["validation"]
    long = [{"text": f"a {'good' * 6} film {i}", "label": "+"} for i in range(12)]
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in long))

    def both(out):
        port = free_port()
        return [start(config, out, rank, 2, port) for rank in range(2)]

    def end(processes):
        for process in processes:
            _, stderr = process.communicate(timeout=300)
            assert process.returncode == 0, stderr

    end(both(tmp_path / "whole"))
    killed = both(tmp_path / "killed")
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    wait_until(lambda: has_done(checkpoint, 6), seconds=120, pause=0.01)
    for process in killed:
        process.kill()
        process.communicate()
    end(both(tmp_path / "killed"))
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def has_done(checkpoint, steps):
    """Tell whether a run's checkpoint is so many steps on."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(checkpoint, framework="pt") as file:
            return json.loads(file.metadata()["state"])["step"] >= steps
    except (OSError, SafetensorError):
        return False
