"""Builders of tiny genuine checkpoints: a real tokenizer and a real model, as they are saved."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
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


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}


def save_gguf(source: Path, file: Path, *, quantized: bool = False) -> Path:
    """Writes the llama checkpoint in `source` as llama.cpp does, in float32 or Q8_0."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if id in tokenizer.all_special_ids else gguf.TokenType.NORMAL
            for id in range(len(tokenizer))
        ]
    )
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }
    for name, weight in model.state_dict().items():
        table = weight.float().numpy()
        for projection, count in heads.items():
            if projection in name:  # llama.cpp rotates neighbouring pairs, transformers halves
                halves = table.reshape(count, 2, -1, table.shape[1])
                table = halves.swapaxes(1, 2).reshape(table.shape)
        for ours, theirs in GGUF_NAMES.items():
            name = name.replace(ours, theirs)
        kind = gguf.GGMLQuantizationType.Q8_0 if quantized and table.ndim == 2 else None
        if kind is not None:
            table = gguf.quantize(np.ascontiguousarray(table), kind)
        writer.add_tensor(name, np.ascontiguousarray(table), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
