"""Where training responses come from: π_s, or one of two samplers of its mixture with μ."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llm.config.schema import TrainConfig
from llm.data.examples import Prompt
from llm.evaluation.report import Report
from llm.policy.model import Policy
from llm.run.setup import out_of_memory
from llm.sampling.gflownet import (
    load_sampler,
    remove_sampler,
    sample_gflownet,
    save_sampler,
    steps,
    train_sampler,
)
from llm.sampling.responses import Draw, policy_draw
from llm.sampling.token_mixture import sample_token_mixture
from llm.storage.chunks import World
from llm.storage.files import write_directory

KNOBS = "gflownet.micro_batch_size, sample.batch_size, sample.max_new_tokens"


@dataclass(frozen=True)
class Samplers:
    """`sample.distribution`, on the policy as it is when one of them is asked for."""

    config: TrainConfig
    policy: Policy
    world: World
    report: Report

    @contextmanager
    def drawing(
        self, share: float, prompts: Sequence[Prompt], directory: Path, key: Sequence[int]
    ) -> Iterator[Draw]:
        """Draws from the policy, mixed with `share` of μ where the configuration says so.

        A GFlowNet is trained on `prompts` with random numbers named by `key`, unless `directory`
        holds it.
        """
        policy, settings = self.policy, self.config.sample
        if settings.distribution == "policy":
            yield policy_draw(policy, settings)
        elif settings.distribution == "token_mixture":
            yield lambda ids, k, key: sample_token_mixture(policy, ids, k, settings, share, key=key)
        else:
            if directory.is_dir():
                load_sampler(policy, directory)
            else:
                self._train(share, prompts, directory, key)
            yield lambda ids, k, key: sample_gflownet(policy, ids, k, settings, key=key)
            remove_sampler(policy)

    def _train(
        self, share: float, prompts: Sequence[Prompt], directory: Path, key: Sequence[int]
    ) -> None:
        settings, work = self.config.gflownet, directory.with_name(f"{directory.name}-trainer")
        with (
            out_of_memory("training the sampler", KNOBS),
            self.report.stage("sampler", steps(settings, len(prompts))) as advance,
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
