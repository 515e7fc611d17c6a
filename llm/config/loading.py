"""Loading, overriding, storing and comparing run configurations."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_origin

import yaml

from games.errors import InputError
from games.lookup import suggestion
from llm.config.recipes import merge, with_recipe
from llm.config.schema import TrainConfig
from llm.config.section import (
    all_fields,
    as_dict,
    field_names,
    flatten,
    name_problem,
    plain,
    shorten,
    type_name,
    unknown_field,
    unsavable,
)

CONFIGS = Path(__file__).parents[1] / "configs"


# Without them there is no run; with them a configuration needs no file.
REQUIRED = ("model.path", "data.path", "judge.kind")


def load_config(source: str | Path | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration with a shipped name or from a YAML file, changed by `key=value` words.

    With `None` the words are the configuration: they must give the fields `REQUIRED`.
    `recipe=NAME` among the words applies a recipe to the file; the other words take precedence over
    it. In a file, `extends: NAME|FILE` names a configuration whose fields it overrides, and
    `recipe: NAME` a recipe that is applied between the two. The default `output_dir` is
    runs/<name>, or runs/<name>-<recipe>; the name is `train` without a file. Raises InputError for
    anything unknown, malformed or missing.
    """
    if source is None:
        name, values = "train", {}
    else:
        path = find_config(source)
        name, values = path.stem, _read(path)
    given = [(word, *split_override(word)) for word in overrides]
    chosen = [value for _, key, value in given if key == "recipe"][-1:]
    for recipe in chosen:
        values = with_recipe(values, recipe)
    values.setdefault("output_dir", f"runs/{'-'.join([name, *chosen])}")
    for word, key, _ in given:
        if key != "recipe":
            _override(values, word)
    return TrainConfig.from_dict(values)


def _read(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The fields of a file, merged with those of the configuration and recipe that it builds on."""
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a YAML file ({_first_line(error)})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected lines of the form `field: value`")
    base, recipe = values.pop("extends", None), values.pop("recipe", None)
    for key, name in (("extends", base), ("recipe", recipe)):
        if not isinstance(name, str | None):
            raise InputError(f"{path}: {key}: expected one name, got {shorten(name)}")
    under: dict[str, Any] = {}
    if base is not None:
        chain = (*extended_by, path.resolve())
        below = find_config(base, path.parent, f"{path}: extends")
        if below.resolve() in chain:
            raise InputError(f"{path}: extends {base}, which extends this file: remove one of them")
        under = _read(below, chain)
    if recipe is not None:
        under = with_recipe(under, recipe)
    return merge(under, values)


def find_config(source: str | Path, directory: Path = Path(), what: str = "configuration") -> Path:
    """The YAML file of a shipped name, or of a path relative to a directory."""
    if problem := name_problem(str(source)):
        raise InputError(f"{what}: {problem}")
    shipped = CONFIGS / f"{source}.yaml"
    if shipped.is_file():
        return shipped
    if (directory / source).is_file():
        return directory / source
    if (directory / source).exists():
        raise InputError(f"{what}: {directory / source} is not a regular file")
    if Path(source).suffix or "/" in str(source):
        raise InputError(f"{what}: there is no file {shorten(str(source), 400)}")
    hint = suggestion(source, shipped_configs())
    raise InputError(f"{what}: there is no {shorten(str(source))}; {hint}")


def shipped_configs() -> list[str]:
    """Names of the configurations in the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def split_override(word: str) -> tuple[str, Any]:
    """`key=value` -> (key, value parsed as YAML)."""
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise InputError(f"{word}: expected key=value, such as seed=1 or train.batch_size=32")
    try:
        return key, _parse_yaml(text, key)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(
            f"{key}: {shorten(text)} is not a YAML value ({_first_line(error)})"
        ) from error


def _parse_yaml(text: str, field: str = "") -> Any:
    """The value of a YAML text, of one field or of a file. Raises YAMLError, ValueError or
    RecursionError.

    A number or date in a field that holds text is kept as it is written: output_dir=007.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _prepare(node, field, set())
        value = loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise
    except Exception as error:  # of a tag and a value that do not fit, such as !!int ''
        raise ValueError(f"{type(error).__name__}: {error}") from error
    finally:
        loader.dispose()
    _expanded_size(value, frozenset(), {})
    return value


_TAG = "tag:yaml.org,2002:"


def _prepare(node: yaml.Node, name: str, seen: set[int]) -> None:
    """Marks numbers and dates in text fields as text. Raises ValueError for a key given twice."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    line = key.start_mark.line + 1
                    raise ValueError(f"line {line}: the key {key.value!r} occurs twice")
                keys.add(key.value)
                _prepare(value, f"{name}.{key.value}" if name else key.value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _prepare(item, name, seen)
    elif name in _text_fields() and node.tag.removeprefix(_TAG) in ("int", "float", "timestamp"):
        node.tag = f"{_TAG}str"


@functools.cache
def _text_fields() -> frozenset[str]:
    fields = all_fields(TrainConfig)
    return frozenset(name for name, _, kind in fields if "str" in type_name(kind).split(" or "))


# Values in a configuration, an alias counted as all that it stands for.
LARGEST = 100_000


def _expanded_size(value: Any, path: frozenset[int], known: dict[int, int]) -> int:
    """The number of values in a value, aliases expanded.

    Raises ValueError if a list or mapping contains itself, by an alias, or for more than `LARGEST`.
    """
    if not isinstance(value, list | dict):
        return 1
    if id(value) in path:
        raise ValueError("an alias refers to the value that contains it")
    if id(value) not in known:
        items = value if isinstance(value, list) else value.values()
        inside = path | {id(value)}
        known[id(value)] = 1 + sum(_expanded_size(item, inside, known) for item in items)
        if known[id(value)] > LARGEST:
            raise ValueError(f"more than {LARGEST:,} values, with its aliases expanded")
    return known[id(value)]


def _override(values: dict[str, Any], word: str) -> None:
    key, value = split_override(word)
    mappings = [f"{name}." for name, _, kind in all_fields(TrainConfig) if get_origin(kind) is dict]
    if key not in field_names(TrainConfig) and not key.startswith(tuple(mappings)):
        raise unknown_field(key, TrainConfig)
    *sections, last = key.split(".")
    here = values
    for name in sections:
        here = here.setdefault(name, {})
        if not isinstance(here, dict):
            raise InputError(f"{name}: expected fields `name: value`, got {shorten(here)}")
    here[last] = value


def to_yaml(config: TrainConfig) -> str:
    """The configuration as YAML that `load_config` reads back to an equal one.

    Objects are stored by their import path. One without an import path is stored as
    `<NAME without an import path>`, which `load_config` refuses (see `unsavable`).
    """
    return yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)


def differences(old: TrainConfig, new: TrainConfig) -> tuple[list[str], list[str]]:
    """(changes with which a run cannot be resumed, changes with which it can), `name: old -> new`.

    The former include every object of `old` that has no import path.
    """
    before, after, free = flatten(old), flatten(new), set(_may_change())
    if new.iterations > old.iterations:  # a run can be extended: no step depends on their number
        free.add("iterations")
    lost = unsavable(old)
    refused, allowed = [], []
    for name, value in after.items():
        was, now = plain(before[name]), plain(value)
        if name in lost:
            refused.append(f"{name}: {was} cannot be restored")
        elif was != now:
            (allowed if name in free else refused).append(f"{name}: {was} -> {now}")
    return refused, allowed


def _may_change() -> Iterator[str]:
    yield from ("output_dir", "fresh")
    for name, f, _ in all_fields(TrainConfig):
        if f.metadata["may_change"]:
            yield name


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
