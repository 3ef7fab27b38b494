"""The same fit by Headstock's trainer: ``python -m benchmarks.peers.fit_ours JOB OUT``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import cast

from adapters.dtype import DtypeName
from adapters.home import default_home
from adapters.runtime.onednn import bound_caches

bound_caches()  # before torch computes anything, as a run does

import torch  # noqa: E402

from adapters.backbone import describe_backbone, load_backbone  # noqa: E402
from adapters.tasks.base import HeadSpec, Labelled  # noqa: E402
from benchmarks.peers.fit_job import FitJob, FitOutcome, PeakMemory, load_job  # noqa: E402
from training.batches import make_batches  # noqa: E402
from training.contract import FitSettings, LoraSettings  # noqa: E402
from training.fitting import Fit, Hooks  # noqa: E402
from training.trainer import build_trainee  # noqa: E402


def main() -> None:
    job, out = load_job(Path(sys.argv[1])), Path(sys.argv[2])
    torch.set_num_threads(job.threads)
    spec = describe_backbone(Path(job.folder))
    backbone = load_backbone(spec, cast(DtypeName, job.dtype), home=default_home())
    losses: list[float] = []
    with PeakMemory(is_on=job.watch_memory) as memory:
        lora = LoraSettings(rank=job.rank, alpha=job.alpha)
        trainee = build_trainee(backbone, lora, _head(job), job.seed)
        batches = _batches(job)
        fit = Fit(
            trainee,
            batches,
            FitSettings(warmup_share=job.warmup_share),
            job.learning_rate,
            checkpoint=out / "checkpoint.safetensors",
            run_digest="benchmark",
            hooks=Hooks(on_step=lambda step, told: losses.append(told["loss"])),
        )
        begin = time.perf_counter()
        fit.run()
        seconds = time.perf_counter() - begin
    num_tokens = sum(len(row.token_ids) for batch in batches for row in batch)
    FitOutcome(seconds, num_tokens, memory.peak_bytes, sum(losses) / len(losses)).save(out)


def _head(job: FitJob) -> HeadSpec | None:
    if not job.outputs:
        return None
    kind = "sequence" if job.loss in ("class", "value") else "token"
    return HeadSpec.model_validate({"kind": kind, "outputs": job.outputs, "pooling": job.pooling})


def _batches(job: FitJob) -> list[list[Labelled]]:
    rows = [Labelled(**row) for row in job.train]
    epochs = -(-job.num_rows // len(rows))
    batches = make_batches(rows, job.batch_tokens, seed=job.seed, epochs=epochs, max_tokens=None)
    num_rows, kept = 0, []
    for batch in batches:
        if num_rows >= job.num_rows:
            break
        kept.append(batch)
        num_rows += len(batch)
    return kept


if __name__ == "__main__":
    main()
