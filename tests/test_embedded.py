from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from games.errors import InputError
from llm.config import LoraConfig, ModelConfig, load_config
from llm.embedded import HERE, directory, game, grammar, resolve
from llm.embedded.build import build_text, game_preference, style_shares
from llm.embedded.judges import JUDGES, STYLE_GAME, embedded_judge, style_table
from llm.judges import build_judge
from llm.policy import Completion, Policy
from solvers.arrays import logsumexp

FACTS = json.loads((HERE / "text" / "training.json").read_text())

# --- grammar --------------------------------------------------------------------------------------

topics = st.sampled_from(sorted(grammar.TOPICS))
forms, styles = st.integers(0, 5), st.integers(0, 2)


@given(topics, forms, styles, st.integers(0, 1000))
def test_every_answer_is_recognised_in_its_style_and_on_its_topic(topic, form, style, seed) -> None:
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
    preference = build_judge("embedded", embedded_judge(name))(prompts, responses)
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
    with pytest.raises(InputError, match="embedded:game, embedded:text"):
        directory("embedded:poem")


def test_embedded_names_become_paths_and_others_stay() -> None:
    resolved = resolve(load_config("smoke-7b-shape", ["data.path=mine.jsonl"]))
    assert resolved.model.path == str(HERE / "text")
    assert resolved.model.random_from_config == str(HERE / "mistral-7b")
    assert resolved.data.path == "mine.jsonl"


# --- the game -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def game_policy() -> Policy:
    return Policy.load(ModelConfig(path=str(HERE / "game"), device="cpu"), LoraConfig(rank=2))


def test_the_responses_of_the_game_have_all_the_mass(game_policy: Policy) -> None:
    prompts = game_policy.tokenizer(list(game.PROMPTS))["input_ids"]
    every = [Completion(p, r) for p in prompts for r in game.responses()]
    logp = game_policy.score(every, batch_size=250).double().view(2, 125)
    # Sums of 125 float32 probabilities.
    assert logsumexp(logp).abs().max() < 1e-5
    # Far from uniform (log 125 = 4.83), or there would be nothing to regularise towards.
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
