"""Stock PEFT: ``adapter_names`` in ``generate``, and its teacher-forced fp32 form, which all outputs are checked by."""

from __future__ import annotations

import time

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.peers.transformers_worker import greedy
from benchmarks.peers.wire import Load, Outcome, Work, WorkRow, serve


class PeftWorker:
    """Option ``mode``: ``names`` generates a mixed batch; ``force`` reads rows of prompt plus answer.

    With ``force``, ``max_new`` tells how many of a row's last tokens are the answer; the output is what PEFT
    would have put in their places.
    """

    def load(self, order: Load) -> None:
        torch.set_num_threads(order.threads)
        self._mode = order.options["mode"]
        base = AutoModelForCausalLM.from_pretrained(
            order.backbone, dtype=getattr(torch, order.dtype)
        )
        base.generation_config.eos_token_id = None
        self._model = with_adapters(base, order.adapters).to(order.device)

    @torch.inference_mode()
    def run(self, work: Work) -> Outcome:
        begin = time.perf_counter()
        method = self._generate if self._mode == "names" else self._force_all
        outputs = method(work.rows)
        return Outcome(time.perf_counter() - begin, outputs)

    def _generate(self, rows: list[WorkRow]) -> list[list[int]]:
        ids = torch.tensor([row.token_ids for row in rows], device=self._model.device)
        out = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            adapter_names=[row.adapter or "__base__" for row in rows],
            generation_config=greedy(rows[0].max_new),
        )
        return [list(row) for row in out[:, ids.shape[1] :].tolist()]

    def _force_all(self, rows: list[WorkRow]) -> list[list[int]]:
        return [self._force(row) for row in rows]

    def _force(self, row: WorkRow) -> list[int]:
        ids = torch.tensor([row.token_ids], device=self._model.device)
        if row.adapter is None:
            with self._model.disable_adapter():
                logits = self._model(ids).logits[0]
        else:
            self._model.set_adapter(row.adapter)
            logits = self._model(ids).logits[0]
        return list(logits[-row.max_new - 1 : -1].argmax(dim=1).tolist())


def with_adapters(base: torch.nn.Module, adapters: dict[str, str]) -> PeftModel:
    """Return a model with all adapters loaded, in the model's own dtype (peft would make them fp32)."""
    model: PeftModel | None = None
    # Without the last, each adapter's weights are drawn at random before they are read.
    how = {"autocast_adapter_dtype": False, "low_cpu_mem_usage": True}
    for name, folder in adapters.items():
        if model is None:
            model = PeftModel.from_pretrained(base, folder, adapter_name=name, **how)
        else:
            model.load_adapter(folder, adapter_name=name, **how)
    assert model is not None, "PEFT needs an adapter"
    return model.eval()


if __name__ == "__main__":
    serve(PeftWorker())
