"""Files that a command writes: refused before the run if they cannot be, whole when they are."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from games.errors import InputError

PICTURES = (".png", ".pdf", ".svg")


def check_target(path: Path) -> None:
    """Raises InputError unless a file can be written there; leaves nothing behind."""
    try:
        target = path.resolve()
        if target.is_dir():
            raise InputError(f"{path}: this is a directory; name a file in it")
        if target.exists():
            if not os.access(target, os.W_OK):
                raise InputError(f"{path}: it cannot be overwritten; name another file")
            if not target.is_file():  # a device or a pipe cannot be tried
                return
        trial = _temporary(target)
        trial.touch()
        trial.unlink()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links
        if isinstance(error, InputError):
            raise
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = getattr(error, "strerror", None) or str(error)
        reason = "there is no such directory" if missing else reason
        raise InputError(
            f"{shortened(path)}: it cannot be written ({reason}); name a file in a directory that "
            "you may write to"
        ) from None


def shortened(path: Path) -> str:
    """A path for a message: at most 200 characters."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-80:]}"


def check_picture(path: Path) -> None:
    """As `check_target`, for a picture."""
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"{path}: a picture's name ends in {', '.join(PICTURES)}")
    check_target(path)


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write by `write(file)` so that the path holds all of it or what it held before."""
    target = path.resolve()
    try:
        if target.exists() and not target.is_file():
            with target.open("wb") as file:
                write(file)
            return
        draft = _temporary(target)
        try:
            with draft.open("xb") as file:
                write(file)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: it could not be written: {error.strerror or error}") from None


def write_json(content: Any, target: str) -> None:
    """Write content to the file of that name, or to standard output for "-"."""
    text = json.dumps(plain(content), indent=1, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_whole(Path(target), lambda file: file.write(text.encode()))


def plain(content: Any) -> Any:
    """JSON-compatible content: arrays as lists in full precision, non-finite numbers as null."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if isinstance(content, np.ndarray | np.generic):
        return plain(content.tolist())
    if isinstance(content, float) and not np.isfinite(content):
        return None
    return content


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    packages = {name: metadata.version(name) for name in ("nashplay", "numpy", "scipy")}
    return {**packages, "python": sys.version.split()[0]}


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.draft")
