"""Prompts and responses of a dataset, before tokenization."""

from __future__ import annotations

import ast
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from games.errors import InputError
from llm.config.schema import DataConfig
from llm.data.formats import READERS, RawRow, dataset_rows
from llm.data.templates import template_text

logger = logging.getLogger(__name__)

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
    after it. Of a list of strings the first is the prompt. Raises InputError, with the file and
    line, for everything that can be checked without a tokenizer.
    """
    splits = [name.strip() for name in data.split.split(",")]
    if repeated := [name for name in splits if splits.count(name) > 1]:
        raise InputError(f"data.split={data.split}: contains {repeated[0]!r} twice; leave out one")
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
            what = "not a regular file" if file.exists() else "no such file"
            raise InputError(f"data.path={data.path}: {what}")
        if split != "train":
            raise InputError(
                f"data.split={split}: {data.path} is a file without splits; leave out data.split"
            )
        rows = reader(file, columns)
    else:
        rows = dataset_rows(data.path, columns, split)
    prompts, cut = [], 0
    for where, row in rows:
        prompts.append(_prompt(row, data, where))
        cut += _has_plain_turns(row[data.field]) and len(row[data.field]) > 1
    if not prompts:
        raise InputError(f"data.path={data.path}: contains no prompts; give at least one")
    if cut:
        logger.warning(
            "data.field=%s: %d of %d rows are lists of several turns without roles; only the first "
            "turn of each is the prompt",
            data.field,
            cut,
            len(prompts),
        )
    return prompts


def _prompt(row: RawRow, data: DataConfig, where: str) -> Prompt:
    value = _content(row, data.field, where)
    if _has_plain_turns(value):
        value = value[0]
    if isinstance(value, str):
        if data.field in (data.answer, data.rejected):
            key = "data.answer" if data.field == data.answer else "data.rejected"
            raise InputError(
                f"{where}: {data.field!r} is a string; only chat messages can contain both prompt "
                f"and response: set {key} to another column"
            )
        asked: tuple[Message, ...] = ({"role": "user", "content": value},)
    else:
        asked, _ = _split_turns(value, data.field, where)
        if not asked:
            raise InputError(f"{where}: {data.field!r} has no user message")
    if not asked[-1]["content"].strip():
        raise InputError(f"{where}: the prompt in {data.field!r} is empty; fix or remove the row")
    answers = []
    if data.answer is not None:
        answers.append(_answer(row, data.answer, asked, data.field, where))
        if not answers[0].strip():
            raise InputError(
                f"{where}: the response in {data.answer!r} is empty; fix or remove the row"
            )
    if data.rejected is not None:
        answers.append(_answer(row, data.rejected, asked, data.field, where))
    return Prompt(asked, where, answer_texts=tuple(answers))


def _has_plain_turns(value: Any) -> bool:
    """Whether a value is a list of strings: turns without roles, as MT-Bench's `turns`.

    The first is the user's, whether the others are the user's too or alternate.
    """
    return isinstance(value, list) and bool(value) and all(isinstance(turn, str) for turn in value)


def _content(row: RawRow, column: str, where: str) -> Any:
    """A value of a row: text, or messages, which are parsed if they were stored as text.

    Raises InputError for text that looks like messages but cannot be parsed, and for lone
    surrogates, which no tokenizer accepts.
    """
    value = row[column]
    if isinstance(value, str) and _MESSAGES.match(value):
        value = _parsed_messages(value, column, where)
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    for text in texts:
        _check_surrogates(text.get("content") if isinstance(text, dict) else text, column, where)
    return value


# The beginning of a list of messages, or of one message, stored as text by JSON, Python or numpy.
_MESSAGES = re.compile(
    r"""\s* (?: array\( )? \s* (\[?) \s* \{ \s* ['"] (?: role|content|from|value ) ['"] \s* :""",
    re.VERBOSE,
)
_KEYS = ({"role", "content"}, {"from", "value"})


def _parsed_messages(text: str, column: str, where: str) -> Any:
    """The messages in a text that begins like `_MESSAGES`; the text if it is something else."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        items = value if isinstance(value, list | tuple) else [value]
        dicts = [{*x} for x in items if isinstance(x, dict)]
        found = any(keys <= each for keys in _KEYS for each in dicts)
        # A list of incomplete messages is refused later.
        incomplete = value is items and any("role" in each for each in dicts)
        return list(items) if found or incomplete else text
    is_list = (match := _MESSAGES.match(text)) is not None and match[1]
    if not is_list and not any(all(key in text for key in keys) for keys in _KEYS):
        return text
    raise InputError(
        f"{where}: {column!r} seems to contain chat messages that were stored as text and cannot "
        "be parsed; store them as a list in a .jsonl or .parquet file"
    )


def _check_surrogates(text: Any, column: str, where: str) -> None:
    if isinstance(text, str):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: {column!r} contains the lone surrogate {text[error.start]!a}, "
                "which is not a valid character; fix or remove the row"
            ) from error


def _answer(row: RawRow, column: str, asked: tuple[Message, ...], field: str, where: str) -> str:
    """A response: the string, or the assistant's turn after the user's last turn."""
    value = _content(row, column, where)
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
