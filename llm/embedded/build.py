"""Builds the embedded models: `python -m llm.embedded.build text|game DIR`.

text  a byte-level BPE Mistral with 0.3 million parameters, trained from scratch on `grammar`; about
      a minute of CPU time
game  a Mistral over five symbols, trained towards a random distribution over its 125 responses to
      each of two prompts, and a non-transitive preference between them

Both include chosen responses for SPIN and rejected ones for DPO; `text-answers` and `game-answers`
write only these, for a model that is already in DIR.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from scipy.optimize import brentq
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from games import zoo
from llm.config.schema import DataConfig, ModelConfig, SampleConfig
from llm.data.prompts import load_prompts
from llm.embedded import game, grammar
from llm.embedded.judges import style_table
from llm.policy.loading import seeded
from llm.policy.log_probs import PromptResponse, collate, sequence_log_probs
from llm.policy.model import Policy
from llm.sampling.transformers_engine import sample
from solvers.arrays import normalize
from solvers.loop import kl_divergence

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# Styles of the five responses to each prompt; the text model itself prefers the first style.
DATA_STYLES = (0, 1, 2, 2, 2)
DATA_KL = 0.5  # nats from the game's data distribution to its model
GAME_ANSWERS = 1024  # responses per prompt


# ------------------------------------------------------------------ text


def build_text(directory: Path, *, seed: int = 0, steps: int = 400, batch_size: int = 64) -> float:
    """Trains the text model and saves it; returns its mean loss in nats per token on new texts."""
    rng = np.random.default_rng(seed)
    tokenizer: Any = text_tokenizer(rng)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=None,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(seed, torch.device("cpu")):
        model = MistralForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 4e-3, total_steps=steps, pct_start=0.1
    )
    for step in range(steps):
        loss = -_mean_token_log_prob(model, tokenizer, batch_size, rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)
    with torch.no_grad():
        fresh = np.random.default_rng(seed + 1)
        loss = -_mean_token_log_prob(model, tokenizer, 1024, fresh).item()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _write_prompts(directory, grammar.prompts())
    build_text_answers(directory, seed=seed)
    facts = {"seed": seed, "steps": steps, "batch_size": batch_size, "loss": loss}
    facts["shares"] = style_shares(directory)
    (directory / "training.json").write_text(json.dumps(facts) + "\n")
    return loss


def build_text_answers(directory: Path, *, seed: int = 0) -> None:
    """Writes five responses per prompt in DATA_STYLES, and rejected ones in the model's styles."""
    rng = np.random.default_rng(seed)
    asked = [(topic, form) for topic in grammar.TOPICS for form in range(len(grammar.PROMPTS))]
    styles = rng.permuted(np.tile(DATA_STYLES, (len(asked), 1)), axis=1)
    rows = []
    # Each pass over the prompts writes one response per prompt, so the file is balanced throughout.
    for chosen in styles.T:
        for (topic, form), style in zip(asked, chosen, strict=True):
            other = rng.choice(len(grammar.STYLES), p=grammar.SHARES)
            answers = [grammar.answer(topic, form, int(kind), rng) for kind in (style, other)]
            rows.append((grammar.PROMPTS[form].format(topic), *answers))
    _write_answers(directory, rows)
    shares = np.bincount(DATA_STYLES) / len(DATA_STYLES)
    facts = {"seed": seed, "answers_per_prompt": len(DATA_STYLES), "shares": shares.tolist()}
    (directory / "answers.json").write_text(json.dumps(facts) + "\n")


def style_shares(directory: Path, samples: int = 20) -> list[float]:
    """Frequencies of the styles in the model's responses, smoothed so that none is zero."""
    policy = Policy.load(ModelConfig(path=str(directory), device="cpu"))
    data = DataConfig(path=str(directory / "prompts.jsonl"))
    (asked,) = load_prompts(data, policy.tokenizer, seed=0).folds
    settings = SampleConfig(max_new_tokens=80, batch_size=144)
    drawn = sample(policy, [p.token_ids for p in asked], samples, settings, key=(0,))
    texts = [[response.text for response in row] for row in drawn]
    kinds = style_table([prompt.text for prompt in asked], texts)
    counts = np.bincount(kinds.ravel(), minlength=len(grammar.STYLES) + 1) + 0.5
    return (counts / counts.sum()).tolist()


def text_tokenizer(rng: np.random.Generator, vocab_size: int = 384) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the grammar, with a chat template."""
    roles = ["<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [text for pair in grammar.corpus(2000, rng) for text in pair],
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<pad>", "<s>", "</s>", *roles],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=roles,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _mean_token_log_prob(model, tokenizer, n: int, rng: np.random.Generator) -> torch.Tensor:
    completions = [_completion(tokenizer, *pair) for pair in grammar.corpus(n, rng)]
    batch = collate(completions, tokenizer.pad_token_id)
    return sequence_log_probs(model, batch).sum() / batch["response_mask"].sum()


def _completion(tokenizer, prompt: str, answer: str) -> PromptResponse:
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return PromptResponse(prompt_ids, [*answer_ids, tokenizer.eos_token_id])


def _write_prompts(directory: Path, prompts) -> None:
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts]
    (directory / "prompts.jsonl").write_text("".join(lines))


def _write_answers(directory: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    fields = ("prompt", "answer", "rejected")
    lines = [json.dumps(dict(zip(fields, row, strict=True))) + "\n" for row in rows]
    (directory / "answers.jsonl").write_text("".join(lines))


# ------------------------------------------------------------------ game


def build_game(directory: Path, *, seed: int = 0, steps: int = 300) -> float:
    """Trains the game's model and draws its preference; returns the mean KL(target‖model).

    The vocabulary of the model is exactly the five symbols. The end-of-sequence token has no row in
    its embeddings, so every response has exactly three symbols, and the probabilities of all 125
    responses sum to one.
    """
    rng = np.random.default_rng(seed)
    tokenizer: Any = game_tokenizer()
    config = MistralConfig(
        vocab_size=len(game.SYMBOLS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with seeded(seed, torch.device("cpu")):
        model = MistralForCausalLM(config)
    prompt_ids = tokenizer(list(game.PROMPTS))["input_ids"]
    responses = game.responses()
    completions = [
        PromptResponse(prompt, response) for prompt in prompt_ids for response in responses
    ]
    batch = collate(completions, tokenizer.pad_token_id)
    target = torch.tensor(normalize(rng.normal(size=(len(game.PROMPTS), len(responses)))))
    target = target.float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    loss = torch.tensor(float("nan"))
    for step in range(steps):
        logp = sequence_log_probs(model, batch).view_as(target)
        loss = (target.exp() * (target - logp)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:4d}  KL(target|model) {loss.item():.4f}", flush=True)
    preference = game_preference(np.array(responses), rng)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _write_prompts(directory, game.PROMPTS)
    save_file({"payoff": preference.astype(np.float32)}, directory / "preference.safetensors")
    build_game_answers(directory, seed=seed)
    return loss.item()


def game_preference(responses: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, 3) symbols -> (prompts, n, n): half Bradley-Terry, half a cycle of first symbols."""
    rewards = game_rewards(responses, rng)
    orders = np.stack([rng.permutation(len(game.SYMBOLS))[responses[:, 0]] for _ in game.PROMPTS])
    cycle = zoo.cyclic(len(game.SYMBOLS)).payoff[orders[:, :, None], orders[:, None, :]]
    return 0.5 * zoo.bradley_terry(rewards).payoff + 0.5 * cycle


def game_rewards(responses: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, 3) symbols -> (prompts, n): a sum of random rewards per symbol and position."""
    rewards = rng.normal(size=(len(game.PROMPTS), game.LENGTH, len(game.SYMBOLS)))
    return np.stack([rewards[:, i, responses[:, i]] for i in range(game.LENGTH)]).sum(0)


def build_game_answers(directory: Path, *, seed: int = 0) -> None:
    """Writes responses from a stored distribution at a known KL divergence from the model.

    The distribution is ∝ model · exp(s · reward), with s such that KL(data‖model) = DATA_KL for
    each prompt. The rejected responses are drawn from the model.
    """
    rng = np.random.default_rng([seed, 1])  # independent of the stream of build_game
    policy = Policy.load(ModelConfig(path=str(directory), device="cpu"))
    asked: Any = policy.tokenizer(list(game.PROMPTS))["input_ids"]
    every = [PromptResponse(prompt, response) for prompt in asked for response in game.responses()]
    scored = policy.log_probs(every, batch_size=len(every), adapter=False)
    logp_model = normalize(scored.double().numpy().reshape(len(game.PROMPTS), -1))
    rewards = game_rewards(np.array(game.responses()), rng)
    logp_data = np.stack([_tilted(*rows) for rows in zip(logp_model, rewards, strict=True)])
    save_file({"logp_data": logp_data}, directory / "answers.safetensors")
    texts = ["".join(game.SYMBOLS[i] for i in response) for response in game.responses()]
    drawn = [
        [even_draws(logp, GAME_ANSWERS, rng) for logp in rows] for rows in (logp_data, logp_model)
    ]
    rows = [
        (prompt, texts[drawn[0][i][k]], texts[drawn[1][i][k]])
        for k in range(GAME_ANSWERS)
        for i, prompt in enumerate(game.PROMPTS)
    ]
    _write_answers(directory, rows)


def _tilted(logp: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """(n,), (n,) -> (n,): log-probabilities ∝ π exp(s r), with s > 0 such that KL = DATA_KL."""

    def excess(scale: float) -> float:
        return float(kl_divergence(normalize(logp + scale * rewards), logp)) - DATA_KL

    return normalize(logp + brentq(excess, 0.0, 10.0, xtol=1e-12) * rewards)


def even_draws(logp: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) -> (count,): indices in random order, each count·π times, rounded up or down.

    With independent draws the empirical distribution would have an expected KL divergence of
    n / (2 count) nats from the exact one.
    """
    cumulative = np.cumsum(np.exp(logp))
    places = (np.arange(count) + rng.random()) / count * cumulative[-1]
    return rng.permutation(np.searchsorted(cumulative, places, side="right"))


def game_tokenizer() -> PreTrainedTokenizerFast:
    """One token per symbol."""
    vocabulary = {symbol: i for i, symbol in enumerate(game.SYMBOLS)} | {"</s>": len(game.SYMBOLS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=game.SYMBOLS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )


BUILDERS = {
    "text": build_text,
    "text-answers": build_text_answers,
    "game": build_game,
    "game-answers": build_game_answers,
}


def main() -> None:
    """Writes one of the two models, or only its responses, to a directory."""
    parser = argparse.ArgumentParser(description="Build the models included in the package.")
    parser.add_argument("which", choices=BUILDERS)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    BUILDERS[arguments.which](arguments.directory)


if __name__ == "__main__":
    main()
