"""Tiny random backbones with a real byte-level tokenizer, built in the test: no download, a second at most."""

from pathlib import Path

import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
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
FOUR_HEADS = {"num_attention_heads": 4}
T5_SIZES = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
}
T5_SIZES["decoder_start_token_id"] = 0
BART_SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
}
# How each type is made: its class, its own fields of the config, and its family.
MODELS = {
    "llama": (transformers.LlamaForCausalLM, HEADS, "decoder"),
    "qwen2": (transformers.Qwen2ForCausalLM, HEADS, "decoder"),
    "qwen3": (transformers.Qwen3ForCausalLM, {**HEADS, "head_dim": 8}, "decoder"),
    "mistral": (transformers.MistralForCausalLM, {**HEADS, "sliding_window": None}, "decoder"),
    "gpt2": (transformers.GPT2LMHeadModel, {**FOUR_HEADS, "n_inner": 48}, "decoder"),
    "bert": (transformers.BertModel, FOUR_HEADS, "encoder"),
    "roberta": (transformers.RobertaModel, FOUR_HEADS, "encoder"),
    "xlm-roberta": (transformers.XLMRobertaModel, FOUR_HEADS, "encoder"),
    "distilbert": (transformers.DistilBertModel, {**FOUR_HEADS, "hidden_dim": 48}, "encoder"),
    "modernbert": (transformers.ModernBertModel, {**FOUR_HEADS, "local_attention": 16}, "encoder"),
    "t5": (transformers.T5ForConditionalGeneration, T5_SIZES, "encoder-decoder"),
    "bart": (transformers.BartForConditionalGeneration, BART_SIZES, "encoder-decoder"),
    "marian": (
        transformers.MarianMTModel,
        {**BART_SIZES, "decoder_start_token_id": 0},
        "encoder-decoder",
    ),
    "gemma": (transformers.GemmaForCausalLM, {**HEADS, "head_dim": 8}, "decoder"),
    "gpt_neox": (transformers.GPTNeoXForCausalLM, FOUR_HEADS, "decoder"),
    "olmo2": (transformers.Olmo2ForCausalLM, HEADS, "decoder"),
    "opt": (
        transformers.OPTForCausalLM,
        {**FOUR_HEADS, "ffn_dim": 48, "word_embed_proj_dim": 32},
        "decoder",
    ),
    "phi": (transformers.PhiForCausalLM, FOUR_HEADS, "decoder"),
    "phi3": (transformers.Phi3ForCausalLM, HEADS, "decoder"),
    "starcoder2": (
        transformers.Starcoder2ForCausalLM,
        {**HEADS, "sliding_window": None},
        "decoder",
    ),
    "bloom": (transformers.BloomForCausalLM, {"n_head": 4}, "decoder"),
    "gpt_neo": (
        transformers.GPTNeoForCausalLM,
        {**FOUR_HEADS, "attention_types": [[["global", "local"], 1]], "window_size": 24},
        "decoder",
    ),
    "gptj": (transformers.GPTJForCausalLM, {**FOUR_HEADS, "rotary_dim": 4}, "decoder"),
    "camembert": (transformers.CamembertModel, FOUR_HEADS, "encoder"),
    "albert": (transformers.AlbertModel, {**FOUR_HEADS, "embedding_size": 16}, "encoder"),
    "electra": (transformers.ElectraModel, {**FOUR_HEADS, "embedding_size": 16}, "encoder"),
    "mpnet": (transformers.MPNetModel, {**FOUR_HEADS, "pad_token_id": 1}, "encoder"),
    "mt5": (transformers.MT5ForConditionalGeneration, T5_SIZES, "encoder-decoder"),
    "mbart": (transformers.MBartForConditionalGeneration, BART_SIZES, "encoder-decoder"),
    "pegasus": (transformers.PegasusForConditionalGeneration, BART_SIZES, "encoder-decoder"),
}


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
    if family != "decoder":
        inner.post_processor = processors.TemplateProcessing(
            single="<|start|> $A <|end|>", special_tokens=[("<|start|>", 1), ("<|end|>", 2)]
        )
        inner.enable_truncation(20)  # as MiniLM's does: ours must not cut silently
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|pad|>", bos_token="<|start|>", eos_token="<|end|>"
    )
    if family == "decoder":
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return inner.get_vocab_size()


def save_backbone(
    folder: Path, model_type: str = "llama", seed: int = 0, sharpness: float = 1, **fields
) -> Path:
    """Write a random backbone of a type, with its tokenizer, and return its folder.

    Args:
        sharpness: what a language head's weights are multiplied by; it bounds how sure a tiny model can be of a token.
        fields: of the config, in place of those in `MODELS`.
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    kind, own, family = MODELS[model_type]
    specials = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"vocab_size": save_tokenizer(folder, family), **SIZES, **specials}
    model = kind(kind.config_class(**{**sizes, **own, **fields}))
    with torch.no_grad():  # larger than the usual start, so that differences show
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.15)
        if sharpness != 1:
            model.get_output_embeddings().weight.mul_(sharpness)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    model.save_pretrained(folder)
    return folder


def sentencepiece_tokenizer() -> Tokenizer:
    """A tokenizer of Llama 2's kind: blanks as '▁', the first one dropped, unknown characters as bytes."""
    tokens = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "b",
        "▁a",
        "▁ab",
        "北",
    ]
    merges = [("▁", "a"), ("▁a", "b")]
    inner = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens(["</s>"])
    return inner
