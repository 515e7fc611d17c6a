"""Files that are written atomically: a path that exists holds all of its content.

Directories carry checksums of their files, so that later damage is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from games.errors import InputError

Record = dict[str, Any]
CHECKSUMS = "checksums.json"
TEMPORARY = ".tmp"
DAMAGED = "is damaged; restore the file, or start anew in another output_dir"


def write_text(path: Path, text: str, *, hashed: bool = False) -> None:
    """Writes a file atomically: temporary name, flush to disk, rename.

    `hashed`: with the hash of the file beside it, for `is_whole`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if hashed:
        _write_hash(path, text)
    temporary = _temporary(path)
    with temporary.open("x", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    _flush_directory(path.parent)


def write_directory(path: Path, write: Callable[[Path], object]) -> None:
    """Makes a directory atomically, filled by `write(temporary)`, with checksums."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    write(temporary)
    seal(temporary)
    temporary.rename(path)
    _flush_directory(path.parent)


def _temporary(path: Path) -> Path:
    """A new name beside the path, which nobody can foresee."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY}")


def remove_temporary(directory: Path) -> None:
    """Removes what killed processes left under temporary names."""
    for path in directory.rglob(f"*{TEMPORARY}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def seal(directory: Path, name: str = CHECKSUMS) -> None:
    """Writes the hashes of a directory's files to the file `name`, and flushes all to the disk."""
    files = [file for file in sorted(directory.rglob("*")) if file.is_file()]
    hashes = {str(file.relative_to(directory)): _sha256(file) for file in files}
    hashes.pop(name, None)
    # One that is cut by a kill is no JSON: the directory is then not intact.
    (directory / name).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    for file in (*files, directory / name):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def is_intact(directory: Path, name: str = CHECKSUMS) -> bool:
    """Whether all files of a sealed directory have their hashes.

    True without the file `name`: earlier versions wrote none.
    """
    if not (directory / name).exists():
        return directory.is_dir()
    try:
        hashes = read_json(directory / name, {})
        return all(_sha256(directory / file) == found for file, found in hashes.items())
    except (InputError, OSError, AttributeError):  # not JSON, a file that is missing, not a mapping
        return False


def _sha256(file: Path) -> str:
    """Raises OSError for what is no regular file: a pipe would be waited for."""
    if not file.is_file():
        raise FileNotFoundError(file)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_directory(path: Path) -> None:
    """Removes a directory atomically: its name is gone before its content is.

    Also a file or a link in its place; what a link refers to is kept.
    """
    removed = path.with_name(path.name + ".removed")
    for place in (path, removed):
        if place.is_symlink() or place.is_file():
            place.unlink()
    if path.exists():
        shutil.rmtree(removed, ignore_errors=True)
        path.rename(removed)
        _flush_directory(path.parent)
        shutil.rmtree(removed, ignore_errors=True)


def write_rows(path: Path, rows: Iterable[Record], *, hashed: bool = False) -> None:
    """Writes JSON lines; floats are read back bit for bit.

    `hashed`: with the hash of the file beside it, for `is_whole`.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, text, hashed=hashed)


def _write_hash(path: Path, text: str) -> None:
    """Writes the hash of a file that is about to be written, after that of the file it replaces:
    a kill between the two leaves a file with one of its hashes.
    """
    hashes = [_sha256(path)] if path.is_file() else []
    hashes.append(hashlib.sha256(text.encode()).hexdigest())
    temporary = _temporary(path)
    temporary.write_text("".join(f"{found}\n" for found in hashes))
    os.replace(temporary, path.with_suffix(".sha256"))


def is_whole(path: Path) -> bool:
    """Whether a file has a hash that stands beside it; True without one, as in earlier versions."""
    hashed = path.with_suffix(".sha256")
    if not hashed.exists() and not hashed.is_symlink():
        return True
    try:
        return _sha256(path) in _read_text(hashed).split()
    except (InputError, OSError):
        return False


def read_rows(path: Path) -> list[Record]:
    """Reads what `write_rows` wrote; an empty list if there is no file.

    Raises InputError naming the line that is not a JSON object, or the file if its hash differs.
    """
    rows = []
    # Split at "\n" only: responses may contain U+2028.
    for number, line in enumerate(_read_text(path).split("\n") if path.exists() else [], start=1):
        if line:
            row = _parsed(line, f"{path}:{number}")
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: {DAMAGED}")
            rows.append(row)
    _check_whole(path)
    return rows


def read_json(path: Path, default: Any) -> Any:
    """The content of a JSON file; `default` if there is no file. Raises InputError."""
    content = _parsed(_read_text(path), str(path)) if path.exists() else default
    _check_whole(path)
    return content


def _check_whole(path: Path) -> None:
    """Raises InputError unless a file, if a hash stands beside it, has that hash."""
    if not is_whole(path):
        raise InputError(f"{path}: {DAMAGED}")


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError(path)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path}: {DAMAGED}") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{where}: {DAMAGED}") from None


def _flush_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
