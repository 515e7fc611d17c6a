"""TODO llm.config.section."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, field
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from games.errors import InputError


def about(
    meaning: str,
    *,
    choices: Sequence[str] = (),
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    may_change: bool = False,
) -> dict[str, Any]:
    """What is known of a field: its meaning and its range.

    `may_change`: a run may be continued under another value, because it moves memory or time,
    never the algorithm; every other change is refused.
    """
    return locals()


def knob(meaning: str, default: Any = MISSING, **limits: Any) -> Any:
    """A field with its meaning, its default if it has one, and its range (see `about`)."""
    return field(default=default, metadata=about(meaning, **limits))


class Section:
    """A group of fields; values are converted to their types and checked when it is made."""

    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Convert and check every field, whichever way the section was made."""
        hints = get_type_hints(type(self))
        for f in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = _convert(f"{self.prefix}{f.name}", getattr(self, f.name), hints[f.name])
            _check_range(f"{self.prefix}{f.name}", value, f.metadata)
            object.__setattr__(self, f.name, value)

    @classmethod
    def from_dict(cls, values: Any, root: type[Section] | None = None) -> Self:
        """The section of a mapping as YAML gives it; unknown and missing names are refused.

        The nearest name is looked for in the whole tree of `root`, this section itself if left out.
        """
        root = root or cls
        if not isinstance(values, Mapping):
            where = cls.prefix.rstrip(".") or "the configuration"
            raise InputError(f"{where}: expected fields `name: value`, got {values!r}")
        hints = get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
        for name in values:
            if name not in fields:
                raise unknown_name(f"{cls.prefix}{name}", field_names(root))
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


@functools.cache
def all_fields(cls: type[Section]) -> tuple[tuple[str, dataclasses.Field[Any], Any], ...]:
    """(dotted name, field, type) of every field, sections taken apart."""
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
        return "text"
    names = {
        int: "whole number",
        float: "number",
        bool: "true/false",
        str: "text",
        type(None): "null",
    }
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(type_name(k) for k in get_args(kind))
    if get_origin(kind) is tuple:
        return "list"
    return names.get(kind, "mapping")


def _convert(name: str, value: Any, kind: Any) -> Any:
    """`value` as a `kind`, exactly: 3.0 is a whole number, 3.5 and true are not."""
    if _is_section(kind):
        return value if isinstance(value, kind) else kind.from_dict(value)
    if get_origin(kind) in (Union, types.UnionType):
        for option in get_args(kind):
            try:
                return _convert(name, value, option)
            except InputError:
                continue
    elif kind is type(None):
        if value is None:
            return None
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif kind in (int, float):
        # YAML 1.1 reads 5e-7 as text; a learning rate is often written so.
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                number = float(value)
            except ValueError:
                number = None
            if number is not None and number == number and (kind is float or number.is_integer()):
                return kind(value) if kind is int and not isinstance(value, str) else kind(number)
    elif kind is str or get_origin(kind) is Literal:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
    elif get_origin(kind) is tuple:
        if isinstance(value, list | tuple):
            return tuple(_convert(name, item, get_args(kind)[0]) for item in value)
    elif isinstance(value, Mapping):
        return dict(value)
    raise InputError(f"{name}: expected {type_name(kind)}, got {value!r}")


def _check_range(name: str, value: Any, meta: Mapping[str, Any]) -> None:
    if not meta or value is None:
        return
    if meta["choices"] and value not in meta["choices"]:
        raise unknown_name(value, meta["choices"], what=name)
    for bound, wrong, words in (
        ("above", lambda a, b: a <= b, "above"),
        ("at_least", lambda a, b: a < b, "at least"),
        ("at_most", lambda a, b: a > b, "at most"),
    ):
        if meta[bound] is not None and wrong(value, meta[bound]):
            raise InputError(f"{name}: must be {words} {meta[bound]}, got {value}")


def unknown_name(name: Any, known: Sequence[str], what: str = "field") -> InputError:
    """The error for a name that is not known, with the nearest one."""
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    near = near or [k for k in known if k.split(".")[-1] == str(name).split(".")[-1]][:1]
    if near:
        return InputError(f"{what}: there is no {str(name)!r}; did you mean {near[0]!r}?")
    listed = ", ".join(known) if len(known) <= 12 else "--help lists them all"
    return InputError(f"{what}: there is no {str(name)!r}; known: {listed}")
