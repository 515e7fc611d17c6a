from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from games.errors import InputError
from llm.config.loading import load_config
from llm.config.schema import LoraConfig, ModelConfig
from llm.data.examples import read_examples
from llm.data.prompts import load_prompts
from llm.embedded import HERE, directory, game, grammar, resolve
from llm.embedded.build import (
    DATA_KL,
    DATA_STYLES,
    GAME_ANSWERS,
    build_game_answers,
    build_text,
    build_text_answers,
    even_draws,
    game_preference,
    style_shares,
)
from llm.embedded.judges import JUDGES, STYLE_GAME, embedded_judge, style_table
from llm.judges.build import build_judge
from llm.policy.log_probs import PromptResponse
from llm.policy.model import Policy
from solvers.arrays import logsumexp, normalize
from solvers.loop import kl_divergence

FACTS = json.loads((HERE / "text" / "training.json").read_text())

# --- grammar --------------------------------------------------------------------------------------

topics = st.sampled_from(sorted(grammar.TOPICS))
forms, styles = st.integers(0, 5), st.integers(0, 2)


@given(topics, forms, styles, st.integers(0, 1000))
def test_every_answer_is_recognized_in_its_style_and_on_its_topic(topic, form, style, seed) -> None:
    text = grammar.answer(topic, form, style, np.random.default_rng(seed))
    prompt = grammar.PROMPTS[form].format(topic)
    assert grammar.topic_of(prompt) == topic
    assert grammar.style_of(prompt, text) == style
    other = next(name for name in grammar.TOPICS if name != topic and name not in text)
    assert grammar.style_of(grammar.PROMPTS[form].format(other), text) == grammar.OTHER


@pytest.mark.parametrize("text", ["", "tea", "tea tea tea", "I think that coffee can be hot and"])
def test_what_is_none_of_the_styles_is_other(text: str) -> None:
    assert grammar.style_of("Tell me about tea.", text) == grammar.OTHER


def test_there_are_144_different_prompts_as_shipped() -> None:
    shipped = (HERE / "text" / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in shipped] == list(grammar.prompts())
    assert len(set(grammar.prompts())) == 144


# --- judges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(JUDGES))
def test_an_embedded_judge_is_a_judge(name: str) -> None:
    if name == "game":
        prompts, responses = ["ab", "ba"], [["aaa", "bcd", "eee"], ["abc", "abc", "cba"]]
    else:
        prompts = ["Tell me about tea.", "Describe rain to a friend."]
        rng = np.random.default_rng(0)
        responses = [
            [grammar.answer(topic, 0, style, rng) for style in (0, 1, 2)]
            for topic in ("tea", "rain")
        ]
    preference = build_judge("embedded", name)(prompts, responses)
    assert preference.shape == (2, 3, 3)
    assert np.ptp(preference[0]) > 0.1


def test_the_styles_beat_each_other_in_a_circle() -> None:
    rng = np.random.default_rng(0)
    answers = [[grammar.answer("tea", 0, style, rng) for style in (0, 1, 2)] + ["nonsense"]]
    preference = embedded_judge("styles")(["Tell me about tea."], answers)[0]
    assert np.array_equal(preference, STYLE_GAME.payoff)
    beats = preference > 0.5
    assert beats[0, 1]
    assert beats[1, 2]
    assert beats[2, 0]
    assert beats[:3, 3].all()


def test_the_length_judge_likes_more_words() -> None:
    preference = embedded_judge("length")(["x"], [["a", "a b c", "a b c d e f"]])[0]
    assert preference[0, 1] < 0.5 < preference[2, 1]


def test_an_unknown_embedded_name_is_answered_with_the_known() -> None:
    with pytest.raises(InputError, match="game, styles, length"):
        embedded_judge("taste")
    with pytest.raises(InputError, match=r"embedded:poem: .*choose from game, text"):
        directory("embedded:poem")


def test_embedded_names_become_paths_and_others_stay() -> None:
    resolved = resolve(load_config("smoke-7b-shape", ["data.path=mine.jsonl"]))
    assert resolved.model.path == str(HERE / "text")
    assert resolved.model.random_from_config == str(HERE / "mistral-7b")
    assert resolved.data.path == "mine.jsonl"
    game_data = resolve(load_config("embedded-game")).data
    assert game_data.path == str(HERE / "game" / "prompts.jsonl")
    answered = resolve(load_config("embedded-game", ["data.answer=answer"])).data
    assert answered == replace(
        game_data, path=str(HERE / "game" / "answers.jsonl"), answer="answer"
    )


def test_there_are_400_different_instructions_of_5_to_25_words() -> None:
    config = resolve(load_config("embedded-text", ["data.path=embedded:instructions"]))
    prompts = [
        row["prompt"] for row in map(json.loads, Path(config.data.path).read_text().splitlines())
    ]
    assert len(prompts) == 400
    assert len({" ".join(prompt.lower().split()) for prompt in prompts}) == 400
    assert all(5 <= len(prompt.split()) <= 25 for prompt in prompts)
    # No series from a template: the first four words of a prompt begin at most five.
    starts = Counter(" ".join(prompt.split()[:4]) for prompt in prompts)
    assert max(starts.values()) <= 5
    assert len(read_examples(config.data)) == 400


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=embedded:instructions", "model.path=.*prompts without a model; choose"),
        ("model.path=embedded:mistral-7b", "model.path=.*without weights; choose"),
        ("data.path=embedded:mistral-7b", "data.path=.*configuration without weights; choose"),
        ("data.path=embedded:instructions", "data.answer=answer: .* has only prompts"),
    ],
)
def test_embedded_names_of_the_wrong_kind_are_refused(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        resolve(load_config("embedded-text", ["data.answer=answer", override]))
    assert "\n" not in str(refusal.value)


# --- the game -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def game_policy() -> Policy:
    return Policy.load(ModelConfig(path=str(HERE / "game"), device="cpu"), LoraConfig(rank=2))


def test_the_responses_of_the_game_have_all_the_mass(game_policy: Policy) -> None:
    prompts = game_policy.tokenizer(list(game.PROMPTS))["input_ids"]
    every = [PromptResponse(p, r) for p in prompts for r in game.responses()]
    logp = game_policy.log_probs(every, batch_size=250).double().view(2, 125)
    # Sums of 125 float32 probabilities.
    assert logsumexp(logp).abs().max() < 1e-5
    # Far from uniform (log 125 = 4.83), or there would be nothing to regularize towards.
    entropy = -(logp.exp() * logp).sum(-1)
    assert entropy.max() < 4.5


def test_a_response_has_its_number(game_policy: Policy) -> None:
    texts = [game_policy.tokenizer.decode(tokens) for tokens in game.responses()]
    assert [game.number_of(text) for text in texts] == list(range(125))


def test_the_preference_is_intransitive_and_not_bradley_terry() -> None:
    payoff = game.preference().payoff
    assert payoff.shape == (2, 125, 125)
    assert not np.allclose(payoff[0], payoff[1])
    logit = np.log(payoff) - np.log1p(-payoff)
    # Bradley-Terry logits add up along a path; a cycle does not.
    around = logit[:, :, :, None] + logit[:, None, :, :]
    assert np.abs(around - logit[:, :, None, :]).max() > 1
    better = payoff > 0.5
    assert (better @ better @ better).diagonal(axis1=1, axis2=2).any()


def test_the_shipped_preference_is_the_one_that_is_built() -> None:
    rng = np.random.default_rng(0)
    rng.normal(size=(2, 125))  # the target that the model was trained towards
    built = game_preference(np.array(game.responses()), rng)
    # Stored as float32.
    assert np.abs(built - game.preference().payoff).max() < 1e-6


# --- dataset responses ----------------------------------------------------------------------------


def rows_of(directory: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (directory / "answers.jsonl").read_text().splitlines()]


def counts(rows: list[dict[str, str]], field: str) -> np.ndarray:
    """(prompts, n): how often each response of the game stands in a field."""
    table = np.zeros((len(game.PROMPTS), len(game.responses())), int)
    for row in rows:
        table[game.PROMPTS.index(row["prompt"]), game.number_of(row[field])] += 1
    return table


@given(st.integers(1, 30), st.integers(1, 200), st.integers(0, 1000))
def test_even_draws_are_proportional_up_to_one(n: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logp = normalize(2 * rng.normal(size=n))
    drawn = even_draws(logp, count, rng)
    # Rounding of the cumulative sum moves no more than a place that falls on a boundary.
    off = np.abs(np.bincount(drawn, minlength=n) - count * np.exp(logp))
    assert off.max() < 1 + 1e-9
    assert len(drawn) == count


def test_the_order_of_even_draws_is_random() -> None:
    logp = np.log([0.25, 0.75])
    drawn = even_draws(logp, 4000, np.random.default_rng(0))
    # The first half has as many of the rarer as the second: 4 standard errors of 500 of 1000.
    assert abs((drawn[:2000] == 0).sum() - 500) < 4 * np.sqrt(4000 * 0.25 * 0.75) / 2


def test_the_answers_of_the_game_have_the_stored_distribution(game_policy: Policy) -> None:
    rows, logp_data = rows_of(HERE / "game"), game.data()
    assert [row["prompt"] for row in rows[:4]] == [*game.PROMPTS, *game.PROMPTS]
    assert logp_data.shape == (2, 125)
    assert np.abs(logsumexp(logp_data)).max() < 1e-12
    assert np.abs(counts(rows, "answer") - GAME_ANSWERS * np.exp(logp_data)).max() < 1
    # In the order of the file too: 4 standard errors of a share of 256 answers.
    first = counts(rows[:512], "answer") / 256
    assert (np.abs(first - np.exp(logp_data)) < 4 * np.exp(logp_data / 2) / 16 + 1 / 256).all()
    asked = game_policy.tokenizer(list(game.PROMPTS))["input_ids"]
    every = [PromptResponse(p, r) for p in asked for r in game.responses()]
    logp_model = game_policy.log_probs(every, batch_size=250, adapter=False).double().numpy()
    logp_model = logp_model.reshape(2, 125)
    # float32 log-probabilities, which another machine rounds otherwise.
    assert np.abs(kl_divergence(logp_data, logp_model) - DATA_KL).max() < 1e-4
    assert np.abs(counts(rows, "rejected") - GAME_ANSWERS * np.exp(logp_model)).max() < 1.01
    # Answers and rejected ones are paired at random: equal ones as often as chance has it.
    equal = np.mean([row["answer"] == row["rejected"] for row in rows])
    chance = np.exp(logp_data + logp_model).sum(1).mean()
    assert abs(equal - chance) < 4 * np.sqrt(chance / len(rows))


def test_the_shipped_answers_are_the_ones_that_are_built(tmp_path: Path) -> None:
    shutil.copytree(HERE / "game", tmp_path / "game")
    build_game_answers(tmp_path / "game")
    built = rows_of(tmp_path / "game")
    # The model rounds otherwise on another machine: a draw at a boundary may move.
    for field in ("answer", "rejected"):
        moved = np.abs(counts(built, field) - counts(rows_of(HERE / "game"), field))
        assert moved.sum() <= 4
    build_text_answers(tmp_path)
    for name in ("answers.jsonl", "answers.json"):
        assert (tmp_path / name).read_text() == (HERE / "text" / name).read_text()


def test_the_answers_of_the_text_model_are_in_other_styles() -> None:
    rows = rows_of(HERE / "text")
    prompts = list(grammar.prompts())
    assert [row["prompt"] for row in rows] == prompts * len(DATA_STYLES)
    facts = json.loads((HERE / "text" / "answers.json").read_text())
    shares = {}
    for field in ("answer", "rejected"):
        kinds = [grammar.style_of(row["prompt"], row[field]) for row in rows]
        shares[field] = np.bincount(kinds, minlength=len(grammar.STYLES)) / len(rows)
    assert shares["answer"].tolist() == facts["shares"] == [0.2, 0.2, 0.6]
    # 4 standard errors of 720 draws.
    error = np.sqrt(np.multiply(grammar.SHARES, np.subtract(1, grammar.SHARES)) / len(rows))
    assert (np.abs(shares["rejected"] - grammar.SHARES) < 4 * error).all()


@pytest.mark.parametrize("name", ["game", "text"])
def test_embedded_answers_are_encoded_as_the_model_generates(name: str) -> None:
    words = ["data.answer=answer", "data.rejected=rejected"]
    config = resolve(load_config(f"embedded-{name}", words))
    policy = Policy.load(config.model, LoraConfig(rank=2))
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    stop_ids = [i for i in policy.stop_ids if i < vocabulary]
    examples = read_examples(config.data)
    prompts = load_prompts(
        config.data, policy.tokenizer, seed=0, stop_ids=stop_ids, examples=examples
    )
    rows = rows_of(HERE / name)
    assert len(prompts.folds[0]) == len(examples) == len(rows)
    taken = {(p.text, *p.answer_texts) for p in prompts.folds[0]}
    assert taken == {(r["prompt"], r["answer"], r["rejected"]) for r in rows}
    for prompt in prompts.folds[0][:50]:
        for text, answer in zip(prompt.answer_texts, prompt.answers, strict=True):
            content = answer if name == "game" else answer[:-1]
            assert policy.tokenizer.decode(list(content)) == text
            assert (answer[-1] in policy.stop_ids) == (name == "text")
            # The game's end-of-sequence token has no row: its answers are three symbols.
            assert max(answer) < vocabulary


# --- the text model -------------------------------------------------------------------------------


def test_the_text_model_is_small_and_mostly_speaks_in_style() -> None:
    assert (HERE / "text" / "model.safetensors").stat().st_size < 1.2e6
    assert FACTS["shares"][grammar.OTHER] < 0.03
    # The corpus shares, as far as 2,880 answers tell (three standard errors of 0.008).
    assert np.abs(np.array(FACTS["shares"][:3]) - grammar.SHARES).max() < 0.025


@pytest.mark.slow
def test_the_text_model_is_rebuilt_to_the_same_loss(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    loss = build_text(tmp_path)
    # Another machine rounds otherwise, and training spreads that; the issue asks for 5 %.
    assert loss == pytest.approx(FACTS["loss"], rel=0.05)


@pytest.mark.slow
def test_the_shares_are_those_of_the_shipped_model() -> None:
    # Sampling is repeatable, up to rounding that may tip a token.
    assert style_shares(HERE / "text") == pytest.approx(FACTS["shares"], abs=0.01)


def test_a_style_table_has_a_number_for_every_response() -> None:
    rng = np.random.default_rng(1)
    row = [grammar.answer("tea", 2, style, rng) for style in (2, 0, 1)]
    assert style_table(["Why do people like tea?"], [row]).tolist() == [[2, 0, 1]]
