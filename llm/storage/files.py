"""Files that are written atomically: a path that exists holds all of its content.

Directories carry checksums of their files, so that later damage is noticed.
"""

from __future__ import annotations

import errno
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
# What safetensors and torch say, which raise errors of their own: torch names the file of its C++
# code in which writing an archive fails.
DISK_ERRORS = (
    "No space left",
    "Disk quota exceeded",
    "File too large",
    "inline_container.cc",
    "iostream error",
)
DAMAGED = "is damaged; restore the file, or start anew in another output_dir"


def is_disk_error(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that a file could not be written in full.

    The disk or a quota is full, or the file larger than allowed.
    """
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(text in str(error) for text in DISK_ERRORS):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: temporary name, flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
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


def remove(path: Path) -> None:
    """Removes whatever is there: a file, a link, a directory, or nothing."""
    if path.is_dir() and not path.is_symlink():
        remove_directory(path)
    else:
        path.unlink(missing_ok=True)


def is_there(path: Path) -> bool:
    """Whether a path has an entry in its directory, also a link that leads nowhere."""
    return os.path.lexists(path)


def is_intact(directory: Path, name: str = CHECKSUMS) -> bool:
    """Whether all files of a sealed directory have their hashes.

    True without the file `name`: earlier versions wrote none.
    """
    if not is_there(directory / name):
        return directory.is_dir()
    try:
        hashes = read_json(directory / name, {})
        return all(_sha256(directory / file) == found for file, found in hashes.items())
    except (InputError, OSError, AttributeError):  # not JSON, a file that is missing, not a mapping
        return False


def _sha256(file: Path) -> str:
    if not file.is_file():  # reading a pipe would wait for its writer
        raise FileNotFoundError(file)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_directory(path: Path) -> None:
    """Removes a directory atomically: its name is gone before its content is."""
    if path.exists():
        removed = path.with_name(path.name + ".removed")
        shutil.rmtree(removed, ignore_errors=True)
        path.rename(removed)
        _flush_directory(path.parent)
        shutil.rmtree(removed, ignore_errors=True)


def write_rows(path: Path, rows: Iterable[Record], *, hashed: bool = False) -> None:
    """Writes JSON lines; floats are read back bit for bit.

    `hashed`: with the hash of the file beside it, for `file_is_intact`.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if hashed:
        _write_hash(path, hash_of(text))
    write_text(path, text)


def write_record(path: Path, value: Any) -> None:
    """Writes a JSON value, with the hash of the file beside it."""
    text = json.dumps(value) + "\n"
    _write_hash(path, hash_of(text))
    write_text(path, text)


def read_record(path: Path) -> Any:
    """Reads what `write_record` wrote. Raises InputError if it is damaged or not there."""
    value = read_json(path, None)
    if value is None or not file_is_intact(path):
        raise InputError(f"{path}: {DAMAGED}")
    return value


def hash_of(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def _write_hash(path: Path, digest: str) -> None:
    """Before the file itself: a hash without its file does no harm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hash_file(path).write_text(digest + "\n", encoding="utf-8")


def file_is_intact(path: Path) -> bool:
    """Whether a file has the hash beside it; True without one, as in earlier versions."""
    if not is_there(hash_file(path)):
        return True
    try:
        return _read_text(hash_file(path)).strip() == _sha256(path)
    except (InputError, OSError):
        return False


def hash_file(path: Path) -> Path:
    """Where the hash of a file is."""
    return path.with_suffix(".sha256")


def read_rows(path: Path) -> list[Record]:
    """Reads what `write_rows` wrote; an empty list if there is no file.

    Raises InputError naming the line that is not a JSON object.
    """
    if not is_there(path):
        return []
    rows = []
    # Split at "\n" only: responses may contain U+2028.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line:
            row = _parsed(line, f"{path}:{number}")
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: {DAMAGED}")
            rows.append(row)
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; none if there is no file. Raises InputError."""
    return _read_text(path).splitlines() if is_there(path) else []


def read_json(path: Path, default: Any) -> Any:
    """The content of a JSON file; `default` if there is no file. Raises InputError."""
    return _parsed(_read_text(path), str(path)) if is_there(path) else default


def _read_text(path: Path) -> str:
    try:
        if path.is_file():  # reading a pipe would wait for its writer
            return path.read_text(encoding="utf-8")
        raise InputError(f"{path}: {DAMAGED}")
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
