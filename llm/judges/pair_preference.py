"""Judge: a causal language model that is asked which of two responses is better."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit
from transformers import AutoModelForCausalLM

from games.errors import InputError
from llm.judges.checkpoints import load_model, load_tokenizer
from llm.judges.model import Conversation, ModelJudge, Settings, messages_of, ordered_pairs
from llm.judges.preferences import exact


class PairPreference(ModelJudge):
    """P_ij = (q_ij + 1 - q_ji) / 2, q_ij the model's softmax over A and B with i as response A.

    The prompt format is that of RLHFlow/pair-preference-model-LLaMA3-8B (Dong et al., RLHF
    Workflow, 2024): the chat template with a generation prompt, without BOS. (The Llama 3 template
    that this model was trained with always added the generation prompt.)
    """

    def __init__(self, directory: Path, settings: Settings) -> None:
        super().__init__(directory, settings)
        self.tokenizer = load_tokenizer(directory, settings.trust_remote_code)
        if self.tokenizer.chat_template is None:
            raise InputError(
                f"{directory}: the tokenizer has no chat template; add the one that the model was "
                "trained with as chat_template.jinja"
            )
        answers = [self.tokenizer.encode(answer, add_special_tokens=False) for answer in "AB"]
        if [len(ids) for ids in answers] != [1, 1]:
            raise InputError(
                f"{directory}: A and B are not single tokens, so this is not a pair_preference "
                "model; set judge.kind to the kind of this checkpoint"
            )
        self.answer_ids = [ids[0] for ids in answers]
        self.model = load_model(
            AutoModelForCausalLM,
            directory,
            settings.dtype,
            trust_remote_code=settings.trust_remote_code,
        )

    def __call__(
        self, prompts: Sequence[Conversation], responses: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """B prompts, B x K responses -> (B, K, K) preferences."""
        contexts = [self._context(prompt) for prompt in prompts]
        # Each response is truncated as if paired with itself, independently of the other response.
        texts = [
            self.cut(
                row, lambda text, context=context: len(self._ids(context, text, text)), copies=2
            )
            for context, row in zip(contexts, responses, strict=True)
        ]
        pairs = ordered_pairs(texts)
        ids = [self._ids(contexts[b], texts[b][i], texts[b][j]) for b, i, j in pairs]
        encodings = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]
        size = len(responses[0])
        first = np.full((len(responses), size, size), 0.5)
        # Padding is on the right, after the position whose logits are used: any id will do.
        first[tuple(np.transpose(pairs))] = expit(self.scores(encodings, pad_token_id=0))
        return exact(0.5 + (first - first.swapaxes(-1, -2)) / 2)

    def score_batch(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """`input_ids`, `attention_mask` (n, T) -> (n,): logit of A minus logit of B."""
        last = batch["attention_mask"].sum(-1) - 1
        kept, column = last.unique(return_inverse=True)
        logits = self.model(**batch, logits_to_keep=kept, use_cache=False).logits
        rows = torch.arange(len(last), device=last.device)
        answers = logits[rows, column][:, self.answer_ids].float()
        return answers[:, 0] - answers[:, 1]

    def _context(self, prompt: Conversation) -> str:
        speakers = itertools.cycle(["user", "assistant"])
        turns = zip(self.turns(prompt), speakers, strict=False)
        return "\n" + "".join(f"\n<turn> {speaker}\n {text}" for text, speaker in turns) + "\n"

    def _ids(self, context: str, first: str, second: str) -> list[int]:
        question = f"[CONTEXT] {context} [RESPONSE A] {first} [RESPONSE B] {second} \n"
        return self.encode_messages(
            messages_of(question), without=self.tokenizer.bos_token, add_generation_prompt=True
        )
