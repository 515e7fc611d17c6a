"""The encoded prompts of a run: read, formatted by the chat template, split into folds."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from games.errors import InputError
from llm.config.schema import DataConfig
from llm.data.examples import Examples, Prompt, read_examples
from llm.data.tokens import encode, encode_answers, truncate_answers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptSet:
    """The encoded prompts of a run: training folds, held-out prompts, number of dropped ones."""

    folds: tuple[tuple[Prompt, ...], ...]
    held_out: tuple[Prompt, ...]
    dropped: int

    def size_of_iteration(self, iteration: int, count: int | None = None) -> int:
        """The number of prompts in `of_iteration`, without making the list."""
        return len(self.folds[iteration % len(self.folds)]) if count is None else count

    def of_iteration(self, iteration: int, count: int | None = None) -> list[Prompt]:
        """The prompts of fold t mod F, or the next `count` of them, wrapping around at its end."""
        fold = self.folds[iteration % len(self.folds)]
        if count is None:
            return list(fold)
        first = iteration // len(self.folds) * count
        return [fold[i % len(fold)] for i in range(first, first + count)]


def load_prompts(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    held_out: int = 0,
    stop_ids: Collection[int] = (),
    max_answer_tokens: int | None = None,
    examples: Examples | None = None,
) -> PromptSet:
    """Encodes the examples (None: reads them), shuffles them by `seed`, splits them into folds.

    Folds are disjoint, contain all but the `held_out` prompts at the end, and differ in size by at
    most one. Several splits (`data.split=a,b`) are the folds; the held-out prompts are then taken
    from each in turn. If several rows have the same prompt, it is held out once, and none of these
    rows is trained on. Responses end with one of `stop_ids`, if there are any, unless they are
    truncated to `max_answer_tokens`. Raises InputError with the field, or the file and line.
    """
    examples = read_examples(data) if examples is None else examples
    groups = [encode(group, tokenizer, data) for group in examples.groups]
    if data.shuffle:
        rng = np.random.default_rng(seed)
        groups = [[group[i] for i in rng.permutation(len(group))] for group in groups]
    kept, total = sum(map(len, groups)), len(examples)
    if kept < total:
        logger.warning(
            "%d of %d prompts are longer than data.max_prompt_length=%d tokens and were dropped",
            total - kept,
            total,
            data.max_prompt_length,
        )
    if data.answer is not None:
        groups = [encode_answers(group, tokenizer, data, stop_ids) for group in groups]
        if max_answer_tokens is not None:
            groups = truncate_answers(groups, tokenizer, stop_ids, max_answer_tokens)
    if data.rejected is not None:
        _check_pairs([prompt for group in groups for prompt in group], data)
    held = _hold_out(groups, held_out)
    groups = [[prompt for prompt in group if prompt.token_ids not in held] for group in groups]
    if len(examples.groups) == 1 and data.folds <= len(groups[0]):
        groups = [groups[0][i :: data.folds] for i in range(data.folds)]
    folds = max(data.folds, len(groups))
    if not all(groups) or len(groups) < folds:
        raise InputError(
            f"data.path={data.path}: {kept} prompts are too few for {folds} folds and "
            f"evaluation.prompts={held_out}; give more prompts, or lower one of the two"
        )
    return PromptSet(tuple(map(tuple, groups)), tuple(held.values()), total - kept)


def _check_pairs(prompts: Sequence[Prompt], data: DataConfig) -> None:
    """Counts the pairs of equal responses in a warning. Raises InputError if there are no others.

    They have nothing to train on: the loss is constant, and its gradient rounding errors.
    """
    equal = sum(chosen == rejected for chosen, rejected in (p.answers for p in prompts))
    if equal == len(prompts):
        raise InputError(
            f"data.rejected={data.rejected}: all {equal} rejected responses equal the chosen ones "
            f"in data.answer={data.answer}; give two columns that differ"
        )
    if equal:
        logger.warning(
            "%d of %d rejected responses equal the chosen one, so that nothing is learned from "
            "them; remove these rows",
            equal,
            len(prompts),
        )


def _hold_out(groups: list[list[Prompt]], count: int) -> dict[tuple[int, ...], Prompt]:
    """{token ids: prompt}: `count` distinct prompts, taken from the ends of the groups in turn."""
    held: dict[tuple[int, ...], Prompt] = {}
    turn = 0
    while len(held) < count and any(groups):
        if group := groups[turn % len(groups)]:
            last = group.pop()
            held.setdefault(last.token_ids, last)
        turn += 1
    return held
