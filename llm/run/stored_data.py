"""Whether a run directory belongs to the data of the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from games.errors import InputError
from llm.config.schema import TrainConfig
from llm.data.examples import Prompt
from llm.data.prompts import PromptSet
from llm.run.setup import evaluation_prompts
from llm.sources.base import Source
from llm.sources.stages import opponent_shares
from llm.storage.directory import RunDirectory
from llm.storage.files import file_is_intact, read_record, read_rows, write_record

FIRST_PROMPT = "first_prompt.json"


def check_stored_prompts(
    run: RunDirectory, config: TrainConfig, source: Source, prompts: PromptSet
) -> None:
    """Raises InputError, with the first difference, if stored responses are to other prompts.

    The content of `data.path` may have changed since the run was started, or the chat template or
    tokenizer, which make the prompts' tokens.
    """
    for directory, asked in _stored(run, config, source, prompts):
        for file in sorted(directory.glob("[0-9]*[0-9].jsonl")):
            first = int(file.stem) * config.chunk_size
            if not file_is_intact(file):  # the stage computes a damaged chunk again
                continue
            try:
                rows = read_rows(file)
            except InputError:
                continue
            for row, prompt in zip(rows, asked[first:], strict=False):
                _check(row["prompt"], prompt.text, "prompt", file, config)
                answers = row["responses"][: len(prompt.answer_texts)]
                if directory.name == "responses" and directory.parent.name != "evaluation":
                    for stored, now in zip(answers, prompt.answer_texts, strict=False):
                        _check(stored, now, "answer", file, config)
    _check_tokens(run, prompts)


def store_first_prompt(run: RunDirectory, prompts: PromptSet) -> None:
    """Stores the tokens of one prompt, for `check_stored_prompts`, unless they are stored."""
    if not (run.path / FIRST_PROMPT).exists():
        first = prompts.folds[0][0]
        record = {"prompt": first.text, "tokens": list(first.token_ids)}
        write_record(run.path / FIRST_PROMPT, record)


def _check_tokens(run: RunDirectory, prompts: PromptSet) -> None:
    file, first = run.path / FIRST_PROMPT, prompts.folds[0][0]
    if not file.exists():  # a new run, or one of an earlier version
        return
    stored = read_record(file)
    if stored["prompt"] == first.text and stored["tokens"] != list(first.token_ids):
        raise InputError(
            "data.chat_template: the template or the tokenizer has changed since the run was "
            f"started: {first.text[:60]!r} has {len(first.token_ids)} tokens that differ from the "
            f"{len(stored['tokens'])} in {file}; restore it, or give another output_dir or "
            "fresh=true"
        )


def _stored(
    run: RunDirectory, config: TrainConfig, source: Source, prompts: PromptSet
) -> Iterator[tuple[Path, Sequence[Prompt]]]:
    """(directory of chunks, the prompts of its rows in order)."""
    held_out = evaluation_prompts(prompts)
    count = config.data.prompts_per_iteration
    yield run.path / "reference" / "evaluation", held_out
    for number, fold in enumerate(prompts.folds):
        yield run.path / "reference" / f"fold-{number}", fold
    k = config.samples_per_prompt
    for t in range(len(list(run.path.glob("iterations/[0-9]*")))):
        prompted = prompts.of_iteration(t, count)
        if run.drawn(t, 0).parent.is_dir():
            shares = opponent_shares(config, source.rule, t, len(prompted))
            for s, places in shares.items():
                yield run.drawn(t, s), [prompted[place // k] for place in places]
        asked = [p for u in source.pooled(t) for p in prompts.of_iteration(u, count)]
        yield run.iteration(t) / "responses", asked
        yield run.iteration(t) / "evaluation" / "responses", held_out


def _check(stored: str, now: str, what: str, file: Path, config: TrainConfig) -> None:
    if stored != now:
        raise InputError(
            f"data.path={config.data.path}: its prompts have changed since the run was started: "
            f"{file} has the {what} {stored[:60]!r}, now it is {now[:60]!r}; restore the data, or "
            "give another output_dir or fresh=true"
        )
