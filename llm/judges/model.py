"""The interface of judges, and the base class of those with weights."""

from __future__ import annotations

import itertools
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch

from games.errors import InputError
from llm.judges.checkpoints import (
    check_tokenizer_files,
    checkpoint_directory,
    count_parameters,
    is_local,
    one_line,
    read_json,
)
from llm.judges.preferences import JudgeError

logger = logging.getLogger(__name__)

# A prompt: the user's text, or chat messages that end with the user's.
Conversation = str | Sequence[Mapping[str, str]]
Encoding = Mapping[str, Sequence[int]]


class Judge(Protocol):
    """Preferences between responses; see `llm.judges` for the conventions."""

    @property
    def name(self) -> str:
        """The judge in error messages."""
        ...

    def __call__(
        self, prompts: Sequence[Conversation], responses: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """B prompts, B x K responses -> (B, K, K) preferences."""
        ...

    def to(self, device: str | torch.device) -> Judge:
        """Moves the weights, if there are any."""
        ...


class JudgeKind(Protocol):
    """A kind of judge, as registered in `llm.config.registries.JUDGES`: a class of judges."""

    preferences: ClassVar[Sequence[str]]  # the values of judge.preference that it accepts

    def build(self, path: Any, settings: Settings) -> Judge:
        """The judge at judge.path, on the CPU. Raises InputError."""
        ...

    def check(self, path: Any) -> int | None:
        """Checks the judge at judge.path without loading weights; its number of parameters.

        None for a name on the Hub that has not been downloaded yet. Raises InputError.
        """
        ...


@dataclass(frozen=True)
class Settings:
    """Settings of a judge; see `llm.judges.build.build_judge`."""

    name: str
    dtype: torch.dtype
    batch_size: int
    max_length: int | None
    preference: str
    trust_remote_code: bool


class ModelJudge(ABC):
    """Base class of judges that score token sequences with a model, in length-sorted batches."""

    preferences: ClassVar[Sequence[str]] = ("general",)
    model: Any
    tokenizer: Any

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.name = settings.name
        self.settings = settings

    @abstractmethod
    def __call__(
        self, prompts: Sequence[Conversation], responses: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """B prompts, B x K responses -> (B, K, K) preferences."""

    @abstractmethod
    def score_batch(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """`input_ids`, `attention_mask`, ... (n, T), padded on the right -> (n,)."""

    @classmethod
    def build(cls, path: Any, settings: Settings) -> Self:
        """The judge of a checkpoint directory or a name on the Hub, on the CPU."""
        _require_path(path)
        directory = checkpoint_directory(path, code=settings.trust_remote_code)
        cls.check_files(directory)
        return cls(directory, settings)

    @classmethod
    def check(cls, path: Any) -> int | None:
        """Number of parameters of a checkpoint; None if it has not been downloaded yet."""
        _require_path(path)
        if not is_local(path):
            return None
        directory = checkpoint_directory(path)
        cls.check_files(directory)
        return count_parameters(directory)

    @classmethod
    def tokenizer_directory(cls, directory: Path) -> Path:
        """The directory with the tokenizer of a checkpoint."""
        return directory

    @classmethod
    def check_files(cls, directory: Path) -> None:
        """Raises InputError for errors of a checkpoint that its files show without loading it."""
        read_json(directory / "config.json")
        count_parameters(directory)
        check_tokenizer_files(cls.tokenizer_directory(directory))

    def to(self, device: str | torch.device) -> Self:
        """Moves the weights."""
        self.model.to(device)
        return self

    def scores(self, encodings: Sequence[Encoding], pad_token_id: int) -> np.ndarray:
        """N encodings -> (N,) float64.

        Equal encodings are scored once, so that equal responses have a preference of exactly 1/2.
        Encodings of equal length are sorted by their tokens, so that the result does not depend on
        the order of the pairs, not even by rounding.
        """
        keys = [tuple(map(tuple, encoding.values())) for encoding in encodings]
        distinct = dict(zip(keys, encodings, strict=True))
        longest_first = sorted(distinct, key=lambda key: (-len(key[0]), key))
        scores = {}
        for start in range(0, len(longest_first), self.settings.batch_size):
            chunk = longest_first[start : start + self.settings.batch_size]
            values = self._scores_of([distinct[key] for key in chunk], pad_token_id)
            scores.update(zip(chunk, values, strict=True))
        return np.array([scores[key] for key in keys])

    @torch.inference_mode()
    def _scores_of(self, encodings: Sequence[Encoding], pad_token_id: int) -> list[float]:
        width = max(len(encoding["input_ids"]) for encoding in encodings)
        batch = {}
        for column in encodings[0]:
            fill = pad_token_id if column == "input_ids" else 0
            rows = [[*e[column], *[fill] * (width - len(e[column]))] for e in encodings]
            batch[column] = torch.tensor(rows, device=self.model.device)
        scores = self.score_batch(batch).float()
        if not scores.isfinite().all():
            raise JudgeError(
                f"judge {self.name}: returned NaN or infinity; set judge.dtype=float32, and check "
                "that the checkpoint is complete"
            )
        return scores.tolist()

    @property
    def max_length(self) -> int:
        """Maximum tokens of a sequence: the setting, but at most the model's own limit."""
        config = self.model.config.get_text_config()
        limit = self.tokenizer.model_max_length
        own = min(limit, getattr(config, "max_position_embeddings", limit))
        if not getattr(config, "position_biased_input", True):
            # DeBERTa has relative positions, so longer inputs than in training are possible.
            return self.settings.max_length or own
        return min(self.settings.max_length or own, own)

    def cut(
        self, responses: Sequence[str], length: Callable[[str], int], copies: int = 1
    ) -> list[str]:
        """Responses truncated so that `length(response)` is at most `max_length`.

        `length` gives the tokens of the whole input, which holds `copies` copies of the response.
        """
        fitting = [self._cut_one(response, length, copies) for response in responses]
        number = sum(short != whole for short, whole in zip(fitting, responses, strict=True))
        if number:
            logger.warning(
                "judge %s: its input is limited to %d tokens; %d of %d responses were truncated",
                *(self.name, self.max_length, number, len(responses)),
            )
        return fitting

    def _cut_one(self, response: str, length: Callable[[str], int], copies: int) -> str:
        while (excess := length(response) - self.max_length) > 0:
            if not response:
                raise JudgeError(
                    f"judge {self.name}: a prompt without a response exceeds the judge's "
                    f"{self.max_length} tokens by {excess}; lower data.max_prompt_length"
                )
            pieces = self.tokenizer(
                response, add_special_tokens=False, return_offsets_mapping=True
            )["offset_mapping"]
            kept = len(pieces) - -(-excess // copies)
            # Cut the text where the first excess token begins: decoding the kept tokens could split
            # a character, which would not encode to the same tokens again.
            response = response[: pieces[kept][0]] if kept > 0 else ""
        return response

    def render(self, messages: Sequence[Mapping[str, str]], **options: bool) -> str:
        """Messages through the tokenizer's chat template."""
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
        except Exception as error:  # a template may raise anything
            raise JudgeError(
                f"judge {self.name}: its chat template rejects a prompt ({one_line(error)}); "
                "change the roles of the messages"
            ) from error

    def encode_messages(
        self, messages: Sequence[Mapping[str, str]], without: str | None = None, **options: bool
    ) -> list[int]:
        """The token ids of messages formatted by the chat template, without BOS of the tokenizer.

        Control tokens are those that the template writes; one that is spelled in a message is
        encoded as text. `without` is removed from what the template writes.
        """
        texts = [str(message["content"]) for message in messages]
        special = self._special_tokens
        added = map(str, self.tokenizer.added_tokens_decoder.values())
        # Others that are added to a vocabulary are markup, words or runs of spaces.
        markers = special.union(token for token in added if token.startswith(("<", "[")))
        spelled = [token for token in markers if any(token in text for text in texts)]
        # Each of them is replaced by a mark while the template is applied.
        free = next(c for c in map(chr, range(0xE000, 0xF900)) if not any(c in t for t in texts))
        marks = {token: f"{free}{i}{free}" for i, token in enumerate(spelled)}
        hidden = [
            {**message, "content": _replaced(text, marks)}
            for message, text in zip(messages, texts, strict=True)
        ]
        written = self.render(hidden, **options)
        written = written.replace(without, "") if without else written
        tokens = {mark: token for token, mark in marks.items()}
        # A token that is not special is a control token if the template writes it.
        control = {token for token in spelled if token in special or token in written}
        if not control:
            text = _replaced(written, tokens)
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        special_ids = set(self.tokenizer.convert_tokens_to_ids(sorted(control & special)))
        ids = []
        for part in _split(written, special):
            if part in special:
                ids.append(self.tokenizer.convert_tokens_to_ids(part))
                continue
            for piece in self._undivided(part, tokens, control - special):
                found = self._text_ids(piece)
                if special_ids.intersection(found):  # they are pieces of the vocabulary, too
                    whole = _replaced(piece, marks)
                    parts = self._undivided(whole, tokens, control)
                    found = [i for p in parts for i in self._text_ids(p)]
                ids += found
        return ids

    def _undivided(
        self, text: str, tokens: Mapping[str, str], divided: Collection[str]
    ) -> list[str]:
        """A text with tokens in the place of their marks, in pieces: a tokenizer would recognize
        the `divided` ones in one piece, so that they are divided after their first character.
        """
        pieces = [""]
        for part in _split(text, tokens):
            token = tokens.get(part, part)
            if part in tokens and token in divided:
                pieces[-1] += token[0]
                pieces.append(token[1:])
            else:
                pieces[-1] += token
        return [piece for piece in pieces if piece]

    def _text_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    def spaced(self, text: str) -> str:
        """The text with a space in each special token, which is then no special token."""
        broken = {token: f"{token[0]} {token[1:]}" for token in self._special_tokens}
        return _replaced(text, broken)

    @cached_property
    def _special_tokens(self) -> frozenset[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        return frozenset(
            [*self.tokenizer.all_special_tokens, *(str(token) for token in added if token.special)]
        )

    def turns(self, prompt: Conversation) -> list[str]:
        """The texts of user, assistant, user, …; a system message is prepended to the first."""
        messages = messages_of(prompt)
        system = [message["content"] for message in messages[:1] if message["role"] == "system"]
        roles = [message["role"] for message in messages[len(system) :]]
        if roles != [*["user", "assistant"] * (len(roles) // 2), "user"]:
            raise JudgeError(
                f"judge {self.name}: a prompt has the roles "
                f"{', '.join(m['role'] for m in messages)}; they must alternate between user and "
                "assistant and end with user"
            )
        turns = [message["content"] for message in messages[len(system) :]]
        return ["\n\n".join([*system, turns[0]]), *turns[1:]]


def _split(text: str, parts: Collection[str]) -> list[str]:
    """The text divided so that each occurrence of one of `parts`, the longest first, is alone."""
    if not parts:
        return [text]
    longest_first = sorted(parts, key=len, reverse=True)
    return re.split(f"({'|'.join(map(re.escape, longest_first))})", text)


def _replaced(text: str, by: Mapping[str, str]) -> str:
    return "".join(by.get(part, part) for part in _split(text, by))


def _require_path(path: Any) -> None:
    if not path:
        raise InputError("judge.path: missing; give a checkpoint directory or a name on the Hub")


def messages_of(prompt: Conversation) -> list[Mapping[str, str]]:
    """A prompt as chat messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def ordered_pairs(responses: Sequence[Sequence[str]]) -> list[tuple[int, int, int]]:
    """(b, i, j) for each prompt b and each pair of its responses i != j, in both orders."""
    return [
        (b, i, j)
        for b, row in enumerate(responses)
        for i, j in itertools.permutations(range(len(row)), 2)
    ]
