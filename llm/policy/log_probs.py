"""From token ids to log-probabilities of whole responses.

The log-probability of a response is the sum over its tokens, end-of-sequence token included, in
float32 at least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from llm.policy import prompt_cache
from solvers.loop import kl_divergence

# Elements of the largest float32 copy of logits that is made at once: 128 MiB.
LOGIT_CHUNK = 2**25


@dataclass(frozen=True)
class PromptResponse:
    """Token ids of a prompt and of a response to it.

    The response includes the end-of-sequence token if the model produced one; a response cut at the
    length limit has none.
    """

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def collate(
    completions: Sequence[PromptResponse], pad_token_id: int, padding_side: str = "left"
) -> dict[str, torch.Tensor]:
    """B completions -> `input_ids, attention_mask, position_ids, response_mask`, each (B, T).

    With padding on the left all responses end in the last column: fewer logits are computed.
    """
    width = max(len(completion) for completion in completions)
    ids = torch.full((len(completions), width), pad_token_id)
    attended = torch.zeros_like(ids)
    response = torch.zeros_like(ids)
    for row, completion in enumerate(completions):
        start = width - len(completion) if padding_side == "left" else 0
        middle = start + len(completion.prompt_ids)
        end = start + len(completion)
        ids[row, start:middle] = torch.tensor(completion.prompt_ids)
        ids[row, middle:end] = torch.tensor(completion.response_ids)
        attended[row, start:end] = 1
        response[row, middle:end] = 1
    return {
        "input_ids": ids,
        "attention_mask": attended,
        "position_ids": (attended.cumsum(-1) - 1).clamp(min=0),
        "response_mask": response,
    }


def token_log_probs(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """(B, T, V), (B, T, N) -> (B, T, N): log softmax(logits / temperature) at N tokens.

    N tokens per position; one may be given as (B, T) -> (B, T). Computed in float32 (float64 for
    float64 logits), with at most `LOGIT_CHUNK` elements in that precision at a time, also in the
    backward pass.
    """
    if tokens.ndim == 2:
        return token_log_probs(logits, tokens.unsqueeze(-1), temperature).squeeze(-1)
    dtype = torch.promote_types(logits.dtype, torch.float32)

    def log_probs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        scores = logits.to(dtype)
        if temperature != 1.0:
            scores = scores / temperature
        return scores.gather(-1, tokens) - scores.logsumexp(-1, keepdim=True)

    batch, length, vocabulary = logits.shape
    step = max(1, LOGIT_CHUNK // (batch * vocabulary))
    if step >= length:
        return log_probs(logits, tokens)
    pieces = zip(logits.split(step, dim=1), tokens.split(step, dim=1), strict=True)
    return torch.cat(
        [checkpoint(log_probs, *piece, use_reentrant=False) for piece in pieces], dim=1
    )


def token_kl(
    logits: torch.Tensor, reference: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """(B, T, V), (B, T, V) -> (B, T): KL of the next-token distributions, in nats, exact.

    In float32 (float64 for float64 logits), with at most `LOGIT_CHUNK` elements in that precision
    at a time. Without gradients.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    batch, _, vocabulary = logits.shape
    step = max(1, LOGIT_CHUNK // (batch * vocabulary))
    pieces = zip(logits.split(step, dim=1), reference.split(step, dim=1), strict=True)
    with torch.no_grad():
        return torch.cat(
            [
                kl_divergence(*((each.to(dtype) / temperature).log_softmax(-1) for each in piece))
                for piece in pieces
            ],
            dim=1,
        )


def response_logits(
    model: torch.nn.Module, batch: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Batch of `collate` -> logits (B, T, V), the tokens (B, T) that they predict, and the
    response mask (B, T).

    The T columns cover all responses and the ends of some prompts, which the mask excludes.
    """
    response = batch["response_mask"].bool()
    start = int(response.any(0).nonzero()[0])
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        use_cache=False,
        logits_to_keep=response.shape[1] - start + 1,
    ).logits
    return logits[:, :-1], batch["input_ids"][:, start:], response[:, start:]


@torch.no_grad()
def shared_prompt_log_probs(
    model: torch.nn.Module,
    completions: Sequence[PromptResponse],
    pad_token_id: int,
    device: torch.device,
    temperature: float = 1.0,
) -> torch.Tensor:
    """B completions -> (B,): as `sequence_log_probs`, with each distinct prompt encoded once.

    Not differentiable. For models that `prompt_cache.is_repeatable`.
    """
    first, which = prompt_cache.distinct([c.prompt_ids for c in completions])
    prompts = collate([PromptResponse(completions[i].prompt_ids, ()) for i in first], pad_token_id)
    # The last token of the prompt predicts the first of the response.
    rest = collate(
        [PromptResponse(c.prompt_ids[-1:], c.response_ids) for c in completions],
        pad_token_id,
        "right",
    )
    attended = torch.cat(
        [prompts["attention_mask"][which, :-1], rest["attention_mask"][:, :-1]], dim=1
    )
    known = prompts["input_ids"].shape[1] - 1
    positions = (attended.cumsum(-1) - 1).clamp(min=0)[:, known:]
    prompts = {name: tensor.to(device) for name, tensor in prompts.items()}
    tokens = rest["input_ids"].to(device)
    logits = model(
        input_ids=tokens[:, :-1],
        attention_mask=attended.to(device),
        position_ids=positions.to(device),
        past_key_values=prompt_cache.encode(model, prompts, which),
        use_cache=True,
    ).logits
    response = rest["response_mask"][:, 1:].bool().to(device)
    return token_log_probs(logits, tokens[:, 1:], temperature).where(response, 0).sum(-1)


def response_log_probs(
    model: torch.nn.Module, batch: Mapping[str, torch.Tensor], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch of `collate` -> (B, T), (B, T): log-probabilities of the response tokens, and the mask.

    They are 0 where the mask is. `temperature` is that of the policy, as in sampling.
    Differentiable.
    """
    logits, tokens, response = response_logits(model, batch)
    return token_log_probs(logits, tokens, temperature).where(response, 0), response


def sequence_log_probs(
    model: torch.nn.Module, batch: Mapping[str, torch.Tensor], temperature: float = 1.0
) -> torch.Tensor:
    """Batch of `collate` -> (B,): log-probability of each response given its prompt, in nats.

    `temperature` is that of the policy, as in sampling. Differentiable.
    """
    return response_log_probs(model, batch, temperature)[0].sum(-1)
