"""The default engine: transformers' generate on the policy's own weights.

Responses come from exactly the distribution that `Policy.log_probs` evaluates, each with a stream
of random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from games.errors import InputError
from llm.config.schema import SampleConfig, TrainConfig
from llm.policy import prompt_cache
from llm.policy.log_probs import PromptResponse
from llm.policy.model import Policy
from llm.sampling.engine import Response, response_of, stream

# (a batch of `collate`) -> the logits processors for it
Processors = Callable[[Mapping[str, torch.Tensor]], Sequence[LogitsProcessor]]


@dataclass(frozen=True)
class TransformersEngine:
    """Samples with the policy in memory, whose adapter is switched to the one asked for."""

    policy: Policy
    settings: SampleConfig

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """Raises InputError for arguments, of which it takes none."""
        if config.sample.engine_arguments:
            raise InputError(
                "sample.engine_arguments: this engine takes none; leave them out, or take "
                "sample.engine=vllm"
            )

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        samples_per_prompt: int,
        *,
        adapter: Path | None,
        key: Sequence[int],
    ) -> list[list[Response]]:
        """See `Engine.sample`. Raises InputError when prompt and response exceed the context."""
        with self.policy.using(adapter):
            return sample(
                self.policy,
                prompts,
                samples_per_prompt,
                self.settings,
                key=key,
                adapter=adapter is not None,
            )

    def release(self) -> None:
        """Nothing to free: the weights are the policy's."""


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    samples_per_prompt: int,
    settings: SampleConfig,
    *,
    key: Sequence[int],
    adapter: bool = True,
    processors: Processors = lambda batch: (),
) -> list[list[Response]]:
    """Token ids of B prompts -> B lists of K independent responses of π_θ (of μ: no adapter).

    `key`: integers that seed the random numbers, such as (seed, iteration, chunk). Each response
    has a stream of its own, so that it does not depend on batch size, process or order.
    `processors` change the logits of a batch before temperature and truncation do.
    Raises InputError when prompt and response do not fit the context.
    """
    policy.check_length(max(len(prompt) for prompt in prompts), settings.max_new_tokens)
    rows = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
    random = np.stack([uniforms(key, row, settings.max_new_tokens) for row in range(len(rows))])
    # The samples of a prompt stay together: its encoding is shared.
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    drawn: dict[int, Response] = {}
    with policy.acting(adapter):
        for first in range(0, len(rows), settings.batch_size):
            batch = order[first : first + settings.batch_size]
            asked = [rows[row] for row in batch]
            made = generate(policy, asked, random[batch], settings, processors)
            drawn |= zip(batch, made, strict=True)
    responses = [drawn[row] for row in range(len(rows))]
    return [
        responses[first : first + samples_per_prompt]
        for first in range(0, len(rows), samples_per_prompt)
    ]


def uniforms(key: Sequence[int], row: int, count: int) -> NDArray[np.float64]:
    """(count,): the uniform random numbers of response number `row` under a key."""
    return np.random.default_rng(stream(key, row)).random(count)


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    random: NDArray[np.float64],
    settings: SampleConfig,
    processors: Processors = lambda batch: (),
) -> list[Response]:
    """B prompts, (B, T) uniform numbers -> one response each, of the policy as it is now.

    Prompts that are repeated are encoded once.
    """
    batch = policy.collate([PromptResponse(prompt, ()) for prompt in prompts])
    width = batch["input_ids"].shape[1]
    draw = LogitsProcessorList(processors(batch))
    if settings.temperature != 1:
        draw.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k > 0:
        draw.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        draw.append(TopPLogitsWarper(settings.top_p))
    draw.append(_Draw(torch.from_numpy(random).to(policy.device), width))
    cache = None
    if prompt_cache.pays(prompts) and prompt_cache.is_repeatable(policy.model):
        first, which = prompt_cache.distinct(prompts)
        each = {name: tensor[first] for name, tensor in batch.items()}
        cache = prompt_cache.encode(policy.model, each, which)
    output = policy.model.generate(
        past_key_values=cache,
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        logits_processor=draw,
        # Greedy: `_Draw` leaves one token.
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=list(policy.stop_ids),
            pad_token_id=policy.pad_token_id,
        ),
    )
    return [response_of(policy, tokens) for tokens in output[:, width:].tolist()]


class _Draw(LogitsProcessor):
    """Draws each row's next token by inverse transform sampling of a given uniform number.

    transformers' own sampling uses one stream of random numbers for a whole batch, so that a
    response would depend on the others in its batch.
    """

    def __init__(self, uniforms: torch.Tensor, prompt_width: int) -> None:
        self.uniforms = uniforms
        self.prompt_width = prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, T), (B, V) -> (B, V): 0 at the token drawn, -inf elsewhere."""
        cumulative = scores.double().softmax(-1).cumsum(-1)
        step = input_ids.shape[1] - self.prompt_width
        mass = self.uniforms[:, step, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, mass, right=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)
