"""Reading rows of JSONL, JSON, CSV and Parquet files and of datasets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from games.errors import InputError
from games.lookup import suggestion

RawRow = Mapping[str, Any]  # {column: value}, as it is in the file
RowIterator = Iterator[tuple[str, RawRow]]  # the place in the file, for messages, and the row
Columns = Mapping[str, str]  # {configuration key, such as data.field: name of the column}


def _jsonl_rows(path: Path, columns: Columns) -> RowIterator:
    # Split only at "\n": str.splitlines would also split strings at U+2028.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = _parse_json(line, where)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{where}: not valid JSON ({error.msg}, column {error.colno}); "
                "each line must be a JSON object"
            ) from error
        yield where, _object(row, columns, where)


def _json_rows(path: Path, columns: Columns) -> RowIterator:
    try:
        rows = _parse_json(read_text(path) or "[]", str(path))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}); "
            "name the file .jsonl if each line is a JSON object"
        ) from error
    if not isinstance(rows, list):
        raise InputError(
            f"{path}: must be a list of objects with the key {columns['data.field']!r}"
        )
    for number, row in enumerate(rows, start=1):
        where = f"{path}, item {number}"
        yield where, _object(row, columns, where)


class _Repeated(dict[str, Any]):
    """A JSON object in which some keys occur more than once; it has the last value of each."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.keys_in_order = [key for key, _ in pairs]


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    return plain if len(plain) == len(pairs) else _Repeated(pairs)


def _parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. Raises json.JSONDecodeError, and InputError for other failures."""
    try:
        return json.loads(text, object_pairs_hook=_json_object)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise InputError(f"{where}: JSON is nested too deeply; fix or remove the row") from error
    except ValueError as error:  # Python limits integers to 4,300 digits
        raise InputError(f"{where}: a number has too many digits; fix or remove the row") from error


def _csv_rows(path: Path, columns: Columns) -> RowIterator:
    limit = csv.field_size_limit(2**31 - 1)  # the default is 131,072 characters
    try:
        rows = list(_parsed_csv_rows(path, columns))
    finally:
        csv.field_size_limit(limit)  # a setting of the whole process
    yield from rows


def _parsed_csv_rows(path: Path, columns: Columns) -> RowIterator:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    if reader.fieldnames is not None:
        _check_delimiter(reader.fieldnames, columns, path)
        _require(columns, reader.fieldnames, f"{path}:1")
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{where}: not valid CSV ({error}); check its quotes") from error
        if None in row or None in row.values():
            raise InputError(
                f"{where}: has a different number of fields than the header; "
                "put double quotes around text with commas"
            )
        yield where, row


def _check_delimiter(header: Sequence[str], columns: Columns, path: Path) -> None:
    found = next((mark for mark in (";", "\t", "|") if mark in header[0]), None)
    if len(header) == 1 and found is not None and header[0] not in columns.values():
        raise InputError(
            f"{path}:1: the delimiter seems to be {found!r}; save the file with commas as delimiter"
        )


def _parquet_rows(path: Path, columns: Columns) -> RowIterator:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"data.path={path}: Parquet files need pyarrow: pip install pyarrow, or use a .jsonl "
            "or .csv file"
        ) from error
    try:
        names = parquet.read_schema(path).names
        _require(columns, names, str(path))
        rows = parquet.read_table(path, columns=sorted(set(columns.values()))).to_pylist()
    except InputError:
        raise
    except Exception as error:  # ArrowException, OSError, and others for damaged files
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"data.path={path}: not a readable Parquet file ({said})") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def dataset_rows(path: str, columns: Columns, split: str) -> RowIterator:
    """The rows of a dataset directory or of a dataset on the Hub."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"data.path={path}: a dataset needs the datasets library: pip install datasets, "
            "or use a .jsonl or .csv file"
        ) from error
    directory = Path(path)
    saved = any((directory / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        data: Any = datasets.load_from_disk(path) if saved else datasets.load_dataset(path)
    except Exception as error:  # OSError, ValueError, DatasetsError, ArrowException, HfHubHTTPError
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"data.path={path}: cannot be read as a dataset ({said}); give a Hub name, a dataset "
            f"directory, or a file with one of the extensions {', '.join(READERS)}"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise InputError(
                f"data.split={split}: {path} has no such split; {suggestion(split, map(str, data))}"
            )
        data = data[split]
    elif split not in ("train", str(data.split)):
        raise InputError(f"data.split={split}: {path} has no splits; leave out data.split")
    _require(columns, data.column_names, path)
    data = data.select_columns(sorted(set(columns.values())))
    for number, row in enumerate(data, start=1):
        yield f"{path}, row {number}", row


READERS: dict[str, Callable[[Path, Columns], RowIterator]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises InputError with the line of the first invalid byte."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8; save the file in UTF-8") from error


def _object(row: Any, columns: Columns, where: str) -> RawRow:
    if not isinstance(row, dict):
        prompt = columns["data.field"]
        raise InputError(
            f"{where}: must be an object with the key {prompt!r}, not {type(row).__name__}"
        )
    _require(columns, row.keys_in_order if isinstance(row, _Repeated) else row, where)
    return row


def _require(columns: Columns, names: Collection[str], where: str) -> None:
    for key, column in columns.items():
        if column not in names:
            hint = suggestion(column, map(str, names))
            raise InputError(f"{where}: there is no column {key}={column}; {hint}")
        if list(names).count(column) > 1:
            raise InputError(f"{where}: {key}={column}: there are several such columns; rename one")
