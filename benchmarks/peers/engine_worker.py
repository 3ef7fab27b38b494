"""Headstock's own engine, driven in process: rows through `Engine.submit` and `Engine.step`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import cast

import torch

from adapters.backbone import describe_backbone, load_backbone
from adapters.bundle import read_manifest
from adapters.dtype import DtypeName
from adapters.runtime.engine import Engine
from adapters.runtime.limits import EngineLimits
from adapters.runtime.rows import Row, RowResult
from adapters.tasks.base import Generation
from benchmarks.peers.wire import Load, Outcome, Work, WorkRow, serve


class EngineWorker:
    """The engine with its limits from ``options``; adapters are read from their folders when first used."""

    def load(self, order: Load) -> None:
        torch.set_num_threads(order.threads)
        spec = describe_backbone(Path(order.backbone))
        self._digests = {
            name: read_manifest(Path(folder)).digest for name, folder in order.adapters.items()
        }
        folders = {self._digests[name]: Path(folder) for name, folder in order.adapters.items()}
        backbone = load_backbone(spec, cast(DtypeName, order.dtype), device=order.device, fuse=True)
        self._engine = Engine(backbone, folders.__getitem__, _limits(order))

    def run(self, work: Work) -> Outcome:
        windows = [
            [self._row(f"{w}-{i}", row) for i, row in enumerate(window)]
            for w, window in enumerate(work.windows())
        ]
        begin = time.perf_counter()
        results = [result for window in windows for result in self._engine.run(window)]
        return Outcome(time.perf_counter() - begin, [_output(result) for result in results])

    def _row(self, row_id: str, row: WorkRow) -> Row:
        digest = None if row.adapter is None else self._digests[row.adapter]
        generation = Generation(row.max_new, tuple(row.end_ids)) if row.max_new else None
        return Row(row_id, row.token_ids, digest, generation)


def _limits(order: Load) -> EngineLimits:
    known = {field.name for field in fields(EngineLimits)}
    given = {name: int(value) for name, value in order.options.items() if name in known}
    return EngineLimits.for_device(torch.device(order.device).type, **given)


def _output(result: RowResult) -> list[int]:
    if result.error is not None:
        raise result.error
    assert result.output is not None
    if result.output.logits is not None:
        return [int(result.output.logits.argmax())]
    ids: Sequence[int] = result.output.token_ids
    return list(ids)


if __name__ == "__main__":
    serve(EngineWorker())
