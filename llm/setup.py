"""Everything that a run needs, loaded and checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from games.errors import InputError
from llm.beside import Beside, beside
from llm.chunks import World
from llm.config import TrainConfig
from llm.data import PromptSet, load_prompts
from llm.embedded import resolve
from llm.embedded.judges import embedded_judge
from llm.fitting import training_arguments
from llm.judges import Judge, build_judge
from llm.policy import Policy
from solvers.divergences import parse
from solvers.fits import Fit, get_fit
from solvers.plays import Plays
from solvers.rules import UpdateRule, get_rule


@dataclass(frozen=True)
class Parts:
    """The objects of Algorithm 1."""

    policy: Policy
    prompts: PromptSet
    judge: Judge
    judge_device: torch.device
    rule: UpdateRule
    fit: Fit
    beside: Beside | None

    @contextmanager
    def judging(self) -> Iterator[Judge]:
        """The judge on its device; it leaves a GPU afterwards."""
        yield self.judge.to(self.judge_device)
        if self.judge_device.type != "cpu":
            self.judge.to("cpu")
            torch.cuda.empty_cache()


def prepare(config: TrainConfig, world: World) -> Parts:
    """Loads the model, the prompts and the judge. Raises InputError for whatever does not fit."""
    rule, fit = rule_and_fit(config)
    config = resolve(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = config.model.device or ""
    if device.startswith("cuda:"):
        raise InputError(
            f"model.device={device}: give cuda, and choose the GPU by "
            f"CUDA_VISIBLE_DEVICES={device.removeprefix('cuda:')}"
        )
    with out_of_memory("loading the model", "model.dtype, model.load_in_4bit"):
        policy = Policy.load(config.model, config.lora, seed=config.seed)
    on_cpu = policy.device.type == "cpu"
    training_arguments(config.train, Path(config.output_dir), world, config.seed, on_cpu)
    prompts = load_prompts(
        config.data, policy.tokenizer, seed=config.seed, held_out=config.evaluation.prompts
    )
    longest = max(len(p.token_ids) for fold in (*prompts.folds, prompts.held_out) for p in fold)
    policy.check_length(longest, config.sample.max_new_tokens)
    per_prompt = items_per_prompt(config, rule, fit)
    for t in range(len(prompts.folds)):
        asked = prompts.of_iteration(t, config.data.prompts_per_iteration)
        if len(asked) * per_prompt < config.train.batch_size:
            raise InputError(
                f"train.batch_size={config.train.batch_size}: an iteration has only "
                f"{len(asked) * per_prompt} items; lower it, or take more prompts or responses"
            )
    judge, judge_device = load_judge(config)
    known = beside(config, rule, policy, [prompt for fold in prompts.folds for prompt in fold])
    return Parts(policy, prompts, judge, judge_device, rule, fit, known)


def rule_and_fit(config: TrainConfig) -> tuple[UpdateRule, Fit]:
    """The objects of `solvers` that a configuration names, checked to go together."""
    fit = get_fit(config.fit, **config.fit_options)
    regularizer = None if config.regularizer is None else parse(config.regularizer)
    tau = config.tau
    if config.lam is not None:
        if config.eta is None or regularizer is None:
            raise InputError("lam: needs eta and a regularizer, to tell the temperature from")
        regularizer, tau = fit.game(regularizer, config.lam, config.eta)
    try:
        rule = get_rule(
            config.rule, eta=config.eta, tau=tau, regularizer=regularizer, **config.rule_options
        )
    except TypeError:
        names = ", ".join(config.rule_options)
        raise InputError(f"rule_options: not all of {names} are settings of a rule") from None
    fit.check(rule)
    return rule, fit


def items_per_prompt(config: TrainConfig, rule: UpdateRule, fit: Fit) -> int:
    """How many rows a prompt's K responses make: K, the best and the worst, or pairs."""
    k = config.samples_per_prompt
    plays = Plays.sampled(np.full((k, k), 0.5), np.zeros(k), np.zeros(k), config.diagonal)
    return fit.items(plays, rule(plays)).weight.shape[-1]


def load_judge(config: TrainConfig) -> tuple[Judge, torch.device]:
    """The judge, on the CPU, and the device that it works on."""
    settings = config.judge
    path = embedded_judge(settings.path) if settings.kind == "embedded" else settings.path
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
        path,
        preference=settings.preference,
        batch_size=settings.batch_size,
        max_length=settings.max_length,
        device="cpu",
        dtype=settings.dtype,
        trust_remote_code=config.model.trust_remote_code,
    )
    return judge, device


def aims(config: TrainConfig, rule: UpdateRule, fit: Fit) -> list[str]:
    """A line per term of the regulariser: which temperature of the game it aims at."""
    eta = rule.eta_at(0)
    temperatures = fit.temperatures(rule, eta, config.samples_per_prompt, config.diagonal)
    if not temperatures:
        return ["aims at the equilibrium of the game without a regulariser"]
    lines = []
    for aim in temperatures:
        lam = "" if aim.lam is None else f", λ = {aim.lam:g} in the loss"
        effective = "none is claimed" if aim.effective is None else f"{aim.effective:g}"
        lines.append(
            f"{aim.term}: temperature τ = {aim.tau:g} of the game{lam}; "
            f"effective at K = {config.samples_per_prompt}: {effective}"
        )
    return lines


@contextmanager
def out_of_memory(doing: str, knobs: str) -> Iterator[None]:
    """Names the knobs to turn when a GPU's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(f"out of GPU memory while {doing}: lower or change {knobs}") from error
