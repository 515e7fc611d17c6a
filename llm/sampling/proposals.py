"""The distribution of training responses: π_s, or one of two samplers of its mixture with μ."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from llm.config.schema import TrainConfig
from llm.data.examples import Prompt
from llm.policy.memory import out_of_memory
from llm.policy.model import Policy
from llm.sampling.engine import Engine, Response
from llm.sampling.gflownet import (
    load_sampler,
    remove_sampler,
    sample_gflownet,
    save_sampler,
    steps,
    train_sampler,
)
from llm.sampling.responses import Draw
from llm.sampling.token_mixture import sample_token_mixture
from llm.storage.chunks import Progress, World
from llm.storage.files import write_directory

MEMORY_SETTINGS = "gflownet.micro_batch_size, sample.batch_size, sample.max_new_tokens"


def engine_draw(engine: Engine, adapter: Path | None, own: bool = False) -> Draw:
    """Responses of the engine under an adapter; of μ with None.

    `own`: the engine's own log-probabilities are those that they were drawn from.
    """

    def draw(
        ids: Sequence[Sequence[int]], k: int, key: Sequence[int]
    ) -> tuple[list[list[Response]], torch.Tensor | None]:
        drawn = engine.sample(ids, k, adapter=adapter, key=key)
        return drawn, _proposal(drawn) if own else None

    return draw


def _proposal(drawn: Sequence[Sequence[Response]]) -> torch.Tensor:
    """B × K responses of an engine that reports log-probabilities -> (B, K): their sums."""
    return torch.tensor(
        [[sum(response.token_log_probs or ()) for response in row] for row in drawn],
        dtype=torch.float64,
    )


@dataclass(frozen=True)
class Proposals:
    """`sample.distribution`: what training responses are drawn from."""

    config: TrainConfig
    policy: Policy
    engine: Engine
    world: World
    progress: Progress

    @contextmanager
    def drawing(
        self,
        adapter: Path | None,
        share: float,
        prompts: Sequence[Prompt],
        directory: Path,
        key: Sequence[int],
    ) -> Iterator[Draw]:
        """Draws from the policy with that adapter, or from its mixture with `share` of μ.

        A GFlowNet is trained on `prompts` with random numbers seeded by `key`, unless `directory`
        holds it already.
        """
        settings = self.config.sample
        # Without an adapter the policy is μ, and μ mixed with itself is μ.
        if settings.distribution == "policy" or adapter is None:
            yield engine_draw(self.engine, adapter, settings.correct_drift)
            return
        with self.policy.using(adapter):
            if settings.distribution == "token_mixture":
                yield lambda ids, k, key: sample_token_mixture(
                    self.policy, ids, k, settings, share, key=key
                )
                return
            if directory.is_dir():
                load_sampler(self.policy, directory)
            else:
                self._train(share, prompts, directory, key)
            yield lambda ids, k, key: sample_gflownet(self.policy, ids, k, settings, key=key)
            remove_sampler(self.policy)

    def _train(
        self, share: float, prompts: Sequence[Prompt], directory: Path, key: Sequence[int]
    ) -> None:
        settings, work = self.config.gflownet, directory.with_name(f"{directory.name}-trainer")
        with (
            out_of_memory("training the sampler", MEMORY_SETTINGS),
            self.progress.stage("sampler", steps(settings, len(prompts))) as advance,
        ):
            train_sampler(
                self.policy,
                [prompt.token_ids for prompt in prompts],
                share,
                settings,
                self.config.sample,
                seed=key,
                directory=work,
                world=self.world,
                on_steps=advance,
            )
        if self.world.is_main:
            shutil.rmtree(work, ignore_errors=True)
            write_directory(directory, lambda to: save_sampler(self.policy, to))
        self.world.barrier()
