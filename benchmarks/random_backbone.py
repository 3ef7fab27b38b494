"""Backbones of a real shape with random weights: for speed they do, and nothing has to be fetched."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Llama 3.2 1B: https://huggingface.co/meta-llama/Llama-3.2-1B
LLAMA_1B = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)
SMALL = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    tie_word_embeddings=True,
)


def random_backbone(folder: Path, config: LlamaConfig) -> Path:
    """Write a seeded random backbone in bf16 with a tokenizer of bytes, unless it is there, and return its folder."""
    if not (folder / "tokenizer.json").is_file():
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        _save_tokenizer(folder)  # last: it tells that all is there
    return folder


def random_prompts(config: LlamaConfig, count: int, num_tokens: int) -> list[list[int]]:
    """Return prompts of random token ids."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, config.vocab_size, (count, num_tokens), generator=generator)
    return [list(row) for row in ids.tolist()]


def _save_tokenizer(folder: Path) -> None:
    specials = ["<|pad|>", "<|start|>", "<|end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({text: i for i, text in enumerate([*specials, *letters])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=specials[0], bos_token=specials[1], eos_token=specials[2]
    ).save_pretrained(folder)
