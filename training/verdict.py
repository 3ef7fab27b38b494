"""Did it learn? What a run must show before its bundle is worth serving; stock parts lose adapters without a word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adapters.backbone import Backbone
from adapters.runtime.engine import Engine
from adapters.runtime.rows import Row
from adapters.tasks.base import Generation, Labelled
from adapters.tasks.catalog import AnyTask
from training.trainer import Trainee

_ROWS = 4
# Of the largest logit: what sums in another order may cost in fp32, and two steps of bf16 over many layers.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.08, torch.float16: 0.02}
# Baselines that need no knowledge of a row; copying a text's beginning can be hard to beat, and is only compared with.
_MUST_BEAT = ("majority", "mean", "never_answer", "before")


@dataclass(frozen=True, slots=True)
class Witness:
    """What the model in memory says to a few rows, to be compared with what the saved bundle will say.

    Args:
        values: of each row, the head's logits or, without a head, the log-probability of the likeliest next token.
        sizes: of each row, the largest of the logits that its values come from.
    """

    rows: list[list[int]]
    values: list[torch.Tensor]
    sizes: list[float]


@torch.no_grad()
def take_witness(trainee: Trainee, rows: Sequence[Labelled]) -> Witness:
    """Return what a trainee answers to the first rows."""
    trainee.backbone.model.eval()
    token_ids = [_prompt(trainee, row) for row in rows[:_ROWS]]
    values, sizes = [], []
    for ids in token_ids:
        hidden_TD, bounds = trainee.hidden_states([Labelled(ids, [])])
        if trainee.head is not None:
            logits = trainee.head(hidden_TD, bounds).squeeze(0)
            values.append(logits.cpu())
        else:
            logits = trainee.backbone.next_token_logits(hidden_TD[-1:])[0].float()
            values.append(logits.log_softmax(-1).max().cpu())
        sizes.append(float(logits.abs().max()))
    return Witness(token_ids, values, sizes)


def _prompt(trainee: Trainee, row: Labelled) -> list[int]:
    """Return what the model is asked with: without a head, the tokens before those that it learns to write."""
    if trainee.head is not None:
        return row.token_ids
    return row.token_ids[: len(row.token_ids) - len(row.labels)]


def unchanged_weights(trainee: Trainee) -> Iterator[str]:
    """Yield a problem if no update of the backbone came out of the fit, or one that is not finite."""
    state = trainee.lora_state()
    names = [name for name in state if "lora_B" in name]
    norms = {name: float(state[name].float().norm()) for name in names}
    bad = [name for name, norm in norms.items() if not norm < float("inf")]
    if bad:
        yield f"The LoRA weights '{bad[0]}' are not finite. Lower fit.learning_rate."
    elif not any(norms.values()):
        yield (
            "Every LoRA weight B is still zero: the fit changed nothing. Check that rows carry labels, and "
            "raise fit.learning_rate or fit.epochs."
        )


def lost_weights(
    witness: Witness, backbone: Backbone, folder: Path, has_head: bool
) -> Iterator[str]:
    """Yield a problem if the saved bundle, loaded afresh by the serving engine, answers otherwise than it did."""
    generation = None if has_head else Generation(1, (), num_logprobs=1)
    rows = [Row(str(i), ids, "bundle", generation) for i, ids in enumerate(witness.rows)]
    engine = Engine(backbone, lambda digest: folder)
    try:
        results = sorted(engine.run(rows), key=lambda result: int(result.row_id))
    finally:
        engine.close()
    for number, (result, value) in enumerate(zip(results, witness.values, strict=True)):
        if result.output is None:
            yield f"The saved bundle failed on training row {number}: {result.error}"
            return
        output = result.output
        found = torch.tensor(output.logprobs[0].logprob if not has_head else output.logits)
        gap = float((found.reshape(value.shape) - value).abs().max())
        # A likely token's log-probability is small, but rounded as coarsely as the logits that it is told from.
        steps = 2 * torch.finfo(backbone.dtype).eps * witness.sizes[number]
        limit = _TOLERANCE.get(backbone.dtype, 0.08) * max(1.0, float(value.abs().max())) + steps
        if not gap <= limit:
            yield (
                f"The saved bundle answers otherwise than the model that was trained: logits differ by '{gap:.3g}', at "
                f"most {limit:.3g} is rounding. Please report this with the run's folder."
            )
            return


def lost_to_baselines(
    task: AnyTask, split: str, metrics: dict[str, float], simple: dict[str, dict[str, float]]
) -> Iterator[str]:
    """Yield a problem for each baseline of `_MUST_BEAT` that answers a split as well as the adapter does."""
    for name in _MUST_BEAT:
        if name in simple and not _rank(task, metrics) > _rank(
            task, simple[name]
        ):  # NaN is no gain
            main = task.primary_metric
            yield (
                f"On the {split} rows, {main} is '{metrics[main]:.4f}' and that of the baseline '{name}' is "
                f"'{simple[name][main]:.4f}': nothing was learned that helps. Check the labels; raise fit.epochs or "
                "fit.learning_rate, or add rows."
            )


def _rank(task: AnyTask, metrics: dict[str, float]) -> tuple[float, float]:
    # Where one class is rare, accuracy may tie while its rows are told apart.
    return metrics[task.primary_metric], metrics.get("mcc", 0.0)
