"""Scoring by stock PEFT and by merged models; heads of unequal width are applied by hand, each row its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from benchmarks.peers.heads import padded, read_head
from benchmarks.peers.peft_worker import with_adapters
from benchmarks.peers.wire import Load, Outcome, Work, WorkRow, serve


class ScoringWorker:
    """Option ``mode``: ``names`` runs a window as one mixed batch, ``switch`` groups it by adapter and switches
    to each, ``merged`` groups it by adapter and has a model of its own for each.

    PEFT's own heads (``modules_to_save``) would have to be of one width to share a batch; here they stay outside.
    """

    def load(self, order: Load) -> None:
        torch.set_num_threads(order.threads)
        self._heads = {name: read_head(folder) for name, folder in order.adapters.items()}
        dtype = getattr(torch, order.dtype)
        self._is_mixed = order.options["mode"] == "names"
        if order.options["mode"] == "merged":
            self._models = {
                name: _inner(_merged(_base(order.backbone, dtype), folder))
                for name, folder in order.adapters.items()
            }
        else:
            self._models = {}
            self._peft = with_adapters(_base(order.backbone, dtype), order.adapters)

    @torch.inference_mode()
    def run(self, work: Work) -> Outcome:
        score = self._score_mixed if self._is_mixed else self._score_grouped
        begin = time.perf_counter()
        outputs = [output for window in work.windows() for output in score(window)]
        return Outcome(time.perf_counter() - begin, outputs)

    def _score_mixed(self, rows: list[WorkRow]) -> list[list[int]]:
        names = [row.adapter for row in rows]
        # Around the model without its language head, which `PeftModel.forward` would run for nothing.
        with self._peft._enable_peft_forward_hooks(adapter_names=names):
            return self._labels(rows, _inner(self._peft.get_base_model()))

    def _score_grouped(self, rows: list[WorkRow]) -> list[list[int]]:
        groups: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(str(row.adapter), []).append(i)
        outputs: list[list[int]] = [[] for _ in rows]
        for name, places in groups.items():
            labels = self._labels([rows[i] for i in places], self._model_of(name))
            for i, label in zip(places, labels, strict=True):
                outputs[i] = label
        return outputs

    def _model_of(self, name: str) -> Callable[..., Any]:
        if name in self._models:
            return self._models[name]
        self._peft.set_adapter(name)
        return _inner(self._peft.get_base_model())

    def _labels(self, rows: list[WorkRow], model: Callable[..., Any]) -> list[list[int]]:
        ids, mask = padded([row.token_ids for row in rows])
        hidden_BTD: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return [
            [self._heads[str(row.adapter)].label(hidden_BTD[i, : len(row.token_ids)])]
            for i, row in enumerate(rows)
        ]


def _base(folder: str, dtype: torch.dtype) -> torch.nn.Module:
    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "bert":
        return AutoModel.from_pretrained(folder, dtype=dtype, add_pooling_layer=False).eval()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.config.use_cache = False
    return model


def _inner(model: Any) -> Callable[..., Any]:
    """Return the part that gives hidden states."""
    return model.model if hasattr(model, "lm_head") else model


def _merged(base: torch.nn.Module, folder: str) -> torch.nn.Module:
    return PeftModel.from_pretrained(base, folder).merge_and_unload().eval()


if __name__ == "__main__":
    serve(ScoringWorker())
