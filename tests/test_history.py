"""Runs that look back: past iterates, magnets, selected pairs and budgets; killed and continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm import load_config
from llm.data.examples import Prompt
from llm.embedded import HERE
from llm.embedded.judges import game as game_judge
from llm.judges.stored import select_responses
from llm.policy import model as policy
from llm.policy.fitting import FitDataset
from llm.policy.iterates import required_iterates
from llm.policy.log_probs import PromptResponse
from llm.policy.model import Policy
from llm.run import session, setup
from llm.run.lifecycle import Interrupted
from llm.sampling.responses import Responses
from llm.sampling.token_mixture import token_mixture_log_probs
from llm.sources import source_of
from llm.storage.chunks import Work
from llm.train import main
from solvers.fits import Items
from solvers.plays import Plays
from solvers.rules import UpdateRule, get_rule, win_rate
from solvers.tournament import tournament_of
from tests.test_train import Killed, adapter, run, snapshot

# Two chunks of 4 prompts and two or more optimizer steps an iteration: a second for three of them.
TINY = (
    "iterations=3",
    "data.prompts_per_iteration=8",
    "chunk_size=4",
    "samples_per_prompt=3",
    "train.batch_size=8",
    "train.micro_batch_size=8",
    "train.epochs=1",
    "train.learning_rate=1e-2",
)
PAIRS = ("fit=pairwise", "train.batch_size=4", "train.micro_batch_size=4")
CONFIG = load_config("embedded-game")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take as long as the run; tests/test_train.py looks at them."""
    monkeypatch.setattr("llm.run.session.draw_curves", lambda *given: False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three iterations, with just the budget that they take."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("llm.run.session.draw_curves", lambda *given: False)
        run(path, *TINY, "budget.tokens=216", "budget.comparisons=72")
    return path


IDS = {"ab": (0, 1), "ba": (1, 0)}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stored(directory: Path) -> list[dict]:
    return [row for file in sorted(directory.glob("*.jsonl")) for row in lines(file)]


def iterate(path: Path, s: int) -> Policy:
    """π_s by a load of its own; π_0 is the new adapter, which changes nothing."""
    loaded = Policy.load(replace(CONFIG.model, path=str(HERE / "game")), CONFIG.lora)
    if s:
        loaded.load_adapter(path / "iterations" / f"{s - 1:03d}" / "adapter")
    return loaded


def log_probs(loaded: Policy, rows: Sequence[dict]) -> np.ndarray:
    flat = [PromptResponse(IDS[row["prompt"]], y) for row in rows for y in row["tokens"]]
    return loaded.log_probs(flat, batch_size=7).double().numpy().reshape(len(rows), -1)


# --- past iterates --------------------------------------------------------------------------------

seen: list[Plays] = []


def recorded(plays: Plays, weights: np.ndarray) -> np.ndarray:
    seen.append(plays)
    return win_rate(plays, weights)


looking_back = UpdateRule(
    "looking_back",
    direction=recorded,
    needs=("average", "geometric", "previous"),
    memory=3,
    regularization="explicit",
    magnet_every=2,
    eta=2.0,
    tau=0.1,
)


OWN = ("eta=null", "tau=null", "regularizer=null")


def test_past_iterates_are_scored_as_if_loaded_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, started = tmp_path / "run", []

    def fit_policy(policy: Policy, fit, rows: FitDataset, *args, **kwargs):
        flat = [completion for row in rows.completions for completion in row]
        started.append(policy.log_probs(flat, batch_size=7).numpy().reshape(8, 3))
        return genuine(policy, fit, rows, *args, **kwargs)

    genuine = session.fit_policy
    monkeypatch.setattr(session, "fit_policy", fit_policy)
    seen.clear()
    run(path, *TINY, "iterations=4", "rule=tests.test_history:looking_back", *OWN)
    # Not those of the checks before and of the exact companion.
    plays = [each for each in seen if each.own.logp.shape == (8, 3)]
    iterates = [iterate(path, s) for s in range(4)]
    assert len(plays) == 4
    for t, play in enumerate(plays):
        rows = stored(path / "iterations" / f"{t:03d}" / "responses")
        under = [log_probs(each, rows) for each in iterates]
        remembered = [under[max(t - i, 0)] for i in range(3)]
        expected = {
            "logp": under[t],
            "logp_ref": under[t - t % 2],  # the magnet
            "logp_previous": under[max(t - 1, 0)],
            "logp_average": np.log(np.mean(np.exp(remembered), axis=0)),
            "logp_geometric": np.mean(remembered, axis=0),
            "length": np.full((8, 3), 3.0),
        }
        for name, values in expected.items():
            # Batches of another size round otherwise, in float32.
            np.testing.assert_allclose(getattr(play.own, name), values, atol=2e-5, err_msg=name)
        # What training starts from is π_t again.
        np.testing.assert_allclose(started[t], under[t], atol=2e-5)
        # What is recorded for the metrics stays that of the base.
        recorded_ref = np.array([row["logp_ref"] for row in rows])
        np.testing.assert_allclose(recorded_ref, under[0], atol=2e-5)
    # Only what is looked at, and no model twice: π_t and μ are known already.
    assert not (path / "iterations" / "001" / "under").exists()
    assert [p.name for p in sorted((path / "iterations" / "003" / "under").iterdir())] == [
        "001",
        "002",
    ]
    # The policies moved far enough for all this to be seen.
    assert np.abs(plays[3].own.logp - plays[3].own.logp_previous).max() > 0.05


@pytest.mark.parametrize(
    ("name", "t", "iterates"),
    [
        ("gmmd", 5, []),
        ("optimistic_mwu", 0, [0]),
        ("optimistic_mwu", 5, [4]),
        ("mnpo", 5, [4, 5]),
        ("comal", 7, []),  # μ is still the base
        ("comal", 50, [50]),
        ("mpo", 57, [50]),
    ],
)
def test_no_more_iterates_are_looked_at_than_a_rule_needs(name, t, iterates) -> None:
    assert required_iterates(get_rule(name, eta=1.0), t) == iterates


def test_demonstrations_need_no_past_iterates() -> None:
    """The opponent of SPIN is known by its draws."""
    config = load_config("embedded-game", ["recipe=alpha_spin"])
    rule = get_rule("alpha_spin", eta=1.0)
    assert required_iterates(rule, 5) == [5]
    assert source_of(config, rule).required_iterates(5) == []


mixing = UpdateRule("mixing", direction=recorded, regularization="mixture", eta=2.0, tau=0.15)


def test_what_responses_were_drawn_from_is_recorded_with_them(tmp_path: Path) -> None:
    path = tmp_path / "run"
    words = ("rule=tests.test_history:mixing", *OWN, "sample.distribution=token_mixture")
    seen.clear()
    run(path, *TINY, "iterations=2", *words)
    first, second = [each.own for each in seen if each.own.logp.shape == (8, 3)]
    assert first.logp_proposal is None  # π_0 = μ: what they are mixed to is known
    rows = stored(path / "iterations" / "001" / "responses")
    flat = [PromptResponse(IDS[row["prompt"]], y) for row in rows for y in row["tokens"]]
    mixture = token_mixture_log_probs(iterate(path, 1), flat, 0.3, batch_size=7).view(8, 3)
    np.testing.assert_allclose(second.logp_proposal, mixture, atol=2e-5)
    assert np.abs(second.logp_proposal - second.logp).max() > 0.01


def test_a_start_of_ones_own_is_iterate_0_and_not_the_reference(
    whole: Path, tmp_path: Path
) -> None:
    start = whole / "final"
    words = ("rule=optimistic_gmmd", f"model.adapter={start}", "iterations=2")
    run(tmp_path / "run", *TINY, *words)
    rows = stored(tmp_path / "run" / "iterations" / "001" / "responses")
    under = stored(tmp_path / "run" / "iterations" / "001" / "under" / "000")
    started = log_probs(iterate(whole, 3), rows)
    np.testing.assert_allclose([row["logp"] for row in under], started, atol=2e-5)
    assert np.abs(started - [row["logp_ref"] for row in rows]).max() > 0.1
    # The exact iterates start there, too.
    (first, *_) = lines(tmp_path / "run" / "metrics.jsonl")
    assert first["kl_to_exact_iterate"] == pytest.approx(0, abs=1e-6)
    assert first["kl_to_reference"] > 0.01


# --- killed and continued -------------------------------------------------------------------------

KINDS = {
    "under": ("rule=mnpo", "eta=2", "rule_options.memory=3"),
    "selection": ("iterations=2", "rule=inpo", "eta=1", "selection=round_robin", *PAIRS),
    "drawn": (
        "rule=alpha_spin",
        "rule_options.memory=2",
        "pooled_iterations=2",
        "fit=logistic",
        "tau=null",
        "regularizer=null",
        "data.answer=answer",
        "judge.kind=none",
    ),
    "responses": ("iterations=2", "rule=nash_md", "eta=2", "sample.distribution=token_mixture"),
}


def kill_in(monkeypatch: pytest.MonkeyPatch, part: str, number: int) -> None:
    """Dies before the number-th file in directories of that name gets its name."""
    genuine, count = Path.replace, [0]

    def dying(self: Path, target: Path) -> Path:
        count[0] += f"/{part}/" in Path(target).as_posix()
        if count[0] == number:
            raise Killed
        return genuine(self, target)

    monkeypatch.setattr(Path, "replace", dying)


@pytest.mark.parametrize("stage", KINDS)
def test_a_run_killed_in_a_stage_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    words = (*TINY, *KINDS[stage])
    run(tmp_path / "whole", *words)
    files = len(list((tmp_path / "whole").rglob(f"{stage}/**/*.jsonl")))
    # The last file is of the last iteration, where there is a past, as is one before it.
    with monkeypatch.context() as patched:
        kill_in(patched, stage, files)
        with pytest.raises(Killed):
            run(tmp_path / "run", *words)
    begun = max((tmp_path / "run" / "iterations").iterdir())
    assert not (begun / "adapter").exists()
    assert list(begun.rglob(f"{stage}/**/*.jsonl"))
    run(tmp_path / "run", *words)
    assert adapter(tmp_path / "run") == adapter(tmp_path / "whole")
    for file in (tmp_path / "whole").rglob("iterations/*/*/**/*.jsonl"):
        twin = tmp_path / "run" / file.relative_to(tmp_path / "whole")
        assert twin.read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_a_run_killed_after_its_sampler_was_trained_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["iterations=2", "data.prompts_per_iteration=4", "chunk_size=2", "samples_per_prompt=2"]
    words += ["train.batch_size=4", "train.micro_batch_size=4", "evaluation.prompts=2"]
    words += ["gflownet.prompts=4", "gflownet.epochs=2", "gflownet.samples=1"]
    words += ["gflownet.batch_size=4", "gflownet.micro_batch_size=4", "rule=nash_md", "eta=2"]
    words += ["sample.distribution=gflownet"]
    run(tmp_path / "whole", *words, config="embedded-text")
    assert (tmp_path / "whole" / "iterations" / "001" / "sampler" / "001").is_dir()
    with monkeypatch.context() as patched:
        kill_in(patched, "001/responses", 2)
        with pytest.raises(Killed):
            run(tmp_path / "run", *words, config="embedded-text")
    run(tmp_path / "run", *words, config="embedded-text")
    assert adapter(tmp_path / "run") == adapter(tmp_path / "whole")


# --- best and worst -------------------------------------------------------------------------------

asked: list[int] = []


def counting(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    asked.extend(len(row) for row in responses)
    return game_judge(prompts, responses)


def test_a_tournament_asks_the_judge_for_the_pairs_that_meet(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [["".join(rng.choice(list("abcde"), 3)) for _ in range(8)] for _ in range(5)]
    prompts = [Prompt(({"role": "user", "content": p},), "here", IDS[p]) for p in ("ab", "ba") * 3][
        :5
    ]
    asked.clear()
    rows = select_responses(Work(2), tmp_path, counting, prompts, texts, "tournament")
    assert asked == [2] * (11 * 5)
    table = game_judge([p.text for p in prompts], texts)
    ends = tournament_of(table)
    for b, row in enumerate(rows):
        assert (row["best"], row["worst"]) == (ends.best[b], ends.worst[b])
        assert row["preference"] == table[b, row["best"], row["worst"]]
        assert row["passed"] == (row["preference"] > 0.5)
        assert row["comparisons"] == 11


def test_the_pairs_that_pass_are_trained_on_and_comparisons_are_counted(tmp_path: Path) -> None:
    words = ("iterations=1", "samples_per_prompt=8", "selection=tournament", "rule=inpo", "eta=1")
    shown = run(tmp_path / "run", *TINY, *PAIRS, *words, "train.save_steps=1")
    here = tmp_path / "run" / "iterations" / "000"
    passed = sum(row["passed"] for row in stored(here / "selection"))
    assert 4 <= passed < 8
    assert f"for {8 - passed} of 8 prompts, which are left out" in shown
    assert "none is claimed" in shown
    assert len(json.loads((here / "losses.json").read_text())) == passed // 4
    (_, last) = lines(tmp_path / "run" / "metrics.jsonl")
    assert (last["tokens"], last["comparisons"]) == (8 * 8 * 3, 8 * 11)


def test_the_best_and_the_worst_are_picked_with_all_that_is_known_of_them() -> None:
    texts = [["a", "b", "c"], ["d", "e", "f"]]
    rows = [
        {"prompt": p, "responses": row, "logp": [-1.0, -2.0, -3.0]}
        for p, row in zip("xy", texts, strict=True)
    ]
    prompts = [Prompt(({"role": "user", "content": p},), "here", (1,)) for p in "xy"]
    picked = Responses(prompts, rows).pick([1], [(0, 1), (2, 0)])
    assert picked.texts == [["f", "d"]]
    assert picked.logp.tolist() == [[-3, -1]]
    assert [prompt.text for prompt in picked.prompts] == ["y"]


def test_the_best_of_a_selection_wins_its_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[FitDataset] = []

    def fit_policy(policy: Policy, fit, rows: FitDataset, *args, **kwargs):
        trained.append(rows)
        return genuine(policy, fit, rows, *args, **kwargs)

    genuine = session.fit_policy
    monkeypatch.setattr(session, "fit_policy", fit_policy)
    words = ("iterations=1", "rule=inpo", "eta=1", "selection=round_robin", *PAIRS)
    run(tmp_path / "run", *TINY, *words)
    (rows,) = trained
    here = tmp_path / "run" / "iterations" / "000"
    both = zip(stored(here / "responses"), stored(here / "selection"), strict=True)
    passed = [(row["tokens"], ends) for row, ends in both if ends["passed"]]
    first_and_second = [[list(c.response_ids) for c in pair] for pair in rows.completions]
    assert first_and_second == [[y[ends["best"]], y[ends["worst"]]] for y, ends in passed]
    won = [ends["preference"] - 0.5 for _, ends in passed]  # half the gap of their win rates
    assert min(won) > 0
    assert rows.items.columns["signal"][:, 0] == pytest.approx(won, abs=1e-12)


def even(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    return np.full((len(responses), len(responses[0]), len(responses[0])), 0.5)


def test_an_iteration_without_a_pair_stops_in_one_line(tmp_path: Path) -> None:
    words = ("selection=round_robin", "rule=inpo", "judge.kind=callable", *PAIRS)
    with pytest.raises(Interrupted, match="beats the worst for no prompt of iteration 0") as caught:
        run(tmp_path / "run", *TINY, *words, "judge.path=tests.test_history:even")
    assert "\n" not in str(caught.value)
    assert "the same command" not in str(caught.value)  # would come to the same end


def test_a_selection_that_leaves_less_than_a_batch_stops_in_one_line(tmp_path: Path) -> None:
    words = ("selection=round_robin", "rule=inpo", *PAIRS[:1], "train.batch_size=8")
    with pytest.raises(Interrupted, match=r"only \d items left to train on; lower it") as caught:
        run(tmp_path / "run", *TINY, *words)
    assert "the same command" not in str(caught.value)


def test_checkpoints_of_what_is_trained_are_not_left_behind(whole: Path, tmp_path: Path) -> None:
    """Killed between the adapter and their removal."""
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    shutil.rmtree(path / "final")
    left = path / "iterations" / "001" / "trainer"
    (left / "checkpoint-2").mkdir(parents=True)
    run(path, *TINY, "budget.tokens=216", "budget.comparisons=72")
    assert not left.exists()
    assert adapter(path) == adapter(whole)


def test_items_without_weight_are_no_rows() -> None:
    index = np.array([[[0], [1]], [[0], [1]]])
    weight = np.array([[0.5, 0.0], [0.0, 0.5]])
    completions = [[PromptResponse((9,), (b, k)) for k in range(2)] for b in range(2)]
    rows = FitDataset(
        completions, Items(index, weight, {"target": np.array([[1.0, 2.0], [3.0, 4.0]])})
    )
    assert [row["columns"]["target"] for row in (rows[i] for i in range(len(rows)))] == [1, 4]
    assert [row["responses"][0].response_ids for row in (rows[0], rows[1])] == [(0, 0), (1, 1)]
    assert rows[0]["weight"] == 1


# --- budgets --------------------------------------------------------------------------------------


def test_a_budget_ends_a_run_as_if_its_iterations_were_over(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = lines(whole / "metrics.jsonl")
    # 8 prompts × 3 responses × 3 tokens, and 8 × 3 pairs: it had enough for three iterations.
    assert [row["tokens"] for row in rows] == [0, 72, 144, 216]
    assert [row["comparisons"] for row in rows] == [0, 24, 48, 72]
    second = (whole / "iterations" / "001" / "adapter" / "adapter_model.safetensors").read_bytes()

    def dying(*args, **kwargs) -> None:
        raise Killed

    for limit in ("budget.tokens=215", "budget.comparisons=71"):
        path, words = tmp_path / limit, (*TINY, "iterations=5", limit)
        # Killed before its end is written: what was used is known from the disk.
        with monkeypatch.context() as patched:
            patched.setattr("llm.run.session.Session.finish", dying)
            with pytest.raises(Killed):
                run(path, *words)
        assert f"{limit}: " in run(path, *words)
        assert (path / "final" / "adapter_model.safetensors").read_bytes() == second
        assert [row["iteration"] for row in lines(path / "metrics.jsonl")] == [0, 1, 2]


def test_a_budget_of_less_than_an_iteration_is_refused(tmp_path: Path, capsys) -> None:
    path = tmp_path / "run"
    words = ["--config", "embedded-game", *TINY, f"output_dir={path}"]
    # 8 prompts × 3 responses of a token at least, and 8 × 3 pairs.
    for limit, takes in (("comparisons=23", "takes 24;"), ("tokens=23", "takes at least 24;")):
        for extra in ([], ["--dry-run"]):
            assert main([*words, f"budget.{limit}", *extra]) == 2
            said = capsys.readouterr().err.splitlines()[-1]
            assert f"budget.{limit}: an iteration {takes}" in said
    assert not path.exists()


# --- refused before a model is loaded -------------------------------------------------------------


def refused(words: Sequence[str], capsys, monkeypatch: pytest.MonkeyPatch) -> str:
    """The one line; no model is loaded on the way to it."""

    def load(*args, **kwargs) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(policy.Policy, "load", load)
    monkeypatch.setattr(setup.Policy, "load", load)
    assert main(["--config", "embedded-game", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_missing_iterate_is_refused_and_named(
    whole: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    for name in ("final", "iterations/002/adapter"):
        shutil.rmtree(path / name)
    words = [*TINY, "budget.tokens=216", "budget.comparisons=72", f"output_dir={path}"]
    for lost in ("000/adapter", "000/adapter/adapter_model.safetensors", "001"):
        shutil.move(path / "iterations" / lost, tmp_path / "kept")
        before = snapshot(path)
        for extra in ([], ["--dry-run"]):
            line = refused([*words, *extra], capsys, monkeypatch)
            assert str(path / "iterations" / lost[:3] / "adapter") in line
            assert "put it back" in line
        assert snapshot(path) == before
        shutil.move(tmp_path / "kept", path / "iterations" / lost)
    monkeypatch.undo()
    monkeypatch.setattr("llm.run.session.draw_curves", lambda *given: False)
    assert main(["--config", "embedded-game", *words]) == 0
    assert adapter(path) == adapter(whole)


GIVEN = ("data.answer=answer", "data.rejected=rejected")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["selection=tournament"], "samples_per_prompt=3: a tournament needs"),
        (["samples_per_prompt=1", "selection=round_robin"], "samples_per_prompt=1: "),
        (["samples_per_prompt=1"], "samples_per_prompt=1: rule 'gmmd' compares responses"),
        (["judge.kind=none"], "judge.kind=none: rule 'gmmd' needs a judge"),
        (["pooled_iterations=2"], "pooled_iterations=2: rule 'gmmd' trains on responses of π_t"),
        (["model.adapter=/nowhere"], "model.adapter=/nowhere"),
        (["data.rejected=rejected"], "data.answer"),
        (["rule=dpo", "eta=null", "sample.distribution=token_mixture"], "no share of μ"),
        (["rule_options.alpha=1.5", "rule=ipo_md", "eta=null"], "alpha = 1.5"),
        (["rule=gmmd", "sample.distribution=token_mixture"], "rule 'gmmd' gives no share of μ"),
        (["rule=mpo", "sample.distribution=token_mixture"], "rule 'mpo' gives no share of μ"),
        (["rule=nash_md", "eta=20", "sample.distribution=gflownet"], "eta * tau <= 1"),
        (
            ["fit=policy_gradient", "rule=nash_md", "eta=2", "sample.distribution=token_mixture"],
            "fit 'policy_gradient' needs responses of the current policy",
        ),
        ([*GIVEN, "rule=dpo", "eta=null", "fit=pairwise"], "fit_options.signal: given pairs"),
        (["rule_options.speed=3"], "rule_options: speed is not an option of rules; known: alpha"),
        (["rule_options.tau=3"], "rule_options: tau is not an option of rules"),
        ([*GIVEN, "fit=regression"], "fit=regression: takes responses of the policy itself"),
        ([*GIVEN, "fit=policy_gradient"], "fit=policy_gradient: takes responses of the policy"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_cannot_go_together_is_refused(tmp_path, capsys, monkeypatch, words, said) -> None:
    path = tmp_path / "run"
    line = refused([*TINY, *words, f"output_dir={path}"], capsys, monkeypatch)
    assert said in line
    assert line.startswith("error: ")
    assert not path.exists()


@pytest.mark.parametrize(
    ("config", "words", "said"),
    [
        ("embedded-game", [], "no embedding for an end-of-sequence token"),
        (
            "embedded-text",
            ["gflownet.micro_batch_size=3"],
            "gflownet.batch_size=64 is not a multiple",
        ),
        ("embedded-text", ["gflownet.samples=1", "gflownet.epochs=1"], "prompts make only 8 "),
    ],
)
def test_a_sampler_that_cannot_be_trained_is_refused(
    tmp_path, capsys, monkeypatch, config, words, said
) -> None:
    monkeypatch.setattr(policy, "load_base_model", None)  # whoever loads weights fails
    path = tmp_path / "run"
    words = [
        "recipe=ipo_md",
        "sample.distribution=gflownet",
        "data.prompts_per_iteration=8",
        *words,
    ]
    words += ["samples_per_prompt=8"]  # of the fit's batch there is enough
    for extra in ([], ["--dry-run"]):
        assert main(["--config", config, *words, *extra, f"output_dir={path}"]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
    assert not path.exists()


def test_a_dry_run_says_what_new_stages_take(tmp_path: Path, capsys) -> None:
    words = [*TINY, "--config", "embedded-game", f"output_dir={tmp_path / 'run'}", "--dry-run"]
    inpo = ["selection=tournament", "samples_per_prompt=8", "rule=inpo", *PAIRS]
    assert main([*words, *inpo]) == 0
    shown = capsys.readouterr().out
    assert "64 responses sampled, 88 pairs compared; 16 responses trained on in 2 " in shown
    assert main([*words, "rule=mnpo", "eta=2", "rule_options.memory=3"]) == 0
    assert (
        "log-probabilities are also computed under up to 2 past iterates" in capsys.readouterr().out
    )
    assert not (tmp_path / "run").exists()
