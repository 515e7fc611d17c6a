"""Recipes side by side: the same budget for each, and tables that say what happened."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from games import PreferenceGame
from games.errors import InputError
from llm import compare as comparing
from llm import load_config
from llm.compare import DEFAULT_RECIPES, main
from llm.config.recipes import recipes
from llm.config.schema import BudgetConfig, ModelConfig
from llm.data.examples import Prompt
from llm.embedded import HERE, game
from llm.evaluation import comparison_report
from llm.evaluation.metrics import METRICS
from llm.evaluation.win_rates import (
    evaluation_responses,
    exact_win_rates,
    sampled_win_rates,
)
from llm.judges.build import build_judge
from llm.policy.log_probs import PromptResponse
from llm.policy.model import Policy
from llm.run import comparison
from llm.run.comparison import Comparison, Entry, base_of, budget_of
from llm.run.lifecycle import Interrupted
from llm.sampling.responses import Responses
from llm.storage.chunks import Work
from llm.storage.directory import RunDirectory
from llm.storage.files import read_rows
from solvers import style

# A run of a second.
SMALL = (
    "iterations=2",
    "data.prompts_per_iteration=16",
    "chunk_size=4",
    "train.batch_size=20",
    "train.micro_batch_size=20",
    "train.epochs=1",
)
BASE = ["--config", "embedded-game", *SMALL]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two recipes, as the command leaves it."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*BASE, "--recipes", "sppo,rspo", f"output_dir={path}"]) == 0
    return path


def record_of(path: Path) -> dict:
    return strict((path / "comparison.json").read_text())


def strict(text: str) -> dict:
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def snapshot(path: Path) -> dict[Path, tuple[int, bytes]]:
    files = [p for p in path.rglob("*") if p.is_file()]
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def adapter(path: Path) -> str:
    return hashlib.sha256((path / "final" / "adapter_model.safetensors").read_bytes()).hexdigest()


def compare(*args, **options) -> Comparison:
    """As the command calls it: tests may put another trainer in its place."""
    return comparison.compare(comparing.run_training, *args, **options)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


# --- what it leaves -------------------------------------------------------------------------------


def test_each_recipe_is_a_whole_run_and_the_comparison_says_so(whole: Path) -> None:
    assert {p.name for p in whole.iterdir()} == {
        "sppo", "rspo", "comparison.json", "comparison.png"
    }  # fmt: skip
    assert (whole / "comparison.png").read_bytes().startswith(b"\x89PNG")
    found = record_of(whole)
    # 2 iterations × 16 prompts × K = 5 of 3 symbols, or 10 pairs.
    assert found["budget"] == {"tokens": 480, "comparisons": 320}
    for row in found["recipes"]:
        run = whole / row["recipe"]
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert load_config(run / "config.yaml").budget == BudgetConfig(tokens=480, comparisons=320)
        assert row["run"] == str(run)
        assert (row["tokens"], row["comparisons"], row["iterations"]) == (480, 320, 2)
        assert [point["tokens"] for point in row["trace"]] == [0, 240, 480]
        for name in ("kl_to_reference", "kl_to_equilibrium", "length", "loss"):
            assert row[name] == metrics[-1][name]
        assert row["seconds"] == pytest.approx(sum(m["seconds"] for m in metrics))
        assert row["optimizer_steps"] == 2 * (16 * 5 // 20)
        # The start is μ. Policies are scored in float32, once in training and once here.
        assert row["win_rate"] == pytest.approx(metrics[-1]["win_rate"], abs=1e-5)
        assert row["win_rate_error"] is None
    assert [row["target"] for row in found["recipes"]] == ["unregularized", "reverse_kl, τ=0.1"]
    assert [row["claims"] for row in found["recipes"]] == ["average", "last"]


def test_every_key_is_documented(whole: Path) -> None:
    found = record_of(whole)
    documented = set(re.findall(r"\w+", comparing.__doc__ or ""))
    keys = {*found, *found["recipes"][0], *found["recipes"][0]["trace"][0], *found["pairwise"]}
    assert keys <= documented | {metric.name for metric in METRICS}
    assert {"tokens", "comparisons"} == set(found["budget"])


def test_both_train_from_the_same_start_on_the_same_responses(whole: Path) -> None:
    for stored in ("responses", "preferences"):
        one, two = (
            whole / recipe / "iterations" / "000" / stored / "00000.jsonl"
            for recipe in ("sppo", "rspo")
        )
        assert one.read_bytes() == two.read_bytes()


def test_json_on_standard_output_is_alone_there(whole: Path, capsys) -> None:
    before = {p: v for p, v in snapshot(whole).items() if p.parent != whole}
    words = [*BASE, "--recipes", "sppo,rspo", f"output_dir={whole}", "--json", "-"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert strict(shown.out) == record_of(whole)
    assert shown.err.splitlines()[-1] == str(whole / "comparison.png")
    assert "wins over" in shown.err
    # Finished runs are left alone.
    assert {p: v for p, v in snapshot(whole).items() if p.parent != whole} == before


def test_the_result_goes_to_standard_output_and_progress_beside_it(
    whole: Path, tmp_path: Path, capsys
) -> None:
    root, path = tmp_path / "c", tmp_path / "copy.json"
    shutil.copytree(whole, root)
    words = [*BASE, "--recipes", "rspo,sppo", f"output_dir={root}", "--json", str(path)]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == str(root / "comparison.png")
    assert "recipe rspo, 1 of 2" in shown.err
    assert "unregularized" in shown.out
    assert "KL(exact" in shown.err
    assert "KL(exact" not in shown.out
    assert strict(path.read_text())["pairwise"]["policies"] == ["rspo", "sppo", "start"]


class Killed(BaseException):
    """Stands for kill -9."""


def test_a_comparison_that_was_killed_goes_on_to_the_same_bits(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "again"
    shutil.copytree(whole / "sppo", path / "sppo")
    genuine, pieces = Path.rename, itertools.count()

    def dying(self: Path, target):
        if next(pieces) == 1:  # rspo has its first adapter, and is to get the second
            raise Killed
        return genuine(self, target)

    words = [*BASE, "--recipes", "sppo,rspo", f"output_dir={path}"]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dying)
        with pytest.raises(Killed):
            main(words)
    assert (path / "rspo" / "iterations" / "000" / "adapter").is_dir()
    assert not (path / "rspo" / "final").exists()
    assert not (path / "comparison.json").exists()
    done = snapshot(path / "sppo")
    assert main(words) == 0
    assert snapshot(path / "sppo") == done
    assert adapter(path / "rspo") == adapter(whole / "rspo")
    assert record_of(path)["pairwise"] == record_of(whole)["pairwise"]


# --- against each other ---------------------------------------------------------------------------


def by_hand(payoff: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """π_a′ P π_b, averaged over the prompts, by loops."""
    total = 0.0
    for table, p, q in zip(payoff, first, second, strict=True):
        for i in range(len(p)):
            for j in range(len(q)):
                total += p[i] * table[i, j] * q[j]
    return total / len(payoff)


def random_tables(rng: np.random.Generator, prompts: int, n: int) -> np.ndarray:
    wins = rng.random((prompts, n, n))
    return (wins + 1 - np.swapaxes(wins, -1, -2)) / 2


def test_exact_win_rates_are_those_computed_by_hand() -> None:
    rng = np.random.default_rng(0)
    payoff = random_tables(rng, 2, 4)
    policies = list(np.log(rng.dirichlet(np.ones(4), size=(3, 2))))
    found = exact_win_rates(PreferenceGame(payoff), policies)
    for a, b in itertools.product(range(3), repeat=2):
        expected = by_hand(payoff, np.exp(policies[a]), np.exp(policies[b]))
        # Sums of 16 numbers in another order.
        assert found.win_rate[a, b] == pytest.approx(expected, abs=1e-14)
    assert found.standard_error is None
    assert found.gaps is not None
    # What a best response wins over each, both players alike, averaged over the prompts.
    for gap, logp in zip(found.gaps, policies, strict=True):
        best = [max(table @ np.exp(p)) for table, p in zip(payoff, logp, strict=True)]
        assert gap == pytest.approx(np.mean([2 * (won - 0.5) for won in best]), abs=1e-14)


def test_the_matrix_is_that_of_the_adapters_that_were_kept(whole: Path) -> None:
    policy = Policy.load(
        ModelConfig(path=str(HERE / "game"), device="cpu"), load_config("embedded-game").lora
    )
    ids = ((0, 1), (1, 0))
    every = [PromptResponse(prompt, y) for prompt in ids for y in game.responses()]
    probabilities = []
    for recipe in ("sppo", "rspo"):
        policy.load_adapter(whole / recipe / "final")
        logp = policy.log_probs(every, batch_size=50, adapter=True)
        probabilities.append(np.exp(logp.double().numpy().reshape(2, -1)))
    table = record_of(whole)["pairwise"]
    assert table["policies"] == ["sppo", "rspo", "start"]
    expected = by_hand(game.preference().payoff, *probabilities)
    # Log-probabilities in float32, scored in other batches.
    assert table["win_rate"][0][1] == pytest.approx(expected, abs=1e-5)
    assert table["win_rate"][1][0] == pytest.approx(1 - expected, abs=1e-5)
    assert table["exact"] is True
    assert table["standard_error"] is None


def said(texts: list[list[str]]) -> Responses:
    prompts = [Prompt(({"role": "user", "content": f"{i}"},), "here", (1,)) for i in range(3)]
    return Responses(prompts, [{"responses": row, "logp": [0.0] * len(row)} for row in texts])


def test_sampled_win_rates_are_means_over_prompts_with_their_errors(tmp_path: Path) -> None:
    judge = build_judge("embedded", "length")
    short = said([["a", "b"], ["a", "a"], ["c", "c"]])
    long = said([["a b c", "a"], ["a b", "a"], ["a", "a b c d"]])
    longer = said([["a b c d e f"] * 2] * 3)
    asked = []

    def counting(prompts, responses):
        asked.append(responses)
        return judge(prompts, responses)

    found = sampled_win_rates(Work(chunk_size=2), tmp_path / "all", counting, [short, long, longer])
    of_prompts = []
    for ours, theirs in zip(long.texts, short.texts, strict=True):
        pairs = [
            judge(["x"], [[one, two]])[0, 0, 1] for one, two in itertools.product(ours, theirs)
        ]
        of_prompts.append(sum(pairs) / 4)
    mean = sum(of_prompts) / 3
    error = math.sqrt(sum((value - mean) ** 2 for value in of_prompts) / 2 / 3)
    assert found.standard_error is not None
    assert found.win_rate[1, 0] == pytest.approx(mean, abs=1e-14)
    assert found.win_rate[0, 1] == pytest.approx(1 - mean, abs=1e-14)
    assert found.standard_error[1, 0] == pytest.approx(error, abs=1e-14)
    assert found.standard_error[0, 1] == found.standard_error[1, 0] > 0
    assert np.diag(found.win_rate).tolist() == [0.5] * 3
    # Three pairs in two chunks each; what was judged before is not judged again.
    assert len(asked) == 6
    other = said([["z"] * 2] * 3)
    sampled_win_rates(Work(chunk_size=2), tmp_path / "all", counting, [short, long, other])
    assert len(asked) == 6 + 4


def test_a_model_that_writes_text_is_judged_on_what_it_was_evaluated_on(tmp_path: Path) -> None:
    words = ["iterations=1", "data.prompts_per_iteration=8", "evaluation.prompts=6"]
    words += ["evaluation.samples=2", "sample.max_new_tokens=16", f"output_dir={tmp_path / 'c'}"]
    words += ["train.batch_size=8", "train.micro_batch_size=8", "samples_per_prompt=2"]
    # SPIN reads answers, which come with prompts of their own: then all recipes are asked those.
    found = compare("embedded-text", ["rspo", "spin"], words, quiet())
    record = found.record()
    assert strict(json.dumps(record)) == record
    table = record["pairwise"]
    assert table["exact"] is False
    errors = np.array(table["standard_error"])
    rates = np.array(table["win_rate"])
    assert rates + rates.T == pytest.approx(np.ones((3, 3)), abs=1e-15)
    assert (errors[:2, 2] > 0).all()
    for row, rate in zip(record["recipes"], rates, strict=False):
        assert row["win_rate"] == rate[-1]
        # The start is μ: its responses are those that the run itself was measured against.
        assert row["win_rate"] == pytest.approx(row["trace"][-1]["win_rate"], abs=1e-12)
        assert row["win_rate_error"] > 0
        assert row["duality_gap"] is None
        assert row["self_bleu"] > 0
    console = quiet()
    comparison_report.show(record, console)
    shown = console.file.getvalue()
    assert "BLEU" in shown
    assert "±" in shown
    assert "duality" not in shown
    assert {p.name for p in found.root.iterdir()} == {"spin", "rspo", "pairwise"}
    asked = [
        [row["prompt"] for row in read_rows(found.root / name / path / "00000.jsonl")]
        for name in ("rspo", "spin")
        for path in ("reference/evaluation", "iterations/000/responses")
    ]
    assert asked[:2] == asked[2:]
    assert not set(asked[0]) & set(asked[1])
    with pytest.raises(InputError, match="answers other prompts"):
        evaluation_responses(RunDirectory(found.root / "rspo"), None, [])


# --- the same budget ------------------------------------------------------------------------------


def test_the_budget_is_what_the_base_takes_at_most_unless_it_is_given() -> None:
    base = load_config("embedded-game")
    assert budget_of(base, 512) == BudgetConfig(tokens=76800, comparisons=51200)
    given = replace(base, budget=BudgetConfig(tokens=5))
    assert budget_of(given, 512) == BudgetConfig(tokens=5, comparisons=51200)
    alone = replace(base, samples_per_prompt=1)  # no pairs to count
    assert budget_of(alone, 512).comparisons is None


def test_recipes_of_other_sizes_get_other_numbers_of_iterations(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(comparing, "run_training", lambda config, console: None)
    monkeypatch.setattr(comparison, "against_each_other", lambda *args: None)
    words = ["iterations=16", "train.batch_size=20", "train.micro_batch_size=20"]
    words += [f"output_dir={tmp_path / 'c'}"]
    names = ["rspo", "inpo", "inpo_round_robin", "spin"]

    def iterations(*more: str) -> list[int]:
        found = compare("embedded-game", names, [*words, *more], quiet())
        return [entry.config.iterations for entry in found.entries]

    # Tokens: 16 × 5/8 = 10, 16 × 5/1 = 80. Pairs: 16 × 10/11 = 14, 16 × 10/28 = 5.
    assert iterations() == [16, 10, 5, 80]
    # 512 prompts: 5120 pairs an iteration, 5632 of the tournament, 14336 of the round robin.
    assert iterations("budget.comparisons=30000") == [5, 5, 2, 80]
    # At one token a response: 2560, 4096, 4096, 512 at least; but the pairs bind.
    assert iterations("budget.tokens=30000") == [11, 7, 5, 58]


def test_a_given_budget_of_tokens_is_spent_and_not_exceeded(tmp_path: Path) -> None:
    # An iteration takes 240 of them: 16 prompts, 5 responses of 3 symbols.
    words = [*SMALL, "budget.tokens=479", f"output_dir={tmp_path / 'c'}"]
    (row,) = compare("embedded-game", ["rspo"], words, quiet()).record()["recipes"]
    assert (row["iterations"], row["tokens"], row["comparisons"]) == (1, 240, 160)


# --- what does not fit ----------------------------------------------------------------------------

NO_ANSWERS = "data.answer=null"
FOUR = ("train.batch_size=4", "train.micro_batch_size=4")


def test_what_does_not_fit_is_left_out_with_the_reason(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(comparison, "against_each_other", lambda *args: None)
    words = [*SMALL, "iterations=1", NO_ANSWERS, "train.batch_size=80"]
    words += [f"output_dir={tmp_path / 'c'}"]
    names = ["spin", "sppo", "inpo"]
    found = compare("embedded-game", names, words, quiet(), if_it_fits=True)
    assert [entry.recipe for entry in found.entries] == ["sppo"]
    assert "data.answer: missing" in found.skipped["spin"]
    assert "train.batch_size=80" in found.skipped["inpo"]
    record = found.record()
    assert record["skipped"][0] == {"recipe": "spin", "reason": found.skipped["spin"]}
    assert any("spin: left out: data.answer" in note for note in comparison_report.notes(record))
    assert not (tmp_path / "c" / "spin").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--recipes", "sppo,spin", NO_ANSWERS), "recipe spin: data.answer: missing"),
        (("--recipes", "sppo,inpoo"), "there is no 'inpoo'; did you mean 'inpo'?"),
        (("--recipes", "sppo", "rule=omd"), "rule: recipes set this field"),
        (("--recipes", "sppo", "recipe=omd"), "recipe: recipes set this field"),
        (("--recipes", "sppo", "etta=1"), "there is no 'etta'; did you mean 'eta'?"),
        (("--recipes", "sppo", "budget.tokens=10"), "budget.tokens=10: an iteration takes"),
        (("--recipes", "inpo", "iterations=1", *FOUR), "raise iterations or budget.tokens"),
        (("--recipes", "sppo", "data.path=nothing.jsonl"), "nothing.jsonl"),
        (("--recipes", "sppo", "--json", "."), "this is a directory"),
        (("--recipes", "sppo,inpo", "train.batch_size=80"), "recipe inpo: train.batch_size=80"),
        (("--recipe", "sppo"), "unrecognized arguments"),
        (("--recipes", "all", "data.path=nothing.jsonl"), "nothing.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys, arguments, reason) -> None:
    path = tmp_path / "c"
    assert main([*BASE, f"output_dir={path}", *arguments]) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_something_else_is_refused(whole: Path, capsys) -> None:
    before = snapshot(whole)
    assert main([*BASE, "--recipes", "sppo", f"output_dir={whole / 'sppo'}"]) == 2
    assert "holds a run" in capsys.readouterr().err
    assert main([*BASE, "--recipes", "sppo", f"output_dir={whole}", "iterations=3"]) == 2
    assert "budget.tokens: 480 -> 720" in capsys.readouterr().err
    assert snapshot(whole) == before


def test_where_it_goes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert base_of("embedded-game", [])[1] == Path("runs/compare-embedded-game")
    assert base_of("embedded-game", ["output_dir=here"])[1] == Path("here")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "comparison.json").touch()
    assert base_of("embedded-game", ["output_dir=here", "fresh=true"])[1] == Path("here-2")


def test_a_loss_that_explodes_leaves_the_others_their_comparison(tmp_path, monkeypatch) -> None:
    genuine = comparing.run_training

    def exploding(config, console):
        if config.rule == "gmmd":
            raise Interrupted("the loss is nan; continue") from FloatingPointError("loss is nan")
        return genuine(config, console)

    monkeypatch.setattr(comparing, "run_training", exploding)
    words = [*SMALL, "iterations=1", f"output_dir={tmp_path / 'c'}"]
    found = compare("embedded-game", ["rspo", "sppo"], words, quiet())
    assert found.skipped == {"rspo": "loss is nan"}
    assert found.record()["pairwise"]["policies"] == ["sppo", "start"]
    with pytest.raises(Interrupted, match="recipe rspo: loss is nan"):
        compare("embedded-game", ["rspo"], words, quiet())


def test_too_few_pairs_for_a_batch_leave_the_others_their_comparison(tmp_path) -> None:
    words = [*SMALL, "iterations=3", "train.batch_size=16", "train.micro_batch_size=16"]
    found = compare("embedded-game", ["sppo", "inpo"], [*words, f"output_dir={tmp_path}"], quiet())
    assert [entry.recipe for entry in found.entries] == ["sppo"]
    assert "items left to train on" in found.skipped["inpo"]


def test_what_a_plan_refuses_names_the_recipe(tmp_path) -> None:
    words = [*SMALL, "sample.distribution=gflownet", f"output_dir={tmp_path / 'c'}"]
    with pytest.raises(InputError, match=r"recipe ipo_md: model\.path=.* end-of-sequence token"):
        compare("embedded-game", ["ipo_md"], words, quiet())


def test_whatever_else_stops_a_run_stops_the_comparison(tmp_path, monkeypatch, capsys) -> None:
    def stopped(config, console):
        raise Interrupted("interrupted; the same command continues") from KeyboardInterrupt()

    def stopped_before(config, console):
        raise KeyboardInterrupt

    for function, code in ((stopped, 1), (stopped_before, 130)):
        monkeypatch.setattr(comparing, "run_training", function)
        assert main([*BASE, "--recipes", "sppo", f"output_dir={tmp_path / 'c'}"]) == code
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: interrupted")


# --- what it shows --------------------------------------------------------------------------------


def test_nothing_is_cut_off_however_narrow_the_console(whole: Path) -> None:
    record = record_of(whole)
    for width in (40, 80, 120, 160):
        console = Console(file=io.StringIO(), width=width)
        console.print(comparison_report.table(record, console))
        shown = console.file.getvalue()
        assert "…" not in shown
        for text in ("sppo", "rspo", "regression", "reverse_kl, τ=0.1", "480", "320"):
            assert text in shown
        rate = record["recipes"][1]["win_rate"]
        assert f"{rate:.3f}" in shown


def test_a_matrix_of_many_is_shown_in_parts(whole: Path) -> None:
    record = record_of(whole)
    n = 12
    rates = np.linspace(0, 1, n * n).reshape(n, n).tolist()
    record["pairwise"] |= {"policies": [f"policy_{i}" for i in range(n)], "win_rate": rates}
    for width, parts in ((200, 1), (80, 2), (40, 4)):
        console = Console(file=io.StringIO(), width=width)
        found = comparison_report.matrix(record, console)
        assert len(found) == parts
        console.print(*found, sep="\n")
        shown = console.file.getvalue()
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= width
        cells = shown.split()
        for i, j in itertools.permutations(range(n), 2):
            assert f"{rates[i][j]:.3f}" in cells
        assert cells.count("policy_3") == parts
    headings = console.file.getvalue().splitlines()[1].split()
    assert headings == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("words", "reaches", "target"),
    [
        (("recipe=rebel",), True, "unregularized"),
        (("recipe=rebel", "selection=tournament"), False, "unregularized"),
        (("recipe=rebel", "fit_options.signal=winner"), False, "unregularized"),
        (("recipe=spin",), True, "the answers"),  # who wins is what it learns from
        (("recipe=dpo", "data.rejected=rejected"), False, "the given pairs"),
    ],
)
def test_what_a_recipe_is_fitted_to_may_be_another_game(
    monkeypatch, words, reaches, target
) -> None:
    row = {"iteration": 0, "seconds": 0.0}
    monkeypatch.setattr(RunDirectory, "metrics", lambda self: [row])
    entry = Entry("some", load_config("embedded-game", words))
    assert entry.record()["reaches"] is reaches
    assert entry.record()["target"] == target


def test_notes_say_what_is_not_to_be_expected_of_a_recipe(whole: Path) -> None:
    record = record_of(whole)
    average, last = record["recipes"]
    assert (average["reaches"], last["reaches"]) == (True, True)
    assert comparison_report.notes(record) == [f"sppo: {comparison_report.CLAIMED['average']}"]
    last |= {"reaches": False}
    average |= {"claims": "neither"}
    assert comparison_report.notes(record) == [
        f"sppo: {comparison_report.CLAIMED['neither']}",
        f"rspo: {comparison_report.FITTED}",
    ]
    last |= {"kl_to_equilibrium": None}
    assert len(comparison_report.notes(record)) == 1


def test_the_picture_has_a_curve_for_each_recipe_in_each_panel(whole: Path) -> None:
    record = record_of(whole)
    again = json.loads(json.dumps(record["recipes"][0])) | {"recipe": "spo", "fit": "other"}
    record["recipes"].append(again)
    figure = comparison_report.picture(record)
    *panels, key = figure.axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["KL(π*‖π_t) in nats", "win rate over μ", "KL to μ in nats"]
    names = ("kl_to_equilibrium", "win_rate", "kl_to_reference")
    for axes, name in zip(panels, names, strict=True):
        curves = [
            line for line in axes.lines if line.get_linestyle() != "None" and line.get_zorder()
        ]
        for line, row in zip(curves, record["recipes"], strict=True):
            assert list(line.get_xdata()) == [0, 240, 480]
            assert list(line.get_ydata()) == [point[name] for point in row["trace"]]
    looks = [(line.get_color(), line.get_linestyle()) for line in panels[0].lines]
    assert looks == [(style.RULES["mwu"][0], "-"), (style.RULES["gmmd"][0], "-"),
                     (style.RULES["mwu"][0], "--")]  # fmt: skip
    assert "bars" not in figure.get_suptitle()
    record["recipes"][0]["trace"][1]["standard_errors"] = {"win_rate": 0.1}
    figure = comparison_report.picture(record)
    assert [len(axes.collections) for axes in figure.axes] == [0, 1, 0, 0]
    (bar,) = figure.axes[1].collections[0].get_segments()
    middle = record["recipes"][0]["trace"][1]["win_rate"]
    assert bar[:, 1] == pytest.approx([middle - 0.1, middle + 0.1])
    assert "bars: ± one standard error" in figure.get_suptitle()
    legend = key.get_legend()
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["sppo   [mwu × regression]", "rspo   [gmmd × regression]",
                     "spo   [mwu × other]"]  # fmt: skip


def test_the_panels_of_a_game_that_is_not_known_are_others(whole: Path) -> None:
    record = record_of(whole)
    for row in record["recipes"]:
        for point in row["trace"]:
            point["kl_to_equilibrium"] = None
    figure = comparison_report.picture(record)
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    assert titles == ["win rate over μ", "KL to μ in nats", "length in tokens"]


def test_what_runs_without_arguments_is_there() -> None:
    assert set(DEFAULT_RECIPES) <= set(recipes())


@pytest.mark.slow
def test_without_arguments_all_defaults_are_compared(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    found = record_of(tmp_path / "runs" / "compare-embedded-game")
    assert tuple(row["recipe"] for row in found["recipes"]) == DEFAULT_RECIPES
    assert found["skipped"] == []
    for row in found["recipes"]:
        assert row["tokens"] <= found["budget"]["tokens"]
        assert row["comparisons"] <= found["budget"]["comparisons"]
        assert row["win_rate"] > 0.5
