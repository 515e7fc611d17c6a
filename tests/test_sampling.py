from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from games.errors import InputError
from llm.config.schema import LoraConfig, ModelConfig, SampleConfig
from llm.policy import prompt_cache
from llm.policy.log_probs import PromptResponse
from llm.policy.model import Policy
from llm.sampling.engine import Response, on_policy
from llm.sampling.transformers_engine import sample
from tests.tiny_models import byte_tokenizer, save_causal_lm, symbol_tokenizer

# What checkpoints ship in generation_config.json; none of it may reach a sample.
LEFTOVERS = {
    "do_sample": True,
    "temperature": 0.3,
    "top_p": 0.5,
    "top_k": 2,
    "repetition_penalty": 1.5,
    "min_new_tokens": 2,
    "num_beams": 2,
    "bad_words_ids": [[2]],
    "suppress_tokens": [3],
}
PROMPTS = [[0, 2], [0, 3, 2, 4, 3, 3]]
VOCABULARY = 5  # <s>, </s>, a, b, c
EOS = 1


def moved(policy: Policy) -> Policy:
    """The policy with an adapter away from zero, so that π_θ is not μ."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return policy


def load(path: Path) -> Policy:
    settings = ModelConfig(path=str(path), device="cpu")
    return moved(Policy.load(settings, LoraConfig(rank=4, alpha=8.0)))


@pytest.fixture(scope="module")
def enumerable(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    path = tmp_path_factory.mktemp("symbols")
    return load(save_causal_lm(path, tokenizer=symbol_tokenizer("abc"), generation=LEFTOVERS))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    path = tmp_path_factory.mktemp("bytes")
    return load(save_causal_lm(path, tokenizer=byte_tokenizer(), generation=LEFTOVERS))


def all_responses(length: int) -> list[tuple[int, ...]]:
    others = [token for token in range(VOCABULARY) if token != EOS]
    ended = [(*r, EOS) for n in range(length) for r in product(others, repeat=n)]
    return ended + list(product(others, repeat=length))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("adapter", [True, False])
def test_frequencies_are_the_scored_probabilities(
    enumerable: Policy, temperature: float, adapter: bool
) -> None:
    settings = SampleConfig(max_new_tokens=3, temperature=temperature, batch_size=4096)
    draws = 4000
    drawn = sample(enumerable, PROMPTS, draws, settings, key=(7,), adapter=adapter)
    responses = all_responses(3)
    for prompt, sampled in zip(PROMPTS, drawn, strict=True):
        logp = enumerable.log_probs(
            [PromptResponse(prompt, r) for r in responses],
            batch_size=128,
            adapter=adapter,
            temperature=temperature,
        )
        expected = draws * logp.double().exp().numpy()
        counts = Counter(response.token_ids for response in sampled)
        observed = np.array([counts[r] for r in responses])
        assert observed.sum() == draws
        # Pearson's test wants expected counts of 5; the rarer cells are one.
        rare = expected < 5
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        result = stats.chisquare(observed, expected * draws / expected.sum())
        # A seeded draw: one in a thousand keys would fail here, this one does not.
        assert result.pvalue > 1e-3


def test_recorded_log_probs_are_those_of_generation(
    text: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[torch.Tensor, ...]] = []
    generate = text.model.generate

    def listening(**arguments):
        output = generate(**arguments, output_logits=True, return_dict_in_generate=True)
        steps.append(output.logits)
        return output.sequences

    monkeypatch.setattr(text.model, "generate", listening)
    prompts = [[0], [0, 40], [0, 50, 51, 52, 53, 54, 55, 56, 57]]  # in the order of the batch
    settings = SampleConfig(max_new_tokens=6, temperature=0.8)
    drawn = sample(text, prompts, 4, settings, key=(1,))
    logits = torch.stack(steps[0], dim=1) / 0.8
    for row, (prompt, response) in enumerate(
        (p, r) for p, rs in zip(prompts, drawn, strict=True) for r in rs
    ):
        tokens = torch.tensor(response.token_ids)
        generated = logits[row, : len(tokens)].log_softmax(-1)
        expected = generated.gather(-1, tokens[:, None]).sum().item()
        scored = text.log_probs(
            [PromptResponse(prompt, response.token_ids)], batch_size=1, temperature=0.8
        )
        # float32, with a cache and left padding on one side, neither on the other.
        assert scored.item() == pytest.approx(expected, rel=1e-5)


def test_a_response_does_not_depend_on_its_batch(text: Policy) -> None:
    prompts = [[0, 40], [0, 50, 51, 52, 53, 54, 55, 56, 57], [0], [0, 90, 91]]
    drawn = [
        sample(text, prompts, 3, SampleConfig(max_new_tokens=12, batch_size=size), key=(3, 1))
        for size in (1, 5, 64)
    ]
    assert drawn[0] == drawn[1] == drawn[2]


def test_keys_name_the_random_numbers(text: Policy) -> None:
    settings = SampleConfig(max_new_tokens=6)
    state = torch.random.get_rng_state()
    first, again, *others = (
        sample(text, [[0, 40]], 4, settings, key=key) for key in ((1, 2), (1, 2), (1, 3), (1, 2, 0))
    )
    assert first == again
    assert first not in others
    assert len({response.token_ids for response in first[0]}) == 4
    assert torch.equal(torch.random.get_rng_state(), state)


def test_responses_end_at_any_stop_token(tmp_path: Path) -> None:
    stops = {"eos_token_id": [EOS, 4]}
    policy = load(save_causal_lm(tmp_path, tokenizer=symbol_tokenizer("abc"), generation=stops))
    (drawn,) = sample(policy, [[0, 2]], 200, SampleConfig(max_new_tokens=3), key=(0,))
    assert {response.token_ids[-1] for response in drawn if response.finished} == {EOS, 4}
    for response in drawn:
        assert not {EOS, 4} & set(response.content_ids)
        if response.finished:
            assert response.token_ids == (*response.content_ids, response.token_ids[-1])
        else:
            assert len(response.token_ids) == 3
        assert response.text == policy.tokenizer.decode(
            response.content_ids, skip_special_tokens=True
        )
    assert {response.finished for response in drawn} == {True, False}


def test_content_leaves_out_the_end_only() -> None:
    assert Response((5, 6, 1), finished=True, text="").content_ids == (5, 6)
    assert Response((5, 6, 7), finished=False, text="").content_ids == (5, 6, 7)


@pytest.mark.parametrize(("settings", "allowed"), [({"top_k": 2}, 2), ({"top_p": 0.3}, 4)])
def test_truncation_is_off_policy_and_says_so(
    enumerable: Policy, caplog: pytest.LogCaptureFixture, settings: dict, allowed: int
) -> None:
    cut = SampleConfig(max_new_tokens=1, **settings)
    assert not on_policy(cut)
    assert len(caplog.records) == 1
    assert "off policy" in caplog.text
    drawn = sample(enumerable, PROMPTS[:1], 500, cut, key=(0,))[0]
    seen = {response.token_ids[0] for response in drawn}
    logp = enumerable.log_probs([PromptResponse(PROMPTS[0], (t,)) for t in range(5)], batch_size=5)
    likeliest = logp.argsort(descending=True).tolist()
    assert seen == set(likeliest[: len(seen)])
    assert len(seen) <= allowed < VOCABULARY


def test_temperature_alone_is_on_policy(caplog: pytest.LogCaptureFixture) -> None:
    assert on_policy(SampleConfig(temperature=0.7))
    assert not caplog.records


def test_what_the_context_cannot_hold_is_refused(text: Policy) -> None:
    with pytest.raises(InputError, match=r"100 tokens and 29 new.*sample\.max_new_tokens"):
        sample(text, [[0] * 100], 1, SampleConfig(max_new_tokens=29), key=(0,))


# --- prompts that several responses share ---------------------------------------------------------

LONG_PROMPTS = [list(range(40, 60)), list(range(60, 78)), list(range(100, 130))]


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("mistral", {}),
        ("mistral", {"sliding_window": 6}),
        ("gpt2", {}),
    ],
)
def test_a_prompt_is_encoded_once_for_its_samples(
    architecture: str, options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_causal_lm(tmp_path, architecture, **options)
    settings = ModelConfig(path=str(tmp_path), device="cpu", dtype="float64")
    policy = moved(Policy.load(settings, LoraConfig(rank=4, alpha=8.0)))
    encoded: list[int] = []
    embeddings = policy.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda _, inputs, output: encoded.append(inputs[0].numel()))
    # A batch of 10 ends within the samples of a prompt.
    asked = SampleConfig(max_new_tokens=4, batch_size=10)
    shared = sample(policy, LONG_PROMPTS, 4, asked, key=(1,))
    # Widths 20 and 30 of the batches' prompts without their last tokens, which are part of the at
    # most 4 steps of each row.
    assert sum(encoded) <= 3 * 29 + 29 + 12 * 4
    monkeypatch.setattr(prompt_cache, "REPEATABLE", ())  # as for a cache that cannot be repeated
    assert sample(policy, LONG_PROMPTS, 4, asked, key=(1,)) == shared
