"""Configuration sections: frozen dataclasses whose fields are converted and checked.

A field declares its meaning, default and range with `option`; conversion, checks and `--help` read
them from there. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, field
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from games.errors import InputError
from games.lookup import import_path, suggestion

Names = Iterable[str] | Callable[[], Iterable[str]]

# How config.yaml records an object that was passed from Python and cannot be imported.
NO_IMPORT_PATH = " without an import path>"


def metadata(
    meaning: str,
    *,
    choices: Names = (),
    listed: Names = (),
    objects: bool = False,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    may_change: bool = False,
) -> dict[str, Any]:
    """The metadata of a field: its meaning and its range.

    choices     the values that are accepted; a function that returns them, for example a registry,
                is called only by the check and by `--help`
    listed      names that `--help` lists although other values are accepted too
    objects     also accepted: an import path `package.module:object`, and from Python the object
    may_change  a run may be resumed with another value, because the value affects memory or speed
                but not the algorithm; any other change is refused
    """
    return locals()


def option(meaning: str, default: Any = MISSING, **limits: Any) -> Any:
    """A dataclass field with its meaning, its default and its range (see `metadata`)."""
    return field(default=default, metadata=metadata(meaning, **limits))


class Section:
    """A group of fields; values are converted to their types and checked on construction."""

    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Convert and check every field. Raises InputError."""
        hints = get_type_hints(type(self))
        for f in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            name = f"{self.prefix}{f.name}"
            value = _convert(name, getattr(self, f.name), hints[f.name], f.metadata)
            _check(name, value, f.metadata)
            object.__setattr__(self, f.name, value)

    @classmethod
    def from_dict(cls, values: Any, root: type[Section] | None = None) -> Self:
        """The section described by a mapping, as YAML gives it.

        Raises InputError for an unknown field, with the nearest name in the tree of `root`
        (default: this section), and for a missing one.
        """
        root = root or cls
        if not isinstance(values, Mapping):
            where = cls.prefix.rstrip(".") or "the configuration"
            raise InputError(f"{where}: expected fields `name: value`, got {shorten(values)}")
        hints = get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
        for name in values:
            if name not in fields:
                raise unknown_field(f"{cls.prefix}{name}", root)
        given = dict(values)
        for name, f in fields.items():
            if f.default is MISSING and f.default_factory is MISSING and given.get(name) is None:
                if not _is_section(hints[name]):
                    meaning = f.metadata["meaning"]
                    raise InputError(f"{cls.prefix}{name}: missing; give the {meaning}")
                given[name] = {}
        for name in given:
            kind = hints[name]
            if _is_section(kind) and not isinstance(given[name], kind):
                given[name] = kind.from_dict(given[name], root)
        return cls(**given)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def flatten(config: Section) -> dict[str, Any]:
    """{dotted name: value} of every field, in order."""
    return dict(_flat(config))


def _flat(section: Section) -> Iterator[tuple[str, Any]]:
    for f in dataclasses.fields(section):  # pyright: ignore[reportArgumentType]
        value = getattr(section, f.name)
        if isinstance(value, Section):
            yield from _flat(value)
        else:
            yield f"{section.prefix}{f.name}", value


def as_dict(section: Section) -> dict[str, Any]:
    """The fields as nested mappings of plain values, which YAML can hold (see `plain`)."""
    values = ((f.name, getattr(section, f.name)) for f in dataclasses.fields(section))  # pyright: ignore[reportArgumentType]
    return {
        name: as_dict(value) if isinstance(value, Section) else plain(value)
        for name, value in values
    }


def plain(value: Any) -> Any:
    """A value in YAML's types: an object becomes a note that it has no import path."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    return f"<{_name_of(value)}{NO_IMPORT_PATH}"


def _name_of(thing: object) -> str:
    for attribute in ("name", "__qualname__"):
        if isinstance(name := getattr(thing, attribute, None), str):
            return " ".join(name.split())
    return type(thing).__qualname__


def unsavable(config: Section) -> list[str]:
    """Names of the fields that hold an object without an import path.

    config.yaml cannot restore them, so a run with such a configuration cannot be resumed.
    """
    return [name for name, value in flatten(config).items() if _without_path(plain(value))]


def _without_path(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_without_path, value))
    if isinstance(value, dict):
        return any(map(_without_path, value.values()))
    return isinstance(value, str) and value.startswith("<") and value.endswith(NO_IMPORT_PATH)


@functools.cache
def all_fields(cls: type[Section]) -> tuple[tuple[str, dataclasses.Field[Any], Any], ...]:
    """(dotted name, field, type) of every field of a tree of sections."""
    hints, found = get_type_hints(cls), []
    for f in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        if _is_section(hints[f.name]):
            found += all_fields(hints[f.name])
        else:
            found.append((f"{cls.prefix}{f.name}", f, hints[f.name]))
    return tuple(found)


def field_names(cls: type[Section]) -> list[str]:
    """Dotted names of all fields of a tree of sections."""
    return [name for name, _, _ in all_fields(cls)]


def type_name(kind: Any) -> str:
    """The name of a field's type in help and messages."""
    if get_origin(kind) is Literal:
        return "str"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(type_name(k) for k in get_args(kind) if k is not Any)
    if get_origin(kind) is tuple:
        return "list"
    if kind is type(None):
        return "null"
    return kind.__name__ if kind in (int, float, bool, str) else "dict"


def names(choices: Names) -> list[str]:
    """The names in `choices` or `listed` of a field's metadata."""
    return list(choices() if callable(choices) else choices)


def _convert(name: str, value: Any, kind: Any, meta: Mapping[str, Any]) -> Any:
    """`value` as a `kind`, without loss: 3.0 is an int, 3.5 and true are not.

    `Any` in a union stands for objects that are passed from Python (`objects` in the metadata).
    """
    if _is_section(kind):
        return value if isinstance(value, kind) else kind.from_dict(value)
    if _without_path(value):
        raise InputError(
            f"{name}: {value} was passed from Python and cannot be restored from the file, so the "
            "run can be neither resumed nor repeated from it; start a new run with "
            f"{name}=package.module:object"
        )
    if get_origin(kind) in (Union, types.UnionType):
        if Any in get_args(kind) and _is_object(value):
            return _registered_name(value, meta) or import_path(value) or value
        for alternative in get_args(kind):
            if alternative is Any:
                continue
            try:
                return _convert(name, value, alternative, meta)
            except InputError:
                continue
    elif kind is type(None):
        if value is None:
            return None
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif kind in (int, float):
        # YAML 1.1 reads 5e-7 as a string; learning rates are often written that way.
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = None
            if number is not None and number == number and (kind is float or number.is_integer()):
                return kind(value) if kind is int and not isinstance(value, str) else kind(number)
    elif kind is str or get_origin(kind) is Literal:
        if isinstance(value, str | int | float | os.PathLike) and not isinstance(value, bool):
            return str(value)
    elif get_origin(kind) is tuple:
        if isinstance(value, list | tuple):
            return tuple(_convert(name, item, get_args(kind)[0], meta) for item in value)
    elif isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise InputError(f"{name}: names must be strings, got {shorten(odd[0])}")
        return dict(value)
    raise InputError(f"{name}: expected {type_name(kind)}, got {shorten(value)}")


def _is_object(value: Any) -> bool:
    return not isinstance(value, str | int | float | list | tuple | Mapping | os.PathLike | None)


def _registered_name(thing: Any, meta: Mapping[str, Any]) -> str | None:
    """The name of an object that is an entry of the field's registry."""
    registry = meta["choices"]() if callable(meta["choices"]) else meta["choices"]
    if not isinstance(registry, Mapping):
        return None
    return next((name for name, entry in registry.items() if entry is thing), None)


def _check(name: str, value: Any, meta: Mapping[str, Any]) -> None:
    if not meta or value is None:
        return
    if meta["choices"]:
        _check_choice(name, value, meta)
    for bound, wrong, words in (
        ("above", lambda a, b: a <= b, "above"),
        ("at_least", lambda a, b: a < b, "at least"),
        ("at_most", lambda a, b: a > b, "at most"),
    ):
        if meta[bound] is not None and wrong(value, meta[bound]):
            raise InputError(f"{name}: must be {words} {meta[bound]}, got {shorten(value)}")


def name_problem(path: str) -> str | None:
    """What is wrong with a path that no file system takes; None for one that may exist."""
    if "\0" in path:
        return "contains a null character; give the name of a file or directory"
    try:
        parts = [part.encode("utf-8") for part in path.split("/")]
    except UnicodeEncodeError:
        return f"{path!a} contains a lone surrogate; give a name in valid Unicode"
    longest, total = max(map(len, parts)), sum(map(len, parts)) + len(parts) - 1
    if longest > 255 or total >= 4096:  # NAME_MAX and PATH_MAX of Linux
        return (
            f"{shorten(path)} has a name of {longest} bytes, {total} in all; file systems take at "
            "most 255, and 4095 in all"
        )
    return None


def shorten(value: Any, limit: int = 80) -> str:
    """A value for a one-line message, at most `limit` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of over 4,300 digits, a recursive list
        return f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _check_choice(name: str, value: Any, meta: Mapping[str, Any]) -> None:
    if meta["objects"] and (not isinstance(value, str) or ":" in value):
        return  # an object or its import path, which its user loads and checks
    known = names(meta["choices"])
    if value not in known:
        hint = suggestion(value, known)
        if meta["objects"] and not hint.startswith("did you mean"):
            hint += ", or give an import path package.module:object"
        raise InputError(f"{name}: there is no {shorten(value)}; {hint}")


def unknown_field(name: str, root: type[Section]) -> InputError:
    """The error for a field that does not exist, with the nearest in the tree of `root`."""
    known = field_names(root)
    # The right name in the wrong section: batch_size for train.batch_size.
    same = [k for k in known if k.split(".")[-1] == name.split(".")[-1]]
    hint = suggestion(name, same or known)
    if not hint.startswith("did you mean"):
        hint = "--help lists all fields"
    return InputError(f"field: there is no {name!r}; {hint}")
