"""Prompts and the answers of the data: read from a file or a dataset, put through the chat
template, cut into folds."""

from __future__ import annotations

import logging
from collections.abc import Collection
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
    """The encoded prompts of a run: folds to train on, held-out ones, how many were too long."""

    folds: tuple[tuple[Prompt, ...], ...]
    held_out: tuple[Prompt, ...]
    dropped: int

    def of_iteration(self, iteration: int, count: int | None = None) -> list[Prompt]:
        """Fold t mod F whole, or its next `count` prompts, from the front again where it ends."""
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
    """Encodes the examples (None: reads them), shuffles them by `seed`, cuts them into folds.

    Folds are disjoint, cover all but the `held_out` prompts at the end, and differ in size by one
    at most. Several splits (`data.split=a,b`) are the folds as they stand, and give up the held-out
    prompts in turn. Where rows ask the same, the held-out prompts are different ones, and no row
    that asks one of them is trained on. Answers end with one of `stop_ids` (none given: without),
    unless they are cut at `max_answer_tokens`. Raises InputError naming the field, or the file and
    line.
    """
    examples = read_examples(data) if examples is None else examples
    groups = [encode(group, tokenizer, data) for group in examples.groups]
    if data.shuffle:
        rng = np.random.default_rng(seed)
        groups = [[group[i] for i in rng.permutation(len(group))] for group in groups]
    kept, total = sum(map(len, groups)), len(examples)
    if kept < total:
        logger.warning(
            "%d of %d prompts are longer than data.max_prompt_length=%d tokens and left out",
            total - kept,
            total,
            data.max_prompt_length,
        )
    if data.answer is not None:
        groups = [encode_answers(group, tokenizer, data, stop_ids) for group in groups]
        if max_answer_tokens is not None:
            groups = truncate_answers(groups, tokenizer, stop_ids, max_answer_tokens)
    held = _hold_out(groups, held_out)
    groups = [[prompt for prompt in group if prompt.token_ids not in held] for group in groups]
    if len(examples.groups) == 1:
        groups = [groups[0][i :: data.folds] for i in range(data.folds)]
    if not all(groups):
        raise InputError(
            f"data.path={data.path}: {kept} prompts are too few for {len(groups)} folds and "
            f"evaluation.prompts={held_out}; give more prompts, or lower data.folds or that"
        )
    return PromptSet(tuple(map(tuple, groups)), tuple(held.values()), total - kept)


def _hold_out(groups: list[list[Prompt]], count: int) -> dict[tuple[int, ...], Prompt]:
    """{token ids: prompt} of that many different prompts from the groups' ends in turn."""
    held: dict[tuple[int, ...], Prompt] = {}
    turn = 0
    while len(held) < count and any(groups):
        if group := groups[turn % len(groups)]:
            last = group.pop()
            held.setdefault(last.token_ids, last)
        turn += 1
    return held
