"""Damaged, odd and hostile input: a command ends with a checked answer, or with one line.

Four areas: files of tables, configurations, files of prompts and pairs, and run directories. An
exit code of 0 is compared with what the test meant to ask for. NASHPLAY_FUZZ_EXAMPLES=N runs N
random examples of each test instead of those that are always the same.
"""

from __future__ import annotations

import ast
import csv
import functools
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import chdir, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import yaml
from hypothesis import given
from hypothesis import strategies as st

from games import load
from llm.config.schema import TrainConfig
from llm.config.section import all_fields, type_name
from llm.config.section import names as list_names
from llm.policy import fitting
from llm.storage import chunks
from llm.train import main as train
from solvers.__main__ import main as solvers
from tests.fuzzing import Ended, campaign, ended, scratch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _libraries_as_in_a_command() -> Iterator[None]:
    """A command sets these before it imports transformers."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(level)
    transformers.logging.enable_progress_bar()


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


# --- tables ---------------------------------------------------------------------------------------

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")
NAMES = ("ada", "Bob", "c 3", "Ω", "x-1", "model_a", "GPT 4", "l'été", "d,e", 'say "hi"', "f;g")
NAMES += (
    "tab\there",
    "two\nlines",
    "\x1b[31mred",
    "‮evil",
    "Unnamed: 0",
    "nan",
    "100",
    "1.5",
    "# a",
)
names = st.one_of(st.sampled_from(NAMES), st.text(characters, min_size=1, max_size=6))
plain_names = st.sampled_from("abcdefgh")

NUMBERS = (
    "0",
    "1",
    "-1",
    "2.5",
    "-0.75",
    "1e-3",
    "-3E+2",
    "+4",
    ".5",
    "5.",
    "007",
    "1e300",
    "5e-324",
)
NUMBERS += ("-1e12", "1e12", "123456789.123456789", "-0", "1e-12")
NOT_NUMBERS = ("nan", "inf", "-inf", "1e999", "", "x", "--", "1,5", "0x10", "∞", "1 2", "1/2", "½")
NOT_NUMBERS += ("NaN%", "%", "TRUE", "None", "1e", "\ud800", "\0", "1" * 400 + "x", "\x1b[2J", "£3")


@dataclass
class Table:
    """What a test means to write: cells, labels, and the payoffs (..., m, n) that they mean."""

    kind: str
    cells: list[list[str]]
    payoff: np.ndarray
    rows: list[str] | None = None
    columns: list[str] | None = None
    words: list[str] = field(default_factory=list)


@st.composite
def tables(draw, plain: bool = False) -> Table:
    """Tables of each kind with their payoffs; `plain`: with ordinary numbers and labels."""
    kind = draw(st.sampled_from(["preference", "skew", "wins", "zero_sum"]))
    m = draw(st.integers(2, 5))
    n = draw(st.integers(2, 5)) if kind == "zero_sum" else m
    words = ["--as", kind]
    if kind in ("zero_sum", "skew"):
        number = st.integers(-999, 999).map(lambda i: str(i / 8))
        if not plain:
            number |= st.sampled_from(NUMBERS)
            number |= st.floats(allow_nan=False, allow_infinity=False).map(repr)
        cells = [[draw(number) for _ in range(n)] for _ in range(m)]
        if kind == "skew":
            for i in range(n):
                cells[i][i] = "0"
                for j in range(i):
                    cells[i][j] = _negated(cells[j][i])
        payoff = np.array([[float(cell) for cell in row] for row in cells])
    elif kind == "preference":
        digits = draw(st.integers(1, 9))
        wins = np.full((n, n), 10**digits // 2)
        for i, j in zip(*np.triu_indices(n, 1), strict=True):
            wins[i, j] = draw(st.integers(0, 10**digits))
            wins[j, i] = 10**digits - wins[i, j]
        payoff = wins / 10**digits
        percent = draw(st.booleans()) and not plain
        shown = digits - 2 if percent else digits
        cells = [
            [f"{100 * p if percent else p:.{max(shown, 1)}f}{'%' * percent}" for p in row]
            for row in payoff
        ]
    else:
        prior = draw(st.sampled_from([0, 1, 0.5]))
        words += ["--prior", str(prior)] if prior else []
        count = st.integers(0 if prior else 1, 10 if plain else 10**9)
        wins = np.array([[0 if i == j else draw(count) for j in range(n)] for i in range(n)])
        cells = [[str(w) for w in row] for row in wins]
        played = wins + wins.T + 2 * prior
        np.fill_diagonal(played, 1)
        payoff = (wins + prior) / played
        np.fill_diagonal(payoff, 0.5)
    table = Table(kind, cells, payoff, words=words)
    label = plain_names if plain else names
    labels = st.none() | st.lists(label, min_size=max(m, n), max_size=max(m, n), unique=True)
    table.rows, table.columns = draw(labels), draw(labels)
    if kind != "zero_sum" and table.rows and table.columns:
        table.columns = table.rows
    table.rows, table.columns = table.rows and table.rows[:m], table.columns and table.columns[:n]
    return table


def _negated(number: str) -> str:
    return number[1:] if number.startswith("-") else "-" + number.removeprefix("+")


@st.composite
def csv_texts(draw, table: Table) -> str:
    """The table as a .csv file, as one of many programs writes it."""
    delimiter = draw(st.sampled_from(",;\t"))
    always = draw(st.booleans())
    space = draw(st.sampled_from(["", "", " "]))

    def quoted(cell: str) -> str:
        odd = any(mark in cell for mark in ',;\t"\n') or cell != cell.strip()
        return '"' + cell.replace('"', '""') + '"' if always or odd else cell

    lines = [list(row) for row in table.cells]
    if table.rows:
        lines = [[label, *row] for label, row in zip(table.rows, lines, strict=True)]
    if table.columns:
        corner = [draw(st.sampled_from(["", "name", "model"]))] if table.rows else []
        lines = [[*corner, *table.columns], *lines]
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    text = end.join((delimiter + space).join(map(quoted, line)) for line in lines)
    text += end * draw(st.integers(0, 2))
    return draw(st.sampled_from(["", "\ufeff"])) + text


@st.composite
def txt_texts(draw, table: Table) -> str:
    """The table as a .txt file; labels with white space or a comment sign cannot be in one."""
    fit = "".join if draw(st.booleans()) else "\t".join
    space = draw(st.sampled_from([" ", "  ", "\t"]))
    table.rows = table.rows and [_one_word(label) for label in table.rows]
    table.columns = table.columns and [_one_word(label) for label in table.columns]
    lines = [list(row) for row in table.cells]
    if table.rows:
        lines = [[label, *row] for label, row in zip(table.rows, lines, strict=True)]
    if table.columns:
        lines = [[*(["model"] if table.rows else []), *table.columns], *lines]
    comment = draw(st.sampled_from(["", " # 1 2 3", "#"]))
    del fit
    return "# a table\n\n" + "\n".join(space.join(line) + comment for line in lines) + "\n"


def _one_word(label: str) -> str:
    return "".join("_" if mark.isspace() or mark in "#," else mark for mark in label)


@st.composite
def json_texts(draw, table: Table) -> str:
    """The table as JSON; percentages as the numbers that they mean."""
    rows = [
        [float(c[:-1]) / 100 if c.endswith("%") else _json_number(c) for c in row]
        for row in table.cells
    ]
    key = {"wins": ["wins", "Wins", "num_wins", "win counts"]}.get(
        table.kind, ["payoff", "A", "table"]
    )
    content: Any = rows
    if table.rows or table.columns or draw(st.booleans()):
        content = {draw(st.sampled_from(key)): rows}
        if table.kind == "zero_sum":
            content |= {"row_labels": table.rows, "column_labels": table.columns}
        elif table.rows or table.columns:
            content["labels"] = table.rows or table.columns
    return json.dumps(
        content, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.just(1))
    )


def _json_number(text: str) -> int | float:
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


def write_table(draw, table: Table, path: Path) -> None:
    if path.suffix == ".npy":
        table.rows = table.columns = None
        numbers = [
            [float(c[:-1]) / 100 if c[-1] == "%" else float(c) for c in row] for row in table.cells
        ]
        with path.open("wb") as file:
            np.save(file, np.array(numbers, order=draw(st.sampled_from("CF"))))
        return
    writer = {".csv": csv_texts, ".txt": txt_texts, ".json": json_texts}[path.suffix]
    path.write_bytes(draw(writer(table)).encode("utf-8", "surrogatepass"))


def check_equilibrium(record: dict[str, Any], payoff: np.ndarray, symmetric: bool) -> None:
    """The policies are distributions, with the value and the gap that are printed."""
    x, y = np.array(record["policy"]), np.array(record["opponent_policy"])
    assert (*x.shape, *y.shape) == payoff.shape
    for policy in (x, y):
        assert (policy >= 0).all()
        assert policy.sum() == pytest.approx(1, abs=1e-9)  # rounding of n numbers
    unit = np.abs(payoff).max() or 1.0  # sums of entries of 1e308 overflow
    a = payoff / unit
    gap = (a @ y).max() - (x @ a).min()
    # 1e-10 of the range is the solver's own tolerance; the rest is the rounding of this product.
    assert gap <= max(record["duality_gap"] / unit, 1e-10 * np.ptp(a)) + 1e-13, gap
    assert gap <= 1e-8 * max(np.ptp(a), 1e-300)
    assert (x @ a).min() - 1e-8 <= record["value"] / unit <= (a @ y).max() + 1e-8
    if symmetric:
        assert record["value"] / unit == pytest.approx(a[0, 0], abs=1e-12)


def nash(path: Path, *words: str) -> tuple[Ended, dict[str, Any] | None]:
    done = ended(solvers, "nash", str(path), "--json", "answer.json", *words)
    return done, strict(Path("answer.json").read_text()) if done.code in (0, 1) else None


endings = st.sampled_from([".csv", ".csv", ".txt", ".json", ".npy"])


@campaign(300)
@given(st.data())
def test_a_table_is_read_as_it_was_meant(data) -> None:
    """With any labels and layout; it may be refused only where its labels leave two readings."""
    plain = data.draw(st.booleans())
    table = data.draw(tables(plain))
    with scratch() as here:
        path = here / f"table{data.draw(endings)}"
        write_table(data.draw, table, path)
        done, record = nash(path, *table.words)
        if plain and done.code:
            assert "could be" in done.reason, (path.read_bytes(), done)
        if done.code == 0:
            assert record is not None
            check_equilibrium(record, table.payoff, table.kind != "zero_sum")
            check_labels(path, table)


def check_labels(path: Path, table: Table) -> None:
    prior = float(table.words[3]) if len(table.words) > 2 else None
    game: Any = load(path, table.kind, prior)
    # Decimal digits, and for percentages a division, are exact to rounding.
    assert game.payoff == pytest.approx(table.payoff, rel=1e-12, abs=1e-15)
    rows, columns = (
        (game.row_labels, game.column_labels)
        if table.kind == "zero_sum"
        else (game.labels, game.labels)
    )
    meant = table.rows, table.columns
    if table.kind != "zero_sum":
        meant = (table.rows or table.columns,) * 2
    for found, labels in zip((rows, columns), meant, strict=True):
        stripped = labels and tuple(label.strip() for label in labels)
        if path.suffix == ".json":
            stripped = labels and tuple(labels)
        assert found == stripped


@campaign(200)
@given(st.data())
def test_a_spoiled_table_is_refused(data) -> None:
    """One entry off the diagonal that is no number, or a row of another length."""
    table = data.draw(tables(plain=True))
    m, n = table.payoff.shape
    i, j = data.draw(st.integers(1, m - 1)), data.draw(st.integers(0, n - 1))
    how = data.draw(st.sampled_from(["cell", "cell", "cell", "longer", "shorter"]))
    if how == "cell":
        if i == j:
            i, j = 1, 0
        table.cells[i][j] = data.draw(st.sampled_from(NOT_NUMBERS))
        if m == 2 and table.cells[1][0].casefold() in ("", "nan", "--", "none"):
            table.cells[1][0] = "x"
    elif m < 3:
        return  # two rows of different length can be a header and its row
    else:
        table.cells[i] = [*table.cells[i], "1.5"] if how == "longer" else table.cells[i][1:]
    with scratch() as here:
        path = here / f"table{data.draw(st.sampled_from(['.csv', '.json']))}"
        if path.suffix == ".csv":
            text = data.draw(csv_texts(table))
        else:
            text = json.dumps([[_maybe_number(c) for c in row] for row in table.cells])
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        done, _ = nash(path, *table.words)
        assert done.code == 2, (path.read_bytes(), done)


def _maybe_number(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell


STRUCTURES = ("[" * 100_000, '{"a":' * 20_000, '{"payoff": [[1, 2], [3]]}', "[]", "{}", "null", "3")
STRUCTURES += (
    '{"payoff": []}',
    '{"payoff": [[]]}',
    "[[[0.5]]]",
    '[["0.5"]]',
    '{"payoff": {"a": 1}}',
)
STRUCTURES += (
    '{"wins": [[0,1],[1,0]], "ties": [[0]]}',
    '{"labels": ["a"], "payoff": [[0.5]]}',
    '"x"',
)
STRUCTURES += (
    "[[true]]",
    "[[1e999]]",
    "[[" + "9" * 5000 + "]]",
    "[[NaN]]",
    '[[{"a": [1]}]]',
    "[null]",
)
STRUCTURES += (
    '{"payoff": [[0.5]], "labels": {"a": 1}}',
    '{"payoff": [[0.5]], "labels": [[1]]}',
    "",
)
STRUCTURES += ('{"payoff": [[0.5]], "labels": ["\\ud800"]}', '{"payoff": [[0.5]], "payoff": [[1]]}')
files = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(STRUCTURES).map(str.encode),
    st.text("0123456789.,;\t \n\r\"'%-+eE#naif[]{}:_", max_size=60).map(str.encode),
    st.recursive(
        st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["payoff", "wins", "ties", "losses", "labels", "row_labels", "x"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    ).map(lambda content: json.dumps(content).encode()),
)


@campaign(300)
@given(st.data())
def test_any_bytes_are_a_table_or_are_refused(data) -> None:
    """Whatever is solved has policies of its own size whose gap is the printed one."""
    ending = data.draw(st.sampled_from([".csv", ".txt", ".json", ".npy", ".npz", ".xls", ""]))
    kind = data.draw(st.sampled_from(["preference", "skew", "wins", "zero_sum"]))
    with scratch() as here:
        path = here / f"table{ending}"
        if data.draw(st.booleans()) or ending in (".npz", ".xls", ""):
            path.write_bytes(data.draw(files))
        else:
            write_table(data.draw, data.draw(tables()), path)
            damaged = bytearray(path.read_bytes())
            for _ in range(data.draw(st.integers(1, 3))):
                place = data.draw(st.integers(0, len(damaged) - 1))
                damaged[place : place + data.draw(st.integers(0, 2))] = data.draw(
                    st.binary(max_size=2)
                )
            path.write_bytes(damaged)
        done, record = nash(path, "--as", kind)
        if done.code == 0:
            assert record is not None
            game: Any = load(path, kind)
            if not game.batch_shape:
                check_equilibrium(record, game.payoff, kind != "zero_sum")


@campaign(20)
@given(st.data())
def test_rules_on_a_table(data) -> None:
    """`solve` and `compare`: the gap is that of the policy in the table that was meant."""
    table = data.draw(tables(plain=data.draw(st.booleans())))
    tau = data.draw(st.sampled_from([0.05, 1.0, 1e3]))
    with scratch() as here:
        path = here / f"table{data.draw(endings)}"
        write_table(data.draw, table, path)
        words = [str(path), *table.words, "--steps", "60", "--json", "answer.json"]
        if data.draw(st.integers(0, 4)) == 0:
            words += ["--rules", "gmmd,mwu,nash_md", "--plot", "picture.svg"]
            done = ended(solvers, "compare", *words)
            rows = strict(Path("answer.json").read_text()) if done.code == 0 else []
        else:
            rule = data.draw(st.sampled_from(["gmmd", "mwu", "nash_md"]))
            more = [] if rule == "mwu" else ["--tau", str(tau)]
            done = ended(solvers, "solve", *words, "--rule", rule, *more)
            rows = [strict(Path("answer.json").read_text())] if done.code in (0, 1) else []
        for row in rows:
            if table.kind != "zero_sum" and row["duality_gap"] is not None:
                check_gap(row, table.payoff)


def check_gap(row: dict[str, Any], payoff: np.ndarray) -> None:
    """The gap of self-play: 2 (max_ρ ⟨a, ρ⟩ − τ KL(ρ‖μ) − ⟨a, π⟩ + τ KL(π‖μ)), a = Aπ."""
    policy, tau = np.array(row["policy"]), row["tau"]
    assert policy.sum() == pytest.approx(1, abs=1e-9)
    a, n = payoff @ policy, len(policy)
    if row["regularizer"] not in (None, "reverse_kl"):
        return
    best = a.max()
    if tau:
        with np.errstate(divide="ignore", invalid="ignore"):
            kl = np.nansum(policy * np.log(policy * n))
        best = a.max() + tau * math.log(np.exp((a - a.max()) / tau).mean()) + tau * kl
    # Rounding of sums of numbers of this size.
    size = np.abs(payoff).max() + tau
    assert row["duality_gap"] == pytest.approx(2 * (best - a @ policy), rel=1e-6, abs=1e-11 * size)


# --- configurations -------------------------------------------------------------------------------

SHIPPED = ("embedded-game", "embedded-text")
FIELDS = {name: (meta.metadata, kind) for name, meta, kind in all_fields(TrainConfig)}
ODD_VALUES = (
    *("", "null", "~", "true", "yes", "no", "0", "-1", "1", "2", "007", "1_000", "0x10", "1:30"),
    *("1.0", "1.5", "1e3", "5e-7", ".inf", "-.inf", ".nan", "nan", "1e400", "9" * 400, "9" * 5000),
    *(
        "[]",
        "{}",
        "[1, 2]",
        "{a: 1}",
        "[[[[]]]]",
        "[" * 3000,
        "{a: " * 3000,
        "&a [*a]",
        "*a",
        "&a x",
    ),
    *("!!python/object:os.system x", "!!binary aGk=", "!!set {a}", "!!float x", "!!int ''", "!x y"),
    *("2024-01-01", "2024-13-99", "? a", ": ", "- a", "a: b: c", "'", '"', '"\\ud800"', "\ud800"),
    *(
        "\0",
        "\x07",
        '"\\0"',
        "é",
        "日本",
        "‮",
        "😀",
        "x" * 5000,
        "a\nb",
        "a\tb",
        "#",
        "x #y",
        "%",
        "@",
    ),
    *("os:getcwd", "os:nothing", "nothing:x", "a:b:c", ":", "..", "/", "/dev/null", "/dev/zero"),
    *(
        "gmmd",
        "reverse_kl",
        "cpu",
        "cuda",
        "cuda:99",
        "meta",
        "none",
        "all-linear",
        "embedded:game",
    ),
    *("0.1*forward_kl+0.5*reverse_kl", "alpha:nan", "alpha:1e9", "alpha:", "0*js", "js+", "-1*js"),
    *(
        "[js]",
        "['os:getcwd']",
        "{<<: 1}",
        "{<<: [*a]}",
        "{1: 2}",
        "{null: 1}",
        "{[1]: 2}",
        "{a: .nan}",
    ),
)
YAMLS = (
    *(
        "",
        "x",
        "[]",
        "- a",
        "---\n---\n",
        "a: b\n---\nc: d",
        "\t",
        "a:\n\t- b",
        "&a [*a]",
        "&a {b: *a}",
    ),
    *(
        "seed: 1\nseed: 2",
        "train: {epochs: 1, epochs: 2}",
        "%YAML 3.0\n---\na: 1",
        "!!python/name:os",
    ),
    *("extends: embedded-game\n<<: {seed: 1}", "extends: [a]", "extends: x.yaml", "extends: ../x"),
    *("recipe: 3", "recipe: dpo", "extends: embedded-game\nrecipe: nothing", "\ufeffseed: 1", "\0"),
    *("{" * 5000, "[" * 5000, "a: " * 500, "- " * 3000, "seed: " + "9" * 5000, "? {a: 1}\n: 2"),
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e]",
)


def plan(*words: str) -> tuple[Ended, dict[str, Any] | None]:
    """What `--dry-run` says; it leaves nothing but the plan that is asked for."""
    before = sorted(Path().rglob("*"))
    done = ended(train, "--dry-run", "--json", "plan.json", *words)
    made = {*Path().rglob("*")} - {*before}
    assert made == ({Path("plan.json")} if done.code == 0 else set())
    return done, strict(Path("plan.json").read_text()) if done.code == 0 else None


@st.composite
def usual_values(draw, name: str) -> str:
    """A value that the field takes by itself."""
    limits, kind = FIELDS[name]
    words = type_name(kind)
    if limits["choices"]:
        return draw(st.sampled_from(list_names(limits["choices"])))
    if "bool" in words:
        return draw(st.sampled_from(["true", "false"]))
    if "int" in words:
        low = limits["at_least"] or 0
        high = min(limits["at_most"] or math.inf, low + 1000)
        return str(draw(st.integers(low, int(high))))
    if "float" in words:
        return draw(st.sampled_from(["0.5", "0.1", "1", "2.0", "1e-3", "0"]))
    return draw(st.sampled_from(["prompt", "x", "1.10", "out", "all-linear", "{}"]))


@st.composite
def overrides(draw) -> tuple[str, str]:
    """(name, text) of one `key=value`."""
    name = draw(st.sampled_from(sorted(FIELDS)))
    kind = draw(st.integers(0, 9))
    if kind < 6:
        return name, draw(usual_values(name))
    if kind < 8:
        return name, draw(st.sampled_from(ODD_VALUES))
    if kind == 8:
        return name, draw(st.text(max_size=8))
    odd = [
        "",
        "x",
        "train",
        "train.",
        ".seed",
        "seed.x",
        "train.arguments.bf16",
        "rule_options.alpha",
    ]
    odd += [
        "rule_options.memory",
        "fit_options.signal",
        "data.path.x",
        "sed",
        "train.arguments.",
        "é",
    ]
    return draw(st.sampled_from(odd) | st.text(max_size=5)), draw(st.sampled_from(ODD_VALUES))


def is_asked(shown: Any, text: str, name: str) -> bool:
    """Whether a value of the plan is the one that was written, or its name for the whole of it."""
    try:
        value = yaml.safe_load(text)
    except ValueError:  # a date that does not exist
        return False
    if isinstance(shown, str) and name in FIELDS and "str" in type_name(FIELDS[name][1]):
        return shown == (value if isinstance(value, str) else text.strip())
    if isinstance(shown, int | float) and not isinstance(shown, bool | str):
        return type(value) is not bool and float(value) == shown
    return shown == value


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of a plan's configuration."""
    found = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= {name: value} if name in FIELDS else flat(value, f"{name}.")
    return found


@functools.cache
def shipped(config: str) -> dict[str, Any]:
    with scratch():
        _, made = plan("--config", config)
    assert made is not None
    return flat(made["config"])


def check_configuration(made: dict[str, Any], config: str, asked: dict[str, str]) -> None:
    """The plan has what was asked for, and otherwise what the shipped configuration has."""
    shown = flat(made["config"])
    for name, was in shipped(config).items():
        inside = [word for word in asked if word.startswith(f"{name}.")]
        if name in asked:
            assert is_asked(shown[name], asked[name], name), (name, asked[name], shown[name])
        elif not inside:
            assert shown[name] == was, name
        for word in inside:
            assert is_asked(shown[name][word.removeprefix(f"{name}.")], asked[word], word)


@campaign(200)
@given(st.sampled_from(SHIPPED), st.lists(overrides(), min_size=1, max_size=3))
def test_words_of_the_command_line_are_the_configuration(config, given) -> None:
    asked = dict(given)
    words = [f"{name}={text}" for name, text in asked.items()]
    with scratch():
        done, made = plan("--config", config, "output_dir=run", *words)
        if done.code == 0:
            assert made is not None
            check_configuration(made, config, {"output_dir": "run", **asked})


values = st.one_of(
    st.sampled_from([v for v in ODD_VALUES if len(v) < 100]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*FIELDS, "a"]) | st.text(max_size=3), inner, max_size=3
            )
        ),
        max_leaves=8,
    ),
)


@campaign(150)
@given(st.data())
def test_a_yaml_file_is_the_configuration(data) -> None:
    """Fields on top of a shipped configuration, or any text."""
    config = data.draw(st.sampled_from(SHIPPED))
    with scratch() as here:
        path = here / "mine.yaml"
        if data.draw(st.integers(0, 3)) == 0:
            text = data.draw(
                st.sampled_from(YAMLS) | st.text("ab:-[]{}&*!|>'\"#%@ \n?,1.", max_size=30)
            )
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            plan("--config", str(path))
            return
        fields: dict[str, Any] = {"extends": config, "output_dir": "run"}
        asked = {}
        for name in data.draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=3, unique=True)):
            value = data.draw(values)
            if data.draw(st.integers(0, 2)):
                value = yaml.safe_load(data.draw(usual_values(name)))
            *sections, last = name.split(".")
            section = fields
            for part in sections:
                section = section.setdefault(part, {})
            section[last] = value
            asked[name] = value
        path.write_text(yaml.safe_dump(fields, allow_unicode=data.draw(st.booleans())), "utf-8")
        done, made = plan("--config", str(path))
        if done.code == 0:
            assert made is not None
            shown = flat(made["config"])
            expected = shipped(config) | {"output_dir": "run"} | asked
            for name, value in shown.items():
                wanted = expected[name]
                same = wanted == value or str(wanted) == value
                if not same and not isinstance(wanted, bool):
                    same = float(wanted) == value
                assert same, (name, wanted, value)


# --- prompts and pairs ----------------------------------------------------------------------------

PIECES = (
    "Hi",
    "Name a river.",
    "é",
    "日本",
    "😀",
    "\n",
    "  ",
    "\t",
    "\u2028",
    "\x00",
    "\x1b[2J",
    '"',
    ",",
)
PIECES += (
    "</s>",
    "<s>",
    "<|user|>",
    "<think>",
    "<|assistant|>",
    "{{ x }}",
    "{%",
    "\\",
    "'",
    "\r\n",
    ";",
)
PIECES += (
    "[1]",
    '{"role"',
    "[{'role': 'user'",
    "nan",
    "null",
    "=1+1",
    "‮",
    "\u0301",
    "\ufeff",
    "\x85",
)
texts = st.lists(st.sampled_from(PIECES) | st.text(characters, max_size=4), max_size=3).map("".join)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "user", "assistant", "system"]), "content": texts}
)
wrong = (
    st.sampled_from(
        [
            None,
            3,
            1.5,
            True,
            {},
            {"role": "user"},
            [],
            [3],
            ["Hi"],
            [None],
            [[]],
            "",
            " \n",
            "\ud800",
            "a\udc00",
        ]
    )
    | st.just([{"role": "user", "content": "\ud8ff"}])
    | st.sampled_from(
        [
            [{"role": "user"}],
            [{"content": "x"}],
            [{"role": 1, "content": "x"}],
            [{"from": "human", "value": "x"}],
        ]
    )
)


@st.composite
def prompts(draw, spoiled: bool) -> Any:
    """Text, messages, messages stored as text, or none of these."""
    if spoiled and draw(st.integers(0, 3)) == 0:
        return draw(wrong)
    if draw(st.integers(0, 2)):
        return draw(texts.filter(str.strip))
    said = draw(st.lists(turns, min_size=1, max_size=3))
    if not spoiled and not _asked(said):
        said = [{"role": "user", "content": "Hi"}]
    return draw(st.sampled_from([said, said, json.dumps(said), repr(said)]))


def _asked(said: list[dict[str, str]]) -> list[dict[str, str]]:
    """The messages up to the last of the user; none if that is blank."""
    last = max((i for i, turn in enumerate(said) if turn["role"] == "user"), default=-1)
    return said[: last + 1] if last >= 0 and said[last]["content"].strip() else []


def rendered(value: Any) -> str | None:
    """A prompt as the model has to see it; None for one that has to be refused."""
    if isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
        value = [{"role": "user", "content": value[0]}]  # the first of several turns
    if isinstance(value, str):
        stored = _stored(value)
        value = [{"role": "user", "content": value}] if stored is None else stored
    if not isinstance(value, list) or not all(
        isinstance(turn, dict)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
        for turn in value
    ):
        return None
    asked = _asked(value)
    text = "<s>" + "".join(
        f"<|{t['role']}|>{t['content']}" + "</s>" * (t["role"] == "assistant") for t in asked
    )
    if not asked or any("\ud800" <= mark <= "\udfff" for mark in text):
        return None
    return f"{text}<|assistant|>"


def _stored(text: str) -> list[Any] | None:
    """The list that the strategy has stored as this text."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError):
            value = read(text)
            if (
                isinstance(value, list)
                and value
                and isinstance(value[0], dict)
                and "role" in value[0]
            ):
                return value
    return None


def write_rows(draw, path: Path, rows: list[dict[str, Any]]) -> bool:
    """Writes rows as one of many programs does; whether the file can hold them."""
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(
            text,
            list(rows[0]),
            quoting=draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])),
            lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
        )
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue()
    else:
        ascii_only = draw(st.booleans())
        lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
        if path.suffix == ".json":
            content = f"[{', '.join(lines)}]"
        else:
            end = draw(st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]))
            content = end.join(lines) + draw(st.sampled_from(["", "\n", "\n\n"]))
    mark = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"]))
    path.write_bytes(mark + content.encode("utf-8", "surrogatepass"))
    return True


SMALL_TEXT = (
    *("--config", "embedded-text", "data.shuffle=false", "data.prompts_per_iteration=null"),
    *("data.max_prompt_length=200", "train.batch_size=1", "train.micro_batch_size=1"),
    *("output_dir=run",),
)
data_files = st.sampled_from(["rows.jsonl", "rows.jsonl", "rows.json", "rows.csv"])


@campaign(120)
@given(st.data())
def test_prompts_are_those_of_the_file(data) -> None:
    """All of them, once, in their order, to the character; what is held out is not trained on."""
    spoiled = data.draw(st.booleans())
    values = data.draw(st.lists(prompts(spoiled), min_size=1, max_size=6))
    values += data.draw(st.lists(st.sampled_from(values), max_size=2))
    held_out = data.draw(st.sampled_from([0, 0, 1, 3]))
    name = data.draw(data_files)
    if name.endswith(".csv"):
        values = ["" if v is None else v if isinstance(v, str) else str(v) for v in values]
    extra = data.draw(st.sampled_from([{}, {"id": 1}, {"n,o": "x"}]))
    with scratch() as here:
        write_rows(data.draw, here / name, [{"prompt": value, **extra} for value in values])
        words = [*SMALL_TEXT, f"evaluation.prompts={held_out}", "sample.max_new_tokens=8"]
        done, made = plan(*words, f"data.path={name}")
        asked = [rendered(value) for value in values]
        if None in asked:
            assert done.code == 2, (values, done)
            return
        held = set(list(dict.fromkeys(reversed(asked)))[:held_out])
        trained = [text for text in asked if text not in held]
        if not trained:
            assert "too few" in done.reason
            return
        if made is None:
            assert allowed(done.reason, values), (values, done)
            return
        assert made["prompts"] == made["prompts"] | {
            "folds": [len(trained)],
            "held_out": len(held),
            "dropped": 0,
        }
        assert [example["prompt"] for example in made["examples"]] == trained


def allowed(reason: str, values: Any) -> bool:
    """Whether text that begins like stored messages is refused for that."""
    odd = any("role'" in str(value) or 'role"' in str(value) for value in values)
    return "stored as text" in reason and odd


@campaign(100)
@given(st.data())
def test_pairs_are_those_of_the_file(data) -> None:
    """Chosen and rejected answers end with one end token, and are otherwise what was written."""
    n = data.draw(st.integers(1, 4))
    spoiled = data.draw(st.booleans())
    rows = []
    for _ in range(n):
        row = {
            "prompt": data.draw(texts.filter(str.strip)),
            "good": data.draw(texts),
            "bad": data.draw(texts),
        }
        if spoiled and data.draw(st.booleans()):
            row[data.draw(st.sampled_from(["good", "bad"]))] = data.draw(wrong)
        if data.draw(st.integers(0, 3)) == 0:
            said = [{"role": "user", "content": row["prompt"]}]
            for key in ("good", "bad"):
                if isinstance(row[key], str):
                    row[key] = [*said, {"role": "assistant", "content": row[key]}]
        rows.append(row)
    name = data.draw(data_files)
    if name.endswith(".csv"):
        rows = [{k: v if isinstance(v, str) else str(v) for k, v in row.items()} for row in rows]
    with scratch() as here:
        write_rows(data.draw, here / name, rows)
        words = [*SMALL_TEXT, "recipe=dpo", "judge.kind=none", "judge.path=null"]
        words += ["data.answer=good", "data.rejected=bad", "sample.max_new_tokens=40"]
        done, made = plan(*words, "evaluation.prompts=0", f"data.path={name}")
        meant = [(rendered(row["prompt"]), answer(row["good"]), answer(row["bad"])) for row in rows]
        blank = any(not (good or "").strip() for _, good, _ in meant)
        if blank or any(None in triple for triple in meant):
            assert done.code == 2, (rows, done)
        elif made is None:
            stops = any("</s>" in good + bad for _, good, bad in meant)  # pyright: ignore
            same = all(good == bad for _, good, bad in meant)
            assert stops or same or allowed(done.reason, [[*row.values()] for row in rows]), (
                rows,
                done,
            )
        else:
            for example, (asked, good, bad) in zip(made["examples"], meant, strict=True):
                assert example["prompt"] == asked
                assert example["answer"] == ended_text(good)
                assert example["rejected"] == ended_text(bad)


def answer(value: Any) -> str | None:
    stored = _stored(value) if isinstance(value, str) else value
    if isinstance(stored, list):
        last = stored[-1] if stored else None
        value = (
            last.get("content")
            if isinstance(last, dict) and last.get("role") == "assistant"
            else None
        )
    valid = isinstance(value, str) and not any("\ud800" <= mark <= "\udfff" for mark in value)
    return value if valid else None


def ended_text(text: str | None) -> str:
    assert text is not None
    return text.split("</s>")[0] + "</s>"


@campaign(80)
@given(st.data())
def test_any_bytes_are_prompts_or_are_refused(data) -> None:
    """A file that is read has a prompt for each of its rows."""
    name = data.draw(data_files)
    with scratch() as here:
        path = here / name
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(files))
        else:
            rows = [{"prompt": text} for text in data.draw(st.lists(texts, min_size=1, max_size=4))]
            write_rows(data.draw, path, rows)
            damaged = bytearray(path.read_bytes())
            place = data.draw(st.integers(0, len(damaged) - 1))
            damaged[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
            path.write_bytes(damaged)
        done, made = plan(*SMALL_TEXT, "evaluation.prompts=0", f"data.path={name}")
        if made is not None and name == "rows.jsonl":
            lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
            assert made["prompts"]["folds"] == [len(lines)]
        if done.code:
            assert name in done.reason or "data." in done.reason or "sample." in done.reason


# --- run directories ------------------------------------------------------------------------------

RUN = (
    *("iterations=2", "chunk_size=4", "train.epochs=1", "train.save_steps=1", "output_dir=run"),
    *("samples_per_prompt=2", "train.batch_size=4", "train.micro_batch_size=4"),
    *("data.prompts_per_iteration=8",),
)
RUNS = {
    "game": ("--config", "embedded-game", *RUN),
    "text": (
        *("--config", "embedded-text", *RUN, "sample.max_new_tokens=4"),
        *("evaluation.prompts=4", "evaluation.samples=2"),
    ),
}
# Where a run of two iterations is interrupted: nowhere, in a fit, between two chunks.
STOPS = ("finished", "fit", "chunk")
UNTIMED = ("seconds", "per_second", "peak_memory_gib")


@pytest.fixture(scope="module")
def stored_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """{(model, where it stopped): a directory that holds it as `run`}."""
    found = {}
    for name, words in RUNS.items():
        for stop in STOPS:
            home = tmp_path_factory.mktemp("fuzz") / f"{name}-{stop}"
            home.mkdir()
            with chdir(home), pytest.MonkeyPatch.context() as patched:
                patched.setattr("llm.run.session.draw_curves", lambda *given: False)
                if stop == "fit":
                    interrupt(patched, fitting._Checkpoints, "on_step_end", 7)
                elif stop == "chunk":
                    interrupt(patched, chunks, "write_rows", 8)
                done = ended(train, *words)
                assert done.code == (0 if stop == "finished" else 1), done
            found[name, stop] = home
    return found


def interrupt(patched: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Raises KeyboardInterrupt instead of the given call."""
    genuine, calls = getattr(owner, name), itertools.count(1)

    def stopping(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return genuine(*args, **options)

    patched.setattr(owner, name, stopping)


def damage(draw, piece: Path, outside: Path) -> str:
    """Damages a file or directory of a run, in one of many ways; which."""
    if piece.is_dir():
        how = draw(st.sampled_from(["deleted", "emptied", "a file", "a link", "a loop", "a FIFO"]))
        shutil.rmtree(piece)
        content = b""
    else:
        ways = ["cut", "flipped", "digit", "emptied", "deleted", "a directory", "a link", "a loop"]
        how = draw(st.sampled_from([*ways, "a FIFO", "garbage", "doubled"]))
        content = piece.read_bytes()
        piece.unlink()
        if not content and how in ("cut", "flipped", "digit"):
            how = "deleted"
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        if how == "cut":
            piece.write_bytes(content[:place])
        elif how == "flipped":
            piece.write_bytes(
                _changed(content, place, content[place] ^ (1 << draw(st.integers(0, 7))))
            )
        elif how == "digit":
            digits = [i for i, byte in enumerate(content[:5000]) if 48 <= byte <= 57] or [place]
            place = digits[place % len(digits)]
            piece.write_bytes(_changed(content, place, 48 + (content[place] + 1) % 10))
        elif how == "emptied":
            piece.write_bytes(b"")
        elif how == "garbage":
            piece.write_bytes(
                draw(st.sampled_from([b"\xff\xfe", b"[]", b"{}", b"3\n", b"null", b"{" * 9000]))
            )
        elif how == "doubled":
            piece.write_bytes(content + content)
    if how == "a file":
        piece.write_bytes(b"")
    elif how == "a directory" or (how == "emptied" and not piece.exists()):
        piece.mkdir()
    elif how == "a link":
        piece.symlink_to(outside)
    elif how == "a loop":
        piece.symlink_to(piece.name)
    elif how == "a FIFO":
        os.mkfifo(piece)
    return how


def _changed(content: bytes, place: int, byte: int) -> bytes:
    return content[:place] + bytes([byte]) + content[place + 1 :]


def result(run: Path) -> tuple[str, list[dict[str, Any]]]:
    """The hash of the final adapter, and the metrics without times."""
    weights = (run / "final" / "adapter_model.safetensors").read_bytes()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: row[key] for key in row if key not in UNTIMED} for row in rows]
    return hashlib.sha256(weights).hexdigest(), kept


@campaign(40)
@given(data=st.data())
def test_a_damaged_run_ends_as_the_undamaged_or_names_the_damage(data, stored_runs) -> None:
    """The same command gives the same adapter and metrics, or a line that names what is damaged.

    Where it says what to delete, the run ends as the undamaged one once that is deleted. Nothing
    outside the directory is touched.
    """
    model, stop = data.draw(st.sampled_from(sorted(RUNS))), data.draw(st.sampled_from(STOPS))
    with scratch() as here, pytest.MonkeyPatch.context() as patched:
        patched.setattr("llm.run.session.draw_curves", lambda *given: False)
        shutil.copytree(stored_runs[model, stop] / "run", "run")
        (here / "outside").mkdir()
        (here / "outside" / "keep").write_text("years of work")
        pieces = sorted(Path("run").rglob("*"))
        piece = data.draw(st.sampled_from(pieces))
        how = damage(data.draw, piece, here / "outside")
        for _ in range(4):
            done = ended(train, *RUNS[model])
            deleted = re.search(r"delete (run/[^\s,;]+)", done.reason) if done.code else None
            if deleted is None:
                break
            remove(Path(deleted[1]))
        assert (here / "outside" / "keep").read_text() == "years of work"
        if done.code == 0:
            assert result(Path("run")) == result(stored_runs[model, "finished"] / "run"), (
                piece,
                how,
            )
        else:
            named = [piece.with_suffix(""), *piece.parents][: len(piece.parts)]
            assert any(str(path) in done.reason for path in named), (piece, how, done)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
