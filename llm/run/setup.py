"""Building the objects of a run; everything is checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch

from games.errors import InputError
from llm.config.schema import TrainConfig
from llm.data.examples import Examples, Prompt, read_examples
from llm.data.prompts import PromptSet, load_prompts
from llm.embedded import resolve
from llm.evaluation.exact import ExactSolution, exact_solution, target_description
from llm.evaluation.metrics import load_metrics
from llm.judges.build import build_judge
from llm.judges.model import Judge
from llm.policy.adapters import ADAPTER_WEIGHTS
from llm.policy.devices import named_device
from llm.policy.fitting import accumulation, training_arguments
from llm.policy.memory import out_of_memory
from llm.policy.model import Policy
from llm.run.checks import check_settings
from llm.sampling.engine import Engine, build_engine, check_engine
from llm.sampling.gflownet import check_termination
from llm.sampling.gflownet import steps as sampler_steps
from llm.sources import source_of
from llm.sources.base import Source
from llm.storage.chunks import World
from solvers.divergences import parse
from solvers.fits import Fit, get_fit
from solvers.rules import UpdateRule, get_rule

RULE_OPTIONS = ("alpha", "magnet_every", "memory")  # eta, tau, regularizer have fields of their own


@dataclass(frozen=True)
class Parts:
    """The objects of Algorithm 1. `judge` is None where nothing is judged."""

    policy: Policy
    engine: Engine
    prompts: PromptSet
    judge: Judge | None
    judge_device: torch.device
    source: Source
    rule: UpdateRule
    fit: Fit
    exact: ExactSolution | None


def prepare(config: TrainConfig, world: World) -> Parts:
    """Loads model, prompts and judge. Raises InputError for anything that does not fit."""
    source, fit, examples = checked(config)
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
    check_batches(source, fit, prompts)
    judge, judge_device = load_judge(config)
    engine = build_engine(policy, config.sample, longest_prompt(prompts))
    every = [prompt for fold in prompts.folds for prompt in fold]
    exact = exact_solution(given, source.rule, policy, every, source.played)
    return Parts(policy, engine, prompts, judge, judge_device, source, source.rule, fit, exact)


def shape_of(config: TrainConfig) -> Policy:
    """The policy on the meta device, without weights."""
    source = config.model.random_from_config or config.model.path
    shape = replace(config.model, random_from_config=source, device="meta", adapter=None)
    try:
        return Policy.load(replace(shape, load_in_4bit=False), config.lora)
    except InputError as error:
        if config.model.random_from_config is not None:
            raise
        raise InputError(str(error).replace("model.random_from_config", "model.path")) from error


def checked(config: TrainConfig) -> tuple[Source, Fit, Examples]:
    """Source, fit and data, with every check that needs no model. Raises InputError."""
    rule, fit = rule_and_fit(config)
    check_settings(config)
    check_engine(config)
    load_metrics(config.evaluation.metrics)
    source = source_of(config, rule)
    source.check(fit)
    source.items_per_prompt(fit)
    examples = read_examples(resolve(config).data)
    start = config.model.adapter
    if start is not None and not (Path(start) / ADAPTER_WEIGHTS).is_file():
        raise InputError(
            f"model.adapter={start}: no {ADAPTER_WEIGHTS} in it; give a directory with a LoRA "
            "adapter as peft saves it"
        )
    return source, fit, examples


def encoded(config: TrainConfig, policy: Policy, examples: Examples) -> PromptSet:
    """The tokenized prompts and answers.

    Raises InputError if one exceeds the context, or has a token without an embedding.
    """
    rows = policy.model.get_input_embeddings().weight.shape[0]
    prompts = load_prompts(
        config.data,
        policy.tokenizer,
        seed=config.seed,
        held_out=config.evaluation.prompts,
        stop_ids=[i for i in policy.stop_ids if i < rows],  # the embedded game has no such token
        max_answer_tokens=config.sample.max_new_tokens,
        examples=examples,
    )
    every = [prompt for fold in (*prompts.folds, prompts.held_out) for prompt in fold]
    for prompt in every:
        if (largest := max(chain(prompt.token_ids, *prompt.answers), default=0)) >= rows:
            raise InputError(
                f"{prompt.where}: {policy.tokenizer.convert_ids_to_tokens(largest)!r} is a token "
                f"without an embedding (id {largest} of {rows}); remove it, or give the tokenizer "
                "that belongs to the model"
            )
    policy.check_length(longest_prompt(prompts), config.sample.max_new_tokens)
    return prompts


def longest_prompt(prompts: PromptSet) -> int:
    """Tokens of the longest prompt."""
    return max(len(p.token_ids) for fold in (*prompts.folds, prompts.held_out) for p in fold)


def check_batches(source: Source, fit: Fit, prompts: PromptSet) -> None:
    """Raises InputError where an iteration is less than a batch, or surely exceeds a budget."""
    for t in range(len(prompts.folds)):
        asked = prompts.size_of_iteration(t, source.config.data.prompts_per_iteration)
        source.check_batches(fit, asked)


def check_sampler(
    config: TrainConfig, policy: Policy, prompts: PromptSet, processes: int = 1
) -> None:
    """Raises InputError if a GFlowNet cannot be trained on the prompts of an iteration.

    The policy needs no weights.
    """
    if config.sample.distribution == "gflownet":
        check_termination(policy)
        accumulation(config.gflownet, processes)
        for t in range(len(prompts.folds)):
            asked = prompts.size_of_iteration(t, config.data.prompts_per_iteration)
            sampler_steps(config.gflownet, asked)


def evaluation_prompts(prompts: PromptSet) -> Sequence[Prompt]:
    """The prompts for metrics: the held-out ones, or else up to 64 training prompts."""
    return prompts.held_out or prompts.folds[0][:64]


def rule_and_fit(config: TrainConfig) -> tuple[UpdateRule, Fit]:
    """Rule and fit of a configuration. Raises InputError where they do not go together."""
    fit = get_fit(config.fit, **config.fit_options)
    regularizer = None if config.regularizer is None else parse(config.regularizer)
    tau = config.tau
    if config.lam == 0:
        tau = 0.0
    elif config.lam is not None:
        if config.eta is None or regularizer is None:
            raise InputError("lam: needs eta and a regularizer, which determine the temperature")
        regularizer, tau = fit.game(regularizer, config.lam, config.eta)
    try:
        rule = get_rule(
            config.rule, eta=config.eta, tau=tau, regularizer=regularizer, **config.rule_options
        )
    except TypeError:
        unknown = ", ".join(sorted(set(config.rule_options) - {*RULE_OPTIONS}))
        raise InputError(
            f"rule_options: {unknown or 'a separate field'} is not an option of rules; known: "
            f"{', '.join(RULE_OPTIONS)}"
        ) from None
    fit.check(rule)
    return rule, fit


def load_judge(config: TrainConfig) -> tuple[Judge | None, torch.device]:
    """The judge, on the CPU, and the device that it runs on. None without a judge."""
    settings = config.judge
    if settings.kind == "none":
        return None, torch.device("cpu")
    device = named_device("judge.device", settings.device)
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


def target_lines(source: Source, fit: Fit) -> list[str]:
    """What the rule approaches; in a regularized game the temperature of each term of R.

    An effective temperature is stated for K independent responses of π_t only.
    """
    config, rule, lines = source.config, source.rule, []
    if rule.magnet_every is not None:
        lines.append(f"μ moves to π_t every {rule.magnet_every} steps")
    if rule.converges == "neither":
        lines.append(f"rule {rule.name} claims no equilibrium of the game")
    k = config.samples_per_prompt if source.cost.sampled else source.group_size
    temperatures = fit.temperatures(rule, rule.eta_at(0), k, config.diagonal)
    if not temperatures:
        return (
            [*lines, f"aims at {target_description(rule)}"]
            if rule.converges != "neither"
            else lines
        )
    for term in temperatures:
        lam = "" if term.lam is None else f", λ = {term.lam:g} in the loss"
        stated = source.independent and config.sample.distribution == "policy"
        claimed = term.effective if stated else None
        effective = "none is claimed" if claimed is None else f"{claimed:g}"
        lines.append(
            f"{term.term}: temperature τ = {term.tau:g} of the game{lam}; "
            f"effective at K = {k}: {effective}"
        )
    return lines
