"""Builders of tiny judges with random weights, saved in the layouts of the genuine checkpoints."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2Model,
    DebertaV2Tokenizer,
)

from tests.tiny_models import byte_tokenizer, causal_lm_config, save_causal_lm

MARKERS = ["<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"]
# Meta-Llama-3-8B-Instruct as RLHFlow trained on it: the assistant's turn is opened unasked.
LLAMA3_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start|>' + message['role'] + '<|end|>\n\n'"
    " + message['content'] | trim + '<|eot|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{{ '<|start|>assistant<|end|>\n\n' }}"
)
REWARD_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}"
    "{{ eos_token }}{% endfor %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Name three rivers of the world. The answer is short, the answer is long.",
    "Write a poem about the sea and the sky, and say why it is blue.",
    "A candidate answers the question: yes, no, or perhaps, with a reason.",
]


@functools.cache
def spm_model() -> bytes:
    """A SentencePiece unigram model with DeBERTa's control tokens, as in its spm.model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 5),
        model_writer=model,
        vocab_size=90,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
    )
    return model.getvalue()


def deberta_config(**overrides) -> DebertaV2Config:
    """Two layers with the switches of microsoft/deberta-v3-large."""
    switches = {
        "relative_attention": True,
        "position_buckets": 16,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "max_relative_positions": -1,
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
    }
    shape = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "initializer_range": 0.3,
    }
    return DebertaV2Config(**switches | shape | overrides)


def save_deberta_tokenizer(directory: Path) -> None:
    """The files of deberta-v3's tokenizer: spm.model, and no tokenizer.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "spm.model").write_bytes(spm_model())
    settings = {"do_lower_case": False, "vocab_type": "spm"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def save_pairrm(directory: Path, *, seed: int = 0, n_tasks: int = 1, **lengths: int) -> Path:
    """llm-blender's layout: a RankerConfig and weights, and a backbone that `model_name` points to.

    `lengths`: source_maxlength, candidate_maxlength (those of llm-blender/PairRM if left out).
    """
    backbone = directory / "backbone"
    save_deberta_tokenizer(backbone)
    config = deberta_config()
    config.save_pretrained(backbone)
    size = len(AutoTokenizer.from_pretrained(backbone)) + len(MARKERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The backbone has more rows than its tokenizer has tokens, as deberta-v3-large does.
        DebertaV2Model(deberta_config(vocab_size=size + 7)).save_pretrained(backbone)
        encoder = DebertaV2Model(deberta_config(vocab_size=size))
        width = config.hidden_size
        hidden, output = nn.Linear(2 * width, width), nn.Linear(width, n_tasks)
    # Spreads the logits: near zero every preference would be 1/2.
    nn.init.normal_(output.weight, std=1.5, generator=torch.Generator().manual_seed(seed))
    parts = {"pretrained_model": encoder, "head_layer.1": hidden, "head_layer.4": output}
    weights = {
        f"{name}.{key}": tensor
        for name, part in parts.items()
        for key, tensor in part.state_dict().items()
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "ranker_type": "pairranker",
        "model_type": "deberta",
        "model_name": str(backbone),
        "cache_dir": None,
        "load_checkpoint": None,
        "source_maxlength": 1224,
        "candidate_maxlength": 412,
        "n_tasks": n_tasks,
        "num_pos": 5,
        "num_neg": 5,
        "sub_sampling_mode": "all_pair",
        "sub_sampling_ratio": 0.4,
        "loss_type": "instructgpt",
        "reduce_type": "linear",
        "inference_mode": "bubble",
        "drop_out": 0.05,
        "fp16": True,
    }
    (directory / "config.json").write_text(json.dumps(settings | lengths, indent=2))
    return directory


def save_pairrm_hf(directory: Path, pairrm: Path) -> Path:
    """The layout of PairRM-hf, with the weights of a checkpoint in llm-blender's layout."""
    directory.mkdir(parents=True)
    settings = json.loads((pairrm / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(pairrm / "backbone")
    tokenizer.add_tokens(MARKERS)
    tokenizer.save_pretrained(directory)
    fields = ["source_prefix_id", "cand1_prefix_id", "cand2_prefix_id", "cand_prefix_id"]
    config = deberta_config(
        vocab_size=len(tokenizer),
        n_tasks=settings["n_tasks"],
        drop_out=settings["drop_out"],
        sep_token_id=tokenizer.sep_token_id,
        architectures=["DebertaV2PairRM"],
        **dict(zip(fields, tokenizer.convert_tokens_to_ids(MARKERS), strict=True)),
    )
    config.save_pretrained(directory)
    (directory / "model.safetensors").write_bytes((pairrm / "model.safetensors").read_bytes())
    return directory


def save_pair_preference(directory: Path, *, seed: int = 0, length: int = 2048) -> Path:
    """A Llama with the chat template of RLHFlow/pair-preference-model-LLaMA3-8B."""
    return save_causal_lm(
        directory,
        "llama",
        tokenizer=byte_tokenizer(chat_template=LLAMA3_TEMPLATE),
        seed=seed,
        max_position_embeddings=length,
    )


def save_reward_model(
    directory: Path, architecture: str = "mistral", *, seed: int = 0, pad: bool = True, length=2048
) -> Path:
    """A sequence classifier with one output.

    A causal architecture has a chat template and, if `pad`, a padding token; `deberta` has no
    template, as OpenAssistant/reward-model-deberta-v3-large-v2.
    """
    if architecture == "deberta":
        save_deberta_tokenizer(directory)
        tokenizer = DebertaV2Tokenizer.from_pretrained(directory)
        config = deberta_config(vocab_size=len(tokenizer), num_labels=1)
    else:
        tokenizer = byte_tokenizer(chat_template=REWARD_TEMPLATE, pad=pad)
        tokenizer.save_pretrained(directory)
        config = causal_lm_config(
            architecture, len(tokenizer), max_position_embeddings=length, num_labels=1
        )
        config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    return directory
