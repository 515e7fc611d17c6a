"""A sampler of the token-level geometric mixture of π_θ and μ.

At each token, the logits are (1 − share) times those of π_θ plus `share` times those of μ:

    q(y) = Π_k π_θ(y_k | y_<k)^(1−share) μ(y_k | y_<k)^share / Z(y_<k).

This is **not** the geometric mixture of whole responses, ∝ π_θ(y)^(1−share) μ(y)^share. That has
one normalizing constant for all responses; here each prefix has its own Z(y_<k) ≤ 1 (α-SPIN,
App. A, Eqs. 8, 9), and responses with prefixes after which the two policies disagree are drawn too
often. Their importance weights for the sequence-level mixture are ∝ Π_k Z(y_<k) ≤ 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from llm.config.schema import SampleConfig
from llm.policy.log_probs import LOGIT_CHUNK, PromptResponse, response_logits, token_log_probs
from llm.policy.model import Policy
from llm.sampling.engine import Response
from llm.sampling.transformers_engine import sample
from solvers.arrays import log_mixture


def sample_token_mixture(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    samples_per_prompt: int,
    settings: SampleConfig,
    share: float,
    *,
    key: Sequence[int],
) -> tuple[list[list[Response]], torch.Tensor]:
    """Token ids of B prompts -> B lists of K responses, and (B, K) their log q on the CPU.

    `share` ∈ [0, 1] is that of μ. Random numbers, settings and errors are those of `sample`, which
    share = 0 equals bit for bit. Takes two forward passes per token, and two caches.
    """
    drawn = sample(
        policy,
        prompts,
        samples_per_prompt,
        settings,
        key=key,
        processors=lambda batch: [MixWithReference(policy, batch["attention_mask"], share)],
    )
    completions = [
        PromptResponse(prompt, response.token_ids)
        for prompt, responses in zip(prompts, drawn, strict=True)
        for response in responses
    ]
    logp = token_mixture_log_probs(
        policy,
        completions,
        share,
        batch_size=settings.batch_size,
        temperature=settings.temperature,
    )
    return drawn, logp.view(len(prompts), samples_per_prompt)


@torch.no_grad()
def token_mixture_log_probs(
    policy: Policy,
    completions: Sequence[PromptResponse],
    share: float,
    *,
    batch_size: int,
    temperature: float = 1.0,
) -> torch.Tensor:
    """N completions -> (N,) on the CPU: log q, in batches by length.

    From the same logits as `Policy.log_probs`, so that importance weights are consistent.
    """

    def log_probs(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        own, tokens, response = response_logits(policy.model, batch)
        with policy.model.disable_adapter():
            reference, _, _ = response_logits(policy.model, batch)
        # The mixed logits are made in float32 in chunks, as in `token_log_probs`.
        step = max(1, LOGIT_CHUNK // own[:, 0].numel())
        pieces = zip(*(x.split(step, dim=1) for x in (own, reference, tokens)), strict=True)
        logp = torch.cat(
            [token_log_probs(mix(a, b, share), piece, temperature) for a, b, piece in pieces], dim=1
        )
        return logp.where(response, 0).sum(-1)

    with policy.acting():
        return policy.in_batches(completions, batch_size, log_probs)


def mix(own: torch.Tensor, reference: torch.Tensor, share: float) -> torch.Tensor:
    """Logits of π_θ and μ -> logits of the mixture, in float32 at least."""
    dtype = torch.promote_types(own.dtype, torch.float32)
    return log_mixture(own.to(dtype), reference.to(dtype), share)


class MixWithReference(LogitsProcessor):
    """Mixes the logits of generate() with those of μ, for which it keeps a cache of its own.

    For one batch of left-padded prompts with this attention mask (B, T).
    """

    def __init__(self, policy: Policy, attention_mask: torch.Tensor, share: float) -> None:
        self.model = policy.model
        self.attention_mask = attention_mask
        self.share = share
        self.cache = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, T), (B, V) -> (B, V)."""
        # First the prompts, then the last token drawn. For a finished row that is padding, which
        # no later token attends to.
        known = 0 if self.cache is None else self.cache.get_seq_length()
        drawn = input_ids.shape[1] - self.attention_mask.shape[1]
        attended = torch.nn.functional.pad(self.attention_mask, (0, drawn), value=1)
        positions = (attended.cumsum(-1) - 1).clamp(min=0)
        output = self.model(
            input_ids=input_ids[:, known:],
            attention_mask=attended,
            position_ids=positions[:, known:],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            # The base model for each row. `disable_adapter` walks over all modules each time:
            # 47 ms per token on 32 layers, where the forward pass itself takes 31 ms.
            adapter_names=["__base__"] * len(input_ids),
        )
        self.cache = output.past_key_values
        return mix(scores, output.logits[:, -1], self.share)
