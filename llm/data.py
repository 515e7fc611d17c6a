"""Prompts: read from a file or a dataset, put through the chat template, cut into folds."""

from __future__ import annotations

import csv
import difflib
import io
import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from games.errors import InputError
from llm.config import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Message = dict[str, str]
RAW = "none"


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with the user's turn, where it was read, and its tokens."""

    messages: tuple[Message, ...]
    where: str
    token_ids: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The user's words; a conversation of several turns has each speaker's name in front."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n".join(f"{turn['role'].upper()}: {turn['content']}" for turn in self.messages)


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
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int, held_out: int = 0
) -> PromptSet:
    """Reads and encodes the prompts, shuffles them by `seed`, and cuts them into folds.

    Folds are disjoint, cover all but the `held_out` prompts at the end, and differ in size by one
    at most. Several splits (`data.split=a,b`) are the folds as they stand, and give up the held-out
    prompts in turn. Raises InputError naming the field, or the file and line.
    """
    splits = data.split.split(",")
    if len(splits) > 1 and data.folds not in (1, len(splits)):
        raise InputError(
            f"data.folds={data.folds}: data.split names {len(splits)} folds; leave data.folds out"
        )
    groups = [read_prompts(data.path, data.field, split) for split in splits]
    total = sum(map(len, groups))
    groups = [encode(group, tokenizer, data) for group in groups]
    if data.shuffle:
        rng = np.random.default_rng(seed)
        groups = [[group[i] for i in rng.permutation(len(group))] for group in groups]
    kept = sum(map(len, groups))
    if kept < total:
        logger.warning(
            "%d of %d prompts are longer than data.max_prompt_length=%d tokens and left out",
            total - kept,
            total,
            data.max_prompt_length,
        )
    held = [groups[i % len(groups)].pop() for i in range(min(held_out, kept))]
    if len(splits) == 1:
        groups = [groups[0][i :: data.folds] for i in range(data.folds)]
    if not all(groups):
        raise InputError(
            f"data.path={data.path}: {kept} prompts are too few for {len(groups)} folds and "
            f"evaluation.prompts={held_out}; give more prompts, or lower data.folds or that"
        )
    return PromptSet(tuple(map(tuple, groups)), tuple(held), total - kept)


# --- templates and tokens -------------------------------------------------------------------------


def encode(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> list[Prompt]:
    """The prompts of at most `data.max_prompt_length` tokens, template included, with their tokens.

    With `data.chat_template=none` the text stands as it is, between the special tokens that the
    tokenizer itself puts around a text. Raises InputError when there is no template, when it fails,
    and when no prompt is left.
    """
    if data.chat_template == RAW:
        system = f"{data.system_prompt}\n" if data.system_prompt else ""
        encoded = tokenizer([system + prompt.text for prompt in prompts])["input_ids"]
    else:
        render = _renderer(tokenizer, data)
        # The template has written the special tokens already.
        texts = [render(prompt) for prompt in prompts]
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    kept = []
    for prompt, token_ids in zip(prompts, encoded, strict=True):
        if not token_ids:
            raise InputError(
                f"{prompt.where}: gives no tokens; fill in the prompt, or set data.chat_template"
            )
        if len(token_ids) <= data.max_prompt_length:
            kept.append(replace(prompt, token_ids=tuple(token_ids)))
    if not kept:
        shortest = min(map(len, encoded))
        raise InputError(
            f"data.max_prompt_length={data.max_prompt_length}: every prompt of {data.path} is "
            f"longer; raise it, the shortest has {shortest} tokens"
        )
    return kept


def _renderer(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> Callable[[Prompt], str]:
    import jinja2

    template = None
    if data.chat_template is not None:
        file = Path(data.chat_template)
        if not file.is_file():
            raise InputError(
                f"data.chat_template={file}: no such file; give a Jinja file, null or none"
            )
        template = _read_text(file)
    elif tokenizer.chat_template is None:
        raise InputError(
            f"data.chat_template: the tokenizer of {tokenizer.name_or_path} has no chat template; "
            "give a Jinja file, or none for raw prompts"
        )
    system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []

    def render(prompt: Prompt) -> str:
        try:
            text = tokenizer.apply_chat_template(
                [*system, *prompt.messages],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except jinja2.TemplateError as error:
            raise InputError(
                f"{prompt.where}: the chat template fails on it ({error}); mend the prompt, "
                "or set data.chat_template"
            ) from error
        return str(text)

    return render


# --- reading --------------------------------------------------------------------------------------


def read_prompts(path: str, column: str = "prompt", split: str = "train") -> list[Prompt]:
    """Prompts of a .jsonl, .json, .csv or .parquet file, a dataset directory, or a hub dataset.

    The column holds strings, or conversations as lists of {"role", "content"}, of which the turns
    after the user's last are left out. Only datasets have splits. Raises InputError with the file
    and line.
    """
    file = Path(path)
    reader = READERS.get(file.suffix.lower())
    if reader is not None and not file.is_dir():
        if not file.is_file():
            raise InputError(f"data.path={path}: there is no such file")
        if split != "train":
            raise InputError(f"data.split={split}: {path} is a file without splits; leave it out")
        rows = reader(file, column)
    else:
        rows = _dataset_rows(path, column, split)
    prompts = [Prompt(_messages(value, column, where), where) for where, value in rows]
    if not prompts:
        raise InputError(f"data.path={path}: no prompts in it; give at least one")
    return prompts


Rows = Iterator[tuple[str, Any]]


def _jsonl_rows(path: Path, column: str) -> Rows:
    # Only "\n" ends a line: str.splitlines would cut strings at U+2028 too.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{where}: not valid JSON ({error.msg}, column {error.colno}); "
                "each line must be one JSON object"
            ) from error
        yield where, _field(row, column, where)


def _json_rows(path: Path, column: str) -> Rows:
    try:
        rows = json.loads(_read_text(path) or "[]")
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}); "
            "name the file .jsonl if each line is an object of its own"
        ) from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: must be a list of objects, each with {column!r}")
    for number, row in enumerate(rows, start=1):
        where = f"{path}, item {number}"
        yield where, _field(row, column, where)


def _csv_rows(path: Path, column: str) -> Rows:
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    if reader.fieldnames is not None:
        _require(column, reader.fieldnames, f"{path}:1")
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{where}: not valid CSV ({error}); check its quotes") from error
        if None in row or None in row.values():
            raise InputError(
                f"{where}: has not as many fields as the header; "
                "put double quotes around text with commas"
            )
        yield where, row[column]


def _parquet_rows(path: Path, column: str) -> Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"data.path={path}: parquet needs pyarrow: pip install pyarrow, or give .jsonl or .csv"
        ) from error
    try:
        _require(column, parquet.read_schema(path).names, str(path))
        values = parquet.read_table(path, columns=[column]).column(column).to_pylist()
    except pyarrow.ArrowException as error:
        said = str(error).splitlines()[0]
        raise InputError(f"data.path={path}: not a readable parquet file ({said})") from error
    for number, value in enumerate(values, start=1):
        yield f"{path}, row {number}", value


def _dataset_rows(path: str, column: str, split: str) -> Rows:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"data.path={path}: a dataset needs the library: pip install datasets, "
            "or give a .jsonl or .csv file"
        ) from error
    directory = Path(path)
    saved = any((directory / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        data = datasets.load_from_disk(path) if saved else datasets.load_dataset(path)
    except Exception as error:  # OSError, ValueError, DatasetsError, ArrowException, HfHubHTTPError
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"data.path={path}: cannot be read as a dataset ({said}); give a hub name, a dataset "
            f"directory, or a file that ends in {', '.join(READERS)}"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise InputError(
                f"data.split={split}: {path} has no such split, only {', '.join(map(str, data))}"
            )
        data = data[split]
    _require(column, data.column_names, path)
    for number, value in enumerate(data[column], start=1):
        yield f"{path}, row {number}", value


READERS: dict[str, Callable[[Path, str], Rows]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8; save the file in UTF-8") from error


def _field(row: Any, column: str, where: str) -> Any:
    if not isinstance(row, dict):
        raise InputError(f"{where}: must be an object with {column!r}, not {type(row).__name__}")
    _require(column, row, where)
    return row[column]


def _require(column: str, names: Collection[str], where: str) -> None:
    if column not in names:
        near = difflib.get_close_matches(column, names, n=1)
        hint = f"; did you mean data.field={near[0]}?" if near else ""
        raise InputError(f"{where}: no column {column!r} among {', '.join(names)}{hint}")


def _messages(value: Any, column: str, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return ({"role": "user", "content": value},)
    if not isinstance(value, list):
        raise InputError(
            f"{where}: {column!r} holds {type(value).__name__}; give a string, "
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
    while turns and turns[-1]["role"] != "user":
        turns.pop()
    if not turns:
        raise InputError(f"{where}: {column!r} has no message of the user")
    return tuple(turns)
