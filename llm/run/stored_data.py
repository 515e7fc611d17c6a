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
from llm.storage.directory import RunDirectory
from llm.storage.files import is_whole, read_rows


def check_stored_prompts(
    run: RunDirectory, config: TrainConfig, source: Source, prompts: PromptSet
) -> None:
    """Raises InputError, with the first difference, if stored responses are to other prompts.

    The content of `data.path` may have changed since the run was started.
    """
    for directory, asked in _stored(run, config, source, prompts):
        for file in sorted(directory.glob("*.jsonl")):
            first = int(file.stem) * config.chunk_size
            if not is_whole(file):  # the stage computes a damaged chunk again
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


def _stored(
    run: RunDirectory, config: TrainConfig, source: Source, prompts: PromptSet
) -> Iterator[tuple[Path, Sequence[Prompt]]]:
    """(directory of chunks, the prompts of its rows in order)."""
    held_out = evaluation_prompts(prompts)
    count = config.data.prompts_per_iteration
    yield run.path / "reference" / "evaluation", held_out
    for number, fold in enumerate(prompts.folds):
        yield run.path / "reference" / f"fold-{number}", fold
    for t in range(len(list(run.path.glob("iterations/[0-9]*")))):
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
