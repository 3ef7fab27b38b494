"""A fit by stock transformers `Trainer` and peft: ``python -m benchmarks.peers.fit_trainer JOB OUT``.

Its settings are the fastest we found on a CPU: the backbone's weights in bf16, what is trained in fp32, autocast, rows
of like length in one batch.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)

from benchmarks.peers.fit_job import (
    LOGITS_NAME,
    TOKENS_NAME,
    FitJob,
    FitOutcome,
    PeakMemory,
    load_job,
)

_MODELS: dict[str, tuple[Any, TaskType]] = {
    "class": (AutoModelForSequenceClassification, TaskType.SEQ_CLS),
    "value": (AutoModelForSequenceClassification, TaskType.SEQ_CLS),
    "tags": (AutoModelForTokenClassification, TaskType.TOKEN_CLS),
    "span": (AutoModelForQuestionAnswering, TaskType.QUESTION_ANS),
    "completion": (AutoModelForCausalLM, TaskType.CAUSAL_LM),
}
_PAD, _NO_LABEL = 0, -100
_ANSWER_ROWS = 16


def main() -> None:
    job, out = load_job(Path(sys.argv[1])), Path(sys.argv[2])
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    model = _load(job)
    with PeakMemory(is_on=job.watch_memory) as memory:
        model = _with_lora(model, job)
        seconds, loss = _fit(model, job)
    num_tokens = sum(len(row["token_ids"]) for row in job.train) * job.num_rows // len(job.train)
    FitOutcome(seconds, num_tokens, memory.peak_bytes, loss).save(out)
    if job.answer:
        _answer(model.eval(), job, out)


def _load(job: FitJob) -> Any:
    labels: dict[str, Any] = (
        {"num_labels": job.outputs} if job.outputs and job.loss != "span" else {}
    )
    if job.loss == "value":
        labels["problem_type"] = "regression"
    model = _MODELS[job.loss][0].from_pretrained(
        job.folder, dtype=getattr(torch, job.dtype), **labels
    )
    if job.loss == "span":
        # Llama's class for spans calls its backbone `transformer` and so finds not one weight of a checkpoint that
        # calls it `model`: from_pretrained warns and leaves it random. The peer gets the weights all the same.
        backbone = AutoModel.from_pretrained(job.folder, dtype=model.dtype)
        named = getattr(model, model.base_model_prefix)
        named.load_state_dict(backbone.state_dict(), strict=False)
    model.config.pad_token_id = _PAD
    return model


def _with_lora(model: Any, job: FitJob) -> Any:
    # The part before the first dot differs: a model with a head calls its backbone as it likes.
    wanted = {name.removeprefix("model.") for name in job.modules}
    config = LoraConfig(
        task_type=_MODELS[job.loss][1],
        r=job.rank,
        lora_alpha=job.alpha,
        target_modules=[n for n, _ in model.named_modules() if n.partition(".")[2] in wanted],
    )
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:  # peft leaves a head in the backbone's dtype
            parameter.data = parameter.data.float()
    return model


def _fit(model: Any, job: FitJob) -> tuple[float, float]:
    steps = max(1, -(-job.num_rows // job.batch_rows))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=job.batch_rows,
            learning_rate=job.learning_rate,
            warmup_steps=int(job.warmup_share * steps),
            lr_scheduler_type="linear",
            weight_decay=0.0,
            bf16=job.dtype == "bfloat16",
            use_cpu=True,
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=job.seed,
        )
        rows = [{"input_ids": row["token_ids"], **row} for row in job.train]
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=_collator(job))
        begin = time.perf_counter()
        done = trainer.train()
    return time.perf_counter() - begin, float(done.training_loss)


def _collator(job: FitJob) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = _padded([row["token_ids"] for row in rows])
        labels = [row["labels"] for row in rows]
        if job.loss == "class":
            return {**batch, "labels": torch.tensor([each[0] for each in labels])}
        if job.loss == "value":
            return {**batch, "labels": torch.tensor([float(each[0]) for each in labels])}
        if job.loss == "span":
            starts, ends = torch.tensor(labels).T
            return {**batch, "start_positions": starts, "end_positions": ends}
        # Of a completion, labels are its last tokens; the library shifts them.
        before = [len(row["token_ids"]) - len(row["labels"]) for row in rows]
        whole = [
            torch.tensor([_NO_LABEL] * n + each) for n, each in zip(before, labels, strict=True)
        ]
        return {**batch, "labels": pad_sequence(whole, True, _NO_LABEL)}

    return collate


def _padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    ids = pad_sequence([torch.tensor(row) for row in rows], True, _PAD)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


@torch.inference_mode()
def _answer(model: Any, job: FitJob, out: Path) -> None:
    order = sorted(range(len(job.answer)), key=lambda i: len(job.answer[i]))
    answers: dict[int, Any] = {}
    for start in range(0, len(order), _ANSWER_ROWS):
        numbers = order[start : start + _ANSWER_ROWS]
        rows = [job.answer[i] for i in numbers]
        found = _generate(model, rows, job) if job.max_new_tokens else _logits(model, rows, job)
        answers.update(zip(numbers, found, strict=True))
    given = [answers[i] for i in range(len(answers))]
    if job.max_new_tokens:
        (out / TOKENS_NAME).write_text(json.dumps(given))
    else:
        np.savez(out / LOGITS_NAME, logits=np.concatenate(given), rows=[len(a) for a in given])


def _logits(model: Any, rows: list[list[int]], job: FitJob) -> list[Any]:
    with torch.autocast("cpu", torch.bfloat16, enabled=job.dtype == "bfloat16"):
        found = model(**_padded(rows))
    if job.loss == "span":
        logits = torch.stack([found.start_logits, found.end_logits], dim=-1).float().numpy()
    else:
        logits = found.logits.float().numpy()
    if job.loss in ("class", "value"):
        return list(logits[:, None])
    return [each[: len(row)] for each, row in zip(logits, rows, strict=True)]


def _generate(model: Any, rows: list[list[int]], job: FitJob) -> list[list[int]]:
    width = max(map(len, rows))
    ids = torch.tensor([[_PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.autocast("cpu", torch.bfloat16, enabled=job.dtype == "bfloat16"):
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=job.max_new_tokens,
            eos_token_id=job.end_ids,
            pad_token_id=_PAD,
        )
    return [_until_end(row, job.end_ids) for row in made[:, width:].tolist()]


def _until_end(token_ids: list[int], end_ids: list[int]) -> list[int]:
    ends = [i for i, token in enumerate(token_ids) if token in end_ids]
    return token_ids[: ends[0]] if ends else token_ids


if __name__ == "__main__":
    main()
