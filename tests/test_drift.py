"""An engine whose log-probabilities differ from the policy's: measured, stored, and corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from games.errors import InputError
from llm import load_config
from llm.evaluation.report import table
from llm.policy.log_probs import PromptResponse
from llm.run.setup import checked
from llm.sampling.drift import differences, drift_of
from llm.sampling.engine import Response
from llm.sampling.transformers_engine import TransformersEngine
from llm.train import main
from solvers.plays import Plays
from solvers.rules import UpdateRule, win_rate
from tests.test_history import OWN, TINY, lines, stored
from tests.test_train import Killed, adapter, run

# Of a token with this id, in nats: what the engine below reports beyond the policy's own.
OFFSETS = np.array([0.0, 0.1, -0.2, 0.3, -0.4])
# Tokens are scored in other batches than here: float32 sums of about 5 nats, and 6 stored digits.
ROUNDING = 1e-5


class Reporting(TransformersEngine):
    """The default engine, which reports log-probabilities that are off by `OFFSETS`."""

    reports_log_probs = True

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        samples_per_prompt: int,
        *,
        adapter: Path | None,
        key: Sequence[int],
    ) -> list[list[Response]]:
        drawn = super().sample(prompts, samples_per_prompt, adapter=adapter, key=key)
        with self.policy.using(adapter):
            return [
                [self._reported(prompt, response, adapter is not None) for response in row]
                for prompt, row in zip(prompts, drawn, strict=True)
            ]

    def _reported(self, prompt: Sequence[int], response: Response, adapter: bool) -> Response:
        asked = [PromptResponse(prompt, response.token_ids)]
        _, (each,) = self.policy.token_log_probs(asked, batch_size=1, adapter=adapter)
        off = OFFSETS[np.array(response.token_ids) % len(OFFSETS)]
        return replace(response, token_log_probs=tuple(np.array(each) + off))


REPORTING = "sample.engine=tests.test_drift:Reporting"
seen: list[Plays] = []


def recorded(plays: Plays, weights: np.ndarray) -> np.ndarray:
    seen.append(plays)
    return win_rate(plays, weights)


recording = UpdateRule("recording", direction=recorded, regularization="explicit", eta=2.0, tau=0.1)


def offsets(rows: Sequence[dict]) -> np.ndarray:
    """(N,): of every token of stored rows."""
    flat = [token for row in rows for tokens in row["tokens"] for token in tokens]
    return OFFSETS[np.array(flat) % len(OFFSETS)]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.run.session.draw_curves", lambda *given: False)


def test_drift_is_the_difference_of_each_token() -> None:
    found = differences([[-1.0, -2.0], [-3.0]], [[-1.5, -2.0], [-2.0]])
    assert found == [[0.5, 0.0], [-1.0]]
    assert drift_of([{"drift": found}, {"other": 1}]).tolist() == [0.5, 0.0, -1.0]


def test_drift_of_training_is_stored_and_printed(tmp_path: Path, capsys) -> None:
    path = tmp_path / "run"
    run(path, *TINY, "iterations=2", REPORTING)
    zeroth, first, second = lines(path / "metrics.jsonl")
    assert zeroth["drift_mean"] is None  # the responses of this game are enumerated, not sampled
    for t, row in enumerate((first, second)):
        rows = stored(path / "iterations" / f"{t:03d}" / "responses")
        off = np.abs(offsets(rows))
        np.testing.assert_allclose(drift_of(rows), offsets(rows), atol=ROUNDING)
        assert row["drift_mean"] == pytest.approx(off.mean(), abs=ROUNDING)
        assert row["drift_99"] == pytest.approx(np.quantile(off, 0.99), abs=ROUNDING)
        assert row["drift_largest"] == pytest.approx(off.max(), abs=ROUNDING)
        # What the engine reports replaces nothing: log π_t is the policy's.
        reported = np.array([r["logp_engine"] for r in rows])
        sums = [[OFFSETS[np.array(y) % 5].sum() for y in r["tokens"]] for r in rows]
        np.testing.assert_allclose(reported - [r["logp"] for r in rows], sums, atol=3 * ROUNDING)
    heading = table([first, second])[:2]
    assert heading[0].split().count("drift") == 3
    assert heading[1].split()[-4:] == ["mean", "99", "%", "largest"]


def test_drift_of_evaluation_is_that_of_its_tokens(tmp_path: Path, capsys) -> None:
    path = tmp_path / "run"
    words = ("iterations=1", "data.prompts_per_iteration=4", "samples_per_prompt=2", "threads=1")
    words += ("evaluation.prompts=3", "evaluation.samples=2", "sample.max_new_tokens=12")
    words += ("train.batch_size=8", "train.micro_batch_size=8", f"output_dir={path}")
    assert main(["--config", "embedded-text", REPORTING, *words]) == 0
    zeroth, first = lines(path / "metrics.jsonl")
    held_out = [stored(path / "iterations" / f"{t:03d}/evaluation/responses") for t in (0, 1)]
    trained = stored(path / "iterations" / "000" / "responses")
    before = np.abs(offsets(held_out[0])).mean()
    after = np.abs(offsets(trained + held_out[1])).mean()
    assert zeroth["drift_mean"] == pytest.approx(before, abs=ROUNDING)
    assert first["drift_mean"] == pytest.approx(after, abs=ROUNDING)
    assert "drift" in capsys.readouterr().out


def test_engines_that_report_nothing_have_no_drift(tmp_path: Path, capsys) -> None:
    path = tmp_path / "run"
    run(path, *TINY, "iterations=1")
    assert {row["drift_mean"] for row in lines(path / "metrics.jsonl")} == {None}
    assert "drift" not in capsys.readouterr().out


def test_a_killed_run_has_the_same_drift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*TINY, "iterations=2", REPORTING)
    run(tmp_path / "whole", *words)
    genuine = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if Path(target).as_posix().endswith("001/responses/00001.jsonl"):
            raise Killed
        return genuine(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            run(tmp_path / "killed", *words)
    run(tmp_path / "killed", *words)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    names = ("drift_mean", "drift_99", "drift_largest")
    found, expected = (
        [[row[name] for name in names] for row in lines(path / "metrics.jsonl")]
        for path in (killed, whole)
    )
    assert found == expected
    assert adapter(killed) == adapter(whole)


def test_corrected_drift_weighs_responses_by_what_they_were_drawn_from(tmp_path: Path) -> None:
    path, words = tmp_path / "run", ("rule=tests.test_drift:recording", *OWN, "fit=pairwise")
    seen.clear()
    run(path, *TINY, "iterations=1", REPORTING, *words, "sample.correct_drift=true")
    (plays,) = [each.own for each in seen if each.own.logp.shape == (8, 3)]
    rows = stored(path / "iterations" / "000" / "responses")
    assert plays.logp_proposal is not None
    np.testing.assert_array_equal(plays.logp_proposal, [row["logp_engine"] for row in rows])
    # Self-normalized importance weights π_t/q: the offsets, and nothing else, tell them from 1/K.
    sums = np.array([[OFFSETS[np.array(y) % 5].sum() for y in row["tokens"]] for row in rows])
    expected = np.exp(-sums) / np.exp(-sums).sum(-1, keepdims=True)
    np.testing.assert_allclose(plays.weights, expected, atol=ROUNDING)
    assert np.abs(expected - 1 / 3).max() > 0.05


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample.engine=transformers"], "engine 'transformers' reports no log-probabilities"),
        (["fit=policy_gradient"], "needs responses of the current policy"),
        (["fit=regression"], "needs responses of the current policy"),
        (["sample.top_k=3"], "some responses are never drawn"),
        (["sample.top_p=0.9"], "some responses are never drawn"),
        (
            ["recipe=nash_md", "fit=proximal", "sample.distribution=token_mixture"],
            "has weights of its own",
        ),
        (["recipe=inpo"], "are not weighted here"),
        (["recipe=spin", "data.answer=answer"], "are not weighted here"),
    ],
)
def test_what_weights_cannot_correct_is_refused_before_anything_is_sampled(
    words: list[str], said: str
) -> None:
    config = load_config("embedded-game", [REPORTING, *words, "sample.correct_drift=true"])
    with pytest.raises(InputError, match=r"^sample\.correct_drift=true: ") as caught:
        checked(config)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_regression_without_a_regularizer_takes_corrected_drift() -> None:
    checked(load_config("embedded-game", [REPORTING, "recipe=sppo", "sample.correct_drift=true"]))


def test_the_default_engine_takes_no_arguments() -> None:
    config = load_config("embedded-game", ["sample.engine_arguments.seed=1"])
    with pytest.raises(InputError, match=r"sample\.engine_arguments: this engine takes none"):
        checked(config)
