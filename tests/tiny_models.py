"""Builders of tiny genuine checkpoints: a real tokenizer and a real model, as they are saved."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Name three rivers. The answer is short, the answer is long.",
    "Write a poem about the sea, and say why it is blue.",
]


def byte_tokenizer(
    *,
    vocab_size: int = 300,
    chat_template: str | None = CHAT_TEMPLATE,
    eos: bool = True,
    pad: bool = True,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with <s>, </s>, <pad> that puts <s> in front, trained on three sentences."""
    special = {"bos_token": "<s>"}
    if eos:
        special["eos_token"] = "</s>"
    if pad:
        special["pad_token"] = "<pad>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(special.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=chat_template, **special
    )


def symbol_tokenizer(symbols: str = "abc") -> PreTrainedTokenizerFast:
    """One token per character, <s> (put in front) and </s>: responses that can be enumerated."""
    vocabulary = {"<s>": 0, "</s>": 1} | {symbol: 2 + i for i, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=symbols[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def causal_lm_config(architecture: str, vocab_size: int, **overrides):
    """A two-layer configuration of a transformers architecture: mistral, llama, qwen2, gpt2, ..."""
    if architecture == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    else:
        shape = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "tie_word_embeddings": False,
        }
    # The usual 0.02 makes every distribution near uniform, which hides mistakes.
    settings = shape | {"initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1} | overrides
    return AutoConfig.for_model(architecture, vocab_size=vocab_size, **settings)


def save_causal_lm(
    directory: Path,
    architecture: str = "mistral",
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    generation: dict | None = None,
    **overrides,
) -> Path:
    """Writes a random causal LM and its tokenizer; `generation` goes to generation_config.json."""
    tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings = {"vocab_size": len(tokenizer)} | special | overrides
    config = causal_lm_config(architecture, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(dtype)
    for name, value in (generation or {}).items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
