"""Tiny random backbones with a real byte-level tokenizer, built in the test: no download, a second at most."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps in the warm sun.",
    "Ada Lovelace wrote the first program in 1843. Grace Hopper built the first compiler.",
    "A bad film with a weak plot; a good film with a strong cast. Wonderful, dull, moving, flat.",
    "北京是中国的首都。L'été à Zürich est très agréable, naïve café.",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def save_tokenizer(folder: Path, family: str) -> int:
    """Write a tokenizer and return its vocabulary size."""
    specials = ["<|pad|>", "<|start|>", "<|end|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    if family == "encoder":
        inner.post_processor = processors.TemplateProcessing(
            single="<|start|> $A <|end|>", special_tokens=[("<|start|>", 1), ("<|end|>", 2)]
        )
        inner.enable_truncation(20)  # as MiniLM's does: ours must not cut silently
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|pad|>", bos_token="<|start|>", eos_token="<|end|>"
    )
    if family == "decoder":
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return inner.get_vocab_size()


def save_backbone(folder: Path, model_type: str = "llama", seed: int = 0) -> Path:
    """Write a random backbone of a type, with its tokenizer, and return its folder."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = save_tokenizer(folder, "encoder" if model_type == "bert" else "decoder")
    common = {
        **SIZES,
        "vocab_size": vocab_size,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**common, **HEADS)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**common, **HEADS)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**common, **HEADS, head_dim=8)),
        "bert": lambda: BertModel(BertConfig(**common, num_attention_heads=4)),
    }[model_type]()
    with torch.no_grad():  # larger than the usual start, so that differences show
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    return folder
