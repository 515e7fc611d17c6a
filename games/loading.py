"""Games and reference policies from files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from games.advice import advice
from games.checks import Labels, refuse, with_diagonal
from games.errors import InputError
from games.files import read
from games.lookup import suggestion
from games.matrix import MatrixGame, PreferenceGame, SkewGame
from games.sheet import Sheet
from games.wins import from_wins

KINDS = ("preference", "skew", "wins", "zero_sum")


def load(
    path: str | Path, kind: str = "preference", prior: float | None = None
) -> PreferenceGame | SkewGame | MatrixGame:
    """The game in a .csv, .txt, .json, .npy or .npz file.

    `kind` is "preference" (P + Pᵀ = 1), "skew" (A = -Aᵀ), "zero_sum" (the row player's payoff) or
    "wins" (win counts; `prior` is passed to `from_wins`).

    - .csv: separated by commas, semicolons or tabs; an optional header row and label column, which
      may be the default index of a data frame.
    - .txt: separated by white space, comments from # to the end of the line; labels as in .csv.
    - .json: a list of rows, or {"payoff": rows, "labels": [...]}; "wins", "ties" (or "draws") and
      "losses" are counts, "row_labels" and "column_labels" the labels of the two players of a
      zero-sum game.
    - .npy: an array, possibly with batch axes; .npz: arrays under the keys of .json, or one array.

    The diagonal may be missing except in a zero-sum game. Raises InputError with one line that
    names the file, the position and the fix.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind of game {kind!r}: {suggestion(kind, KINDS)}")
    if prior is not None and kind != "wins":
        raise InputError("prior applies only to win counts; leave it out, or read the file as wins")
    path = Path(path)
    with _errors_name(path):
        sheet = read(path, square=kind != "zero_sum")
        try:
            return _game(sheet, kind, path.name, prior)
        except InputError as error:
            raise InputError(f"{error}{advice(sheet.table, kind)}") from None


def load_reference(path: str | Path, n: int) -> np.ndarray:
    """(n,): the reference policy in a file of n numbers, given as a row, a column or a list.

    The numbers must be positive (divergences from a reference with zeros are infinite) and add up
    to 1 to 1e-6; they are then divided by their sum. Raises InputError.
    """
    path = Path(path)
    with _errors_name(path):
        table = read(path).table
        if table.size != n or max(table.shape) != n:
            raise InputError(
                f"the reference has shape {table.shape}; it must be one row of {n} numbers"
            )
        reference = table.reshape(n)
        wrong = ~((reference > 0) & (reference <= 1))
        if wrong.any():
            found = f"entry {wrong.argmax() + 1} is {reference[wrong][0]:.9g}"
            raise InputError(f"{found}; every action needs a probability > 0")
        total = reference.sum()
        if abs(total - 1) > 1e-6:
            raise InputError(f"the entries add up to {total:.9g}, not 1; divide them by their sum")
        return reference / total


def _game(sheet: Sheet, kind: str, name: str, prior: float | None):
    if kind == "wins":
        return _from_counts(sheet, name, prior)
    for what, counts in (("ties", sheet.ties), ("losses", sheet.losses)):
        if counts is not None:
            raise InputError(f"it has a table of {what}; read it as win counts: --as wins")
    if kind == "zero_sum":
        return MatrixGame(sheet.table, sheet.row_labels, sheet.column_labels, name)
    game = PreferenceGame if kind == "preference" else SkewGame
    return game(with_diagonal(sheet.table, game.value), _common_labels(sheet), name)


def _from_counts(sheet: Sheet, name: str, prior: float | None) -> PreferenceGame:
    if sheet.others:
        raise InputError(
            f"the table {sheet.others[0][:20]!r} is not known; name it ties or losses, or remove it"
        )
    wins = with_diagonal(sheet.table, 0.0)
    ties = None if sheet.ties is None else with_diagonal(sheet.ties, 0.0)
    labels = _common_labels(sheet)
    if sheet.losses is not None:
        losses = with_diagonal(sheet.losses, 0.0)
        if losses.shape != wins.shape:
            raise InputError(f"wins have shape {wins.shape} but losses {losses.shape}")
        rule = "losses must be the transpose of wins"
        refuse(losses != wins.swapaxes(-1, -2), labels, rule)
    return from_wins(wins, ties, prior, labels, name)


def _common_labels(sheet: Sheet) -> Labels:
    rows, columns = sheet.row_labels, sheet.column_labels
    if rows and columns and rows != columns:
        raise InputError(
            "rows and columns have different labels; they must be the same, in the same order"
        )
    return rows or columns


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Turns errors of reading into InputError and prefixes its message with the path."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory; give a file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except ValueError as error:  # a null byte or a surrogate in the name
        raise InputError(f"{str(path)!r}: cannot be read: {error}") from None
