"""PolyLoRA's torch path in a greedy loop of our own, since it has a forward pass only."""

from __future__ import annotations

import time

import torch
from polylora import PolyLoraConfig, PolyLoraModel
from transformers import AutoModelForCausalLM

from benchmarks.peers.wire import Load, Outcome, Work, serve


class PolyLoraWorker:
    """Every linear layer but the language head is wrapped; all adapters have a slot."""

    def load(self, order: Load) -> None:
        torch.set_num_threads(order.threads)
        base = AutoModelForCausalLM.from_pretrained(
            order.backbone, dtype=getattr(torch, order.dtype)
        )
        names = {
            path.rsplit(".", 1)[-1]
            for path, module in base.named_modules()
            if isinstance(module, torch.nn.Linear) and path != "lm_head"
        }
        config = PolyLoraConfig(
            max_gpu_adapters=len(order.adapters),
            max_rank=int(order.options["rank"]),
            target_modules=sorted(names),
        )
        self._model = PolyLoraModel(base, config).eval()
        for name, folder in order.adapters.items():
            self._model.load_adapter_from_disk(name, folder)

    @torch.inference_mode()
    def run(self, work: Work) -> Outcome:
        ids = torch.tensor([row.token_ids for row in work.rows])
        names = [row.adapter or "__base__" for row in work.rows]
        begin = time.perf_counter()
        columns = self._generate(ids, names, work.rows[0].max_new)
        outputs = torch.cat(columns, dim=1).tolist()
        return Outcome(time.perf_counter() - begin, outputs)

    def _generate(self, ids: torch.Tensor, names: list[str], max_new: int) -> list[torch.Tensor]:
        columns: list[torch.Tensor] = []
        cache = None
        for _ in range(max_new):
            out = self._model(
                input_ids=ids,
                adapter_ids=names,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache, ids = out.past_key_values, out.logits[:, -1].argmax(dim=1, keepdim=True)
            columns.append(ids)
        return columns


if __name__ == "__main__":
    serve(PolyLoraWorker())
