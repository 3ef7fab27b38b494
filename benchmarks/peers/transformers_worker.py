"""The bare backbone by stock transformers: ``generate`` on a batch, or ``generate_batch`` (continuous batching)."""

from __future__ import annotations

import time

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.peers.wire import Load, Outcome, Work, WorkRow, serve


class TransformersWorker:
    """Option ``mode``: ``generate`` or ``continuous``. Rows have one length, so nothing is padded."""

    def load(self, order: Load) -> None:
        torch.set_num_threads(order.threads)
        self._mode = order.options["mode"]
        dtype = getattr(torch, order.dtype)
        self._model = AutoModelForCausalLM.from_pretrained(order.backbone, dtype=dtype).eval()
        self._model.to(order.device)
        self._model.generation_config.eos_token_id = None

    def run(self, work: Work) -> Outcome:
        config = greedy(work.rows[0].max_new)
        method = self._generate if self._mode == "generate" else self._continuous
        begin = time.perf_counter()
        outputs = method(work.rows, config)
        return Outcome(time.perf_counter() - begin, outputs)

    @torch.inference_mode()
    def _generate(self, rows: list[WorkRow], config: GenerationConfig) -> list[list[int]]:
        ids = torch.tensor([row.token_ids for row in rows], device=self._model.device)
        out = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
        return [list(row) for row in out[:, ids.shape[1] :].tolist()]

    def _continuous(self, rows: list[WorkRow], config: GenerationConfig) -> list[list[int]]:
        # Its default takes most of the memory for its cache. Kept running, it need not set that up again each
        # time; and it must not find the last round's prompts in it.
        batching = ContinuousBatchingConfig(num_blocks=4 * len(rows), allow_block_sharing=False)
        outputs = self._model.generate_batch(
            [row.token_ids for row in rows],
            generation_config=config,
            continuous_batching_config=batching,
            persistent_manager=True,
        )
        in_order = sorted(outputs.items(), key=lambda item: int(item[0].rsplit("_", 1)[-1]))
        return [list(output.generated_tokens) for _, output in in_order]


def greedy(max_new: int) -> GenerationConfig:
    """Return a greedy generation of exactly ``max_new`` tokens."""
    return GenerationConfig(
        max_new_tokens=max_new, do_sample=False, eos_token_id=None, pad_token_id=0
    )


if __name__ == "__main__":
    serve(TransformersWorker())
