"""Rules that learn from dataset responses (SPIN, α-SPIN, DPO on given pairs), as runs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from llm import load_config
from llm.data.prompts import load_prompts
from llm.embedded import game, resolve
from llm.evaluation.exact import EnumeratedGame
from llm.evaluation.metrics import METRICS, Evaluation, measure_all
from llm.run.setup import prepare, rule_and_fit, target_lines
from llm.sources import source_of
from llm.storage.chunks import World
from llm.train import train
from tests.test_history import TINY, iterate, lines, log_probs, refused, stored
from tests.test_train import run

SPIN = (
    *TINY,
    "rule=alpha_spin",
    "fit=logistic",
    "eta=1",
    "tau=null",
    "regularizer=null",
    "data.answer=answer",
    "judge.kind=none",
)
POOLED = (*SPIN, "rule_options.memory=2", "pooled_iterations=2", "samples_per_prompt=1")


SILENT = Console(file=io.StringIO())


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.run.session.draw_curves", lambda *given: False)


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three iterations with two past policies as opponents and two generations to train on."""
    path = tmp_path_factory.mktemp("runs") / "pooled"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("llm.run.session.draw_curves", lambda *given: False)
        run(path, *POOLED)
    return path


def test_draws_come_in_equal_shares_from_the_remembered_iterates(pooled: Path) -> None:
    for t, shares in enumerate(({"000": 8}, {"000": 4, "001": 4}, {"001": 4, "002": 4})):
        drawn = pooled / "iterations" / f"{t:03d}" / "drawn"
        assert {p.name: len(stored(p)) for p in drawn.iterdir()} == shares
    # By lot, not by the place of a prompt: each iterate answers both of the two prompts.
    for part in (pooled / "iterations" / "002" / "drawn").iterdir():
        assert {row["prompt"] for row in stored(part)} == {"ab", "ba"}
    (*_, last) = lines(pooled / "metrics.jsonl")
    assert (last["tokens"], last["comparisons"]) == (3 * 8 * 3, 0)


def test_each_draw_is_what_that_iterate_says(pooled: Path) -> None:
    from llm.sampling.transformers_engine import sample

    config = load_config("embedded-game", POOLED)
    for s in (1, 2):
        rows = stored(pooled / "iterations" / "002" / "drawn" / f"{s:03d}")  # a chunk
        ids = [{"ab": (0, 1), "ba": (1, 0)}[row["prompt"]] for row in rows]
        key = (config.seed, 0, 2, s, 0)
        again = sample(iterate(pooled, s), ids, 1, config.sample, key=key)
        assert [[r.text for r in row] for row in again] == [row["responses"] for row in rows]


def test_answers_come_first_and_generations_are_pooled_and_scored_anew(pooled: Path) -> None:
    config = resolve(load_config("embedded-game", POOLED))
    loaded = iterate(pooled, 2)
    prompts = load_prompts(config.data, loaded.tokenizer, seed=config.seed)
    rows = stored(pooled / "iterations" / "002" / "responses")
    asked = [*prompts.of_iteration(2, 8), *prompts.of_iteration(1, 8)]
    assert len(rows) == 16
    for prompt, row in zip(asked, rows, strict=True):
        assert row["prompt"] == prompt.text
        assert tuple(row["tokens"][0]) == prompt.answers[0]
        assert row["responses"][0] == prompt.answer_texts[0]
    before = stored(pooled / "iterations" / "001" / "responses")[:8]
    assert [row["responses"] for row in rows[8:]] == [row["responses"] for row in before]
    np.testing.assert_allclose([r["logp"] for r in rows], log_probs(loaded, rows), atol=2e-5)
    reference = log_probs(iterate(pooled, 0), rows)
    np.testing.assert_allclose([r["logp_ref"] for r in rows], reference, atol=2e-5)
    old = np.array([row["logp"] for row in before])
    assert np.abs(np.array([row["logp"] for row in rows[8:]]) - old).max() > 0.01


def test_a_row_is_an_answer_over_a_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm.run import session

    fitted = []

    def kept(self, t, responses, plays, update, items) -> None:
        fitted.append((responses, update, items))
        raise KeyboardInterrupt

    monkeypatch.setattr(session.Session, "fit", kept)
    with pytest.raises(Exception, match="interrupted"):
        run(tmp_path / "run", *SPIN, "rule_options.alpha=0.75")
    ((responses, update, items),) = fitted
    assert items.index.tolist() == [[[0, 1], [0, 2], [0, 3]]] * 8
    np.testing.assert_allclose(items.weight, 1 / 3)
    mixture = 0.75 * responses.logp + 0.25 * responses.logp_ref  # α-SPIN Eq. 6's reference
    gap = mixture[:, :1] - mixture[:, 1:]
    np.testing.assert_allclose(update.anchor[:, :1] - update.anchor[:, 1:], gap)


def test_without_a_judge_there_is_no_win_rate(pooled: Path, tmp_path: Path) -> None:
    for row in lines(pooled / "metrics.jsonl"):
        assert row["win_rate"] is None
        assert row["duality_gap"] is None
        assert row["kl_to_reference"] is not None
    assert not list(pooled.rglob("preferences"))
    text = ["iterations=1", "data.prompts_per_iteration=4", "samples_per_prompt=1"]
    text += ["train.batch_size=4", "train.micro_batch_size=4", "evaluation.prompts=2"]
    text += SPIN[len(TINY) :]
    shown = run(tmp_path / "text", *text, config="embedded-text")
    (row, _) = lines(tmp_path / "text" / "metrics.jsonl")
    assert row["win_rate"] is None
    assert row["self_bleu"] > 0
    assert sum(row["equilibrium_styles"].values()) == pytest.approx(1)
    assert "π* is the distribution of the answers, pulled towards μ by 1 − α = 0.05" in shown
    # The answers' shares, pulled a little towards the model's: .2, .2, .6 against .77, .13, .10.
    assert row["equilibrium_styles"]["story"] == pytest.approx(0.6, abs=0.05)


def test_the_exact_companion_is_the_rule_on_the_data(tmp_path: Path) -> None:
    words = (*SPIN, f"output_dir={tmp_path}", "rule_options={alpha: 0.8, memory: 2}", "eta=0.5")
    parts = prepare(load_config("embedded-game", words), World())
    known = parts.exact
    assert isinstance(known, EnumeratedGame)
    logp_data, logp_ref = game.data(), known.logp_ref
    iterates = [logp_ref, logp_ref]
    for _ in range(4):  # α-SPIN, by hand
        opponent = np.log(np.mean(np.exp(iterates[-2:]), axis=0))
        theta = 0.8 * iterates[-1] + 0.2 * logp_ref + 0.5 * (logp_data - opponent)
        iterates.append(theta - np.log(np.exp(theta).sum(-1, keepdims=True)))
    np.testing.assert_allclose(known.exact_iterate(4), iterates[-1], atol=1e-10)
    theta = (0.2 * logp_ref + 0.5 * logp_data) / 0.7
    star = theta - np.log(np.exp(theta).sum(-1, keepdims=True))
    np.testing.assert_allclose(known.logp_star, star, atol=1e-10)
    evaluation = Evaluation.of_all_responses(known, parts.policy, t=0)
    measured = measure_all(evaluation, METRICS)
    assert measured["kl_to_exact_iterate"] == pytest.approx(0, abs=1e-9)
    assert measured["target"] == "the distribution of the answers, pulled towards μ by 1 − α = 0.2"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rule=spin"], ["aims at the distribution of the answers"]),
        (
            ["rule=alpha_spin", "rule_options.alpha=0.9"],
            ["aims at the distribution of the answers, pulled towards μ by 1 − α = 0.1"],
        ),
    ],
)
def test_aims_of_rules_for_data(words: Sequence[str], said: Sequence[str]) -> None:
    config = load_config("embedded-game", [*SPIN, *words])
    rule, fit = rule_and_fit(config)
    assert target_lines(source_of(config, rule), fit) == said


def test_given_pairs_are_neither_sampled_nor_judged(tmp_path: Path) -> None:
    words = ("rule=dpo", "eta=null", "tau=0.1", "regularizer=reverse_kl")
    words += ("fit_options.signal=winner", "data.rejected=rejected", "iterations=2")
    shown = run(tmp_path / "run", *SPIN, *words)
    assert "rule dpo claims no equilibrium of the game" in shown
    here = tmp_path / "run" / "iterations" / "001"
    assert not (here / "preferences").exists()
    rows = stored(here / "responses")
    config = resolve(load_config("embedded-game", [*SPIN, *words]))
    prompts = load_prompts(config.data, iterate(tmp_path / "run", 1).tokenizer, seed=config.seed)
    for prompt, row in zip(prompts.of_iteration(1, 8), rows, strict=True):
        assert tuple(map(tuple, row["tokens"])) == prompt.answers
    (_, _, last) = lines(tmp_path / "run" / "metrics.jsonl")
    assert (last["tokens"], last["comparisons"]) == (0, 0)
    assert last["kl_to_equilibrium"] is None  # of pairs from nowhere in particular


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.answer=null"], "data.answer: missing; rule 'alpha_spin' needs"),
        (["data.answer=reply"], "reply"),
        (["data.rejected=rejected"], "data.rejected: rule 'alpha_spin' samples"),
        (["selection=round_robin"], "selection: leave it out"),
        (["rule_options.alpha=1.2"], "alpha = 1.2 must lie between 0 and 1"),
        (["rule_options.alpha=-0.1"], "alpha = -0.1 must lie between 0 and 1"),
        (["rule_options.memory=0"], "memory = 0"),
        (["fit=pairwise"], "need logistic"),
        (["data.path=NONE"], "answer"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_data_rules_cannot_do_is_refused(tmp_path, capsys, monkeypatch, words, said) -> None:
    (tmp_path / "none.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "ba"}\n')
    words = [word.replace("NONE", str(tmp_path / "none.jsonl")) for word in words]
    path = tmp_path / "run"
    line = refused([*SPIN, *words, f"output_dir={path}"], capsys, monkeypatch)
    assert said in line
    assert line.startswith("error: ")
    assert not path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["1", ".inf"])
def test_alpha_spin_approaches_its_target(tmp_path: Path, memory: str) -> None:
    words = [*SPIN[len(TINY) :], "eta=0.5", f"rule_options={{alpha: 0.8, memory: {memory}}}"]
    words += ["iterations=4", "data.prompts_per_iteration=1024", "samples_per_prompt=4"]
    words += ["train.batch_size=256", "train.micro_batch_size=256", "train.epochs=1"]
    train(load_config("embedded-game", [*words, f"output_dir={tmp_path / 'run'}"]), SILENT)
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["kl_to_equilibrium"] > 0.25
    # Seen .30 to .05. What is left is the noise of 4000 pairs over 250 responses an iteration; the
    # exact iterate is there within 1e-4.
    assert rows[-1]["kl_to_equilibrium"] < 0.08
    assert rows[-1]["kl_to_exact_iterate"] < 0.08
