"""Prompts and responses of a dataset, before tokenization."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from games.errors import InputError
from llm.config.schema import DataConfig
from llm.data.formats import READERS, RawRow, dataset_rows
from llm.data.templates import template_text

Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with the user's turn, its place in the data, and its tokens.

    messages      the conversation
    where         file and line, for messages
    token_ids     its tokens, with the chat template
    answer_texts  the dataset's responses: none, one, or the chosen and the rejected one
    answers       their target tokens: what the model would have to generate after `token_ids`,
                  including the end-of-sequence token
    """

    messages: tuple[Message, ...]
    where: str
    token_ids: tuple[int, ...] = ()
    answer_texts: tuple[str, ...] = ()
    answers: tuple[tuple[int, ...], ...] = ()

    @property
    def text(self) -> str:
        """The user's message; several messages are joined, each preceded by its role."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n".join(f"{turn['role'].upper()}: {turn['content']}" for turn in self.messages)


@dataclass(frozen=True)
class Examples:
    """The examples of a dataset: one group per split, in the order of the data."""

    groups: tuple[tuple[Prompt, ...], ...]

    def __len__(self) -> int:
        return sum(map(len, self.groups))


def read_examples(data: DataConfig) -> Examples:
    """The prompts, and the responses that `data` asks for, of every split that it names.

    `data.path` is a .jsonl, .json, .csv or .parquet file, a dataset directory or a Hub dataset;
    only datasets have splits. Columns contain strings, or conversations as lists of {"role",
    "content"}: the prompt ends with the user's last turn, the response is the assistant's turn
    after it. Raises InputError, with the file and line, for everything that can be checked without
    a tokenizer.
    """
    splits = data.split.split(",")
    if len(splits) > 1 and data.folds not in (1, len(splits)):
        raise InputError(
            f"data.folds={data.folds}: data.split names {len(splits)} folds; leave out data.folds"
        )
    if data.rejected is not None and data.answer is None:
        raise InputError(
            "data.answer: missing; data.rejected needs the column of the chosen responses"
        )
    if data.rejected is not None and data.rejected == data.answer:
        raise InputError(f"data.rejected={data.rejected}: is data.answer too; give two fields")
    template_text(data)
    return Examples(tuple(tuple(_read_split(data, split)) for split in splits))


def _read_split(data: DataConfig, split: str) -> list[Prompt]:
    columns = {"data.field": data.field, "data.answer": data.answer, "data.rejected": data.rejected}
    columns = {key: column for key, column in columns.items() if column is not None}
    file = Path(data.path)
    reader = READERS.get(file.suffix.lower())
    if reader is not None and not file.is_dir():
        if not file.is_file():
            raise InputError(f"data.path={data.path}: no such file")
        if split != "train":
            raise InputError(
                f"data.split={split}: {data.path} is a file without splits; leave out data.split"
            )
        rows = reader(file, columns)
    else:
        rows = dataset_rows(data.path, columns, split)
    prompts = [_prompt(row, data, where) for where, row in rows]
    if not prompts:
        raise InputError(f"data.path={data.path}: contains no prompts; give at least one")
    return prompts


def _prompt(row: RawRow, data: DataConfig, where: str) -> Prompt:
    value = row[data.field]
    if isinstance(value, str):
        if data.answer == data.field:
            raise InputError(
                f"{where}: {data.field!r} is a string; only chat messages can contain both prompt "
                "and response: set data.answer to another column"
            )
        asked: tuple[Message, ...] = ({"role": "user", "content": value},)
    else:
        asked, _ = _split_turns(value, data.field, where)
        if not asked:
            raise InputError(f"{where}: {data.field!r} has no user message")
    answers = []
    if data.answer is not None:
        answers.append(_answer(row[data.answer], data.answer, asked, data.field, where))
        if not answers[0].strip():
            raise InputError(
                f"{where}: the response in {data.answer!r} is empty; fix or remove the row"
            )
    if data.rejected is not None:
        answers.append(_answer(row[data.rejected], data.rejected, asked, data.field, where))
    return Prompt(asked, where, answer_texts=tuple(answers))


def _answer(value: Any, column: str, asked: tuple[Message, ...], field: str, where: str) -> str:
    """A response: the string, or the assistant's turn after the user's last turn."""
    if isinstance(value, str):
        return value
    before, after = _split_turns(value, column, where)
    if [turn["role"] for turn in after] != ["assistant"]:
        found = ", ".join(turn["role"] for turn in after) or "none"
        raise InputError(
            f"{where}: {column!r} must have one assistant turn after the last user turn, "
            f"it has {found}; fix or remove the row"
        )
    if before and _without_system(before) != _without_system(asked):
        raise InputError(
            f"{where}: {column!r} responds to another conversation than {field!r}; "
            f"set data.field={column}, or fix the row"
        )
    return after[0]["content"]


def _without_system(turns: tuple[Message, ...]) -> list[tuple[str, str]]:
    """(role, text) of each turn; the system message may be missing in one of the columns."""
    return [(t["role"], t["content"].strip()) for t in turns if t["role"] != "system"]


def _split_turns(
    value: Any, column: str, where: str
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """A list of messages -> (the turns up to the user's last one, the turns after it)."""
    if not isinstance(value, list):
        raise InputError(
            f"{where}: {column!r} is a {type(value).__name__}; give a string "
            "or a list of chat messages"
        )
    turns = []
    for turn in value:
        fields = isinstance(turn, dict) and (turn.get("role"), turn.get("content"))
        if not fields or not all(isinstance(field, str) for field in fields):
            raise InputError(
                f'{where}: each message in {column!r} must be {{"role": string, "content": string}}'
            )
        turns.append({"role": fields[0], "content": fields[1]})
    end = max((i for i, turn in enumerate(turns, start=1) if turn["role"] == "user"), default=0)
    return tuple(turns[:end]), tuple(turns[end:])
