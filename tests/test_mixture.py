from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import mixtures
from benchmarks.mixtures import kl, total_variation, weighted_draw
from llm.config.schema import GFlowNetConfig, LoraConfig, ModelConfig, SampleConfig
from llm.policy.log_probs import PromptResponse
from llm.policy.model import Policy
from llm.sampling.token_mixture import sample_token_mixture, token_mixture_log_probs
from llm.sampling.transformers_engine import sample
from solvers.arrays import normalize
from solvers.plays import Measure
from tests.enumeration import draws, order
from tests.tiny_models import byte_tokenizer, save_causal_lm, symbol_tokenizer

PROMPTS = [[0, 2], [0, 3, 2, 4, 3, 3]]
EOS = 1
SHARE = 0.4
LENGTH = 3


def moved(policy: Policy, scale: float = 0.3) -> Policy:
    """The policy with an adapter away from zero, so that π_θ is not μ."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return policy


def load(path: Path, dtype: str = "float64", **lora) -> Policy:
    settings = ModelConfig(path=str(path), device="cpu", dtype=dtype)
    return moved(Policy.load(settings, LoraConfig(rank=4, alpha=8.0, **lora)))


@pytest.fixture(scope="module")
def enumerable(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Five tokens, one of which ends a response: all responses of three tokens can be listed."""
    path = tmp_path_factory.mktemp("symbols")
    return load(save_causal_lm(path, tokenizer=symbol_tokenizer("abc")))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    path = tmp_path_factory.mktemp("bytes")
    return load(save_causal_lm(path, tokenizer=byte_tokenizer()), "float32")


def all_responses(length: int = LENGTH) -> list[tuple[int, ...]]:
    others = [0, 2, 3, 4]
    ended = [(*r, EOS) for n in range(length) for r in product(others, repeat=n)]
    return ended + list(product(others, repeat=length))


def laws(policy: Policy, prompt: list[int], temperature: float = 1.0) -> tuple[np.ndarray, ...]:
    """log π_θ and log μ of every response."""
    listed = [PromptResponse(prompt, response) for response in all_responses()]
    own, reference = (
        policy.log_probs(listed, batch_size=128, adapter=on, temperature=temperature)
        .double()
        .numpy()
        for on in (True, False)
    )
    return own, reference


def token_law(policy: Policy, prompt: list[int], share: float, temperature: float = 1.0):
    listed = [PromptResponse(prompt, response) for response in all_responses()]
    scored = token_mixture_log_probs(policy, listed, share, batch_size=128, temperature=temperature)
    return scored.double().numpy()


# --- the token-level mixture ----------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores_are_products_of_mixed_conditionals(enumerable: Policy, temperature: float) -> None:
    """Token by token from the definition, one forward pass each, unpadded and without a cache."""
    response = (3, 2, 4)
    for prompt in PROMPTS:
        expected, ids = 0.0, list(prompt)
        for token in response:
            with torch.no_grad():
                own = enumerable.model(torch.tensor([ids])).logits[0, -1] / temperature
                with enumerable.model.disable_adapter():
                    reference = enumerable.model(torch.tensor([ids])).logits[0, -1] / temperature
            mixed = (1 - SHARE) * own.log_softmax(-1) + SHARE * reference.log_softmax(-1)
            expected += mixed.log_softmax(-1)[token].item()
            ids.append(token)
        scored = token_mixture_log_probs(
            enumerable,
            [PromptResponse(prompt, response), PromptResponse([0], (2,))],
            SHARE,
            batch_size=2,
            temperature=temperature,
        )
        # float64 throughout; only the order of sums and the padding differ.
        assert scored[0].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("share", [0.0, SHARE, 1.0])
def test_it_is_a_distribution_between_the_two(enumerable: Policy, share: float) -> None:
    for prompt in PROMPTS:
        law = token_law(enumerable, prompt, share)
        assert np.exp(law).sum() == pytest.approx(1, rel=1e-12)
        own, reference = laws(enumerable, prompt)
        for end, policy in ((0.0, own), (1.0, reference)):
            if share == end:
                assert law == pytest.approx(policy, rel=1e-12)
        # Hölder: the constant of each prefix is at most 1.
        assert (law >= (1 - share) * own + share * reference - 1e-12).all()


def test_logits_are_mixed_in_pieces_alike(
    enumerable: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = token_law(enumerable, PROMPTS[0], SHARE)
    monkeypatch.setattr("llm.sampling.token_mixture.LOGIT_CHUNK", 1)
    assert (token_law(enumerable, PROMPTS[0], SHARE) == whole).all()


def test_frequencies_are_the_scored_probabilities(enumerable: Policy) -> None:
    """Prompts of two lengths in one batch, and rows that end while others go on."""
    temperature = 0.6
    settings = SampleConfig(max_new_tokens=LENGTH, temperature=temperature, batch_size=2000)
    count = 2000
    drawn, recorded = sample_token_mixture(enumerable, PROMPTS, count, settings, SHARE, key=(7,))
    responses = all_responses()
    for prompt, sampled, logp in zip(PROMPTS, drawn, recorded, strict=True):
        law = token_law(enumerable, prompt, SHARE, temperature)
        known = dict(zip(responses, law, strict=True))
        expected_logp = [known[response.token_ids] for response in sampled]
        # float64 passes over differently padded batches.
        assert logp.numpy() == pytest.approx(expected_logp, rel=1e-12)
        counts = Counter(response.token_ids for response in sampled)
        expected, observed = count * np.exp(law), np.array([counts[r] for r in responses])
        # Pearson's test wants expected counts of 5; the rarer cells are one.
        rare = expected < 5
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        # A seeded draw: one in a thousand keys would fail here, this one does not.
        assert stats.chisquare(observed, expected * count / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize(("architecture", "head"), [("mistral", True), ("gpt2", False)])
@pytest.mark.parametrize(("share", "adapter"), [(0.0, True), (1.0, False)])
def test_the_ends_are_the_two_policies_to_the_bit(
    tmp_path: Path, share: float, adapter: bool, architecture: str, head: bool
) -> None:
    """A head of the adapter's own is off in μ; GPT-2 knows positions from their numbers alone."""
    path = save_causal_lm(tmp_path, architecture, tokenizer=byte_tokenizer())
    text = load(path, "float32", train_lm_head=head)
    prompts = [[0, 40], [0, 50, 51, 52, 53, 54, 55, 56, 57], [0]]
    settings = SampleConfig(max_new_tokens=12, temperature=0.8, top_p=0.9, batch_size=5)
    mixed, logp = sample_token_mixture(text, prompts, 4, settings, share, key=(3, 1))
    plain = sample(text, prompts, 4, settings, key=(3, 1), adapter=adapter)
    assert mixed == plain
    flat = [
        PromptResponse(prompt, response.token_ids)
        for prompt, responses in zip(prompts, plain, strict=True)
        for response in responses
    ]
    scored = text.log_probs(flat, batch_size=5, adapter=adapter, temperature=0.8)
    assert torch.equal(logp.flatten(), scored)


def test_a_response_does_not_depend_on_its_batch(text: Policy) -> None:
    prompts = [[0, 40], [0, 50, 51, 52, 53, 54, 55, 56, 57], [0], [0, 90, 91]]
    drawn = [
        sample_token_mixture(
            text, prompts, 2, SampleConfig(max_new_tokens=6, batch_size=size), SHARE, key=(3, 1)
        )[0]
        for size in (1, 5)
    ]
    assert drawn[0] == drawn[1]


def test_each_token_takes_one_pass_of_each_policy(
    text: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both caches are at work: after the prompts, no pass reads more than one token a row."""
    widths = []
    body = text.model.get_base_model().model
    forward = body.forward

    def listening(*args, **arguments):
        widths.append(arguments["input_ids"].shape[1])
        return forward(*args, **arguments)

    monkeypatch.setattr(body, "forward", listening)
    monkeypatch.setattr(
        "llm.sampling.token_mixture.token_mixture_log_probs", lambda *_, **__: torch.zeros(2)
    )
    settings = SampleConfig(max_new_tokens=6)
    sample_token_mixture(text, [[0, 40, 41], [0]], 1, settings, SHARE, key=(2,))
    passes = len(widths) // 2
    assert widths == [3, 3] + [1, 1] * (passes - 1)
    assert passes > 3


def test_the_policy_is_left_as_it_was(enumerable: Policy) -> None:
    before = laws(enumerable, PROMPTS[0])
    trainable = {name: p.requires_grad for name, p in enumerable.model.named_parameters()}
    settings = SampleConfig(max_new_tokens=LENGTH)
    sample_token_mixture(enumerable, PROMPTS, 2, settings, SHARE, key=(1,))
    assert {name: p.requires_grad for name, p in enumerable.model.named_parameters()} == trainable
    for now, then in zip(laws(enumerable, PROMPTS[0]), before, strict=True):
        assert (now == then).all()


# --- how far each is from the true mixture --------------------------------------------------------


def three(policy: Policy, length: int) -> tuple[np.ndarray, ...]:
    """log π_θ, log μ and log of the token-level mixture, of every response of so many tokens."""
    listed = [PromptResponse(PROMPTS[0], response) for response in all_responses(length)]
    own, reference = (
        policy.log_probs(listed, batch_size=64, adapter=on).double().numpy() for on in (True, False)
    )
    tokens = token_mixture_log_probs(policy, listed, SHARE, batch_size=64).double().numpy()
    return own, reference, tokens


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("by", ["policy", "token_mixture"])
def test_the_law_of_a_weighted_draw(enumerable: Policy, by: str, k: int) -> None:
    """The weights of `Measure`, over every multiset of K draws, against the integral."""
    own, reference, tokens = three(enumerable, 2)
    y, orders = draws(len(own), k)
    proposal = own if by == "policy" else tokens
    known = {} if by == "policy" else {"logp_proposal": tokens[y]}
    measure = Measure(own[y], reference[y], np.full(y.shape, -np.log(k)), **known)
    weights = measure.weights_of(measure.mixture(SHARE))
    probability = orders * np.exp(proposal[y].sum(-1))
    chosen = y[..., None] == np.arange(len(own))
    expected = (probability[:, None, None] * weights[..., None] * chosen).sum((0, 1))
    law = weighted_draw(proposal, (1 - SHARE) * own + SHARE * reference, k)
    # quad_vec is asked for 1e-10.
    assert law == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("by", ["policy", "token_mixture"])
def test_weighted_samples_have_a_bias_of_one_over_k(enumerable: Policy, by: str) -> None:
    own, reference, tokens = three(enumerable, LENGTH)
    target = (1 - SHARE) * own + SHARE * reference
    proposal = own if by == "policy" else tokens
    ks = [64, 128, 256, 512]
    bias = [
        total_variation(np.log(weighted_draw(proposal, target, k)), normalize(target)) for k in ks
    ]
    # The next order, 1/K², is a hundredth of it there.
    assert order(ks, bias) == pytest.approx(-1, abs=0.05)


def test_weighted_samples_have_an_error_of_one_over_the_root_of_k(enumerable: Policy) -> None:
    own, reference = laws(enumerable, PROMPTS[0])
    target = (1 - SHARE) * own + SHARE * reference
    true = np.exp(normalize(target))
    finished = np.array([response[-1] == EOS for response in all_responses()], dtype=float)
    rng = np.random.default_rng(0)
    ks = [16, 64, 256, 1024]
    errors = []
    for k in ks:
        y = rng.choice(len(own), size=(400, k), p=np.exp(own) / np.exp(own).sum())
        measure = Measure(own[y], reference[y], np.full(y.shape, -np.log(k)))
        estimate = (measure.weights_of(measure.mixture(SHARE)) * finished[y]).sum(-1)
        errors.append(np.sqrt(np.mean((estimate - true @ finished) ** 2)))
    # 400 repetitions know a root mean square to 4 %: the slope over log 64 to 0.02.
    assert order(ks, errors) == pytest.approx(-0.5, abs=0.08)


def test_mixing_token_by_token_has_a_bias_that_stays(enumerable: Policy) -> None:
    for prompt in PROMPTS:
        own, reference = laws(enumerable, prompt)
        true = normalize((1 - SHARE) * own + SHARE * reference)
        law = token_law(enumerable, prompt, SHARE)
        assert total_variation(law, true) > 0.01
        # Nearer than either of the two policies, in nats from the mixture.
        assert kl(true, law) < min(kl(true, own), kl(true, reference))


def test_without_prefixes_the_two_mixtures_are_one(enumerable: Policy) -> None:
    listed = [PromptResponse(PROMPTS[0], (token,)) for token in range(5)]
    own, reference = (
        enumerable.log_probs(listed, batch_size=5, adapter=on).double().numpy()
        for on in (True, False)
    )
    law = token_mixture_log_probs(enumerable, listed, SHARE, batch_size=5).double().numpy()
    assert law == pytest.approx(normalize((1 - SHARE) * own + SHARE * reference), rel=1e-12)


def test_the_benchmark_at_toy_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    toy = GFlowNetConfig(epochs=1, samples=32, batch_size=32, micro_batch_size=32)
    settings = {
        "DISTANCES": (0.5,),
        "SHARES": (0.5,),
        "TRAINING": toy,
        "SHORT": 1,
        "LONG": 2,
        "DRAWS": 2,
        "TEXT": SampleConfig(max_new_tokens=3),
        "TEXT_TRAINING": replace(toy, samples=2),
    }
    for name, value in settings.items():
        monkeypatch.setattr(mixtures, name, value)
    mixtures.main()
    tables = capsys.readouterr().out
    lines = [line.split("|")[1:-1] for line in tables.splitlines() if line.startswith("| ")]
    assert [len(line) for line in lines] == [6] * 4 + [2] * 9
    known = {name.strip(): cells for name, *cells in lines[4:]}
    (policy,), (weighted,), (token,) = (
        known[name]
        for name in ("π_θ, unweighted", "(a) π_θ, weighted, K = 64", "(b) token-level mixing")
    )
    # Nats from the mixture.
    assert float(policy.split(",")[1]) > float(token.split(",")[1])
    assert float(policy.split(",")[1]) > float(weighted.split(",")[1])
