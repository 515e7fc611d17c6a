"""Judge: a reward model, that is a sequence classifier with one output."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from transformers import AutoConfig, AutoModelForSequenceClassification

from games.errors import InputError
from llm.judges.checkpoints import load_model, load_tokenizer, loading
from llm.judges.model import Conversation, Encoding, ModelJudge, Settings, messages_of
from llm.judges.preferences import JudgeError, exact


class RewardModel(ModelJudge):
    """P_ij = sigmoid(r_i - r_j), r the model's output (Bradley-Terry).

    Prompt and response are formatted by the tokenizer's chat template; without one they are passed
    as a pair of sequences, as OpenAssistant's reward models expect.
    """

    preferences = ("general", "bradley_terry")

    def __init__(self, directory: Path, settings: Settings) -> None:
        super().__init__(directory, settings)
        remote = settings.trust_remote_code
        self.tokenizer = load_tokenizer(directory, remote)
        config = loading(
            directory, lambda: AutoConfig.from_pretrained(directory, trust_remote_code=remote)
        )
        if config.num_labels != 1:
            raise InputError(
                f"{directory}: the model has {config.num_labels} outputs, a reward_model judge has "
                "one; set judge.kind to the kind of this checkpoint"
            )
        self.model = load_model(
            AutoModelForSequenceClassification,
            directory,
            settings.dtype,
            trust_remote_code=remote,
        )
        self.has_padding = self._text_config.pad_token_id is not None

    def __call__(
        self, prompts: Sequence[Conversation], responses: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """B prompts, B x K responses -> (B, K, K) preferences."""
        encodings = []
        for prompt, row in zip(prompts, responses, strict=True):
            texts = self.cut(
                row, lambda text, prompt=prompt: len(self._encode(prompt, text)["input_ids"])
            )
            encodings += [self._encode(prompt, text) for text in texts]
        rewards = self.scores(encodings, self._pad_token_id(encodings))
        rewards = rewards.reshape(len(responses), len(responses[0]))
        return exact(expit(rewards[:, :, None] - rewards[:, None, :]))

    def score_batch(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """`input_ids`, `attention_mask`, perhaps `token_type_ids` (n, T) -> (n,) rewards."""
        return self.model(**batch).logits.squeeze(-1)

    def _encode(self, prompt: Conversation, response: str) -> Encoding:
        if self.tokenizer.chat_template is not None:
            messages = [*messages_of(prompt), {"role": "assistant", "content": response}]
            ids = self.encode_messages(messages)
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        turns = self.turns(prompt)
        if len(turns) > 1:
            raise JudgeError(
                f"judge {self.name}: its tokenizer has no chat template for a prompt of "
                f"{len(turns)} turns; use prompts of one turn"
            )
        return self.tokenizer(self.spaced(turns[0]), self.spaced(response))

    def _pad_token_id(self, encodings: Sequence[Encoding]) -> int:
        """The padding id by which the model finds the last token of a sequence.

        If the checkpoint has none, an id that occurs in no sequence: with EOS, the usual
        substitute, the reward would be computed one token early.
        """
        if not self.has_padding:
            used = set().union(*(encoding["input_ids"] for encoding in encodings))
            free = itertools.filterfalse(used.__contains__, itertools.count())
            self._text_config.pad_token_id = next(free)
        return self._text_config.pad_token_id

    @property
    def _text_config(self) -> Any:
        return self.model.config.get_text_config()
