"""TODO llm.config.loading."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_origin

import yaml

from games.errors import InputError
from llm.config.recipes import merge, with_recipe
from llm.config.schema import TrainConfig
from llm.config.section import all_fields, field_names, flatten, unknown_name

CONFIGS = Path(__file__).parents[1] / "configs"


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a shipped name or a YAML file, changed by `key=value` words.

    `recipe=NAME` among the words puts a recipe over the file; the other words win over it. In a
    file, `extends: NAME|FILE` puts another configuration under its fields, and `recipe: NAME` a
    recipe between the two. Without `output_dir` the run lives in runs/<name>, or
    runs/<name>-<recipe>. Raises InputError on anything unknown.
    """
    path = find_config(source)
    values = _read(path)
    given = [(word, *split_override(word)) for word in overrides]
    chosen = [value for _, key, value in given if key == "recipe"][-1:]
    for name in chosen:
        values = with_recipe(values, name)
    values.setdefault("output_dir", f"runs/{'-'.join([path.stem, *chosen])}")
    for word, key, _ in given:
        if key != "recipe":
            _override(values, word)
    return TrainConfig.from_dict(values)


def _read(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The fields of a file, with what it extends and its recipe under them."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file ({_first_line(error)})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected lines of `field: value`")
    base, recipe = values.pop("extends", None), values.pop("recipe", None)
    for key, name in (("extends", base), ("recipe", recipe)):
        if not isinstance(name, str | None):
            raise InputError(f"{path}: {key}: expected one name, got {name!r}")
    under: dict[str, Any] = {}
    if base is not None:
        chain = (*extended_by, path.resolve())
        below = find_config(base, path.parent, f"{path}: extends")
        if below.resolve() in chain:
            raise InputError(f"{path}: extends {base}, which extends it again")
        under = _read(below, chain)
    if recipe is not None:
        under = with_recipe(under, recipe)
    return merge(under, values)


def find_config(source: str | Path, directory: Path = Path(), what: str = "configuration") -> Path:
    """The YAML file of a shipped name, or of a path, seen from a directory."""
    shipped = CONFIGS / f"{source}.yaml"
    if shipped.is_file():
        return shipped
    if (directory / source).is_file():
        return directory / source
    raise unknown_name(str(source), shipped_configs(), what)


def shipped_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def split_override(word: str) -> tuple[str, Any]:
    """`key=value` -> (key, value as YAML reads it)."""
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise InputError(f"{word}: expected key=value, such as seed=1 or train.batch_size=32")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{key}: {text!r} is no YAML value ({_first_line(error)})") from error


def _override(values: dict[str, Any], word: str) -> None:
    key, value = split_override(word)
    mappings = [f"{name}." for name, _, kind in all_fields(TrainConfig) if get_origin(kind) is dict]
    if key not in field_names(TrainConfig) and not key.startswith(tuple(mappings)):
        raise unknown_name(key, [*field_names(TrainConfig), "recipe"])
    *sections, last = key.split(".")
    here = values
    for name in sections:
        here = here.setdefault(name, {})
        if not isinstance(here, dict):
            raise InputError(f"{name}: expected fields `name: value`, got {here!r}")
    here[last] = value


def to_yaml(config: TrainConfig) -> str:
    """The whole configuration as YAML that `load_config` reads back to an equal one."""
    values = dataclasses.asdict(config, dict_factory=lambda pairs: {k: _plain(v) for k, v in pairs})
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def differences(old: TrainConfig, new: TrainConfig) -> tuple[list[str], list[str]]:
    """(changes that a run cannot be continued under, changes that it can), `name: old -> new`."""
    before, after, free = flatten(old), flatten(new), set(_may_change())
    refused, allowed = [], []
    for name, value in after.items():
        if before[name] != value:
            line = f"{name}: {before[name]} -> {value}"
            (allowed if name in free else refused).append(line)
    return refused, allowed


def _may_change() -> Iterator[str]:
    yield from ("output_dir", "fresh")
    for name, f, _ in all_fields(TrainConfig):
        if f.metadata["may_change"]:
            yield name


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
