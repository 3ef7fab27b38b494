"""What the demo trains, on which of the texts under examples/data, and what each adapter must gain."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from adapters.tasks.catalog import task_class
from training.contract import RunConfig

DATA = Path(__file__).parent.parent / "examples" / "data"


@dataclass(frozen=True, slots=True)
class DemoAdapter:
    """One of the demo's adapters, and the gain that its training must bring.

    ``min_after`` and ``min_gain`` are in the task's primary metric, 0 to 1.
    """

    name: str
    note: str
    config: RunConfig
    min_after: float
    min_gain: float


def demo_adapters(backbone: str) -> list[DemoAdapter]:
    """Return what the demo trains; the settings were chosen on validation splits that are not shipped."""

    def config(
        task: str, folder: str, max_row_tokens: int | None = None, **fields: Any
    ) -> RunConfig:
        files = {part: str(DATA / folder / f"{part}.jsonl") for part in ("train", "test")}
        return RunConfig.model_validate(
            {
                "task": task,
                "backbone": backbone,
                "evaluate_untrained": True,
                "data": {**files, "max_row_tokens": max_row_tokens},
                **fields,
            }
        )

    return [
        DemoAdapter(
            "sentiment",
            "movie-review sentences, positive or negative",
            config(
                "text-classification",
                "sentence_polarity",
                options={"template": "Review: {text}\nSentiment:"},
                lora={"last_layers": 20},
                fit={"max_tokens": 50_000},
            ),
            min_after=0.80,
            min_gain=0.10,
        ),
        DemoAdapter(
            "squad",
            "answers as slices of a paragraph; trained on short contexts to fit the time, tested on all",
            config(
                "question-answering",
                "squad_v1",
                max_row_tokens=160,
                lora={"last_layers": 15},
                fit={
                    "epochs": 1,
                    "max_tokens": 50_000,
                    "learning_rate": 2e-3,
                    "batch_tokens": 768,
                },
            ),
            min_after=0.20,
            min_gain=0.20,
        ),
        DemoAdapter(
            "tldr",
            "one-sentence summaries of scientific abstracts, generated",
            config(
                "summarization",
                "scitldr",
                options={"max_new_tokens": 48},
                lora={"last_layers": 15},
                fit={"max_tokens": 30_000, "batch_tokens": 1024},
            ),
            min_after=0.0,
            min_gain=0.01,
        ),
    ]


def inputs_of(adapter: DemoAdapter, count: int) -> list[dict[str, Any]]:
    """Return requests made of the first rows of an adapter's test file."""
    fields = task_class(adapter.config.task).Request.model_fields
    with Path(str(adapter.config.data.test)).open() as file:
        rows = [json.loads(line) for line in islice(file, count)]
    return [{k: v for k, v in row.items() if k in fields} for row in rows]
