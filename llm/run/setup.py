"""Everything that a run needs, loaded and checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from games.errors import InputError
from llm.config.schema import TrainConfig
from llm.data.examples import Examples, Prompt, read_examples
from llm.data.prompts import PromptSet, load_prompts
from llm.embedded import resolve
from llm.evaluation.exact import Beside, aim, beside
from llm.judges.build import build_judge
from llm.judges.model import Judge
from llm.judges.stored import comparisons
from llm.policy.adapters import ADAPTER_WEIGHTS
from llm.policy.fitting import accumulation, training_arguments
from llm.policy.model import Policy
from llm.sampling.gflownet import check_termination
from llm.sampling.gflownet import steps as sampler_steps
from llm.storage.chunks import World
from solvers.divergences import parse
from solvers.fits import Fit, get_fit
from solvers.plays import Diagonal, Plays
from solvers.rules import UpdateRule, get_rule
from solvers.tournament import round_robin, tournament_of

RULE_OPTIONS = ("alpha", "magnet_every", "memory")  # eta, tau, regularizer have fields of their own


# What given pairs say: the first was chosen, the second rejected.
CHOSEN = np.array([[0.5, 1.0], [0.0, 0.5]])


SELECTIONS = {"tournament": tournament_of, "round_robin": round_robin}


@dataclass(frozen=True)
class Parts:
    """The objects of Algorithm 1. There is a judge unless the data say it all."""

    policy: Policy
    prompts: PromptSet
    judge: Judge | None
    judge_device: torch.device
    rule: UpdateRule
    fit: Fit
    beside: Beside | None

    @contextmanager
    def judging(self) -> Iterator[Judge]:
        """The judge on its device; it leaves a GPU afterwards."""
        assert self.judge is not None
        yield self.judge.to(self.judge_device)
        if self.judge_device.type != "cpu":
            self.judge.to("cpu")
            torch.cuda.empty_cache()


def prepare(config: TrainConfig, world: World) -> Parts:
    """Loads the model, the prompts and the judge. Raises InputError for whatever does not fit."""
    rule, fit, examples = checked(config)
    given, config = config, resolve(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = config.model.device or ""
    if device.startswith("cuda:"):
        raise InputError(
            f"model.device={device}: give cuda, and choose the GPU by "
            f"CUDA_VISIBLE_DEVICES={device.removeprefix('cuda:')}"
        )
    if config.sample.distribution == "gflownet":
        shape = shape_of(config)
        check_sampler(config, shape, encoded(config, shape, examples), world.size)
    with out_of_memory("loading the model", "model.dtype, model.load_in_4bit"):
        policy = Policy.load(config.model, config.lora, seed=config.seed)
    on_cpu = policy.device.type == "cpu"
    training_arguments(config.train, Path(config.output_dir), world, config.seed, on_cpu)
    prompts = encoded(config, policy, examples)
    check_batches(config, rule, fit, prompts)
    judge, judge_device = load_judge(config)
    known = beside(given, rule, policy, [prompt for fold in prompts.folds for prompt in fold])
    return Parts(policy, prompts, judge, judge_device, rule, fit, known)


def shape_of(config: TrainConfig) -> Policy:
    """The policy without its weights."""
    source = config.model.random_from_config or config.model.path
    shape = replace(config.model, random_from_config=source, device="meta", adapter=None)
    try:
        return Policy.load(replace(shape, load_in_4bit=False), config.lora)
    except InputError as error:
        if config.model.random_from_config is not None:
            raise
        raise InputError(str(error).replace("model.random_from_config", "model.path")) from error


def checked(config: TrainConfig) -> tuple[UpdateRule, Fit, Examples]:
    """All that can be refused before a model is loaded. Raises InputError."""
    rule, fit = rule_and_fit(config)
    check_sources(config, rule)
    items_per_prompt(config, rule, fit)
    examples = read_examples(resolve(config).data)
    start = config.model.adapter
    if start is not None and not (Path(start) / ADAPTER_WEIGHTS).is_file():
        raise InputError(
            f"model.adapter={start}: no {ADAPTER_WEIGHTS} there; give a directory with a LoRA "
            "adapter as peft saves it"
        )
    return rule, fit, examples


def encoded(config: TrainConfig, policy: Policy, examples: Examples) -> PromptSet:
    """The prompts and answers in the policy's tokens. Raises InputError where they do not fit."""
    rows = policy.model.get_input_embeddings().weight.shape[0]
    prompts = load_prompts(
        config.data,
        policy.tokenizer,
        seed=config.seed,
        held_out=config.evaluation.prompts,
        stop_ids=[i for i in policy.stop_ids if i < rows],  # the embedded game has none
        max_answer_tokens=config.sample.max_new_tokens,
        examples=examples,
    )
    longest = max(len(p.token_ids) for fold in (*prompts.folds, prompts.held_out) for p in fold)
    policy.check_length(longest, config.sample.max_new_tokens)
    return prompts


def check_batches(config: TrainConfig, rule: UpdateRule, fit: Fit, prompts: PromptSet) -> None:
    """Raises InputError where an iteration is less than a batch, or surely more than the budget."""
    per_prompt, compared = items_per_prompt(config, rule, fit), comparisons_per_prompt(config, rule)
    drawn = 0 if config.data.rejected is not None else config.samples_per_prompt
    budget = config.budget
    for t in range(len(prompts.folds)):
        asked = len(prompts.of_iteration(t, config.data.prompts_per_iteration))
        items = asked * per_prompt
        if items < config.train.batch_size:
            raise InputError(
                f"train.batch_size={config.train.batch_size}: an iteration has only {items} items; "
                "lower it, or take more prompts or responses"
            )
        # A response has a token at least.
        limits = (("comparisons", budget.comparisons, compared), ("tokens", budget.tokens, drawn))
        for name, limit, each in limits:
            if limit is not None and asked * each > limit:
                least = "at least " if name == "tokens" else ""
                raise InputError(
                    f"budget.{name}={limit}: an iteration takes {least}{asked * each}; raise it, "
                    "or take fewer prompts or responses"
                )


def check_sampler(
    config: TrainConfig, policy: Policy, prompts: PromptSet, processes: int = 1
) -> None:
    """Raises InputError where sample.distribution=gflownet cannot be trained on an iteration.

    The policy may be without its weights.
    """
    if config.sample.distribution == "gflownet":
        check_termination(policy)
        accumulation(config.gflownet, processes)
        for t in range(len(prompts.folds)):
            asked = prompts.of_iteration(t, config.data.prompts_per_iteration)
            sampler_steps(config.gflownet, len(asked))


def evaluation_prompts(prompts: PromptSet) -> Sequence[Prompt]:
    """What metrics are measured on: the held-out prompts, or some that are trained on."""
    return prompts.held_out or prompts.folds[0][:64]


def rule_and_fit(config: TrainConfig) -> tuple[UpdateRule, Fit]:
    """The objects of `solvers` that a configuration names, checked to go together."""
    fit = get_fit(config.fit, **config.fit_options)
    regularizer = None if config.regularizer is None else parse(config.regularizer)
    tau = config.tau
    if config.lam == 0:
        tau = 0.0
    elif config.lam is not None:
        if config.eta is None or regularizer is None:
            raise InputError("lam: needs eta and a regularizer, to tell the temperature from")
        regularizer, tau = fit.game(regularizer, config.lam, config.eta)
    try:
        rule = get_rule(
            config.rule, eta=config.eta, tau=tau, regularizer=regularizer, **config.rule_options
        )
    except TypeError:
        unknown = ", ".join(sorted(set(config.rule_options) - {*RULE_OPTIONS}))
        raise InputError(
            f"rule_options: {unknown or 'a field of its own'} is no setting there; known: "
            f"{', '.join(RULE_OPTIONS)}"
        ) from None
    fit.check(rule)
    return rule, fit


def check_sources(config: TrainConfig, rule: UpdateRule) -> None:
    """Raises InputError where what is to be trained on cannot come from where it is said to."""
    k, given = config.samples_per_prompt, config.data.rejected is not None
    if rule.needs_data and config.data.answer is None:
        raise InputError(
            f"data.answer: missing; rule '{rule.name}' needs the field that holds the answers"
        )
    if rule.needs_data and given:
        raise InputError(
            f"data.rejected: rule '{rule.name}' samples what loses to the answers; leave it out, "
            "or take rule=dpo"
        )
    if given and config.data.answer is None:
        raise InputError("data.answer: missing; name the field that the rejected answers lose to")
    if given and config.fit not in ("logistic", "pairwise"):
        raise InputError(
            f"fit={config.fit}: takes responses of the policy itself; for given pairs "
            "(data.rejected) take logistic or pairwise"
        )
    if given and config.fit_options.get("signal", "win_rate") == "win_rate":
        raise InputError(
            "fit_options.signal: given pairs (data.rejected) have a winner but no win rates; set "
            "it to winner"
        )
    if config.selection is not None:
        if rule.needs_data or given:
            raise InputError("selection: leave it out; the data say what wins")
        try:
            comparisons_per_prompt(config, rule)
        except InputError as error:
            raise InputError(f"samples_per_prompt={k}: {error}") from None
    if not rule.needs_data and not given:
        if k < 2:
            raise InputError(
                f"samples_per_prompt={k}: rule '{rule.name}' compares responses; give at least 2"
            )
        if config.judge.kind == "none":
            raise InputError(
                f"judge.kind=none: rule '{rule.name}' needs a judge, or pairs of answers "
                "(data.answer and data.rejected)"
            )
    shared = rule.mixes and 0 <= rule.share(rule.eta_at(0)) <= 1
    if config.sample.distribution != "policy" and (given or not shared):
        raise InputError(
            f"sample.distribution={config.sample.distribution}: rule '{rule.name}' gives no share "
            "of μ between 0 and 1 to mix by; leave it at policy"
        )
    if config.pooled_iterations > 1 and not rule.needs_data:
        raise InputError(
            f"pooled_iterations={config.pooled_iterations}: rule '{rule.name}' trains on responses "
            "of π_t alone; leave it at 1, or take rule=spin or alpha_spin"
        )


def comparisons_per_prompt(config: TrainConfig, rule: UpdateRule) -> int:
    """Pairs of responses that are judged for training; the two orders of a pair are one.

    Raises InputError where K is too small for the selection.
    """
    if rule.needs_data or config.data.rejected is not None:
        return 0
    k = config.samples_per_prompt
    if config.selection is None:
        return comparisons(k)
    return SELECTIONS[config.selection](np.full((k, k), 0.5)).comparisons


def plays_of(
    preference: np.ndarray | None,
    logp: np.ndarray,
    logp_ref: np.ndarray,
    diagonal: Diagonal,
    **known: np.ndarray,
) -> Plays:
    """(..., K, K), (..., K), (..., K): the finite game that responses are.

    Without preferences the first is an answer of the data, and the others the opponent's.
    """
    if preference is None:
        return Plays.with_data(logp, logp_ref, data=1)
    return Plays.sampled(preference, logp, logp_ref, diagonal, **known)


def items_per_prompt(config: TrainConfig, rule: UpdateRule, fit: Fit) -> int:
    """How many rows a prompt makes: its K responses, the best and the worst, or pairs."""
    k = config.samples_per_prompt
    table: np.ndarray | None = np.full((k, k), 0.5)
    if rule.needs_data:
        k, table = k + 1, None
    elif config.data.rejected is not None or config.selection is not None:
        k, table = 2, CHOSEN
    known = ["logp_average", "logp_geometric", "logp_previous", "length"]
    if config.sample.distribution != "policy":
        known.append("logp_proposal")
    numbers = {name: np.ones(k) for name in known}
    plays = plays_of(table, np.zeros(k), np.zeros(k), config.diagonal, **numbers)
    return fit.items(plays, rule(plays)).weight.shape[-1]


def load_judge(config: TrainConfig) -> tuple[Judge | None, torch.device]:
    """The judge, on the CPU, and the device that it works on."""
    settings = config.judge
    if settings.kind == "none":
        return None, torch.device("cpu")
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"judge.device={name}: there is no CUDA device here; set judge.device=cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"judge.device={name}: choose auto, cpu, cuda or cuda:N") from None
    judge = build_judge(
        settings.kind,
        settings.path,
        preference=settings.preference,
        batch_size=settings.batch_size,
        max_length=settings.max_length,
        device="cpu",
        dtype=settings.dtype,
        trust_remote_code=config.model.trust_remote_code,
    )
    return judge, device


def aims(config: TrainConfig, rule: UpdateRule, fit: Fit) -> list[str]:
    """What the rule aims at; of a regularised game the temperature of each term of R, line by line.

    An effective temperature is claimed for K independent responses of π_t.
    """
    lines = []
    if rule.magnet_every is not None:
        lines.append(f"μ moves to π_t every {rule.magnet_every} steps")
    if rule.claims == "neither":
        lines.append(f"rule {rule.name} claims no equilibrium of the game")
    k = 2 if config.data.rejected is not None else config.samples_per_prompt
    temperatures = fit.temperatures(rule, rule.eta_at(0), k, config.diagonal)
    if not temperatures:
        return [*lines, f"aims at {aim(rule)}"] if rule.claims != "neither" else lines
    chosen = config.selection or config.data.rejected or config.sample.distribution != "policy"
    for term in temperatures:
        lam = "" if term.lam is None else f", λ = {term.lam:g} in the loss"
        claimed = None if chosen else term.effective
        effective = "none is claimed" if claimed is None else f"{claimed:g}"
        lines.append(
            f"{term.term}: temperature τ = {term.tau:g} of the game{lam}; "
            f"effective at K = {k}: {effective}"
        )
    return lines


@contextmanager
def out_of_memory(doing: str, knobs: str) -> Iterator[None]:
    """Names the knobs to turn when a GPU's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(f"out of GPU memory while {doing}: lower or change {knobs}") from error
