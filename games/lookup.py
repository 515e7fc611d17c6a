"""Objects by name: entries of a registry, or a user's own as `package.module:object`."""

from __future__ import annotations

import difflib
import importlib
import operator
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from games.errors import InputError

T = TypeVar("T")


def suggestion(name: object, known: Iterable[str]) -> str:
    """Hint for an unknown name: the nearest of `known` if one is close, otherwise all of them.

    >>> suggestion("gmmmd", ["gmmd", "omd"])
    "did you mean 'gmmd'?"
    >>> suggestion("x", ["gmmd", "omd"])
    'choose from gmmd, omd'
    """
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"choose from {', '.join(known) or 'none'}"


def find(name: str, registry: Mapping[str, T], what: str, kind: type[T] | tuple[type, ...]) -> T:
    """The entry of that name, or the object at the import path `package.module:object`.

    `what` describes the object in messages ("rule"); `kind` is its required class or classes.
    Raises InputError for an unknown name (with the nearest one), a failed import, or an object that
    is not an instance of `kind`.
    """
    if ":" in name:
        return load_object(name, what, kind)
    if name not in registry:
        raise InputError(f"unknown {what} '{name}': {suggestion(name, registry)}")
    return registry[name]


def load_object(path: str, what: str, kind: Any = object) -> Any:
    """The object at the import path `package.module:object`.

    Raises InputError if it cannot be imported or is not an instance of `kind` (a class or a tuple
    of classes).
    """
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise InputError(f"{what} '{path}': expected an import path package.module:object")
    try:
        found = operator.attrgetter(attribute)(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # user code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{what} '{path}' cannot be imported: {reason}") from None
    if not isinstance(found, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        article = "an" if wanted[0] in "AEIOU" else "a"
        raise InputError(f"{what} '{path}' is a {type(found).__name__}, not {article} {wanted}")
    return found


def import_path(thing: object) -> str | None:
    """Import path `package.module:object` of a function or class, or None if it has none."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    try:
        found = operator.attrgetter(name)(importlib.import_module(module))
    except (Exception, SystemExit):  # a local object, or a module that fails to import
        return None
    return f"{module}:{name}" if found is thing and module != "__main__" else None
