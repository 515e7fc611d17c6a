"""The bridge: what a rule does to a matrix is what it does to a language model."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import get_scheduler

from games import zoo
from llm.config.schema import FittingConfig, LoraConfig, ModelConfig
from llm.policy.fitting import FitDataset, InOrder, batch_loss, batch_of, fit_policy
from llm.policy.log_probs import PromptResponse, collate, sequence_log_probs
from llm.policy.model import Policy
from solvers import Plays, get_rule, step
from solvers.arrays import dot
from solvers.divergences import parse
from solvers.fits import Fit, get_fit
from solvers.rules import UpdateRule, win_rate
from tests.tiny_models import save_causal_lm, symbol_tokenizer

PROMPTS = ([0, 2], [0, 3, 4])
EOS, LENGTH = 1, 2
VOCABULARY = 5


def all_responses() -> list[tuple[int, ...]]:
    """Every response of at most LENGTH tokens: ended by EOS, or cut."""
    found = []
    for length in range(1, LENGTH + 1):
        for tokens in itertools.product(range(VOCABULARY), repeat=length):
            ended = tokens[-1] == EOS
            if EOS not in tokens[:-1] and (ended or length == LENGTH):
                found.append(tokens)
    return found


RESPONSES = all_responses()
COMPLETIONS = [[PromptResponse(prompt, y) for y in RESPONSES] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2, all of whose layers compute in float64 where they are given it; Mistral's do not."""
    return save_causal_lm(tmp_path_factory.mktemp("gpt2"), "gpt2", tokenizer=symbol_tokenizer())


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_causal_lm(tmp_path_factory.mktemp("mistral"), tokenizer=symbol_tokenizer())


def load(checkpoint: Path, dtype: str = "float64", away: float = 0.3) -> Policy:
    """A policy whose adapter has left zero, so that π_t is not μ."""
    settings = ModelConfig(path=str(checkpoint), dtype=dtype, device="cpu")
    policy = Policy.load(settings, LoraConfig(rank=4, alpha=8.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(policy):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (away * noise).to(parameter.dtype)
    return policy


def trained(policy: Policy) -> list[torch.nn.Parameter]:
    return [p for p in policy.model.parameters() if p.requires_grad]


def gradient(policy: Policy, loss: torch.Tensor) -> torch.Tensor:
    parts = torch.autograd.grad(loss, trained(policy))
    return torch.cat([part.reshape(-1) for part in parts])


def recorded(policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    """log π_t and log μ of all responses, (2, n) float64."""
    flat = [completion for row in COMPLETIONS for completion in row]
    values = [policy.log_probs(flat, batch_size=64, adapter=on).double() for on in (True, False)]
    logp, logp_ref = (v.view(len(PROMPTS), -1).numpy() for v in values)
    return logp, logp_ref


def payoff() -> np.ndarray:
    return zoo.random(len(RESPONSES), np.random.default_rng(0), batch_shape=(2,)).payoff


def model_gradient(policy: Policy, fit: Fit, rows: FitDataset, order: list[int] | None = None):
    """Of the loss that the Trainer sees, over all rows at once."""
    every = [rows[i] for i in (order or range(len(rows)))]
    dtype = torch.promote_types(policy.model.dtype, torch.float32)
    with policy.acting():
        loss = batch_loss(
            policy.model,
            batch_of(every, policy.pad_token_id, dtype),
            fit,
            regularizer=rows.items.regularizer,
        )
        return gradient(policy, loss), loss.item()


def pulled_back(policy: Policy, tabular: np.ndarray) -> torch.Tensor:
    """(2, n): a direction in log π -> what it is in the model's parameters, mean over prompts."""
    batch = policy.collate([completion for row in COMPLETIONS for completion in row])
    with policy.acting():
        logp = policy.batch_log_probs(batch).view(tabular.shape)
        return gradient(policy, (torch.tensor(tabular).to(logp) * logp).sum(-1).mean())


def centered(logp: np.ndarray, values: np.ndarray) -> np.ndarray:
    """π∘(values − E_π values)."""
    pi = np.exp(logp)
    return pi * (values - dot(pi, values)[..., None])


ETA, TAU = 0.7, 0.3
FITS = {
    # fit, its rule's settings, the factor and the values of its gradient at π_θ = π_t
    "regression": ({}, {}, 2 * ETA),
    "regression, chi2": ({}, {"regularizer": "chi2", "tau": TAU}, 2 * ETA),
    "regression, js": ({}, {"regularizer": "js", "tau": TAU}, 2 * ETA),
    "regression, published": (
        {"estimator": "published"},
        {"regularizer": "0.4*forward_kl+reverse_kl", "tau": TAU},
        2 * ETA,
    ),
    "policy_gradient": ({}, {"regularizer": "hellinger", "tau": TAU}, ETA),
}


def chosen(name: str) -> tuple[Fit, UpdateRule, float]:
    options, settings, factor = FITS[name]
    rule = get_rule("gmmd" if settings else "mwu", eta=ETA, **settings)
    return get_fit(name.split(",")[0], **options), rule, factor


# --- exact expectation ----------------------------------------------------------------------------


def test_the_responses_have_all_the_mass(checkpoint: Path) -> None:
    logp, logp_ref = recorded(load(checkpoint))
    assert np.abs(np.exp(logp).sum(-1) - 1).max() < 1e-12
    assert np.abs(logp - logp_ref).max() > 0.1


@pytest.mark.parametrize(
    ("model", "dtype", "tolerance"),
    [("checkpoint", "float64", 1e-10), ("mistral", "float32", 1e-5)],
)
@pytest.mark.parametrize("name", FITS)
def test_the_models_gradient_is_that_of_the_tabular_step(
    request: pytest.FixtureRequest, name: str, model: str, dtype: str, tolerance: float
) -> None:
    policy = load(request.getfixturevalue(model), dtype)
    fit, rule, factor = chosen(name)
    logp, logp_ref = recorded(policy)
    plays = Plays.exact(payoff(), logp, logp_ref)
    update = rule(plays)
    found, _ = model_gradient(policy, fit, FitDataset(COMPLETIONS, fit.items(plays, update)))
    pull = 0.0
    if rule.regularized:
        pull = rule.tau * rule.regularizer.gradient(logp, logp_ref)
    wanted = pulled_back(policy, -factor * centered(logp, update.direction - pull))
    # Relative to the gradient; the 1e-10 in float64, 1e-5 in float32.
    assert (found - wanted).abs().max() <= tolerance * max(1.0, wanted.abs().max().item())


@pytest.mark.parametrize(
    ("model", "dtype", "tolerance"),
    [("checkpoint", "float64", 1e-10), ("mistral", "float32", 1e-5)],
)
@pytest.mark.parametrize("name", ["proximal", "pairwise"])
def test_fits_of_the_step_itself_pull_along_the_step(
    request: pytest.FixtureRequest, name: str, model: str, dtype: str, tolerance: float
) -> None:
    policy = load(request.getfixturevalue(model), dtype)
    logp, logp_ref = recorded(policy)
    plays = Plays.exact(payoff(), logp, logp_ref)
    rule = "gmmd" if name == "proximal" else "omd"
    update = get_rule(rule, eta=ETA, tau=TAU, regularizer="reverse_kl")(plays)
    fit = get_fit(name)
    found, _ = model_gradient(policy, fit, FitDataset(COMPLETIONS, fit.items(plays, update)))
    moved = step(update, plays) - logp
    # Pairs of independent responses: E (Δ_i − Δ_j)² is twice the variance.
    factor = 2 if name == "proximal" else 4
    wanted = pulled_back(policy, -factor * centered(logp, moved))
    assert (found - wanted).abs().max() <= tolerance * max(1.0, wanted.abs().max().item())


# A rule of every family; ρ is the slope of the reward that π_θ implies (solvers.fits.Pairs).
PAIRS = {
    "gmmd": {"eta": ETA, "tau": TAU, "regularizer": "chi2"},
    "inpo": {"eta": ETA, "tau": TAU},
    "nash_md": {"eta": ETA, "tau": TAU},
    "egpo": {"eta": ETA, "tau": TAU, "regularizer": "js"},
    "optimistic_mwu": {"eta": ETA},
    "mpo": {"eta": ETA, "tau": TAU},
    "mnpo": {"eta": ETA, "tau": TAU},
    "ipo_md": {"tau": TAU, "regularizer": "forward_kl"},
    "dpo": {"tau": TAU, "regularizer": "reverse_kl+chi2"},
    "moving_dpo": {"eta": ETA},
}


@pytest.mark.parametrize("fit_name", ["pairwise", "logistic"])
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_pull_the_model_along_the_step(checkpoint: Path, name: str, fit_name: str) -> None:
    """Pairwise ∝ π∘ρ∘v; logistic the same with E(label − σ(h)) for v (`solvers.fits`)."""
    policy = load(checkpoint)
    logp, logp_ref = recorded(policy)
    past = recorded(load(checkpoint, away=0.1))[0]
    known = dict.fromkeys(("logp_previous", "logp_average", "logp_geometric"), past)
    plays = Plays.exact(payoff(), logp, logp_ref, **known)
    rule, fit = get_rule(name, **PAIRS[name]), get_fit(fit_name)
    update = rule(plays)
    found, _ = model_gradient(policy, fit, FitDataset(COMPLETIONS, fit.items(plays, update)))
    beta = slope = scale = 1 / update.eta
    towards = update.direction - beta * (logp - update.anchor)
    if update.regularizer is not None:
        towards = towards - update.tau * update.regularizer.gradient(logp, logp_ref)
        slope = beta + update.tau * update.regularizer.slope_derivative(logp - logp_ref)
        scale = beta + update.tau * sum(update.regularizer.parts.values())
    if fit_name == "pairwise":
        wanted = -4 / scale**2 * slope * centered(logp, towards)
    else:
        won = update.direction - update.drift
        implied = won - towards
        label, said = (1 / (1 + np.exp(x[:, None, :] - x[:, :, None])) for x in (won, implied))
        wanted = -2 * slope * np.exp(logp) * ((label - said) @ np.exp(logp)[..., None])[..., 0]
    wanted = pulled_back(policy, wanted)
    # Relative to the gradient, in float64.
    assert wanted.abs().max() > 1e-3
    assert (found - wanted).abs().max() <= 1e-10 * max(1.0, wanted.abs().max().item())


def test_logistic_pulls_the_model_from_its_own_answers_to_those_of_the_data(checkpoint) -> None:
    """SPIN at π_θ = π_t = anchor: ∝ data − opponent."""
    policy = load(checkpoint)
    logp, logp_ref = recorded(policy)
    data = recorded(load(checkpoint, away=0.6))[0]
    opponent = recorded(load(checkpoint, away=0.1))[0]
    plays = Plays.exact(None, logp, logp_ref, logp_average=opponent, logp_data=data)
    update, fit = get_rule("spin", eta=ETA)(plays), get_fit("logistic")
    found, _ = model_gradient(policy, fit, FitDataset(COMPLETIONS, fit.items(plays, update)))
    wanted = pulled_back(policy, -0.5 / ETA * (np.exp(data) - np.exp(opponent)))
    assert wanted.abs().max() > 1e-3
    assert (found - wanted).abs().max() <= 1e-10 * max(1.0, wanted.abs().max().item())


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FITS)
def test_the_expectation_over_samples_is_the_exact_gradient(checkpoint: Path, name: str) -> None:
    """K = 2: every pair of draws, under its probability."""
    policy = load(checkpoint)
    fit, rule, _ = chosen(name)
    logp, logp_ref = (x[:1] for x in recorded(policy))
    table, n = payoff()[:1], len(RESPONSES)
    exact_plays = Plays.exact(table, logp, logp_ref)
    exact = FitDataset(COMPLETIONS[:1], fit.items(exact_plays, rule(exact_plays)))
    wanted, _ = model_gradient(policy, fit, exact)

    i, j = (index.ravel() for index in np.indices((n, n)))
    pairs = np.stack([i, j], -1)
    sampled = table[0][pairs[:, :, None], pairs[:, None, :]]
    plays = Plays.sampled(sampled, logp[0][pairs], logp_ref[0][pairs])
    batch = policy.collate(COMPLETIONS[0])
    with policy.acting():
        log_pi = policy.batch_log_probs(batch)[torch.tensor(pairs)]
        items = fit.items(plays, rule(plays))
        columns = {k: torch.tensor(v) for k, v in items.columns.items()}
        losses = (
            torch.tensor(items.weight) * fit.loss(log_pi[..., None], columns, items.regularizer)
        ).sum(-1)
        chance = torch.tensor(np.exp(logp[0][pairs].sum(-1)))
        found = gradient(policy, (chance * losses).sum())
    # Rounding of sums over 441 pairs in float64.
    assert (found - wanted).abs().max() < 1e-10


# --- batches --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled_rows(checkpoint: Path) -> tuple[Policy, Fit, FitDataset]:
    policy = load(checkpoint)
    logp, logp_ref = recorded(policy)
    k = np.array([[0, 3, 7, 7, 20], [1, 2, 3, 4, 5]])
    rows = np.arange(2)[:, None]
    plays = Plays.sampled(
        payoff()[rows[:, :, None], k[:, :, None], k[:, None, :]], logp[rows, k], logp_ref[rows, k]
    )
    fit = get_fit("proximal")
    update = get_rule("gmmd", eta=ETA, tau=TAU, regularizer="chi2")(plays)
    drawn = [[COMPLETIONS[b][i] for i in k[b]] for b in range(2)]
    return policy, fit, FitDataset(drawn, fit.items(plays, update))


def test_the_loss_does_not_depend_on_order_or_micro_batches(sampled_rows) -> None:
    policy, fit, rows = sampled_rows
    whole, loss = model_gradient(policy, fit, rows)
    shuffled, same = model_gradient(policy, fit, rows, [3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    assert same == pytest.approx(loss, abs=1e-12)
    assert (shuffled - whole).abs().max() < 1e-12
    parts = [model_gradient(policy, fit, rows, [2 * i, 2 * i + 1]) for i in range(5)]
    assert np.mean([loss for _, loss in parts]) == pytest.approx(loss, abs=1e-12)
    assert (sum(part for part, _ in parts) / 5 - whole).abs().max() < 1e-12


def test_the_loss_does_not_depend_on_the_padding_side(sampled_rows) -> None:
    policy, fit, rows = sampled_rows
    every = [rows[i] for i in range(len(rows))]
    batch = batch_of(every, policy.pad_token_id, torch.float64)
    responses = [c for row in every for c in row["responses"]]
    right = collate(responses, policy.pad_token_id, padding_side="right")
    assert not torch.equal(right["input_ids"], batch["input_ids"])
    with policy.acting():
        left = batch_loss(policy.model, batch, fit)
        assert batch_loss(policy.model, batch | right, fit).item() == pytest.approx(
            left.item(), abs=1e-12
        )


def test_the_reference_is_the_base_model_to_the_bit(mistral: Path) -> None:
    policy = load(mistral, "float32")
    _, logp_ref = recorded(policy)
    flat = [completion for row in COMPLETIONS for completion in row]
    base = Policy.load(ModelConfig(path=str(mistral), device="cpu")).model.unload()
    order = sorted(range(len(flat)), key=lambda i: len(flat[i]))
    alone = torch.empty(len(flat))
    with torch.no_grad():
        values = sequence_log_probs(base, policy.collate([flat[i] for i in order]))
    alone[order] = values
    assert np.array_equal(alone.double().numpy(), logp_ref.ravel())


# --- the Trainer ----------------------------------------------------------------------------------

SETTINGS = FittingConfig(
    batch_size=4, micro_batch_size=2, epochs=3, learning_rate=1e-2, warmup=0.25, max_grad_norm=0.5
)


def test_the_trainers_curve_is_that_of_a_bare_loop(sampled_rows, checkpoint, tmp_path) -> None:
    _, fit, rows = sampled_rows
    policy = load(checkpoint)
    losses = fit_policy(policy, fit, rows, SETTINGS, directory=tmp_path, seed=(3, 0))
    after = torch.cat([p.detach().reshape(-1) for p in trained(policy)])

    bare = load(checkpoint)
    optimizer = torch.optim.AdamW(trained(bare), lr=1e-2, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=6)
    ordered = InOrder.shuffled(rows, 4, 3, (3, 0))
    curve = []
    for first in range(0, len(ordered), 4):
        batch = batch_of([ordered[first + i] for i in range(4)], bare.pad_token_id, torch.float64)
        loss = batch_loss(bare.model, batch, fit)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained(bare), 0.5)
        optimizer.step()
        schedule.step()
        curve.append(loss.item())
    assert len(curve) == 6  # 10 rows make two whole batches an epoch
    # The Trainer adds up its losses in float32; Adam divides by small numbers.
    assert losses == pytest.approx(curve, rel=1e-5)
    wanted = torch.cat([p.detach().reshape(-1) for p in trained(bare)])
    assert (after - wanted).abs().max() < 1e-6


def test_gradient_checkpointing_computes_twice_and_changes_nothing(
    sampled_rows, checkpoint: Path, tmp_path: Path
) -> None:
    _, fit, rows = sampled_rows
    losses, passes = [], []
    for on in (False, True):
        policy, count = load(checkpoint), []
        layer = policy.model.base_model.model.transformer.h[0].attn
        layer.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        settings = replace(SETTINGS, gradient_checkpointing=on)
        directory = tmp_path / str(on)
        losses.append(fit_policy(policy, fit, rows, settings, directory=directory, seed=(3,)))
        passes.append(len(count))
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert passes == [12, 24]  # three epochs of four micro-batches


def test_a_fit_brings_the_model_to_the_tabular_step(checkpoint: Path, tmp_path: Path) -> None:
    """Proximal on exact plays: the model's minimizer is the step, and training goes there."""
    policy = load(checkpoint)
    logp, logp_ref = recorded(policy)
    plays = Plays.exact(payoff(), logp, logp_ref)
    update = get_rule("gmmd", eta=1.0, tau=TAU, regularizer="reverse_kl")(plays)
    fit = get_fit("proximal")
    settings = FittingConfig(batch_size=42, micro_batch_size=42, epochs=150, learning_rate=1e-2)
    rows = FitDataset(COMPLETIONS, fit.items(plays, update))
    fit_policy(policy, fit, rows, settings, directory=tmp_path, seed=(0,))
    target, (reached, _) = step(update, plays), recorded(policy)
    before = dot(np.exp(target), target - logp).mean()
    after = dot(np.exp(target), target - reached).mean()
    # A low rank cannot reach all of it: a tenth of the way is left at most.
    assert before > 0.02
    assert after < 0.1 * before


# --- a rule of one's own --------------------------------------------------------------------------


def cubed(plays: Plays, weights) -> np.ndarray:
    """A direction that no rule of the zoo has."""
    return win_rate(plays, weights) ** 3


own_rule = UpdateRule("own", direction=cubed, eta=0.7)


def test_a_rule_of_ones_own_trains_and_its_sign_flips_the_gradient(checkpoint: Path) -> None:
    from llm.config.schema import TrainConfig
    from llm.run.setup import rule_and_fit

    config = TrainConfig.from_dict(
        {
            "rule": "tests.test_bridge:own_rule",
            "fit": "regression",
            "model": {"path": str(checkpoint)},
            "data": {"path": "-"},
            "judge": {"kind": "embedded"},
        }
    )
    rule, fit = rule_and_fit(config)
    flipped = replace(rule, direction=lambda plays, weights: -cubed(plays, weights))
    policy = load(checkpoint)
    logp, logp_ref = recorded(policy)
    plays = Plays.exact(payoff(), logp, logp_ref)
    gradients = [
        model_gradient(policy, fit, FitDataset(COMPLETIONS, fit.items(plays, r(plays))))[0]
        for r in (rule, flipped)
    ]
    assert gradients[0].abs().max() > 1e-3
    assert (gradients[0] + gradients[1]).abs().max() < 1e-10
    known = get_fit("regression")
    mwu = get_rule("mwu", eta=0.7)
    other, _ = model_gradient(
        policy, known, FitDataset(COMPLETIONS, known.items(plays, mwu(plays)))
    )
    assert (gradients[0] - other).abs().max() > 1e-3


def test_the_regularizers_of_the_two_halves_are_the_same_objects() -> None:
    assert get_rule("gmmd", tau=0.1, regularizer="chi2").regularizer == parse("chi2")
