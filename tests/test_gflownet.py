from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.mixtures import kl, total_variation
from games.errors import InputError
from llm.config.schema import GFlowNetConfig, LoraConfig, ModelConfig, SampleConfig
from llm.embedded import directory as embedded
from llm.policy.log_probs import PromptResponse, response_logits
from llm.policy.model import Policy
from llm.sampling.gflownet import (
    _log_reward,
    _trajectories,
    balance_loss,
    check_termination,
    load_sampler,
    log_terminated,
    remove_sampler,
    sample_gflownet,
    sampling,
    save_sampler,
    steps,
    train_sampler,
)
from llm.sampling.token_mixture import token_mixture_log_probs
from llm.sampling.transformers_engine import generate, uniforms
from solvers.arrays import normalize
from tests.tiny_models import save_causal_lm, symbol_tokenizer

PROMPTS = [[0, 2], [0, 3, 2, 4, 3, 3]]
EOS = 1
SHARE = 0.5
LENGTH = 3
SETTINGS = SampleConfig(max_new_tokens=LENGTH, batch_size=256)
SEED = (0, 5, 1)


def load(path: Path, dtype: str = "float64", **lora) -> Policy:
    settings = ModelConfig(path=str(path), device="cpu", dtype=dtype)
    policy = Policy.load(settings, LoraConfig(rank=4, alpha=8.0, **lora))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return policy


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("symbols")
    return save_causal_lm(path, tokenizer=symbol_tokenizer("abc"))


@pytest.fixture
def policy(checkpoint: Path) -> Policy:
    return load(checkpoint)


def all_responses(length: int, tokens=(0, 2, 3, 4), stops=(EOS,)) -> list[tuple[int, ...]]:
    ended = [(*r, stop) for n in range(length) for r in product(tokens, repeat=n) for stop in stops]
    return ended + list(product(tokens, repeat=length))


def law(policy: Policy, prompt: list[int], adapter: bool = True) -> np.ndarray:
    listed = [PromptResponse(prompt, response) for response in all_responses(LENGTH)]
    return policy.log_probs(listed, batch_size=128, adapter=adapter).double().numpy()


def mixture(policy: Policy, prompt: list[int]) -> np.ndarray:
    own, reference = (law(policy, prompt, adapter) for adapter in (True, False))
    return normalize((1 - SHARE) * own + SHARE * reference)


def train(policy: Policy, directory: Path, seed=SEED, on_steps=lambda more: None, **settings):
    defaults = {"learning_rate": 3e-3, "epochs": 2, "samples": 16, "batch_size": 32}
    config = GFlowNetConfig(**defaults | {"micro_batch_size": 32} | settings)
    return train_sampler(
        policy,
        PROMPTS,
        SHARE,
        config,
        SETTINGS,
        seed=seed,
        directory=directory,
        on_steps=on_steps,
    )


# --- the loss, on tables --------------------------------------------------------------------------

SYMBOLS = (0, 1)


class Table:
    """Conditional log-probabilities of two symbols and E stop tokens after each prefix."""

    def __init__(self, conditionals: dict[tuple, np.ndarray], stops: tuple[int, ...]) -> None:
        self.conditionals, self.stops = conditionals, stops

    @classmethod
    def random(cls, rng: np.random.Generator, stops: tuple[int, ...]) -> Table:
        prefixes = [p for n in range(LENGTH) for p in product(SYMBOLS, repeat=n)]
        size = len(SYMBOLS) + len(stops)
        return cls({p: normalize(2 * rng.standard_normal(size)) for p in prefixes}, stops)

    @classmethod
    def proportional_to(cls, log_reward, stops: tuple[int, ...]) -> Table:
        """The exact sampler: to go on is as likely as the reward of all that begins so."""

        def flow(prefix: tuple) -> float:
            if len(prefix) == LENGTH:
                return log_reward(prefix)
            return float(np.logaddexp.reduce(outgoing(prefix)))

        def outgoing(prefix: tuple) -> np.ndarray:
            ended = [log_reward((*prefix, stop)) for stop in stops]
            return np.array([flow((*prefix, symbol)) for symbol in SYMBOLS] + ended)

        prefixes = [p for n in range(LENGTH) for p in product(SYMBOLS, repeat=n)]
        return cls({p: normalize(outgoing(p)) for p in prefixes}, stops)

    def log_prob(self, response: tuple) -> float:
        return sum(self.conditionals[response[:k]][token] for k, token in enumerate(response))

    def batch(self, responses: list[tuple]) -> tuple[torch.Tensor, ...]:
        """log of the tokens (B, T), of the stops (B, T, E), where the responses are (B, T)."""
        token = torch.full((len(responses), LENGTH), torch.nan, dtype=torch.float64)
        stop = torch.full((len(responses), LENGTH, len(self.stops)), -1.0, dtype=torch.float64)
        there = torch.zeros((len(responses), LENGTH), dtype=torch.bool)
        for row, response in enumerate(responses):
            first = LENGTH - len(response)  # on the right, as `collate` puts them
            there[row, first:] = True
            for k, chosen in enumerate(response):
                conditional = self.conditionals[response[:k]]
                token[row, first + k] = conditional[chosen]
                stop[row, first + k] = torch.tensor(conditional[len(SYMBOLS) :])
        return token, stop, there


def losses(sampler: Table, own: Table, reference: Table, responses: list[tuple]) -> torch.Tensor:
    log_q, log_own, log_reference = (
        log_terminated(*table.batch(responses)) for table in (sampler, own, reference)
    )
    _, _, there = sampler.batch(responses)
    finished = torch.tensor([response[-1] in sampler.stops for response in responses])
    log_reward = (1 - SHARE) * log_own + SHARE * log_reference
    return balance_loss(log_q, log_reward, there, finished)


@pytest.mark.parametrize("stops", [(2,), (2, 3)])
def test_the_loss_is_zero_for_the_exact_sampler_and_for_no_other(stops: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    own, reference = Table.random(rng, stops), Table.random(rng, stops)

    def log_reward(response: tuple) -> float:
        return (1 - SHARE) * own.log_prob(response) + SHARE * reference.log_prob(response)

    exact = Table.proportional_to(log_reward, stops)
    responses = all_responses(LENGTH, SYMBOLS, stops)
    constants = [log_reward(response) - exact.log_prob(response) for response in responses]
    # float64 sums of a few numbers of size 10.
    assert np.ptp(constants) < 1e-12
    # A square of what is 1e-14 in float64.
    assert losses(exact, own, reference, responses).abs().max() < 1e-20
    assert losses(own, own, reference, responses).mean() > 0.1
    # A single conditional that is not right shows.
    wrong = dict(exact.conditionals)
    wrong[(0, 1)] = normalize(wrong[(0, 1)] + np.eye(len(SYMBOLS) + len(stops))[0])
    assert losses(Table(wrong, stops), own, reference, responses).max() > 1e-3
    # And the token-level mixture is not the exact sampler.
    mixed = {
        p: normalize((1 - SHARE) * own.conditionals[p] + SHARE * reference.conditionals[p])
        for p in own.conditionals
    }
    assert losses(Table(mixed, stops), own, reference, responses).max() > 1e-3


@pytest.mark.parametrize("stops", [(2,), (2, 3)])
def test_the_loss_is_the_mean_over_sub_trajectories(stops: tuple[int, ...]) -> None:
    """The terms one by one, as they stand before the flows are put in, for every response."""
    rng = np.random.default_rng(1)
    sampler, own, reference = (Table.random(rng, stops) for _ in range(3))
    responses = all_responses(LENGTH, SYMBOLS, stops)

    def log_reward(response: tuple) -> float:
        return (1 - SHARE) * own.log_prob(response) + SHARE * reference.log_prob(response)

    def log_flow(state: tuple) -> float:
        if len(state) == LENGTH or state[-1:] in [(stop,) for stop in stops]:
            return log_reward(state)
        ended = [log_reward((*state, stop)) for stop in stops]
        conditional = sampler.conditionals[state][len(SYMBOLS) :]
        return float(np.logaddexp.reduce(ended) - np.logaddexp.reduce(conditional))

    for response, loss in zip(responses, losses(sampler, own, reference, responses), strict=True):
        # With one stop token, the step to the end balances by the definition of the flow.
        states = response[:-1] if response[-1:] == stops else response
        terms = [
            log_flow(states[:i])
            + sum(sampler.conditionals[states[:k]][states[k]] for k in range(i, j))
            - log_flow(states[:j])
            for j in range(1, len(states) + 1)
            for i in range(j)
        ]
        expected = np.mean(np.square(terms)) if terms else 0.0
        # float64, in another order.
        assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


# --- on a model -----------------------------------------------------------------------------------


def test_the_reward_is_the_mixture_of_both_policies(policy: Policy, tmp_path: Path) -> None:
    train(policy, tmp_path, epochs=1)
    completions = [
        PromptResponse(PROMPTS[0], (3, 2, EOS)),
        PromptResponse(PROMPTS[1], (EOS,)),
        PromptResponse([0], (3, 4, 2)),
    ]
    cut = [*completions[:2], PromptResponse([0], (3, 4, EOS))]  # its second prefix, terminated
    with sampling(policy):
        made = _log_reward(policy, policy.collate(completions), 0.3, (EOS,), 0.7)
    for listed, column in ((completions, -1), (cut, -2)):
        own, reference = (
            policy.log_probs(listed, batch_size=1, adapter=on, temperature=0.7)
            for on in (True, False)
        )
        expected = 0.7 * own + 0.3 * reference
        # float64, padded in one case.
        assert made[:, column, 0].numpy() == pytest.approx(expected.numpy(), rel=1e-12)


@pytest.mark.slow
def test_it_comes_nearer_with_training(policy: Policy, tmp_path: Path) -> None:
    true = [mixture(policy, prompt) for prompt in PROMPTS]
    learned = [[law(policy, prompt) for prompt in PROMPTS]]  # at first it is the policy

    def measure(_: int) -> None:
        learned.append([law(policy, prompt) for prompt in PROMPTS])  # it acts as the sampler

    settings = {"epochs": 40, "samples": 48, "batch_size": 96, "micro_batch_size": 96}
    train(policy, tmp_path, on_steps=measure, **settings)
    assert np.exp(learned[-1]).sum(-1) == pytest.approx(1, rel=1e-12)
    start, early, last = (
        np.mean([kl(t, q) for t, q in zip(true, learned[step], strict=True)])
        for step in (0, 10, 40)
    )
    assert start > 2 * early > 4 * last
    assert max(map(total_variation, true, learned[-1])) < 0.1
    # Nearer than mixing token by token ever comes.
    for prompt, t, q in zip(PROMPTS, true, learned[-1], strict=True):
        listed = [PromptResponse(prompt, response) for response in all_responses(LENGTH)]
        by_token = token_mixture_log_probs(policy, listed, SHARE, batch_size=128).double().numpy()
        assert kl(t, q) < kl(t, by_token)


def test_the_policy_and_the_reference_stay_as_they_are(checkpoint: Path, tmp_path: Path) -> None:
    policy = load(checkpoint, train_lm_head=True)
    weights = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    trainable = {name: p.requires_grad for name, p in policy.model.named_parameters()}
    laws = [law(policy, PROMPTS[0], adapter) for adapter in (True, False)]
    policy.save_adapter(tmp_path / "before")

    losses = train(policy, tmp_path / "trainer")
    assert len(losses) == 2
    now = dict(policy.model.named_parameters())
    assert {name: now[name].requires_grad for name in trainable} == trainable
    assert all(torch.equal(now[name], value) for name, value in weights.items())
    assert {name for name in now if name not in weights} == {n for n in now if ".sampler." in n}
    for adapter, then in zip((True, False), laws, strict=True):
        assert (law(policy, PROMPTS[0], adapter) == then).all()
    with sampling(policy):
        assert np.abs(law(policy, PROMPTS[0]) - laws[0]).max() > 1e-3
        # μ is μ from there too.
        assert (law(policy, PROMPTS[0], False) == laws[1]).all()

    policy.save_adapter(tmp_path / "after")
    stored = [
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("before", "after")
    ]
    assert stored[0].keys() == stored[1].keys()
    assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0])
    files = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("before", "after")]
    assert files[0] == files[1]
    policy.load_adapter(tmp_path / "before")

    remove_sampler(policy)
    assert dict(policy.model.named_parameters()).keys() == weights.keys()
    assert {name: p.requires_grad for name, p in policy.model.named_parameters()} == trainable
    assert (law(policy, PROMPTS[0]) == laws[0]).all()
    assert not list((tmp_path / "trainer").rglob("*.safetensors"))


def test_a_stored_sampler_is_the_sampler(policy: Policy, checkpoint: Path, tmp_path: Path) -> None:
    train(policy, tmp_path / "trainer")
    save_sampler(policy, tmp_path / "sampler")
    drawn, logp = sample_gflownet(policy, PROMPTS, 4, SETTINGS, key=(3,))
    again = load(checkpoint)
    load_sampler(again, tmp_path / "sampler")
    assert (law(again, PROMPTS[0]) == law(policy, PROMPTS[0])).all()
    redrawn, rescored = sample_gflownet(again, PROMPTS, 4, SETTINGS, key=(3,))
    assert redrawn == drawn
    assert torch.equal(rescored, logp)
    with sampling(policy):
        expected = [
            policy.log_probs([PromptResponse(p, r.token_ids)], batch_size=1).item()
            for p, responses in zip(PROMPTS, drawn, strict=True)
            for r in responses
        ]
    # float64 passes over differently padded batches.
    assert logp.flatten().numpy() == pytest.approx(expected, rel=1e-12)


def test_trajectories_are_of_the_sampler_and_of_the_reference_by_turns(
    policy: Policy, tmp_path: Path
) -> None:
    train(policy, tmp_path, learning_rate=3e-2)
    rows = [(i, PROMPTS[i % 3 // 2]) for i in range(3, 27)]
    prompts = [prompt for _, prompt in rows]
    random = np.stack([uniforms((9,), i, LENGTH) for i, _ in rows])
    with sampling(policy):
        completions, finished = _trajectories(policy, rows, SETTINGS, (9,))
        of_sampler, of_reference = [], []
        for adapter, made in ((True, of_sampler), (False, of_reference)):
            with policy.acting(adapter):
                made += generate(policy, prompts, random, SETTINGS)
    expected = [(of_sampler, of_reference)[i % 2][row] for row, (i, _) in enumerate(rows)]
    assert [c.response_ids for c in completions] == [r.token_ids for r in expected]
    assert [c.prompt_ids for c in completions] == prompts
    assert finished.tolist() == [r.finished for r in expected]
    assert of_sampler != of_reference


def test_it_starts_from_the_policy(policy: Policy, tmp_path: Path) -> None:
    """A step of no length: the sampler is π_θ."""
    train(policy, tmp_path, epochs=1, learning_rate=1e-300)
    before = law(policy, PROMPTS[1])
    with sampling(policy):
        assert law(policy, PROMPTS[1]) == pytest.approx(before, rel=1e-12)


def test_the_seed_names_the_sampler_and_batches_can_be_accumulated(
    policy: Policy, tmp_path: Path
) -> None:
    made = []
    for seed, micro in ((SEED, 8), (SEED, 8), (SEED, 2), ((0, 5, 2), 8)):
        found = train(policy, tmp_path, seed=seed, samples=4, batch_size=8, micro_batch_size=micro)
        with sampling(policy):
            made.append((found, law(policy, PROMPTS[0])))
    (first, law_first), (again, law_again), (split, law_split), (other, _) = made
    assert first == again
    assert (law_first == law_again).all()
    # float64 sums in another order, through two steps of Adam; the Trainer rounds what it logs.
    assert split == pytest.approx(first, rel=1e-6)
    assert law_split == pytest.approx(law_first, abs=1e-6)
    assert other != pytest.approx(first, rel=1e-2)


def test_steps_are_counted_and_prompts_limited(policy: Policy, tmp_path: Path) -> None:
    heard = []
    settings = {"prompts": 1, "epochs": 5, "samples": 10, "batch_size": 16, "micro_batch_size": 16}
    found = train(policy, tmp_path, on_steps=heard.append, **settings)
    counted = steps(GFlowNetConfig(**settings), len(PROMPTS))
    assert len(found) == sum(heard) == counted == 3  # 50 responses in batches of 16
    with pytest.raises(InputError, match=r"gflownet\.batch_size=64: 1 prompts make only 40 "):
        steps(GFlowNetConfig(), 1)


def test_a_model_without_an_end_is_refused() -> None:
    path = embedded("embedded:game")
    policy = Policy.load(ModelConfig(path=str(path), device="cpu"), LoraConfig(rank=2))
    with pytest.raises(InputError, match=r"no embedding for an end.*token_mixture") as refused:
        check_termination(policy)
    assert "\n" not in str(refused.value)


def test_response_logits_are_those_before_the_responses(policy: Policy) -> None:
    batch = policy.collate([PromptResponse([0, 3], (2, EOS)), PromptResponse([0, 2, 4], (3,))])
    with torch.no_grad():
        logits, tokens, response = response_logits(policy.model, batch)
    assert tokens.tolist() == [[2, EOS], [4, 3]]
    assert response.tolist() == [[True, True], [False, True]]
    assert logits.shape == (2, 2, 5)
