"""`python -m solvers`: the contracts that scripts rely on, and every kind of bad input."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from games import MatrixGame, PreferenceGame, load, zoo
from solvers import RULES, Status, compare, duality_gap, outputs, parse, solve
from solvers import console as console_module
from solvers.__main__ import main
from solvers.cli import commands
from solvers.loop import kl_divergence

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the files of known games are not here")

SOLVE_KEYS = {
    "game", "rule", "regularizer", "tau", "eta", "steps", "status", "policy", "average_policy",
    "duality_gap", "reference_policy", "kl_to_reference", "equilibrium_policy",
    "kl_to_equilibrium", "seed", "versions", "trace",
}  # fmt: skip
NASH_KEYS = {"policy", "opponent_policy", "value", "duality_gap", "method", "seconds"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Commands may write to the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def cli(capsys):
    """(arguments) -> exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def answer(cli):
    """(arguments) -> what the command writes to --json -, as strict JSON."""

    def call(*arguments: object):
        code, out, _ = cli(*arguments, "--json", "-")
        assert code == 0
        return strict(out)

    return call


def strict(text: str):
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def write(name: str, rows) -> Path:
    path = Path(name)
    path.write_text("\n".join(",".join(str(entry) for entry in row) for row in rows) + "\n")
    return path


def test_solve_keeps_its_contract(answer):
    record = answer("solve", "biased_rps", "--rule", "gmmd", "--regularizer", "js", "--tau", 0.3,
                    "--eta", 0.5, "--steps", 40, "--tol", 0)  # fmt: skip
    assert record.keys() == SOLVE_KEYS
    same = solve(zoo.get("biased_rps"), "gmmd", regularizer="js", tau=0.3, eta=0.5, steps=40, tol=0)
    # Full precision: the very floats.
    assert record["policy"] == same.policy.tolist()
    assert record["average_policy"] == same.average.tolist()
    assert record["duality_gap"] == float(same.gap)
    assert record["reference_policy"] == pytest.approx([1 / 3] * 3, abs=1e-16)
    assert (record["game"], record["rule"]) == ("biased_rps", "gmmd")
    assert (record["regularizer"], record["tau"], record["eta"]) == ("js", 0.3, 0.5)
    assert (record["steps"], record["status"], record["seed"]) == (40, "max_steps", 0)
    assert record["versions"]["nashplay"] == metadata.version("nashplay")
    star = np.log(record["equilibrium_policy"])
    # The equilibrium is known to a gap of 1e-12.
    assert duality_gap(zoo.get("biased_rps"), star, None, parse("js"), 0.3) <= 1e-12
    # One logarithm more or less: rounding.
    distance = kl_divergence(star, same.logp)
    assert record["kl_to_equilibrium"] == pytest.approx(float(distance), abs=1e-13)
    distance = kl_divergence(same.logp, same.reference)
    assert record["kl_to_reference"] == pytest.approx(float(distance), abs=1e-15)
    assert [row["step"] for row in record["trace"]] == list(range(41))
    assert all(
        row.keys() == {"step", "duality_gap", "kl_to_equilibrium"} for row in record["trace"]
    )
    last = record["trace"][-1]
    assert last["duality_gap"] == record["duality_gap"]
    assert last["kl_to_equilibrium"] == record["kl_to_equilibrium"]


def test_solve_of_an_unregularized_rule(answer):
    record = answer("solve", "league", "--rule", "mwu", "--eta", 0.1, "--steps", 10)
    assert (record["regularizer"], record["tau"]) == (None, 0.0)
    # The league's equilibrium is exact: see games.zoo.
    assert record["equilibrium_policy"] == pytest.approx([0.5, 0.3, 0.2] + 7 * [0], abs=1e-9)
    assert 0 < record["kl_to_equilibrium"] < math.inf


@pytest.mark.parametrize(
    ("rule", "eta"),
    [("mmd", None), ("nash_md", "harmonic"), ("smooth_fictitious_play", "best_response")],
)
def test_eta_is_a_number_or_the_name_of_a_schedule(answer, rule, eta):
    found = answer("solve", "biased_rps", "--rule", rule, "--steps", 3)["eta"]
    assert found == eta or (eta is None and isinstance(found, float))


def test_no_kl_to_one_of_many_equilibria(answer, cli):
    flat = write("flat.csv", [[0.5, 0.5, 0.9], [0.5, 0.5, 0.9], [0.1, 0.1, 0.5]])
    record = answer("solve", flat, "--rule", "mwu", "--eta", 0.1, "--steps", 5)
    assert record["kl_to_equilibrium"] is None
    assert all(row["kl_to_equilibrium"] is None for row in record["trace"])
    assert record["equilibrium_policy"] == pytest.approx([0.5, 0.5, 0.0], abs=1e-6)
    _, out, _ = cli("solve", flat, "--rule", "mwu", "--eta", 0.1, "--steps", 5)
    assert "one of many" in out
    _, out, _ = cli("nash", flat)
    assert "One of many" in out
    assert "ne of many" not in cli("nash", "rps")[1]


def test_no_infinite_kl(answer):
    record = answer("solve", "rps", "--rule", "fictitious_play", "--steps", 3, "--tol", 0)
    assert record["kl_to_equilibrium"] is None
    assert record["trace"][0]["kl_to_equilibrium"] == pytest.approx(0, abs=1e-12)


def test_zero_sum_games_have_two_players(answer):
    record = answer("solve", "blotto", "--tau", 1, "--steps", 20)
    assert record.keys() == SOLVE_KEYS | {"opponent_policy", "opponent_average_policy"}
    assert (len(record["policy"]), len(record["opponent_policy"])) == (5, 4)
    assert sum(record["opponent_average_policy"]) == pytest.approx(1)
    Path("rows.txt").write_text("0.1 0.2 0.3 0.2 0.2")
    Path("columns.txt").write_text("0.4 0.2 0.2 0.2")
    pair = ("solve", "blotto", "--steps", 0, "--reference", "rows.txt,columns.txt")
    record = answer(*pair)
    assert record["policy"] == pytest.approx([0.1, 0.2, 0.3, 0.2, 0.2], abs=1e-15)
    assert record["opponent_policy"] == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=1e-15)


def test_a_batch_of_games(answer, cli):
    batch = zoo.random(4, np.random.default_rng(0), (3,))
    np.save("batch.npy", batch.payoff)
    record = answer("solve", "batch.npy", "--steps", 30)
    assert np.shape(record["policy"]) == (3, 4)
    alone = solve(PreferenceGame(batch.payoff[1]), "gmmd", eta=record["eta"], steps=30)
    # A batched product sums in another order.
    assert record["policy"][1] == pytest.approx(alone.policy.tolist(), abs=1e-14)
    assert np.shape(answer("nash", "batch.npy")["duality_gap"]) == (3,)
    assert "3 games of 4 x 4" in cli("compare", "batch.npy", "--rules", "mmd,mwu")[1]


def test_the_reference_is_where_a_run_starts_and_pulls(answer):
    Path("mu.json").write_text("[0.7, 0.2, 0.1]")
    record = answer("solve", "rps", "--tau", 0.5, "--reference", "mu.json")
    assert record["reference_policy"] == pytest.approx([0.7, 0.2, 0.1], abs=1e-15)
    assert record["trace"][0]["duality_gap"] > 0.01
    # A gap of 1e-10 at τm = ½ leaves a KL of 2e-10 at most, a distance of 2e-5.
    assert record["policy"] == pytest.approx(record["equilibrium_policy"], abs=2e-5)
    assert record["policy"][0] > 0.34


def test_the_seed_draws_the_game(answer):
    first, again, other = (
        answer("solve", "random:4", "--steps", 5, "--seed", seed)["policy"] for seed in (3, 3, 4)
    )
    assert first == again != other


def test_files_are_read_as_they_are_told(answer):
    wins = write("wins.csv", [[0, 6, 1], [2, 0, 5], [3, 0, 0]])
    payoff = answer("nash", wins, "--as", "wins", "--prior", 1)["policy"]
    assert payoff == pytest.approx(answer("nash", write("p.csv", zoo_wins()))["policy"], abs=1e-9)
    skew = write("skew.csv", [[0, -3, 3], [3, 0, -1], [-3, 1, 0]])
    record = answer("nash", skew, "--as", "skew")
    assert record["policy"] == pytest.approx([1 / 7, 3 / 7, 3 / 7], abs=1e-9)
    assert record["value"] == 0
    saddle = write("saddle.csv", [[2, 1, 5], [-3, -4, -2]])
    record = answer("nash", saddle, "--as", "zero_sum")
    assert (record["policy"], record["opponent_policy"]) == ([1, 0], [0, 1, 0])
    assert record["value"] == pytest.approx(1, abs=1e-12)


def zoo_wins():
    """P of the counts above with a prior of one win on each side."""
    return [[1 / 2, 7 / 10, 2 / 6], [3 / 10, 1 / 2, 6 / 7], [4 / 6, 1 / 7, 1 / 2]]


@pytest.mark.parametrize("method", ["exact", "cvxpy", "lp"])
def test_nash_keeps_its_contract(answer, method):
    record = answer("nash", "biased_rps", "--method", method)
    assert record.keys() == NASH_KEYS
    # The LP solver's own tolerance is 1e-7, Clarabel's 1e-8 in the gap.
    assert record["policy"] == pytest.approx([1 / 16, 10 / 16, 5 / 16], abs=1e-6)
    assert record["opponent_policy"] == pytest.approx([1 / 16, 10 / 16, 5 / 16], abs=1e-6)
    assert record["value"] == pytest.approx(0.5, abs=1e-7)
    assert abs(record["duality_gap"]) <= (1e-12 if method == "exact" else 1e-6)
    assert record["method"] == method
    assert 0 < record["seconds"] < 60


def test_nash_of_a_regularised_game(answer):
    exact = answer("nash", "biased_rps", "--regularizer", "js", "--tau", 0.2)
    convex = answer("nash", "biased_rps", "--regularizer", "js", "--tau", 0.2, "--method", "cvxpy")
    # Clarabel stops at 1e-8 in the objective, which is 1e-4 in the policy at worst.
    assert exact["policy"] == pytest.approx(convex["policy"], abs=1e-4)
    default = answer("nash", "biased_rps", "--tau", 0.2)["policy"]
    assert (
        default
        == answer("nash", "biased_rps", "--regularizer", "reverse_kl", "--tau", 0.2)["policy"]
    )


def test_a_solver_that_fails_says_so(cli, monkeypatch):
    found = commands.equilibrium(zoo.get("rps"))
    failed = replace(found, status=Status.MAX_STEPS, duality_gap=np.array(1e-3))
    monkeypatch.setattr(commands, "equilibrium", lambda *arguments: failed)
    code, out, err = cli("nash", "rps")
    assert code == 1
    assert "1.0e-03" in out
    assert "exact stopped at a duality gap of 1.0e-03" in err


def test_long_tables_are_cut_and_labelled(cli):
    _, out, _ = cli("nash", "random:30", "--tau", 5)
    shown = [
        float(line.split()[-1]) for line in out.splitlines() if re.match(r" \d+ +0\.\d+ $", line)
    ]
    assert shown == sorted(shown, reverse=True)
    assert len(shown) == 20
    assert "10 more" in out
    Path("game.json").write_text(
        '{"payoff": [[0.5, 0.9], [0.1, 0.5]], "labels": ["[b]new", "old"]}'
    )
    _, out, _ = cli("nash", "game.json")
    assert re.search(r"\[b\]new +1\.000000", out)


@needs_data
def test_known_games(answer):
    for known in json.loads((DATA / "known_games.json").read_text()):
        Path("known.json").write_text(json.dumps(known["payoff"]))
        record = answer("nash", "known.json", "--as", "zero_sum")
        game = MatrixGame(known["payoff"])
        scale = np.abs(game.payoff).max()
        assert record["value"] == pytest.approx(known["value"], abs=1e-9 * scale), known["name"]
        if known["unique"]:
            # A gap of 1e-12 determines these small games' policies to many more digits than this.
            assert record["policy"] == pytest.approx(known["row_ne"], abs=1e-8), known["name"]
            assert record["opponent_policy"] == pytest.approx(known["col_ne"], abs=1e-8)


@needs_data
def test_known_regularised_equilibria(answer):
    for known in json.loads((DATA / "known_qre.json").read_text()):
        Path("known.json").write_text(json.dumps(known["payoff"]))
        found = answer("nash", "known.json", "--tau", known["tau"])["policy"]
        assert found == pytest.approx(known["recomputed"], abs=1e-9)  # their residual is 1e-12


@needs_data
def test_compare_on_measured_win_rates(cli):
    code, out, err = cli("compare", DATA / "soccer.txt", "--regularizer", "reverse_kl",
                         "--tau", 0.05, "--rules", "all")  # fmt: skip
    assert (code, err) == (0, "")
    for name in RULES:
        assert f"\n {name} " in out
    assert out.splitlines()[-1] == "runs/compare-soccer.png"
    assert Path("runs/compare-soccer.png").read_bytes().startswith(b"\x89PNG")


def test_compare_plays_each_rule_against_its_own_equilibrium(answer):
    listed = answer("compare", "biased_rps", "--tau", 0.3, "--regularizer", "forward_kl",
                    "--steps", 500)  # fmt: skip
    rows = {row["label"]: row for row in listed}
    assert rows.keys() == {*RULES, "nash_md (constant step)"}
    for name, rule in RULES.items():
        row = rows[name]
        if rule.needs_data:
            assert not row["applies"]
            assert "data distribution" in row["note"]
            continue
        regularizer = "reverse_kl" if rule.only_reverse_kl else "forward_kl"
        aimed = rule.regularized and rule.magnet_every is None
        assert (row["regularizer"], row["tau"]) == ((regularizer, 0.3) if aimed else (None, 0.0))
        assert row["target"] == (f"{regularizer}, τ=0.3" if aimed else "unregularized")
        if rule.converges == "neither":
            assert row["note"], name
        elif rule.converges == "average":  # no regret: about √(log n/T) = 0.05
            assert row["average_duality_gap"] < 0.05 < 10 * row["duality_gap"], name
        elif not aimed:  # last iterates in the plain game: slowly (test_properties.py has the end)
            assert row["kl_to_equilibrium"] < 0.25, name  # from 0.268
        else:  # regularised: 1/T² or faster
            assert row["duality_gap"] < 1e-5, name
            assert row["kl_to_equilibrium"] < 1e-5, name
    # The schedule arrives, the constant step does not.
    constant = rows["nash_md (constant step)"]
    assert constant["kl_to_equilibrium"] > 100 * rows["nash_md"]["kl_to_equilibrium"]
    assert "O(η)" in constant["note"]


def test_compare_some_rules(cli, answer):
    code, out, _ = cli("compare", "rpsls", "--rules", "mmd,sppo", "--plot", "picture.svg")
    assert code == 0
    assert out.splitlines()[-1] == "picture.svg"
    assert not Path("runs").exists()
    assert "gmmd" not in out
    assert "mwu" in out
    (row,) = answer("compare", "--rules", "nash_md", "--eta", 0.5, "--steps", 20)
    assert row["label"] == "nash_md (constant step)"
    rows = answer("compare", "--rules", "mmd,mwu", "--eta", "theory", "--steps", 20)
    assert [row["applies"] for row in rows] == [True, False]
    assert "no step size by theory" in rows[1]["note"]


def test_a_rule_of_ones_own(answer, monkeypatch):
    Path("my_rules.py").write_text(
        "from solvers.rules import UpdateRule\n"
        "slow = UpdateRule('slow', regularization='implicit', eta=lambda t: 1.0)\n"
    )
    monkeypatch.syspath_prepend(".")
    record = answer("solve", "--rule", "my_rules:slow", "--steps", 5)
    assert (record["rule"], record["eta"]) == ("slow", "<lambda>")
    (row,) = answer("compare", "--rules", "my_rules:slow", "--steps", 50)
    assert row["label"] == "slow"
    assert row["kl_to_equilibrium"] < 1e-1


def test_json_has_standard_output_to_itself(cli):
    code, out, err = cli("compare", "--rules", "mmd", "--json", "-")
    assert code == 0
    assert strict(out)[0]["rule"] == "mmd"
    assert "converged" in err
    assert err.splitlines()[-1] == "runs/compare-league.png"
    assert "\x1b" not in err


def test_files_for_json_and_picture(cli):
    Path("out.json").write_text("old")
    code, out, _ = cli("solve", "rps", "--json", "out.json", "--plot", "out.png")
    assert code == 0
    assert strict(Path("out.json").read_text())["game"] == "rps"
    assert out.splitlines()[-1] == "out.png"
    assert sorted(path.name for path in Path().iterdir()) == ["out.json", "out.png"]


def test_a_run_that_leaves_the_finite_numbers(cli):
    Path("mu.txt").write_text("0.7 0.2 0.1")
    code, out, err = cli("solve", "rps", "--rule", "omd", "--tau", 1, "--eta", 1000,
                         "--reference", "mu.txt", "--json", "-")  # fmt: skip
    assert code == 1
    record = strict(out)
    assert record["status"] == "non_finite"
    assert sum(record["policy"]) == pytest.approx(1)  # the last that was one
    assert "diverged" in err.splitlines()[-1]


def test_runs_that_end_by_their_steps_are_no_failure(cli):
    code, out, _ = cli("solve", "--steps", 1)
    assert code == 0
    assert "max_steps" in out


BAD_TABLES = {
    "ragged.csv": "0.5,0.5\n0.5\n",
    "wide.csv": "0.5,0.5\n",
    "sum.csv": "0.5,0.7\n0.4,0.5\n",
    "range.csv": "0.5,1.5\n-0.5,0.5\n",
    "nan.csv": "0.5,nan\nnan,0.5\n",
    "empty.csv": "",
    "binary.txt": "\x00\x01",
    "wrong.json": '{"payoff": [[0.5, "x"], [0.5, 0.5]]}',
    "table.xlsx": "x",
    "zeros.txt": "1 0 0",
    "two.txt": "0.5 0.5",
    "unplayed.csv": "0,1,0\n1,0,0\n0,0,0\n",
}


@pytest.mark.parametrize(
    ("arguments", "hints"),
    [
        (["solve", "ragged.csv"], ["ragged.csv", "line 2"]),
        (["solve", "wide.csv"], ["wide.csv", "1 x 2"]),
        (["solve", "sum.csv"], ["sum.csv", "add up to 1"]),
        (["solve", "range.csv"], ["range.csv", "between 0 and 1"]),
        (["solve", "nan.csv"], ["nan.csv", "column 2"]),
        (["solve", "empty.csv"], ["empty.csv", "empty"]),
        (["solve", "binary.txt"], ["binary.txt", "not a text"]),
        (["solve", "wrong.json"], ["wrong.json", "not a number"]),
        (["solve", "pickled.npy"], ["pickled.npy", "pickled"]),
        (["solve", "table.xlsx"], ["table.xlsx", ".csv"]),
        (["solve", "missing.csv"], ["missing.csv", "no such file"]),
        (["solve", "missing/game"], ["missing/game"]),
        (["solve", "."], ["directory"]),
        (["solve", "x" * 5000], ["unknown game"]),
        (["solve", "leage"], ["did you mean 'league'?"]),
        (["solve", "rps:3"], ["leave out ':3'"]),
        (["solve", "random:0"], ["from 1 to"]),
        (["solve", "unplayed.csv", "--as", "wins"], ["unplayed.csv", "--prior"]),
        (["solve", "rps", "--as", "skew"], ["leave out --as"]),
        (["solve", "rps", "--prior", "1"], ["leave out --as and --prior"]),
        (["solve", "rps", "--as", "chess"], ["invalid choice: 'chess'"]),
        (["solve", "--rule", "gmd"], ["did you mean 'gmmd'?"]),
        (["solve", "--rule", "no_module:rule"], ["no_module:rule"]),
        (["solve", "--rule", "spin"], ["data distribution"]),
        (["solve", "--regularizer", "revrse_kl"], ["did you mean 'reverse_kl'?"]),
        (["solve", "--regularizer", "0*js"], ["weight"]),
        (["solve", "--rule", "mmd", "--regularizer", "js"], ["knows only reverse_kl"]),
        (["solve", "--rule", "mwu", "--tau", "1"], ["leave out tau"]),
        (["solve", "--rule", "mwu", "--eta", "theory"], ["no step size by theory"]),
        (["solve", "--regularizer", "chi2", "--eta", "theory"], ["m = 0"]),
        (["solve", "--rule", "nash_md", "--eta", "100"], ["eta * tau <= 1"]),
        (["solve", "--eta", "0"], ["eta must be a positive number"]),
        (["solve", "--eta", "-1"], ["eta must be a positive number"]),
        (["solve", "--eta", "fast"], ["--eta", "'fast'"]),
        (["solve", "--eta", "nan"], ["--eta", "'nan'"]),
        (["solve", "--tau", "-0.1"], ["tau must be a positive number"]),
        (["solve", "--tau", "inf"], ["tau must be a positive number"]),
        (["solve", "--steps", "-1"], ["must not be negative"]),
        (["solve", "--steps", "many"], ["--steps", "'many'"]),
        (["solve", "--tol", "-1"], ["must not be negative"]),
        (["solve", "--tol", "nan"], ["--tol", "'nan'"]),
        (["solve", "--seed", "-1"], ["--seed", "'-1'"]),
        (["solve", "rps", "--reference", "zeros.txt"], ["zeros.txt", "probability > 0"]),
        (["solve", "rps", "--reference", "two.txt"], ["two.txt", "3 numbers"]),
        (["solve", "rps", "--reference", "uniforn"], ["uniforn"]),
        (["solve", "blotto", "--reference", "two.txt"], ["ROWS,COLUMNS"]),
        (["solve", "--json", "missing/out.json"], ["missing/out.json", "no such directory"]),
        (["solve", "--json", "."], ["directory"]),
        (["solve", "--json", ""], ["directory"]),
        (["solve", "--json", "sum.csv/out.json"], ["sum.csv/out.json", "no such directory"]),
        (["solve", "--plot", "picture.bmp"], ["picture.bmp", ".png"]),
        (["solve", "--plot", "missing/out.png"], ["missing/out.png", "no such directory"]),
        (["compare", "--rules", "mmd,gmd"], ["did you mean 'gmmd'?"]),
        (["compare", "--rules", ""], ["unknown rule ''"]),
        (["compare", "--rules", "spin"], ["data distribution"]),
        (["compare", "--regularizer", "kl"], ["unknown regularizer 'kl'"]),
        (["compare", "--rules", "mwu", "--tau", "-1"], ["tau must be a positive number"]),
        (["compare", "--plot", "picture"], ["picture", ".png"]),
        (["compare", "nosuch"], ["choose from"]),
        (["nash", "--tau", "-1"], ["tau must be a positive number"]),
        (["nash", "--method", "magic"], ["invalid choice: 'magic'"]),
        (["nash", "rps", "--method", "lp", "--tau", "1"], ["lp"]),
        (["nash", "--rule", "gmmd"], ["unrecognized arguments: --rule"]),
        (["solvee"], ["invalid choice: 'solvee'"]),
        (["--rules", "all"], ["COMMAND"]),
    ],
)
def test_bad_input_is_one_line_and_nothing_written(cli, arguments, hints):
    for name, text in BAD_TABLES.items():
        Path(name).write_text(text)
    np.save("pickled.npy", np.array([{}], dtype=object))
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    for hint in hints:
        assert hint in err
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


def test_what_cannot_be_written_is_refused_before_the_run(cli, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("it ran")

    monkeypatch.setattr(commands, "run", never)
    monkeypatch.setattr(commands, "compare", never)
    assert cli("solve", "--json", "missing/out.json")[0] == 2
    assert cli("solve", "--plot", "missing/out.png")[0] == 2
    Path("runs").write_text("a file where the folder of pictures would be")
    code, _, err = cli("compare")
    assert code == 2
    assert "runs/compare-league.png" in err


def test_a_write_that_fails_leaves_what_was_there():
    path = Path("kept.json")
    path.write_text("old")

    def fails(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(outputs.InputError, match=r"kept\.json: .*No space left"):
        outputs.write_whole(path, fails)
    assert path.read_text() == "old"
    assert [file.name for file in Path().iterdir()] == ["kept.json"]


def test_a_link_stays_a_link_and_a_pipe_a_pipe(cli):
    Path("target.json").write_text("old")
    Path("link.json").symlink_to("target.json")
    assert cli("solve", "rps", "--steps", 1, "--json", "link.json")[0] == 0
    assert Path("link.json").is_symlink()
    assert strict(Path("target.json").read_text())["game"] == "rps"
    os.mkfifo("pipe")
    # A pipe without a reader would make the writer wait.
    reader = os.open("pipe", os.O_RDWR | os.O_NONBLOCK)
    try:
        assert cli("nash", "rps", "--json", "pipe")[0] == 0
        assert strict(os.read(reader, 1 << 16).decode())["value"] == 0.5
    finally:
        os.close(reader)
    assert Path("pipe").is_fifo()


def test_plain_holds_only_what_json_does():
    content = {"a": np.array([1.0, math.nan]), "b": (np.float64(math.inf), np.int64(3)), "c": None}
    assert outputs.plain(content) == {"a": [1.0, None], "b": [None, 3], "c": None}


def test_interruption_and_want_of_memory(cli, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    def too_large(args):
        raise MemoryError

    monkeypatch.setitem(commands.COMMANDS, "games", interrupted)
    assert cli("games") == (130, "", "solvers: interrupted\n")
    monkeypatch.setitem(commands.COMMANDS, "games", too_large)
    code, _, err = cli("games")
    assert code == 2
    assert "memory" in err


def test_games_lists_the_zoo(cli):
    code, out, _ = cli("games")
    assert code == 0
    assert all(f" {name} " in out for name in zoo.NAMES)


def test_nothing_at_all_compares_on_the_default_game(cli):
    code, out, _ = cli()
    assert code == 0
    assert out.startswith(zoo.DEFAULT)
    assert out.splitlines()[-1] == f"runs/compare-{zoo.DEFAULT}.png"


def test_the_bar_appears_after_a_second_on_a_terminal_only(monkeypatch):
    for terminal, delay, shown in [(True, 2.0, True), (True, 0.0, False), (False, 2.0, False)]:
        stream, clock = io.StringIO(), iter([0.0, *[delay] * 10])
        console = Console(file=stream, force_terminal=terminal, width=80)
        monkeypatch.setattr(console_module, "make_console", lambda stream, console=console: console)
        monkeypatch.setattr(console_module.time, "monotonic", lambda clock=clock: next(clock))
        with console_module.ProgressBar(10) as bar:
            bar("mmd", 1)
            bar("gmmd", 2)
        assert ("gmmd" in stream.getvalue()) is shown
        assert shown or not stream.getvalue()


def test_compare_from_python_reports_progress():
    seen: list[tuple[str, int]] = []
    compare.compare(
        zoo.get("rps"), ["mmd"], steps=3, tol=0, on_step=lambda *step: seen.append(step)
    )
    assert seen == [("mmd", 1), ("mmd", 2), ("mmd", 3)]


def process(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "solvers", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_help_and_version_load_nothing_heavy():
    """What --help takes is what it imports: neither scipy's optimisers nor anything that draws."""
    heavy = ["matplotlib", "cvxpy", "torch", "rich", "scipy.optimize"]
    code = (
        "import runpy, sys\n"
        "sys.argv = ['solvers', *sys.argv[1:]]\n"
        "try:\n    runpy.run_module('solvers', run_name='__main__')\n"
        f"finally:\n    print(*[name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    for arguments in (["--help"], ["compare", "--help"], ["--version"]):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr.split() == []
        assert done.stdout.startswith(("usage: python -m solvers", "nashplay "))


def test_as_a_process():
    done = process("solve", "biased_rps", "--tau", "1", "--json", "-")
    assert done.returncode == 0
    assert strict(done.stdout)["status"] == "converged"
    assert "\x1b" not in done.stderr
    done = process("solve", "--rule", "gmd")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "solvers: unknown rule 'gmd': did you mean 'gmmd'?\n"


@pytest.mark.parametrize("arguments", [["games"], ["nash", "rps", "--json", "-"]])
def test_a_reader_who_leaves_is_no_error(arguments):
    command = [sys.executable, "-m", "solvers", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.close()
        assert b"Error" not in started.stderr.read()


def test_an_output_without_greek_letters_gets_question_marks():
    done = process("solve", "--steps", "1", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "? = " in done.stdout


def test_loading_from_the_command_line_is_loading_from_python(answer):
    path = write("game.csv", [["", "a", "b"], ["a", 0.5, 0.6], ["b", 0.4, 0.5]])
    assert load(path).labels == ("a", "b")
    assert answer("nash", path)["policy"] == [1, 0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "rps", "--tau", "0", "--steps", "5"],
        ["compare", "rps", "--tau", "1e155", "--steps", "5"],
        ["solve", "rps", "--steps", "2", "--plot", "x" * 252 + ".png"],
        ["solve", "rps", "--steps", "2", "--json", "x" * 300],
        ["nash", "rps", "--tau", "1e308", "--regularizer", "chi2", "--method", "cvxpy"],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_extreme_settings_are_answered_or_refused_in_one_line(
    arguments, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code = main(arguments)
    said = capsys.readouterr().err
    assert code in (0, 2)
    assert len(said.splitlines()) == (code == 2)
    assert len(said) < 400


def test_a_full_standard_output_is_one_line():
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    command = [sys.executable, "-m", "solvers", "nash", "rps"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["solvers: output stopped: No space left on device"]


def test_values_near_the_largest_float_are_printed(cli, tmp_path):
    path = write("large.csv", [[0.5, -1.8e294], [0.5, -1.8e294]])
    assert cli("nash", path, "--as", "zero_sum")[0] == 0
    path = write("skew.csv", [[0, 1.7e302], [-1.7e302, 0]])
    assert cli("nash", path, "--as", "skew")[0] == 0
