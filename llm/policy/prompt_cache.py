"""A prompt that several rows of a batch share is encoded once, and its KV cache is repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# Encoding shorter prompts costs less than the forward pass that is added for them.
SHORTEST_PROMPT = 16
# Layers that hold keys and values with one row per sequence, and nothing else.
REPEATABLE = (DynamicLayer, DynamicSlidingWindowLayer)


def distinct(prompts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """B prompts -> the first row of each of the D distinct ones, and (B,) which one a row has."""
    number: dict[tuple[int, ...], int] = {}
    which = [number.setdefault(tuple(prompt), len(number)) for prompt in prompts]
    return [which.index(d) for d in range(len(number))], which


def pays(prompts: Sequence[Sequence[int]]) -> bool:
    """Whether at least half of the prompts are repetitions, and none of them is short."""
    return min(map(len, prompts)) >= SHORTEST_PROMPT and 2 * len(set(map(tuple, prompts))) <= len(
        prompts
    )


def is_repeatable(model: torch.nn.Module) -> bool:
    """Whether the model's cache can be repeated: that of linear attention, for one, cannot."""
    config: Any = model.config
    return all(type(x) in REPEATABLE for x in DynamicCache(config=config.get_text_config()).layers)


def encode(
    model: torch.nn.Module, batch: Mapping[str, torch.Tensor], rows: Sequence[int]
) -> DynamicCache:
    """The cache of the D left-padded prompts of `collate`, (D, T), without their last token.

    `rows` (B,) says which prompt each row of the cache has. The last token is left to the forward
    pass that continues, which gives the logits after it.
    """
    config: Any = model.config
    cache = DynamicCache(config=config.get_text_config())
    columns = ("input_ids", "attention_mask", "position_ids")
    model(
        **{name: batch[name][:, :-1] for name in columns},
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(torch.tensor(rows, device=batch["input_ids"].device))
    return cache
