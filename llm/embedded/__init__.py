"""What comes with the package: two small models, their prompts, answers and judges.

`embedded:game` and `embedded:text` name them in `model.path` and `data.path`; with `data.answer`
the data has the fields prompt, answer (of the data to imitate) and rejected (as the model answers).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from games.errors import InputError
from llm.config.schema import TrainConfig

PREFIX = "embedded:"
HERE = Path(__file__).parent
NAMES = ("game", "text", "mistral-7b")  # of the last only the shape


def directory(path: str) -> Path | None:
    """The directory of an `embedded:` name; None for any other path."""
    if not path.startswith(PREFIX):
        return None
    name = path.removeprefix(PREFIX)
    if name not in NAMES:
        known = ", ".join(PREFIX + known for known in NAMES)
        raise InputError(f"{path}: does not come with the package; choose from {known}")
    return HERE / name


def resolve(config: TrainConfig) -> TrainConfig:
    """The configuration with `embedded:` names put as paths of this installation.

    The data is answers.jsonl where `data.answer` asks for answers, else prompts.jsonl.
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
