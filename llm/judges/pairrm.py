"""Judge: PairRM (Jiang, Ren and Lin, LLM-Blender, 2023), from either of its checkpoint layouts.

Implemented with transformers' DeBERTa instead of the llm-blender package, which needs two removed
names of transformers, unpickles `pytorch_model.bin` if there is one, downloads a path that it does
not find, and makes the maximum length of a response depend on the other prompts of its batch. A
test checks that both give the same logits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit
from torch import nn
from transformers import DebertaV2Config, DebertaV2Model, DebertaV2PreTrainedModel

from games.errors import InputError
from llm.judges.checkpoints import (
    checkpoint_directory,
    load_model,
    load_tokenizer,
    loading,
    read_json,
)
from llm.judges.model import Conversation, ModelJudge, Settings, ordered_pairs
from llm.judges.preferences import exact

logger = logging.getLogger(__name__)

SOURCE, FIRST, SECOND, CANDIDATE = "<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"
# In the order of llm-blender, which assigns the first free ids; with their field of PairRM-hf.
MARKERS = {
    SOURCE: "source_prefix_id",
    FIRST: "cand1_prefix_id",
    SECOND: "cand2_prefix_id",
    CANDIDATE: "cand_prefix_id",
}
# Lengths of llm-blender/PairRM in tokens; the config.json of PairRM-hf does not contain them.
SOURCE_LENGTH, CANDIDATE_LENGTH = 1224, 412


class PairRanker(DebertaV2PreTrainedModel):
    """DeBERTa on [CLS] source [SEP] [CLS] first [SEP] [CLS] second [SEP], with a head on the states
    of three marker tokens.

    Parameters are named as in both layouts.
    """

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.pretrained_model = DebertaV2Model(config)
        # The checkpoint has keys .1 and .4, because it also counts two dropout layers.
        self.head_layer = nn.Sequential(
            nn.Identity(),
            nn.Linear(2 * width, width),
            nn.Tanh(),
            nn.Identity(),
            nn.Linear(width, config.n_tasks),
        )
        self.post_init()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, markers: Sequence[int]
    ) -> torch.Tensor:
        """(n, T), (n, T), ids of three markers -> (n,): logit of "the first is better".

        The mean over tasks of head(source, first) - head(source, second).
        """
        states = self.pretrained_model(input_ids, attention_mask).last_hidden_state
        rows = torch.arange(len(input_ids), device=input_ids.device)
        source, first, second = (
            states[rows, (input_ids == marker).int().argmax(-1)] for marker in markers
        )
        left = self.head_layer(torch.cat([source, first], -1))
        right = self.head_layer(torch.cat([source, second], -1))
        return (left.float() - right.float()).mean(-1)


class PairRM(ModelJudge):
    """P_ij = sigmoid((M_ij - M_ji) / 2), M the raw logits: both orders averaged as logits.

    `preference="bradley_terry"`: P_ij = sigmoid(s_i - s_j), s_i = mean_k (M_ik - M_ki). This is
    what the published SPPO and RSPO runs use (`blender.rank(..., return_scores=True)`); it makes
    the preference transitive, whatever M is.
    """

    preferences = ("general", "bradley_terry")

    def __init__(self, directory: Path, settings: Settings) -> None:
        super().__init__(directory, settings)
        fields = read_json(directory / "config.json")
        source = self.tokenizer_directory(directory)
        self.tokenizer = load_tokenizer(source)
        config = loading(source, lambda: DebertaV2Config.from_pretrained(source))
        config.n_tasks = fields.get("n_tasks", 1)
        if "ranker_type" in fields:
            self.tokenizer.add_tokens(list(MARKERS))
            config.vocab_size = len(self.tokenizer)
        self.marker_ids = {
            marker: self.tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS
        }
        for marker, field in MARKERS.items():
            if fields.get(field, self.marker_ids[marker]) != self.marker_ids[marker]:
                raise InputError(
                    f"{directory}/config.json: {field} is {fields[field]}, but the id of {marker} "
                    f"in its tokenizer is {self.marker_ids[marker]}; take both files from the same "
                    "checkpoint"
                )
        self.model = load_model(PairRanker, directory, settings.dtype, config=config)
        source_length = fields.get("source_maxlength", SOURCE_LENGTH)
        own_length = source_length + 2 * fields.get("candidate_maxlength", CANDIDATE_LENGTH)
        # DeBERTa has relative positions: it was trained on 512 tokens, PairRM uses 2048.
        self.length = min(settings.max_length or own_length, own_length)
        self.source_length = source_length * self.length // own_length

    @classmethod
    def tokenizer_directory(cls, directory: Path) -> Path:
        """The directory with PairRM's tokenizer and DeBERTa configuration.

        In llm-blender's layout config.json is a RankerConfig, whose `model_name` is another
        directory or a name on the Hub; in PairRM-hf it is a DeBERTa configuration with the ids of
        the markers.
        """
        fields = read_json(directory / "config.json")
        if "source_prefix_id" in fields:
            return directory
        if (fields.get("ranker_type"), fields.get("model_type")) != ("pairranker", "deberta"):
            raise InputError(
                f"{directory}/config.json: neither llm-blender's PairRM (ranker_type pairranker, "
                "model_type deberta) nor PairRM-hf (source_prefix_id); set judge.kind to the kind "
                "of this checkpoint"
            )
        backbone = fields.get("model_name") or "null"
        try:
            return checkpoint_directory(backbone, weights=False)
        except InputError as error:
            raise InputError(
                f"{directory}/config.json: model_name={backbone} not found; on a machine with "
                "internet access, run hf download microsoft/deberta-v3-large config.json spm.model "
                "tokenizer_config.json, and set model_name to the downloaded directory"
            ) from error

    def __call__(
        self, prompts: Sequence[Conversation], responses: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """B prompts, B x K responses -> (B, K, K) preferences."""
        matrix = self.logits(prompts, responses)
        skew = matrix - matrix.swapaxes(-1, -2)
        if self.settings.preference == "bradley_terry":
            scores = skew.mean(-1)
            return exact(expit(scores[:, :, None] - scores[:, None, :]))
        return exact(expit(skew / 2))

    def logits(
        self, prompts: Sequence[Conversation], responses: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """B prompts, B x K responses -> (B, K, K): raw logits of "i, shown first, beats j".

        Not skew-symmetric; zero on the diagonal.
        """
        tokens = [self._tokens(*row) for row in zip(prompts, responses, strict=True)]
        self._warn_of_cuts(prompts, responses, tokens)
        pairs = ordered_pairs(responses)
        encodings = []
        for b, i, j in pairs:
            source, candidates = tokens[b]
            ids = source + self._as(FIRST, candidates[i]) + self._as(SECOND, candidates[j])
            encodings.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
        size = len(responses[0])
        matrix = np.zeros((len(responses), size, size))
        matrix[tuple(np.transpose(pairs))] = self.scores(encodings, self.tokenizer.pad_token_id)
        return matrix

    def score_batch(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """`input_ids`, `attention_mask` (n, T) -> (n,) logits."""
        markers = [self.marker_ids[marker] for marker in (SOURCE, FIRST, SECOND)]
        return self.model(**batch, markers=markers)

    def _tokens(
        self, prompt: Conversation, responses: Sequence[str]
    ) -> tuple[list[int], list[list[int]]]:
        """Ids of the source, and of each candidate: at most half of the remaining room each."""
        source, opening = pairrm_text(self.turns(prompt))
        ids = self._encode(SOURCE + self._plain(source), self.source_length)
        room = (self.length - len(ids)) // 2
        texts = [CANDIDATE + self._plain(opening + response) for response in responses]
        return ids, [self._encode(text, room) for text in texts]

    def _warn_of_cuts(
        self,
        prompts: Sequence[Conversation],
        responses: Sequence[Sequence[str]],
        tokens: Sequence[tuple[list[int], list[list[int]]]],
    ) -> None:
        """A warning that counts the texts that are longer than their share of the input."""
        cut = total = 0
        for prompt, row, (source, candidates) in zip(prompts, responses, tokens, strict=True):
            asked, opening = pairrm_text(self.turns(prompt))
            room = (self.length - len(source)) // 2
            shares = [(SOURCE, asked, source, self.source_length)]
            shares += [
                (CANDIDATE, opening + text, ids, room)
                for text, ids in zip(row, candidates, strict=True)
            ]
            total += len(shares)
            for marker, text, ids, share in shares:
                # Only a text that fills its share can be longer.
                full = len(ids) >= share
                cut += full and len(self.tokenizer(marker + self._plain(text))["input_ids"]) > share
        if cut:
            logger.warning(
                "judge %s: its input is limited to %d tokens; %d of %d prompts and responses were "
                "cut",
                *(self.name, self.length, cut, total),
            )

    def _encode(self, text: str, length: int) -> list[int]:
        return self.tokenizer(text, truncation=True, max_length=length)["input_ids"]

    def _plain(self, text: str) -> str:
        """The text without special tokens and markers, which PairRM would read as its own."""
        for special in (*self.tokenizer.all_special_tokens, *MARKERS):
            text = text.replace(special, " ")
        return text

    def _as(self, marker: str, candidate: Sequence[int]) -> list[int]:
        ids = {self.marker_ids[CANDIDATE]: self.marker_ids[marker]}
        return [ids.get(token, token) for token in candidate]


def pairrm_text(turns: Sequence[str]) -> tuple[str, str]:
    """The turns of a prompt -> the source, and the text that precedes every candidate.

    A single turn is used as it is. Several turns are written as in llm-blender's
    `get_pair_from_conv`, with the spelling that PairRM was trained on: the source asks for
    <Response i>, a candidate lists them.
    """
    if len(turns) == 1:
        return turns[0], ""
    asked, answered = turns[::2], turns[1::2]
    task = (
        "Finish the following coversation in each i-th turn by filling in <Response i> with your "
        "response."
    )
    blanks = [f"USER: {text}\nAssistant: <Response {i}>" for i, text in enumerate(asked, 1)]
    given = [f"<Response {i}>: {text}\n" for i, text in enumerate(answered, 1)]
    return task + "\n".join(blanks), "".join(given) + f"<Response {len(asked)}>: "
