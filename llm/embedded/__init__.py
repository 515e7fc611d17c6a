"""The models, prompts, responses and judges that are included in the package.

`embedded:game` and `embedded:text` are names for `model.path` and `data.path`. With `data.answer`
the data has the columns prompt, answer (the reference response) and rejected (a response as the
model would generate it). `embedded:instructions` is a name for `data.path` only: 400 instructions
in English, written for this package, for training a real model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from games.errors import InputError
from games.lookup import suggestion
from llm.config.schema import TrainConfig

PREFIX = "embedded:"
HERE = Path(__file__).parent
BOTH = ("game", "text")  # a model, and data for it
SINGLE = {
    "mistral-7b": "a configuration without weights",
    "instructions": "prompts without a model",
}
SHAPES, DATA, NAMES = (*BOTH, "mistral-7b"), (*BOTH, "instructions"), (*BOTH, *SINGLE)


def directory(path: str, field: str = "", names: Sequence[str] = NAMES) -> Path | None:
    """The directory of an `embedded:` name; None for any other path.

    Raises InputError if there is no such name, or if it is not among the names of this field.
    """
    if not path.startswith(PREFIX):
        return None
    name = path.removeprefix(PREFIX)
    if name not in NAMES:
        raise InputError(f"{path}: no such embedded model or dataset; {suggestion(name, names)}")
    if name not in names:
        known = ", ".join(PREFIX + other for other in names)
        raise InputError(f"{field}={path}: that is {SINGLE[name]}; choose from {known}")
    return HERE / name


def resolve(config: TrainConfig) -> TrainConfig:
    """The configuration with `embedded:` names replaced by paths in this installation.

    The data is answers.jsonl if `data.answer` is set, otherwise prompts.jsonl. Raises InputError
    if a name is unknown or does not fit the field.
    """
    model = directory(config.model.path, "model.path", BOTH)
    shape = directory(config.model.random_from_config or "", "model.random_from_config", SHAPES)
    if model is not None:
        config = replace(config, model=replace(config.model, path=str(model)))
    if shape is not None:
        config = replace(config, model=replace(config.model, random_from_config=str(shape)))
    prompts = directory(config.data.path, "data.path", DATA)
    if prompts is not None:
        file = "prompts.jsonl" if config.data.answer is None else "answers.jsonl"
        if not (prompts / file).is_file():
            raise InputError(
                f"data.answer={config.data.answer}: {config.data.path} has only prompts; leave out "
                "data.answer, or give a dataset with answers"
            )
        config = replace(config, data=replace(config.data, path=str(prompts / file)))
    return config
