"""Error and cost of the samplers of the geometric mixture.

python -m benchmarks.mixtures prints the tables of docs/geometric-mixture.md. It takes about four
minutes and needs the environment of `make install` (torch, transformers, peft), not the peers.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

# Before numpy is imported. Two threads on a small model are slower than one.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from scipy.integrate import quad_vec
from scipy.optimize import brentq

from llm import embedded
from llm.config.schema import DataConfig, GFlowNetConfig, LoraConfig, ModelConfig, SampleConfig
from llm.data.prompts import load_prompts
from llm.policy.log_probs import PromptResponse
from llm.policy.model import Policy
from llm.sampling.gflownet import remove_sampler, sample_gflownet, steps, train_sampler
from llm.sampling.token_mixture import sample_token_mixture, token_mixture_log_probs
from llm.sampling.transformers_engine import sample
from solvers.arrays import normalize
from tests.tiny_models import save_causal_lm, symbol_tokenizer

from .__main__ import _processor

# --- distributions ------------------------------------------------------------------------------


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """(n,), (n,): ½ Σ |p − q| of two log-probabilities, in [0, 1]."""
    return float(np.abs(np.exp(p) - np.exp(q)).sum() / 2)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """(n,), (n,): KL(p‖q) of two log-probabilities, in nats."""
    return float(np.exp(p) @ (p - q))


def weighted_draw(log_proposal: np.ndarray, log_target: np.ndarray, k: int) -> np.ndarray:
    """(n,), (n,) -> (n,): distribution of one of K samples, chosen by its self-normalized weight.

    With w = target/proposal up to a constant, K p(y) w(y) E[1/(w(y) + S)], S the sum of the other
    K − 1 weights, and 1/(w + S) = ∫ exp(−t(w + S)) dt over t > 0: one integral, no enumeration.
    """
    proposal = np.exp(log_proposal)
    weight = np.exp(log_target - log_proposal)
    weight = weight / (proposal @ weight) / k  # of mean 1/K, so that t is of order 1

    def integrand(t: float) -> np.ndarray:
        return np.exp(-t * weight) * (proposal @ np.exp(-t * weight)) ** (k - 1)

    # t = u/(1 − u)
    integral, _ = quad_vec(
        lambda u: integrand(u / (1 - u)) / (1 - u) ** 2, 0, 1, epsabs=1e-12, epsrel=1e-10
    )
    return k * proposal * weight * integral


def effective_share(log_weight: np.ndarray) -> np.ndarray:
    """(..., K) -> (...,): (Σw)²/(K Σw²), the effective sample size over K."""
    weight = np.exp(log_weight - log_weight.max(-1, keepdims=True))
    return weight.sum(-1) ** 2 / (weight.shape[-1] * (weight**2).sum(-1))


# --- distances, on a model whose responses can be enumerated -------------------------------------

EOS = 1
LENGTH = 4
PROMPTS = [[0, 2], [0, 3, 2, 4, 3, 3]]
DISTANCES = (0.1, 0.5, 2.0)  # KL(π_θ‖μ)
SHARES = (0.05, 0.5)
TRAINING = GFlowNetConfig(
    learning_rate=3e-3, epochs=100, samples=64, batch_size=64, micro_batch_size=64
)
SHORT, LONG = 25, 200  # optimizer steps


def responses() -> list[tuple[int, ...]]:
    """All 341 responses: at most four tokens, of which the end-of-sequence token is the last."""
    others = [0, 2, 3, 4]
    ended = [(*r, EOS) for n in range(LENGTH) for r in product(others, repeat=n)]
    return ended + list(product(others, repeat=LENGTH))


@dataclass(frozen=True)
class Enumerable:
    """A random model with two layers and a random adapter."""

    policy: Policy
    direction: Sequence[torch.Tensor]
    start: Sequence[torch.Tensor]

    @classmethod
    def load(cls, directory: Path) -> Enumerable:
        save_causal_lm(directory, tokenizer=symbol_tokenizer("abc"))
        settings = ModelConfig(path=str(directory), device="cpu", dtype="float64")
        policy = Policy.load(settings, LoraConfig(rank=4, alpha=8.0))
        generator = torch.Generator().manual_seed(1)
        start = [p.detach().clone() for p in policy.model.parameters() if p.requires_grad]
        return cls(policy, [torch.randn(p.shape, generator=generator) for p in start], start)

    def move(self, scale: float) -> None:
        """Moves the adapter `scale` away from its start, where π_θ = μ."""
        trained = [p for p in self.policy.model.parameters() if p.requires_grad]
        with torch.no_grad():
            for p, start, direction in zip(trained, self.start, self.direction, strict=True):
                p.copy_(start + scale * direction)

    def move_to(self, distance: float) -> None:
        """Moves the adapter so that the mean KL(π_θ‖μ) over the prompts is `distance`."""

        def excess(scale: float) -> float:
            self.move(scale)
            return float(np.mean([kl(*self.laws(prompt)) for prompt in PROMPTS])) - distance

        self.move(brentq(excess, 0.0, 0.12, xtol=1e-4))  # KL increases on this interval

    def laws(self, prompt: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of all responses with and without the active adapters."""
        own, reference = (
            self.policy.log_probs(self.listed(prompt), batch_size=512, adapter=on).double().numpy()
            for on in (True, False)
        )
        return own, reference

    def listed(self, prompt: Sequence[int]) -> list[PromptResponse]:
        return [PromptResponse(prompt, response) for response in responses()]


def samplers(model: Enumerable, share: float) -> dict[str, list[np.ndarray]]:
    """{sampler: its log-probabilities of all responses, for each prompt}."""
    policy, done = model.policy, []
    at: dict[int, list[np.ndarray]] = {}

    def after_step(more: int) -> None:
        done.append(more)
        if len(done) in (SHORT, LONG):  # the sampler is the active adapter
            at[len(done)] = [model.laws(prompt)[0] for prompt in PROMPTS]

    with tempfile.TemporaryDirectory() as directory:
        train_sampler(
            policy,
            PROMPTS,
            share,
            TRAINING,
            SampleConfig(max_new_tokens=LENGTH, batch_size=512),
            seed=(0,),
            directory=Path(directory),
            on_steps=after_step,
        )
    remove_sampler(policy)
    made: dict[str, list[np.ndarray]] = {}
    for number, prompt in enumerate(PROMPTS):
        own, reference = model.laws(prompt)
        target = (1 - share) * own + share * reference
        token = token_mixture_log_probs(policy, model.listed(prompt), share, batch_size=512)
        token = token.double().numpy()
        trained = at[LONG][number]
        for name, law in {
            "true": normalize(target),
            "π_θ, unweighted": own,
            "(a) π_θ, weighted, K = 8": np.log(weighted_draw(own, target, 8)),
            "(a) π_θ, weighted, K = 64": np.log(weighted_draw(own, target, 64)),
            "(b) token-level mixing": token,
            "(b) and weighted, K = 8": np.log(weighted_draw(token, target, 8)),
            f"(c) GFlowNet, {SHORT} steps": at[SHORT][number],
            f"(c) GFlowNet, {LONG} steps": trained,
            f"(c) {LONG} steps and weighted, K = 8": np.log(weighted_draw(trained, target, 8)),
        }.items():
            made.setdefault(name, []).append(law)
    return made


def distances() -> None:
    """Table of distances: total variation and KL(mixture‖q), averaged over the prompts."""
    columns: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as directory:
        model = Enumerable.load(Path(directory))
        for distance, share in product(DISTANCES, SHARES):
            model.move_to(distance)
            made = samplers(model, share)
            true = made.pop("true")
            column = f"KL {distance:g}, share {share:g}"
            for name, laws in made.items():
                tv = np.mean([total_variation(t, q) for t, q in zip(true, laws, strict=True)])
                nats = np.mean([kl(t, q) for t, q in zip(true, laws, strict=True)])
                columns.setdefault(name, {})[column] = f"{tv:.3f}, {nats:.4f}"
    print_table("sampler", columns)


# --- cost, on a text model ------------------------------------------------------------------------

DRAWS = 16
TEXT = SampleConfig(max_new_tokens=80, batch_size=128)
TEXT_SHARE = 0.5
TEXT_SCALE = 0.045  # of the random adapter
TEXT_TRAINING = GFlowNetConfig(
    learning_rate=1e-3, epochs=60, samples=4, batch_size=64, micro_batch_size=64
)


def costs() -> None:
    """Table of CPU times and effective sample sizes."""
    path = embedded.directory("embedded:text")
    assert path is not None
    policy = Policy.load(ModelConfig(path=str(path), device="cpu"), LoraConfig(rank=8, alpha=16.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.model.parameters():
            if p.requires_grad:
                p += TEXT_SCALE * torch.randn(p.shape, generator=generator)
    data = DataConfig(path=str(path / "prompts.jsonl"))
    prompts = [list(p.token_ids) for p in load_prompts(data, policy.tokenizer, seed=0).folds[0]][
        :16
    ]

    def scored(drawn, adapter: bool) -> np.ndarray:
        listed = [
            PromptResponse(prompt, response.token_ids)
            for prompt, given in zip(prompts, drawn, strict=True)
            for response in given
        ]
        values = policy.log_probs(listed, batch_size=TEXT.batch_size, adapter=adapter)
        return values.view(len(prompts), DRAWS).double().numpy()

    def of_policy():
        drawn = sample(policy, prompts, DRAWS, TEXT, key=(1,))
        return drawn, torch.from_numpy(scored(drawn, True))

    def by_token():
        return sample_token_mixture(policy, prompts, DRAWS, TEXT, TEXT_SHARE, key=(1,))

    def by_gflownet():
        return sample_gflownet(policy, prompts, DRAWS, TEXT, key=(1,))

    began = time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        train_sampler(
            policy,
            prompts,
            TEXT_SHARE,
            TEXT_TRAINING,
            TEXT,
            seed=(0,),
            directory=Path(directory),
        )
    training = time.process_time() - began
    rows: dict[str, dict[str, str]] = {}
    first = 0.0
    draws: dict[str, tuple[str, Callable[[], Any]]] = {
        "(a) π_θ, weighted": ("1", of_policy),
        "(b) token-level mixing": ("2", by_token),
        "(c) GFlowNet": ("1", by_gflownet),
    }
    for name, (passes, draw) in draws.items():
        draw()
        began = time.process_time()
        drawn, logq = draw()
        seconds = time.process_time() - began
        first = first or seconds
        own, reference = scored(drawn, True), scored(drawn, False)
        target = (1 - TEXT_SHARE) * own + TEXT_SHARE * reference
        if draw is of_policy:
            length = np.mean([len(r.token_ids) for given in drawn for r in given])
            distance = (own - reference).mean()
        counting = effective_share(target - logq.double().numpy()).mean()
        rows[name] = {
            "forward passes per token": passes,
            "CPU seconds": f"{seconds:.2f}",
            "ratio": f"{seconds / first:.2f}",
            "CPU seconds of training": f"{training:.0f}" if draw is by_gflownet else "0",
            f"effective sample size, K = {DRAWS}": f"{counting:.1%}",
        }
    print(
        f"{len(prompts)} prompts, {DRAWS} responses each, with {length:.0f} tokens on average; "
        f"KL(π_θ‖μ) = {distance:.1f} nats per response; share = {TEXT_SHARE:g}; "
        f"{steps(TEXT_TRAINING, len(prompts))} training steps\n"
    )
    print_table("sampler", rows)


def print_table(corner: str, rows: dict[str, dict[str, str]]) -> None:
    """{row: {column: text}} as Markdown."""
    names = list(next(iter(rows.values())))
    print(f"| {corner} | " + " | ".join(names) + " |")
    print("|---|" + "---|" * len(names))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells[column] for column in names) + " |")
    print(flush=True)


def main() -> None:
    """Prints a description of the machine and both tables."""
    torch.set_num_threads(1)
    packages = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "transformers", "peft"))
    print(f"{_processor()}, {os.cpu_count()} cores, 1 thread; {packages}; ", end="")
    print(f"Python {platform.python_version()}\n", flush=True)
    costs()
    distances()


if __name__ == "__main__":
    main()
