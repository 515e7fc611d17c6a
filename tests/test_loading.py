from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from games import InputError, MatrixGame, SkewGame, from_wins, load, load_reference, zoo

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

TEXTS = {
    ".csv": lambda rows: "\n".join(",".join(map(repr, row)) for row in rows),
    ".txt": lambda rows: "# a comment\n" + "\n".join("  ".join(map(repr, row)) for row in rows),
    ".json": json.dumps,
}
FAIR = "0.5,0.2,0.6\n0.8,0.5,0.1\n0.4,0.9,0.5\n"
FAIR_PAYOFF = [[0.5, 0.2, 0.6], [0.8, 0.5, 0.1], [0.4, 0.9, 0.5]]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- what is written is what is read


@in_one_folder
@given(st.integers(0, 99), st.integers(1, 6), st.sampled_from(["random", "skew", "zero_sum"]))
def test_files_give_back_every_bit(tmp_path: Path, seed: int, n: int, what: str) -> None:
    table = zoo.random(n, np.random.default_rng(seed)).payoff
    kind = "preference" if what == "random" else what
    if kind == "skew":
        table = table - table.T
    if kind == "zero_sum":
        table = np.exp(3 * table[:, : n // 2 + 1])
    for ending, text in TEXTS.items():
        path = write(tmp_path, f"game{ending}", text(table.tolist()))
        np.testing.assert_array_equal(load(path, kind).payoff, table)
    np.save(tmp_path / "game.npy", table)
    np.savez(tmp_path / "game.npz", anything=table)
    for ending in (".npy", ".npz"):
        game = load(tmp_path / f"game{ending}", kind)
        np.testing.assert_array_equal(game.payoff, table)
        assert game.kind == kind
        assert game.name == f"game{ending}"


@pytest.mark.parametrize("kind", ["preference", "skew", "zero_sum"])
def test_arrays_may_be_batched(tmp_path: Path, kind: str) -> None:
    batch = zoo.random(3, np.random.default_rng(0), batch_shape=(2, 4)).payoff
    batch = batch - batch.swapaxes(-1, -2) if kind == "skew" else batch
    np.save(tmp_path / "batch.npy", batch)
    np.testing.assert_array_equal(load(str(tmp_path / "batch.npy"), kind).payoff, batch)


@needs_shared
def test_measured_win_rates_load_as_they_are() -> None:
    game = load(SHARED / "soccer.txt")
    np.testing.assert_allclose(game.payoff, np.loadtxt(SHARED / "soccer.txt"), rtol=0, atol=1e-15)
    assert game.n == 10
    for known in json.loads((SHARED / "known_games.json").read_text()):
        assert MatrixGame(known["payoff"]).payoff.shape == np.shape(known["payoff"])


# --- labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (FAIR, None),
        ("a,b,c\n" + FAIR, ("a", "b", "c")),
        (",a,b,c\na,0.5,0.2,0.6\nb,0.8,0.5,0.1\nc,0.4,0.9,0.5", ("a", "b", "c")),
        ("agent,a,b,c\na,0.5,0.2,0.6\nb,0.8,0.5,0.1\nc,0.4,0.9,0.5", ("a", "b", "c")),
        ("a,b,c\na,0.5,0.2,0.6\nb,0.8,0.5,0.1\nc,0.4,0.9,0.5", ("a", "b", "c")),
        ("a,0.5,0.2,0.6\nb,0.8,0.5,0.1\nc,0.4,0.9,0.5", ("a", "b", "c")),
        (",0,1,2\n0,0.5,0.2,0.6\n1,0.8,0.5,0.1\n2,0.4,0.9,0.5", ("0", "1", "2")),
        ('"a, b";x;"c"\n0.5;0.2;0.6\n\n 0.8 ;0.5;0.1\n0.4;0.9;0.5\n;;\n', ("a, b", "x", "c")),
        ("\ufeffa\tb\tc\r\n0.5\t0.2\t0.6\r\n0.8\t0.5\t0.1\r\n0.4\t0.9\t0.5\r\n", ("a", "b", "c")),
    ],
)
def test_csv_layouts(tmp_path: Path, text: str, labels: tuple[str, ...] | None) -> None:
    game = load(write(tmp_path, "game.csv", text))
    np.testing.assert_array_equal(game.payoff, FAIR_PAYOFF)
    assert game.labels == labels


def test_labels_of_other_formats(tmp_path: Path) -> None:
    text = "  a b c # names\n0.5 0.2 0.6\n\n0.8 .5 1e-1 # row b\n0.4\t0.9 0.5"
    assert load(write(tmp_path, "game.txt", text)).labels == ("a", "b", "c")
    content = {"payoff": FAIR_PAYOFF, "labels": ["a", "b", 3], "source": "measured"}
    assert load(write(tmp_path, "game.json", json.dumps(content))).labels == ("a", "b", "3")
    np.savez(tmp_path / "game.npz", payoff=FAIR_PAYOFF, labels=["a", "b", "c"], other=np.ones(2))
    assert load(tmp_path / "game.npz").labels == ("a", "b", "c")


def test_the_two_sides_of_a_zero_sum_game(tmp_path: Path) -> None:
    text = ",left,right\nup,1,2\nmiddle,3,4\ndown,5,6"
    content = {"payoff": [[1, 2]], "row_labels": ["up"], "column_labels": ["left", "right"]}
    game = load(write(tmp_path, "game.csv", text), kind="zero_sum")
    assert (game.row_labels, game.column_labels) == (("up", "middle", "down"), ("left", "right"))
    game = load(write(tmp_path, "game.json", json.dumps(content)), kind="zero_sum")
    assert (game.row_labels, game.column_labels) == (("up",), ("left", "right"))


# --- win counts


def test_wins_and_ties(tmp_path: Path) -> None:
    wins, ties = [[0, 3, 0], [1, 0, 2], [0, 2, 0]], [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    expected = from_wins(wins, ties, prior=0.5).payoff
    content = json.dumps({"wins": wins, "ties": ties, "labels": ["a", "b", "c"]})
    game = load(write(tmp_path, "game.json", content), kind="wins", prior=0.5)
    np.testing.assert_array_equal(game.payoff, expected)
    assert game.labels == ("a", "b", "c")
    np.savez(tmp_path / "game.npz", wins=wins, ties=ties)
    game = load(tmp_path / "game.npz", kind="wins", prior=0.5)
    np.testing.assert_array_equal(game.payoff, expected)
    game = load(write(tmp_path, "game.csv", "0,3\n1,0\n"), kind="wins")
    np.testing.assert_array_equal(game.payoff, [[0.5, 0.75], [0.25, 0.5]])


@pytest.mark.parametrize(
    "keys",
    [("wins", "ties"), ("Wins", "DRAWS"), ("won", "drawn"), ("win_counts", "num_draws"),
     ("payoff", "tie"), ("victories", "nDraws"), (" wins", "Tie Counts"), ("counts", "stalemates")],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_ties_are_used_under_any_usual_key(tmp_path: Path, keys: tuple[str, str], ending) -> None:
    wins, ties = [[0, 6, 1], [2, 0, 5], [4, 3, 0]], [[0, 2, 0], [2, 0, 2], [0, 2, 0]]
    content = {keys[0]: wins, keys[1]: ties, "losses": np.transpose(wins).tolist(), "year": 2024}
    path = tmp_path / f"game{ending}"
    if ending == ".json":
        write(tmp_path, path.name, json.dumps(content))
    else:
        np.savez(path, **content)
    payoff = load(path, kind="wins").payoff
    # (w + t/2)/games: 7/10, 1/5, 6/10
    np.testing.assert_allclose(payoff, [[0.5, 0.7, 0.2], [0.3, 0.5, 0.6], [0.8, 0.4, 0.5]])


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ({"wins": [[0, 3], [1, 0]], "losses": [[0, 3], [1, 0]]}, "wins", "transpose of wins"),
        ({"wins": [[0, 3], [1, 0]], "losses": [[0, 3]]}, "wins", "wins have shape .* but losses"),
        ({"wins": [[0, 3], [1, 0]], "byes": [[0, 1], [1, 0]]}, "wins", "table 'byes' is not known"),
        ({"wins": [[0, 3], [1, 0]], "tie": [[0]], "draw": [[0]]}, "wins", "both 'tie' and 'draw'"),
        ({"Losses": [[0, 3], [1, 0]]}, "wins", "contains 'Losses'; the table must be under"),
        ({"wins": [[0, 3], [1, 0]], "tie_rate": [[0, 1], [1, 0]]}, "wins", "both be counts"),
        ({"payoff": [[0.5]], "Draws": [[0]]}, "preference", "table of ties; .*--as wins"),
        ({"payoff": [[0]], "lost": [[0]]}, "zero_sum", "table of losses; .*--as wins"),
    ],
)
def test_further_counts_are_never_dropped(tmp_path: Path, content, kind, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(write(tmp_path, "game.json", json.dumps(content)), kind)


# --- files of spreadsheets and data frames

ZERO_SUM = [[3.0, -1.0, 2.0], [-2.0, 4.0, 1.0]]


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        (",left,mid,right\n0,3.0,-1.0,2.0\n1,-2.0,4.0,1.0\n", ("left", "mid", "right"), None),
        (",l,m,r\n1,3,-1,2\n2,-2,4,1\n", ("l", "m", "r"), None),
        ("id,l,m,r\n7,3.0,-1.0,2.0\n8,-2.0,4.0,1.0\n", ("l", "m", "r"), ("7", "8")),
        ("Unnamed: 0,l,m,r\n0,3,-1,2\n1,-2,4,1\n", ("l", "m", "r"), None),
        (",Unnamed: 0,l,m,r\n0,0,3,-1,2\n1,1,-2,4,1\n", ("l", "m", "r"), None),
        (",0,1,2\n0,3.0,-1.0,2.0\n1,-2.0,4.0,1.0\n", ("0", "1", "2"), ("0", "1")),
        ("0,1,2\n0,3.0,-1.0,2.0\n1,-2.0,4.0,1.0\n", ("0", "1", "2"), ("0", "1")),
        ("l,m,r\r3,-1,2\r-2,4,1\r", ("l", "m", "r"), None),
        ('"l;x","m;y",r\n3,-1,2\n-2,4,1\n', ("l;x", "m;y", "r"), None),
        ("l;m;r\n3;-1;2\n-2;4;1\n", ("l", "m", "r"), None),
        ("l,m,r\n300%,-100%,200%\n-200%,400%,100%\n", ("l", "m", "r"), None),
    ],
)
def test_rectangular_tables_with_an_index(tmp_path: Path, text: str, columns, rows) -> None:
    game = load(write(tmp_path, "game.csv", text), "zero_sum")
    np.testing.assert_array_equal(game.payoff, ZERO_SUM)
    assert (game.column_labels, game.row_labels) == (columns, rows)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (",a,b,c\n0,0.5,0.2,0.6\n1,0.8,0.5,0.1\n2,0.4,0.9,0.5", ("a", "b", "c")),
        ("x,a,b,c\n7,0.5,0.2,0.6\n8,0.8,0.5,0.1\n9,0.4,0.9,0.5", None),
        ("0,1,2\n0.5,0.2,0.6\n0.8,0.5,0.1\n0.4,0.9,0.5", ("0", "1", "2")),
        ("0,0.5,0.2,0.6\n1,0.8,0.5,0.1\n2,0.4,0.9,0.5", None),
        ("step,100,200,300\n100,0.5,0.2,0.6\n200,0.8,0.5,0.1\n300,0.4,0.9,0.5", None),
        ("50%,20%,60%\n80%,50%,10%\n40%,90%,50%", None),
        (",a,b,c\na,nan,0.2,0.6\nb,0.8,,0.1\nc,0.4,0.9,-", ("a", "b", "c")),
    ],
)
def test_square_tables_with_an_index(tmp_path: Path, text: str, labels) -> None:
    path = write(tmp_path, "game.csv", text)
    if text.startswith("x,"):
        with pytest.raises(InputError, match="different labels"):
            load(path)
        return
    game = load(path)
    np.testing.assert_array_equal(game.payoff, FAIR_PAYOFF)
    assert game.labels == (("100", "200", "300") if text.startswith("step") else labels)


def test_old_line_ends_of_text_files(tmp_path: Path) -> None:
    for end in ("\r", "\r\n", "\n"):
        text = end.join(["# a comment", "0.5 0.2 0.6", "0.8 0.5 0.1", "0.4 0.9 0.5", ""])
        np.testing.assert_array_equal(load(write(tmp_path, "g.txt", text)).payoff, FAIR_PAYOFF)


def test_a_data_frame_printed_as_text(tmp_path: Path) -> None:
    text = "     0    1    2\n0  0.5  0.2  0.6\n1  0.8  0.5  0.1\n2  0.4  0.9  0.5\n"
    game = load(write(tmp_path, "game.txt", text))
    np.testing.assert_array_equal(game.payoff, FAIR_PAYOFF)
    assert game.labels == ("0", "1", "2")


@pytest.mark.parametrize("missing", ["nan", "NaN", "null", "None"])
def test_a_missing_diagonal_is_filled_in(tmp_path: Path, missing: str) -> None:
    json_null = "null" if missing in ("null", "None") else "NaN"
    table = [[json_null, "0.25"], ["0.75", json_null]]
    rows = ", ".join(f"[{', '.join(row)}]" for row in table)
    np.testing.assert_array_equal(
        load(write(tmp_path, "game.json", f"[{rows}]")).payoff, [[0.5, 0.25], [0.75, 0.5]]
    )
    text = f"{missing} 3\n-3 {missing}\n"
    payoff = load(write(tmp_path, "game.txt", text), "skew").payoff
    np.testing.assert_array_equal(payoff, [[0, 3], [-3, 0]])
    text = f"{missing} 3\n1 {missing}\n"
    payoff = load(write(tmp_path, "game.txt", text), "wins").payoff
    np.testing.assert_array_equal(payoff, [[0.5, 0.75], [0.25, 0.5]])
    with pytest.raises(InputError, match="row 1, column 1 is nan"):
        load(tmp_path / "game.txt", "zero_sum")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1,2\n3.0,-1.0,2.0\n-2.0,4.0,1.0\n", "first row .0, 1, 2. could be a header"),
        ("1,2,3\n3.0,-1.0,2.0\n-2.0,4.0,1.0\n", "first row .1, 2, 3. could be a header"),
        ("0,1,2\n3,-1,2\n-2,4,1\n", "delete it if it is a header, or write .* decimal point"),
        ("0,3.0,-1.0\n1,-2.0,4.0\n", "the first column .0, 1. could be an index"),
        ("x,l,r\n0,3.0,-1.0\n1,-2.0,4.0\n", "column 'x' .0, 1. could be an index"),
    ],
)
def test_what_could_be_labels_or_payoffs_is_refused(tmp_path: Path, text: str, message) -> None:
    with pytest.raises(InputError, match=message):
        load(write(tmp_path, "game.csv", text), "zero_sum")


def test_small_whole_numbers_are_payoffs(tmp_path: Path) -> None:
    for table in ([[0, 1], [1, -1000]], [[1, 2, 3], [4, 5, 6]], [[0, 1], [2, 0], [1, 2]]):
        text = "\n".join(",".join(map(str, row)) for row in table)
        payoff = load(write(tmp_path, "game.csv", text), "zero_sum").payoff
        np.testing.assert_array_equal(payoff, table)
    wins = load(write(tmp_path, "game.csv", "0,1,2\n2,0,1\n1,2,0"), "wins").payoff
    assert wins[0, 1] == pytest.approx(1 / 3)


ADVICE = [
    ([[0, 0.2, 0.6], [0.8, 0, 0.1], [0.4, 0.9, 0]], "preference", "set the diagonal to 0.5"),
    ([[1, 0.2, 0.6], [0.8, 1, 0.1], [0.4, 0.9, 1]], "preference", "set the diagonal to 0.5"),
    ([[0, 1, 1], [0, 0, 1], [0, 0, 0]], "preference", "set the diagonal to 0.5"),
    ([[0, 0.2, 0.6], [0, 0, 0.1], [0, 0, 0]], "preference", "only one triangle .* lower one"),
    ([[0.5, 0, 0], [0.8, 0.5, 0], [0.4, 0.9, 0.5]], "preference", "only one triangle .* upper"),
    ([[0, 2, 3], [0, 0, 4], [0, 0, 0]], "skew", r"only one triangle .* lower one .-A,"),
    ([[50, 20], [80, 50]], "preference", "percentages: divide by 100"),
    ([[0, 20.4], [79.5, 0]], "preference", "percentages: divide by 100"),
    ([[0.5, 0.333], [0.666, 0.5]], "preference", "rounded: use more digits, or average"),
    ([[0, 1.5], [-1.51, 0]], "skew", "rounded: use more digits, or average"),
    ([[0.1, 2], [-2, 0.1]], "skew", "set the diagonal to 0"),
    ([[3, -1], [-2, 4]], "preference", "payoffs of a row player are read --as zero_sum"),
    ([[0, 7], [2, 0]], "preference", "the file fits --as wins"),
    ([[7, 0.5, 0.2], [9, 0.8, 0.5]], "preference", "first column looks like an index: delete"),
    ([[5, 8], [0.5, 0.2], [0.8, 0.5]], "preference", "first row looks like a header: delete"),
    ([[1, 2, 0], [1, 3, 1], [2, 3, 1], [3, 1, 0]], "wins", "count a list of matches first"),
]


@pytest.mark.parametrize(("table", "kind", "message"), ADVICE)
def test_advice_fits_the_table(tmp_path: Path, table, kind: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(write(tmp_path, "game.json", json.dumps(table)), kind)
    assert str(caught.value).count("; ") == 2  # what is wrong, the rule, the advice
    if "zero_sum" not in message:
        assert "zero_sum" not in str(caught.value)


def test_advice_for_half_precision(tmp_path: Path) -> None:
    np.save(tmp_path / "game.npy", np.array(FAIR_PAYOFF, dtype=np.float16))
    with pytest.raises(InputError, match="the table seems to be rounded"):
        load(tmp_path / "game.npy")


# --- files that hold no game


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        (
            "a.xlsx",
            "",
            "preference",
            "unknown file extension '.xlsx'; use .csv, .txt, .json, .npy, .npz",
        ),
        ("a.csv", "", "preference", "the file is empty"),
        ("a.txt", "# nothing\n\n", "preference", "the file is empty"),
        ("a.csv", "a,b\n", "preference", "no row of numbers"),
        ("a.csv", b"\x93NUMPY\xff", "preference", "not a text file"),
        ("a.txt", b"0.5 0.5\n0.5 \x00 0.5", "preference", "not a text file"),
        ("a.json", b"\xff\xfe", "preference", "json: not a text file"),
        ("a.csv", "0.5,0.2\n0.8\n", "preference", "line 2 has 1 cells and line 1 has 2"),
        ("a.txt", "#\n0.5 0.2\n\n0.8 0.5 1", "preference", "line 4 has 3 cells and line 2 has 2"),
        ("a.csv", "a,b,c\n0.5,0.2\n0.8,0.5", "preference", "line 1 has 3 names for 2 columns"),
        ("a.csv", "0.5,0.2\n0.8,x\n", "preference", "line 2, column 2: 'x' is not a number"),
        ("a.csv", "0.5,x\n0.8,0.5\n", "preference", "line 1, column 2: 'x' is not a number"),
        ("a.csv", "0.5,0.2\nx,0.5\n", "preference", "line 2, column 1: 'x' is not a number"),
        ("a.csv", "x\ny\n", "preference", "line 2, column 1: 'y' is not a number"),
        ("a.csv", "0.5,\n0.8,0.5\n", "preference", "line 1, column 2: an empty cell"),
        ("a.csv", ",0.5\n0.5,0.5\n", "preference", "line 1, column 1: an empty cell"),
        ("a.csv", "0,5;0,3\n0,7;0,5\n", "preference", "'0,5' .*use decimal points"),
        (
            "a.txt",
            "0.5, 0.3\n0.7, 0.5\n",
            "preference",
            "line 1 has commas; rename the file to .csv",
        ),
        (
            "a.csv",
            "0.5,nan\nnan,0.5\n",
            "preference",
            "row 1, column 2 is nan; .*win counts and a prior",
        ),
        ("a.csv", "b,a\na,0.5,0.2\nb,0.8,0.5\n", "preference", "in the same order"),
        ("a.csv", '"' + 200_000 * "x", "preference", "line 1 could not be parsed"),
        ("a.csv", "1,2,3\n4,5,6\n", "preference", "2 x 3; .*--as zero_sum"),
        ("a.csv", "0,-2\n2,0\n", "preference", "row 1, column 2 is -2; .*--as skew"),
        ("a.csv", "0,3,0\n1,0,0\n0,0,0\n", "preference", "--as wins"),
        ("a.csv", "0.5,0.7\n0.2,0.5\n", "preference", r"add up to 1$"),
        ("a.csv", "0,0.7\n0.2,0\n", "preference", r"must be 0.5$"),  # no counts
        ("a.csv", "0.5,0.7\n0.3,0.5\n", "skew", "diagonal must be 0; .*--as preference"),
        ("a.csv", "0.5,0.7\n0.3,0.5\n", "wins", "must be 0; .*--as preference"),
        ("a.csv", "0,3,0\n1,0,1\n0,2,0\n", "wins", r"column 3: this pair never met; .*Python\)$"),
        (
            "a.csv",
            "a,b,c\nx,y,1\ny,z,0\n",
            "wins",
            r"line 2 looks like a match .x, y, 1.; .*square",
        ),
        ("a.csv", "id,winner\n1,2\n", "wins", "looks like a match"),
        ("a.csv", ",a,b,c\na,0,,\nb,1,0,\nc,1,1,0\n", "wins", "the upper triangle .* is missing"),
        ("a.csv", "9" * 5000 + ",1\n1,2", "zero_sum", "row 1, column 1 is inf"),
        ("a.json", f"[[0.5, 1{5000 * '0'}], [1, 2]]", "preference", "5001 digits is too large"),
        ("a.json", '{"wins": [[0]], "wins": [[1]]}', "wins", "the key 'wins' occurs twice"),
        ("a.json", "[" * 10_000 + "]" * 10_000, "preference", "invalid JSON: nested too deeply"),
        (
            "a.json",
            '{"payoff": [[0.5]], "labels": ["\\ud800"]}',
            "preference",
            "unpaired surrogate",
        ),
        ("a.json", "{", "preference", "invalid JSON: Expecting .* line 1"),
        ("a.json", "[" * 100_000, "preference", "invalid JSON"),
        (
            "a.json",
            '[{"winner": "a", "loser": "b"}]',
            "wins",
            "payoff holds records; a list of match",
        ),
        ("a.json", "3", "preference", "payoff must be a list of rows"),
        ("a.json", "[]", "preference", "payoff must be a list of rows"),
        ("a.json", "[[]]", "preference", "empty"),
        (
            "a.json",
            "{}",
            "preference",
            "contains no table; the table must be under the key payoff or wins",
        ),
        ("a.json", '{"a": [], "b": []}', "preference", "contains 'a', 'b'; the table"),
        (
            "a.json",
            "[[0.5, 0.2], [0.8]]",
            "preference",
            "row 2 of payoff must be a list of the same length",
        ),
        (
            "a.json",
            "[[0.5, 0.2], 0.8]",
            "preference",
            "row 2 of payoff must be a list of the same length",
        ),
        ("a.json", '[[0.5, "x"], [1, 2]]', "preference", "row 1, column 2 of payoff: 'x'"),
        ("a.json", "[[0.5, true], [1, 2]]", "preference", "row 1, column 2 of payoff: 'True'"),
        ("a.json", "[[0.5, null], [1, 2]]", "preference", "row 1, column 2 of payoff: 'None'"),
        ("a.json", f"[[0.5, 1{400 * '0'}], [1, 2]]", "preference", "too large for a float"),
        ("a.json", "[[0.5, NaN], [1, 0.5]]", "preference", "row 1, column 2 is nan"),
        ("a.json", '{"payoff": [[0.5]], "labels": "a"}', "preference", "labels must be a list"),
        ("a.json", '{"payoff": [[0.5]], "labels": ["a", "b"]}', "preference", "2 labels for 1"),
        ("a.json", '{"wins": [[0]], "ties": 3}', "wins", "ties must be a list of rows"),
        ("a.npy", "", "preference", "not a readable NumPy array"),
        ("a.npy", "0.5,0.5", "preference", "not a readable NumPy array"),
        ("a.npy", npy(np.ones((9, 9)))[:-1], "preference", "not a readable NumPy array"),
        ("a.npy", pickle.dumps([[0.5]]), "preference", "pickled objects are not supported"),
        ("a.npy", npy(np.array([[0.5, None]])), "preference", "pickled objects are not supported"),
        ("a.npy", npy(np.array([["a"]])), "preference", "payoff has dtype <U1; it must be numeric"),
        ("a.npy", npy(np.array([[1j]])), "preference", "payoff has dtype complex128"),
        ("a.npy", npy(np.ones(3)), "preference", r"shape \(3,\); at least 2 dimensions are needed"),
        (
            "a.npy",
            npy(np.float64(1)),
            "preference",
            r"shape \(\); at least 2 dimensions are needed",
        ),
        ("a.npy", npy(np.ones((0, 0))), "preference", "empty"),
        ("a.npz", b"PK\x03\x04 and no more", "preference", "not a readable NumPy array"),
    ],
)
def test_bad_files_are_named_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, kind: str, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(InputError, match=message) as caught:
        load(path, kind)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 200


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    for content in (pickle.dumps(Bomb()), npy(np.array([Bomb()]))):
        for ending in (".npy", ".npz"):
            with pytest.raises(InputError, match="pickled objects are not supported"):
                load(write(tmp_path, f"bomb{ending}", content))
    assert not (tmp_path / "exploded").exists()


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.csv: no such file"):
        load(tmp_path / "absent.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"folder.csv: is a directory"):
        load(tmp_path / "folder.csv")
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    with pytest.raises(InputError, match=r"loop.csv: cannot be read: Too many levels"):
        load(tmp_path / "loop.csv")


@pytest.mark.parametrize("ending", [".csv", ".txt", ".json", ".npy", ".npz"])
def test_only_regular_files_are_read(tmp_path: Path, ending: str) -> None:
    os.mkfifo(tmp_path / f"pipe{ending}")
    (tmp_path / f"link{ending}").symlink_to(tmp_path / f"pipe{ending}")
    for name in ("pipe", "link"):
        with pytest.raises(InputError, match=f"{name}{ending}: not a regular file"):
            load(tmp_path / f"{name}{ending}")


@pytest.mark.parametrize("name", [300 * "x", "nul\0", "surrogate\ud800"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"(cannot be read|no such file)"):
        load(tmp_path / f"{name}.csv")
    with pytest.raises(InputError, match=r"(cannot be read|no such file)"):
        load_reference(tmp_path / f"{name}.csv", 2)


def test_kinds_and_priors_that_do_not_exist(tmp_path: Path) -> None:
    path = write(tmp_path, "game.csv", FAIR)
    with pytest.raises(InputError, match="unknown kind of game 'zerosum': did you mean 'zero_sum'"):
        load(path, kind="zerosum")
    with pytest.raises(InputError, match="choose from preference, skew, wins, zero_sum"):
        load(path, kind="?")
    with pytest.raises(InputError, match="prior applies only to win counts"):
        load(path, prior=1.0)


def test_the_kind_that_is_suggested_does_load(tmp_path: Path) -> None:
    path = write(tmp_path, "game.csv", "0,-2\n2,0\n")
    assert isinstance(load(path, kind="skew"), SkewGame)
    assert isinstance(load(path, kind="zero_sum"), MatrixGame)


pieces = st.sampled_from(["0.5", "1", "-", "nan", "a", ",", ";", "\t", " ", "\n", "\r", '"', "#"])
rubbish = st.one_of(st.binary(max_size=60), st.lists(pieces).map(lambda p: "".join(p).encode()))
broken = st.tuples(st.just(npy(np.eye(3))), st.integers(0, 199), st.integers(0, 255)).map(
    lambda cut: cut[0][: cut[1]] + bytes([cut[2]]) + cut[0][cut[1] + 1 :]
)


@in_one_folder
@given(
    st.one_of(rubbish, broken),
    st.sampled_from([".csv", ".txt", ".json", ".npy", ".npz"]),
    st.sampled_from(["preference", "skew", "wins", "zero_sum"]),
)
def test_whatever_the_bytes_a_game_or_one_line(
    tmp_path: Path, content: bytes, ending: str, kind: str
) -> None:
    path, line = write(tmp_path, f"game{ending}", content), ""
    try:
        game = load(path, kind)
    except InputError as error:
        line = str(error)
    else:
        assert np.isfinite(game.payoff).all()
    assert "\n" not in line


# --- references


@in_one_folder
@given(arrays(float, st.integers(1, 6), elements=st.floats(0.01, 1)))
def test_references_are_probabilities(tmp_path: Path, weights: np.ndarray) -> None:
    reference = weights / weights.sum()
    np.save(tmp_path / "mu.npy", reference)
    files = [
        tmp_path / "mu.npy",
        write(tmp_path, "mu.json", json.dumps(reference.tolist())),
        write(tmp_path, "row.csv", ",".join(map(repr, reference.tolist()))),
        write(tmp_path, "column.txt", "\n".join(map(repr, reference.tolist()))),
    ]
    for path in files:
        found = load_reference(path, len(reference))
        assert found.shape == reference.shape
        # divided by a sum that is 1 but for rounding
        np.testing.assert_allclose(found, reference, rtol=1e-15)


def test_a_reference_may_have_labels(tmp_path: Path) -> None:
    for text in ("a,b\n0.25,0.75\n", "a,0.25\nb,0.75\n", "probability\n0.25\n0.75\n"):
        found = load_reference(write(tmp_path, "mu.csv", text), 2)
        np.testing.assert_array_equal(found, [0.25, 0.75])
    off = load_reference(write(tmp_path, "mu.csv", "0.25,0.7500005"), 2)
    assert off.sum() == pytest.approx(1, abs=1e-15)  # rounding


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5,0.5", r"shape \(1, 2\); it must be one row of 3 numbers"),
        ("0.5,0.3\n0.1,0.1\n", r"shape \(2, 2\)"),
        ("0.5,0,0.5", "entry 2 is 0; every action needs a probability > 0"),
        ("0.5,-1,1.5", "entry 2 is -1"),
        ("0.5,nan,0.5", "entry 2 is nan"),
        ("0.5,0.3,0.3", "add up to 1.1, not 1; divide them by their sum"),
        ("0.5,x,0.3", "line 1, column 2: 'x' is not a number"),
    ],
)
def test_bad_references(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "mu.csv", text)
    with pytest.raises(InputError, match=message) as caught:
        load_reference(path, 3)
    assert str(caught.value).startswith(f"{path}: ")


def test_quoted_cells_between_tabs(tmp_path: Path) -> None:
    file = write(tmp_path, "game.csv", '"0.5"\t"0.25"\n"0.75"\t"0.5"\n')
    assert load(file).payoff.tolist() == [[0.5, 0.25], [0.75, 0.5]]
