"""Fits to compare: data sets cut to size by hash, the jobs that all systems do alike, and what they answered."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import InvalidRequest
from adapters.tasks.base import Encoded, Labelled, Observation, RowOutput
from adapters.tasks.catalog import AnyTask, get_task, task_class
from adapters.tasks.room import row_room
from benchmarks.peers.fit_job import (
    LOGITS_NAME,
    OUTCOME_NAME,
    TOKENS_NAME,
    FitJob,
    FitOutcome,
)
from benchmarks.session import Model
from service.runs import quiet_environment
from training.auto import FitPlan, plan_fit
from training.contract import FitSettings
from training.data import Example, load_examples
from training.evaluation import Prediction, read_answers

_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class FitSet:
    """A data set, the task it is for, and the backbone it is fitted on."""

    name: str
    task: str
    backbone: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name} on {self.backbone}"


@dataclass(frozen=True, slots=True)
class Cut:
    """The rows of a set that take part, as files of the set's own form."""

    train: Path
    test: Path


def cut_set(data: Path, name: str, num_tokens: int, num_test: int, model: Model, out: Path) -> Cut:
    """Write the first rows by hash: of ``train`` up to so many tokens of text, of ``test`` so many rows.

    Raises:
        InvalidRequest: the folder does not hold the set.
    """
    cut = Cut(out / f"{name}-train.jsonl", out / f"{name}-test.jsonl")
    out.mkdir(parents=True, exist_ok=True)
    chosen: list[str] = []
    total = 0
    for line in _by_hash(data / name / "train.jsonl"):
        total += len(model.tokenizer.encode(" ".join(_texts(json.loads(line)))).ids)
        if total > num_tokens and chosen:
            break
        chosen.append(line)
    cut.train.write_text("".join(chosen))
    test = _by_hash(data / name / "test.jsonl")
    cut.test.write_text("".join(itertools.islice(test, num_test)))
    return cut


def _by_hash(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise InvalidRequest(
            f"No file '{path}'. Name a folder with NAME/train.jsonl and NAME/test.jsonl for each set (--data).",
            param="data",
        )
    with path.open() as file:
        lines = list(file)
    return iter(sorted(lines, key=lambda line: hashlib.sha256(line.encode()).hexdigest()))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


@dataclass(frozen=True, slots=True)
class FitWork:
    """One fit prepared: the task, the rows to learn and to answer, and the optimisation in numbers.

    ``train`` are the rows of the ``learned`` examples, ``parts`` those of the test ``examples``.
    """

    model: Model
    task: AnyTask
    train: list[Labelled]
    learned: list[Example]
    examples: list[Example]
    parts: list[list[Encoded]]
    plan: FitPlan
    settings: FitSettings

    @property
    def num_rows(self) -> int:
        """Rows that a fit goes through, one counting once an epoch, up to ``max_tokens``."""
        tokens = [len(row.token_ids) for row in self.train]
        share = (self.settings.max_tokens or sum(tokens) * self.plan.epochs) / sum(tokens)
        return max(1, round(len(tokens) * min(share, self.plan.epochs)))

    def job(self, dtype: str, threads: int, seed: int, *, answer: bool) -> FitJob:
        """Return what a process is told; with ``answer``, to answer the test rows too."""
        family = self.model.spec.family
        head = self.task.head(family)
        tokens = [len(row.token_ids) for row in self.train]
        mean = sum(tokens) / len(tokens)
        generation = self.task.generation(
            self.model.tokenizer, self.task.Parameters.model_validate({})
        )
        return FitJob(
            folder=self.model.spec.folder,
            dtype=dtype,
            threads=threads,
            loss=self._loss(),
            outputs=head.outputs if head else 0,
            pooling=head.pooling if head else "",
            modules=list(self.model.spec.modules),
            rank=8,
            alpha=16.0,
            learning_rate=self.plan.learning_rate,
            warmup_share=self.settings.warmup_share,
            batch_tokens=self.plan.batch_tokens,
            batch_rows=max(1, round(self.plan.batch_tokens / mean)),
            num_rows=self.num_rows,
            seed=seed,
            train=[asdict(row) for row in self.train],
            answer=[part.token_ids for parts in self.parts for part in parts] if answer else [],
            max_new_tokens=generation.max_new_tokens if generation else 0,
            end_ids=list(generation.end_ids) if generation else [],
        )

    def _loss(self) -> str:
        first, head = self.train[0], self.task.head(self.model.spec.family)
        if head is None:
            return "completion"
        if first.loss != "choice":
            return first.loss
        return "class" if head.kind == "sequence" else "span"

    def predictions(self, out: Path) -> list[Prediction]:
        """Return what a system answered, read from its outputs by the task as it reads our own."""
        remaining = iter(_outputs(out))
        observed = [
            Observation(e.request, e.target, parts, [next(remaining) for _ in parts])
            for e, parts in zip(self.examples, self.parts, strict=True)
        ]
        return read_answers(self.task, self.model.tokenizer, observed)


def prepare_work(fit_set: FitSet, model: Model, cut: Cut, settings: FitSettings) -> FitWork:
    """Encode a cut set by the task, as a run does."""
    train = load_examples(str(cut.train), fit_set.task)
    test = load_examples(str(cut.test), fit_set.task)
    cls = task_class(fit_set.task)
    task = get_task(fit_set.task, cls.options_from(fit_set.options, [row.target for row in train]))
    parameters = task.Parameters.model_validate({"truncate": True})
    room = row_room(task, model.spec, parameters)

    def encode(example: Example) -> list[Encoded]:
        return task.encode_parts(model.tokenizer, example.request, parameters, room)

    rows = [row for e in train for row in task.label_parts(model.tokenizer, encode(e), e.target)]
    plan = plan_fit(settings, rows, model.spec.hidden_size)
    return FitWork(model, task, rows, train, test, [encode(e) for e in test], plan, settings)


def run_job(system: str, job: FitJob, out: Path) -> FitOutcome:
    """Run a job by a module of ``benchmarks.peers`` in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed; its last words are in ``out/log.txt``.
    """
    out.mkdir(parents=True, exist_ok=True)
    job.save(out / "job.json")
    command = [sys.executable, "-m", f"benchmarks.peers.{system}", str(out / "job.json"), str(out)]
    with (out / "log.txt").open("w") as log:
        subprocess.run(
            command, cwd=_ROOT, env=quiet_environment(), stdout=log, stderr=log, check=True
        )
    return FitOutcome(**json.loads((out / OUTCOME_NAME).read_text()))


def _outputs(out: Path) -> Sequence[RowOutput]:
    if (out / TOKENS_NAME).is_file():
        made = json.loads((out / TOKENS_NAME).read_text())
        return [RowOutput(token_ids=tuple(ids), finish_reason="stop") for ids in made]
    with np.load(out / LOGITS_NAME) as file:
        ends = np.cumsum(file["rows"])[:-1]
        rows = np.split(file["logits"], ends)
    return [RowOutput(logits=row[0] if len(row) == 1 else row) for row in rows]
