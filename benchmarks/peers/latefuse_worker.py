"""LateFuse's classifier on an encoder: fixed batch and length, adapters on query and value."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from latefuse import MultiTenantClassifier
from safetensors.torch import load_file

from benchmarks.peers.heads import padded
from benchmarks.peers.wire import Load, Outcome, Work, serve


class _Classifier(MultiTenantClassifier):
    """Takes token ids for texts, so that nobody is timed tokenizing."""

    def _tokenize(self, texts: list[list[int]], text_pairs: object) -> dict[str, torch.Tensor]:
        ids, mask = padded(texts, self.config.max_seq_len)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": torch.zeros_like(ids),
        }


class LateFuseWorker:
    """Options: ``batch_size`` and ``max_tokens``, which its buffers are made for, and ``rank``."""

    def load(self, order: Load) -> None:
        torch.set_num_threads(order.threads)
        self._model = _Classifier.from_pretrained(
            order.backbone,
            lora_rank=int(order.options["rank"]),
            batch_size=int(order.options["batch_size"]),
            max_seq_len=int(order.options["max_tokens"]),
            dtype=getattr(torch, order.dtype),
            pooling="mean",
        )
        for name, folder in order.adapters.items():
            self._model.register_adapter(name, folder)
            head = load_file(Path(folder) / "head.safetensors")
            self._model.heads.load(name, head["weight"], head["bias"])

    @torch.inference_mode()
    def run(self, work: Work) -> Outcome:
        begin = time.perf_counter()
        outputs = []
        for window in work.windows():
            logits = self._model.logits(
                [row.token_ids for row in window], [str(row.adapter) for row in window]
            )
            outputs += [[row.index(max(row))] for row in logits]
        return Outcome(time.perf_counter() - begin, outputs)


if __name__ == "__main__":
    serve(LateFuseWorker())
