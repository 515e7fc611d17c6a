"""The models, prompts, responses and judges that are included in the package.

`embedded:game` and `embedded:text` are names for `model.path` and `data.path`. With `data.answer`
the data has the columns prompt, answer (the reference response) and rejected (a response as the
model would generate it).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from games.errors import InputError
from games.lookup import suggestion
from llm.config.schema import TrainConfig

PREFIX = "embedded:"
HERE = Path(__file__).parent
NAMES = ("game", "text", "mistral-7b")  # the last one has no weights


def directory(path: str) -> Path | None:
    """The directory of an `embedded:` name; None for any other path. Raises InputError."""
    if not path.startswith(PREFIX):
        return None
    name = path.removeprefix(PREFIX)
    if name not in NAMES:
        raise InputError(f"{path}: no such embedded model or dataset; {suggestion(name, NAMES)}")
    return HERE / name


def resolve(config: TrainConfig) -> TrainConfig:
    """The configuration with `embedded:` names replaced by paths in this installation.

    The data is answers.jsonl if `data.answer` is set, otherwise prompts.jsonl.
    """
    model, shape = directory(config.model.path), directory(config.model.random_from_config or "")
    if model is not None:
        config = replace(config, model=replace(config.model, path=str(model)))
    if shape is not None:
        config = replace(config, model=replace(config.model, random_from_config=str(shape)))
    prompts = directory(config.data.path)
    if prompts is not None:
        file = "prompts.jsonl" if config.data.answer is None else "answers.jsonl"
        config = replace(config, data=replace(config.data, path=str(prompts / file)))
    return config
