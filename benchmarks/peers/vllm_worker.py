"""vLLM's CPU build, in process, with LoRA slots for all adapters or without LoRA."""

from __future__ import annotations

import os
import time

from benchmarks.peers.wire import Load, Outcome, Work, serve


class VllmWorker:
    """Option ``eager``: 1 leaves torch.compile out; ``rank``: of the LoRA slots."""

    def load(self, order: Load) -> None:
        # In process, and on every thread: its own default leaves one core to a scheduler process.
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
            "OMP_NUM_THREADS": str(order.threads),
        }
        import torch
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        torch.set_num_threads(order.threads)
        lora = {"enable_lora": True, "max_loras": len(order.adapters)} if order.adapters else {}
        self._model = LLM(
            order.backbone,
            dtype=order.dtype,
            max_model_len=512,
            max_num_seqs=64,
            enforce_eager=bool(order.options["eager"]),
            enable_prefix_caching=False,  # the rows come again each round
            **(lora | {"max_lora_rank": int(order.options["rank"])} if lora else {}),
        )
        self._adapters = {
            name: LoRARequest(name, i + 1, folder)
            for i, (name, folder) in enumerate(order.adapters.items())
        }

    def run(self, work: Work) -> Outcome:
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": row.token_ids} for row in work.rows]
        sampling = [
            SamplingParams(temperature=0, max_tokens=row.max_new, ignore_eos=True, detokenize=False)
            for row in work.rows
        ]
        adapters = [self._adapters.get(row.adapter or "") for row in work.rows]
        begin = time.perf_counter()
        outputs = self._model.generate(
            prompts,
            sampling,
            lora_request=adapters if self._adapters else None,
            use_tqdm=False,
        )
        seconds = time.perf_counter() - begin
        return Outcome(seconds, [list(output.outputs[0].token_ids) for output in outputs])


if __name__ == "__main__":
    serve(VllmWorker())
