"""Games and reference policies from files."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from games.checks import Labels
from games.errors import InputError
from games.files import Sheet, read
from games.matrix import MatrixGame, PreferenceGame, SkewGame
from games.wins import from_wins

KINDS = ("preference", "skew", "wins", "zero_sum")


def load(
    path: str | Path, kind: str = "preference", prior: float | None = None
) -> PreferenceGame | SkewGame | MatrixGame:
    """The game in a .csv, .txt, .json, .npy or .npz file.

    `kind` says what the numbers are: "preference" (P + Pᵀ = 1), "skew" (A = -Aᵀ), "zero_sum" (the
    row player's payoff) or "wins" (counts, see `from_wins`, which takes the `prior`).

    - .csv: commas, semicolons or tabs; a header row, a column of labels or both are recognised.
    - .txt: white space, with comments from # to the end of the line; labels as in .csv.
    - .json: a list of rows, or {"payoff": rows, "labels": [...]}; "wins" and "ties" hold counts,
      "row_labels" and "column_labels" name the two sides of a zero-sum game.
    - .npy: an array, with batch axes if need be; .npz: arrays under the keys of .json, or only one.

    Raises InputError, in one line that names the file, the place and the mend.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1) or KINDS
        raise InputError(f"no kind of game is named {kind!r}; use {', '.join(near)}")
    if prior is not None and kind != "wins":
        raise InputError("a prior goes with counts of wins; leave it out, or read the file as wins")
    path = Path(path)
    with _naming(path):
        sheet = read(path)
        try:
            return _game(sheet, kind, path.name, prior)
        except InputError as error:
            other = _kind_that_fits(sheet, kind)
            mend = f"; the file fits --as {other}" if other else ""
            raise InputError(f"{error}{mend}") from None


def load_reference(path: str | Path, n: int) -> np.ndarray:
    """The probabilities (n,) in a file of n numbers, as a row, a column or a list.

    They must be positive, for every divergence from a zero is infinite, and add up to 1 to 1e-6;
    then they are divided by their sum. Raises InputError.
    """
    path = Path(path)
    with _naming(path):
        table = read(path).table
        if table.size != n or max(table.shape) != n:
            raise InputError(f"the reference has shape {table.shape}; give one row of {n} numbers")
        reference = table.reshape(n)
        wrong = ~((reference > 0) & (reference <= 1))
        if wrong.any():
            found = f"entry {wrong.argmax() + 1} is {reference[wrong][0]:.9g}"
            raise InputError(f"{found}; a reference gives every action a probability > 0")
        total = reference.sum()
        if abs(total - 1) > 1e-6:
            raise InputError(f"the entries add up to {total:.9g}; divide them by their sum")
        return reference / total


def _game(sheet: Sheet, kind: str, name: str, prior: float | None):
    if kind == "zero_sum":
        return MatrixGame(sheet.table, sheet.row_labels, sheet.column_labels, name)
    labels = _common_labels(sheet)
    if kind == "wins":
        return from_wins(sheet.table, sheet.ties, prior, labels, name)
    game = PreferenceGame if kind == "preference" else SkewGame
    return game(sheet.table, labels, name)


def _common_labels(sheet: Sheet) -> Labels:
    rows, columns = sheet.row_labels, sheet.column_labels
    if rows and columns and rows != columns:
        raise InputError("rows and columns have different labels; put both in the same order")
    return rows or columns


def _kind_that_fits(sheet: Sheet, refused: str) -> str | None:
    """What the table could be instead. Any table is zero_sum: no mend for counts of wins."""
    whole = np.array_equal(sheet.table, np.round(sheet.table))
    for kind in KINDS:
        unlikely = (kind == "wins" and not whole) or (kind == "zero_sum" and refused == "wins")
        if kind != refused and not unlikely:
            with suppress(InputError):
                _game(sheet, kind, name="", prior=1.0)
                return kind
    return None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path}: this is a directory; name a file in it") from None
    except OSError as error:
        raise InputError(f"{path}: it cannot be read: {error.strerror or error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
