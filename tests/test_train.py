"""Runs as a whole: what they write, how they stop, and that they go on to the same bits."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from games.errors import InputError
from llm import load_config
from llm.config.loading import shipped_configs
from llm.config.schema import ModelConfig
from llm.data.examples import Prompt
from llm.data.prompts import PromptSet
from llm.embedded import HERE, game
from llm.evaluation.metrics import METRICS, Evaluation, measure_all
from llm.judges.build import build_judge
from llm.judges.stored import judge_responses
from llm.policy import fitting
from llm.policy.log_probs import PromptResponse
from llm.policy.model import Policy
from llm.run.checks import check_settings
from llm.run.lifecycle import Interrupted
from llm.run.plan import Uses, time_of
from llm.run.setup import rule_and_fit, target_lines
from llm.sampling import transformers_engine
from llm.sampling.responses import Responses
from llm.sources import source_of, stages
from llm.storage.chunks import Work
from llm.train import main, train
from solvers.rules import UpdateRule, win_rate
from tests.tiny_judges import save_pairrm
from tests.tiny_models import save_causal_lm

ROOT = Path(__file__).parents[1]
# A run of a second: four chunks of 4 prompts, and 4 optimizer steps an iteration.
SMALL = (
    "iterations=2",
    "data.prompts_per_iteration=16",
    "chunk_size=4",
    "train.batch_size=20",
    "train.micro_batch_size=10",
    "train.save_steps=2",
    "train.epochs=1",
)
GAME = load_config("embedded-game")
KEYS = [
    "iteration",
    "win_rate",
    "kl_to_reference",
    "entropy",
    "length",
    "self_bleu",
    "kl_to_equilibrium",
    "kl_to_exact_iterate",
    "duality_gap",
    "loss",
    "seconds",
    "tokens",
    "comparisons",
]


PIECES = 35  # that such a run stores one by one


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, and what is on the disk stays as it is."""


def run(path: Path, *words: str, config: str = "embedded-game") -> str:
    """What a run prints."""
    console = Console(file=io.StringIO(), width=200)
    given = SMALL if config == "embedded-game" else ()
    train(load_config(config, [*given, f"output_dir={path}", *words]), console)
    return console.file.getvalue()


def adapter(path: Path) -> str:
    return hashlib.sha256((path / "final" / "adapter_model.safetensors").read_bytes()).hexdigest()


def snapshot(path: Path) -> dict[Path, tuple[int, bytes]]:
    files = [p for p in path.rglob("*") if p.is_file()]
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take as long as a small run."""
    monkeypatch.setattr("llm.run.session.draw_curves", lambda *given: False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    run(path)
    return path


# --- what a run leaves ----------------------------------------------------------------------------


def test_a_run_directory_has_all_its_parts(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert list(row)[: len(KEYS)] == KEYS
        assert row["self_bleu"] is None  # symbols are no text
    assert rows[0]["loss"] is None
    assert rows[0]["kl_to_exact_iterate"] == pytest.approx(0, abs=1e-6)
    assert rows[1]["loss"] > 0
    assert rows[2]["kl_to_equilibrium"] < rows[0]["kl_to_equilibrium"]
    here = whole / "iterations" / "001"
    assert sorted(p.name for p in here.iterdir()) == [
        "adapter",
        "effective_step.json",
        "effective_step.sha256",
        "losses.json",
        "losses.sha256",
        "preferences",
        "responses",
        "used.json",
        "used.sha256",
    ]
    (first, *_) = (here / "responses" / "00000.jsonl").read_text().splitlines()
    row = json.loads(first)
    assert (len(row["responses"]), len(row["tokens"][0]), len(row["logp"])) == (5, 3, 5)
    (table, *_) = (here / "preferences" / "00000.jsonl").read_text().splitlines()
    assert np.shape(json.loads(table)["preference"]) == (5, 5)
    provenance = json.loads((whole / "provenance.json").read_text())["starts"][0]
    assert provenance["versions"]["torch"] == torch.__version__
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "KL(π*" in (whole / "run.log").read_text()


def test_the_final_adapter_loads_with_peft_alone_and_is_the_policy(whole: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(HERE / "game")
    model = PeftModel.from_pretrained(base, whole / "final").eval()
    every = torch.tensor(game.responses())
    prompts = torch.tensor([[0, 1]]).repeat(len(every), 1)
    with torch.no_grad():
        logits = model(torch.cat([prompts, every], 1)).logits[:, 1:-1]
    logp = logits.log_softmax(-1).gather(-1, every[..., None])[..., 0].sum(-1)
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-5)
    # The last line of the metrics is about this policy: its entropy, over both prompts.
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    with torch.no_grad():
        other = model(torch.cat([torch.tensor([[1, 0]]).repeat(len(every), 1), every], 1))
    logq = other.logits[:, 1:-1].log_softmax(-1).gather(-1, every[..., None])[..., 0].sum(-1)
    entropy = -((logp.exp() * logp).sum() + (logq.exp() * logq).sum()) / 2
    assert last["entropy"] == pytest.approx(entropy.item(), abs=1e-4)


def test_what_is_recorded_is_of_the_policy_that_sampled_and_of_the_base(whole: Path) -> None:
    lines = (whole / "iterations" / "001" / "responses" / "00001.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    policy = Policy.load(ModelConfig(path=str(HERE / "game"), device="cpu"), GAME.lora)
    policy.load_adapter(whole / "iterations" / "000" / "adapter")
    ids = {"ab": (0, 1), "ba": (1, 0)}
    flat = [PromptResponse(ids[row["prompt"]], y) for row in rows for y in row["tokens"]]
    for name, on in (("logp", True), ("logp_ref", False)):
        stored = torch.tensor([row[name] for row in rows]).reshape(-1)
        # Other batches round otherwise.
        assert (policy.log_probs(flat, batch_size=9, adapter=on) - stored).abs().max() < 1e-5
    assert all(
        policy.tokenizer.decode(c.response_ids) in r
        for c, r in zip(flat, [row["responses"] for row in rows for _ in range(5)], strict=True)
    )


def test_the_first_policy_is_the_base_and_is_not_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    scored: list[bool] = []
    whole = Policy.log_probs

    def counting(self: Policy, rows: list, *, adapter: bool = True, **settings):
        scored.append(adapter)
        logp = whole(self, rows, adapter=adapter, **settings)
        if not len(scored) - 1:  # the same bits, so that training starts at π_0 as it is recorded
            assert torch.equal(logp, whole(self, rows, adapter=True, **settings))
        return logp

    monkeypatch.setattr(Policy, "log_probs", counting)
    words = ("iterations=1", "data.prompts_per_iteration=8", "chunk_size=64", "train.batch_size=20")
    small = (
        "judge.path=length",
        "evaluation.prompts=4",
        "evaluation.samples=2",
        "sample.max_new_tokens=8",
    )
    run(tmp_path / "text", *words, *small, config="embedded-text")
    # μ: of the training responses, of the base's held-out ones, and of π_0's; π_1 once for its
    # step. Those of π_1's held-out responses are computed together with the KL divergence.
    assert scored.count(True) == 1
    assert scored.count(False) == 3


def test_wins_are_counted_for_the_policy_against_the_base(tmp_path: Path) -> None:
    asked = [Prompt(({"role": "user", "content": "x"},), "here", (1,)) for _ in range(3)]

    def said(text: str, logp: float) -> Responses:
        row = {"responses": [text, text], "tokens": [[1, 2], [1]], "logp": [logp] * 2}
        return Responses(asked, [row | {"logp_ref": [-5.0, -5.0]}] * 3)

    judge = build_judge("embedded", "length")

    def measure(directory: Path, own: Responses, reference: Responses) -> dict:
        both = [ours + theirs for ours, theirs in zip(own.texts, reference.texts, strict=True)]
        wins = judge_responses(Work(chunk_size=2), directory, judge, asked, both)[:, :2, 2:]
        return measure_all(Evaluation.of_samples(own, reference, wins, t=0), METRICS)

    own, base = said("a b c d e f", -2.0), said("a", -5.0)
    measured = measure(tmp_path / "own", own, base)
    assert measured["win_rate"] == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert measured["kl_to_reference"] == pytest.approx(3.0)
    assert measured["entropy"] == pytest.approx(2.0)
    assert measured["length"] == 1.5
    assert measured["self_bleu"] == pytest.approx(1.0)
    lost = measure(tmp_path / "base", base, own)
    assert lost["win_rate"] == pytest.approx(1 - measured["win_rate"])


def test_a_dry_run_knows_the_time_from_a_run_beside_it(whole: Path, capsys) -> None:
    words = ["--config", "embedded-game", "--dry-run", f"output_dir={whole.with_name('next')}"]
    assert main(words) == 0
    assert f"at the rates of {whole}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["provenance.json", "config.yaml", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["", "[]", "{", '{"starts": [], "model": 1}', "\0"])
def test_a_damaged_run_beside_it_does_not_matter(
    whole: Path, tmp_path: Path, name: str, content: str
) -> None:
    for part in ("provenance.json", "config.yaml", "metrics.jsonl"):
        (tmp_path / "other").mkdir(exist_ok=True)
        shutil.copy(whole / part, tmp_path / "other")
    (tmp_path / "other" / name).write_text(content)
    config = load_config("embedded-game", [f"output_dir={tmp_path / 'run'}"])
    uses = Uses(**dict.fromkeys([field.name for field in dataclasses.fields(Uses)], 0))
    assert time_of(config, PromptSet(((),), (), 0), uses).startswith("unknown")


def test_a_finished_run_is_shown_and_left_alone(whole: Path, capsys) -> None:
    before = snapshot(whole)
    words = ["--config", "embedded-game", *SMALL, f"output_dir={whole}"]
    assert main(words) == 0
    assert snapshot(whole) == before
    shown = capsys.readouterr().out
    assert "finished" in shown
    assert len(shown.splitlines()) == 1 + 2 + 3


def test_the_same_seed_gives_the_same_bits_and_another_does_not(whole, tmp_path) -> None:
    run(tmp_path / "again", "sample.batch_size=7")  # batches are free
    assert adapter(tmp_path / "again") == adapter(whole)
    run(tmp_path / "other", "seed=1", "iterations=1")
    first = whole / "iterations" / "000" / "adapter" / "adapter_model.safetensors"
    assert (
        first.read_bytes()
        != (tmp_path / "other" / "final" / "adapter_model.safetensors").read_bytes()
    )


def test_a_changed_configuration_is_refused_and_fresh_starts_anew(whole: Path, capsys) -> None:
    words = ["--config", "embedded-game", *SMALL, f"output_dir={whole}"]
    assert main([*words, "eta=3"]) == 2
    assert "eta: 4.0 -> 3.0" in capsys.readouterr().err
    assert main([*words, "eta=3", "fresh=true"]) == 0
    assert (whole.with_name("whole-2") / "final").is_dir()
    assert capsys.readouterr().out.splitlines()[-1].endswith("whole-2/curves.png")


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, capsys) -> None:
    words = ["--config", "embedded-text", "--dry-run", f"output_dir={tmp_path / 'run'}"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    for part in (
        "240,096 parameters",
        "96, 48 held out",
        "τ = 0.2",
        "unknown: no earlier run",
    ):
        assert part in shown
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_gives_the_examples_as_the_model_sees_them(tmp_path: Path, capsys) -> None:
    rows = [
        {"prompt": "Name a river.", "chosen": "The Elbe.", "rejected": "Garda."},
        {"prompt": "Name a lake.", "chosen": "Garda.", "rejected": ""},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        *("--config", "embedded-text", "recipe=dpo", "--dry-run"),
        *(f"data.path={path}", "data.answer=chosen", "data.rejected=rejected", "data.folds=1"),
        *("data.prompts_per_iteration=null", "evaluation.prompts=0", "train.batch_size=2"),
        *("train.micro_batch_size=1", "selection=null", f"output_dir={tmp_path / 'run'}"),
    ]
    river, lake = (f"<s><|user|>Name a {word}.<|assistant|>" for word in ("river", "lake"))
    assert main([*words, "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["examples"] == [
        {"prompt": river, "answer": "The Elbe.</s>", "rejected": "Garda.</s>"},
        {"prompt": lake, "answer": "Garda.</s>", "rejected": "</s>"},
    ]
    assert f"{river!r} -> 'The Elbe.</s>'" in captured.err
    assert main([*words, "--json", str(tmp_path / "plan.json")]) == 0
    assert f"rejected: {river!r} -> 'Garda.</s>'" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "plan.json").read_text())["examples"]) == 2
    for wrong in (["--json", "-"], ["--json", "-", "--dry-run"]):
        assert main(wrong) == 2
        assert "--json: goes with" in capsys.readouterr().err


# --- stopped and continued ------------------------------------------------------------------------


def kill_at_rename(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Dies before the number-th name is given to finished work; what had been named so far."""
    done: list[str] = []
    for call in ("replace", "rename"):
        genuine = getattr(Path, call)

        def dying(self: Path, target, genuine=genuine):
            if len(done) == number:
                raise Killed
            done.append(Path(target).name)
            return genuine(self, target)

        monkeypatch.setattr(Path, call, dying)
    return done


def names_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    with monkeypatch.context() as patched:
        named = kill_at_rename(patched, -1)
        run(tmp_path / "counted")
    return named


def test_a_run_killed_while_it_stores_goes_on_to_the_same_bits(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(names_in_order(tmp_path, monkeypatch))
    assert count == PIECES
    path, killed = tmp_path / "run", 0
    # Killed after so many more pieces; each start stores its configuration and provenance anew.
    for pieces in (1, 2, 4, 7, 5, 9, 6):
        with monkeypatch.context() as patched:
            kill_at_rename(patched, pieces)
            with pytest.raises(Killed):
                run(path)
            killed += 1
    run(path)
    assert adapter(path) == adapter(whole)
    assert killed == 7
    responses = "iterations/001/responses/00003.jsonl"
    assert (path / responses).read_bytes() == (whole / responses).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(PIECES))
def test_a_run_killed_at_any_piece_goes_on_to_the_same_bits(whole, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patched:
        kill_at_rename(patched, number)
        with pytest.raises(Killed):
            run(tmp_path / "run")
    run(tmp_path / "run")
    assert adapter(tmp_path / "run") == adapter(whole)


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_killed_while_it_trains_goes_on_to_the_same_bits(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    path, trained = tmp_path / "run", []
    genuine = fitting._Checkpoints.on_step_end

    def dying(self, args, state, control, **kwargs) -> None:
        genuine(self, args, state, control, **kwargs)
        trained.append(state.global_step)
        if len(trained) == step:
            raise Killed

    monkeypatch.setattr(fitting._Checkpoints, "on_step_end", dying)
    with pytest.raises(Killed):
        run(path)
    assert (path / "iterations" / "000" / "trainer" / "checkpoint-2").is_dir() == (step == 3)
    run(path)
    assert adapter(path) == adapter(whole)
    # Step 3 is done twice, the two before it not: they are in the checkpoint.
    assert trained[step:] == ([1, 2, 3, 4] if step == 1 else [3, 4]) + [1, 2, 3, 4]


@pytest.mark.parametrize("cut", ["optimizer.pt", "adapter_model.safetensors", "trainer_state.json"])
def test_a_cut_checkpoint_is_passed_over(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Killed while the Trainer writes its second checkpoint: it takes up the first."""
    path = tmp_path / "run"
    with monkeypatch.context() as patched:

        def dying(self, args, state, control, **_) -> None:
            genuine(self, args, state, control)
            if state.global_step == 4:
                raise Killed

        genuine = fitting._Checkpoints.on_save
        patched.setattr(fitting._Checkpoints, "on_save", dying)
        with pytest.raises(Killed):
            run(path)
    checkpoint = path / "iterations" / "000" / "trainer" / "checkpoint-4"
    (checkpoint / fitting.COMPLETE).unlink()
    (checkpoint / cut).write_bytes((checkpoint / cut).read_bytes()[:50])
    run(path)
    assert adapter(path) == adapter(whole)


@pytest.mark.slow
def test_kill_9_at_any_moment(whole: Path, tmp_path: Path) -> None:
    path, rng = tmp_path / "run", np.random.default_rng(0)
    command = [sys.executable, "-m", "llm.train", "--config", "embedded-game", *SMALL]
    command.append(f"output_dir={path}")
    kills = 0
    while not (path / "final").is_dir():
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        # Past the imports, and always a little further, so that it comes to an end.
        deadline = time.monotonic() + rng.uniform(3, 8) + kills
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert adapter(path) == adapter(whole)


# --- several processes ----------------------------------------------------------------------------


def test_two_processes_agree_with_one(whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m"]
    command += ["llm.train", "--config", "embedded-game", *SMALL, f"output_dir={tmp_path / 'two'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("responses", "preferences"):
        for chunk in (whole / "iterations" / "000" / name).iterdir():
            same = tmp_path / "two" / "iterations" / "000" / name / chunk.name
            assert same.read_bytes() == chunk.read_bytes()
    one, two = (
        load_file(path / "final" / "adapter_model.safetensors")
        for path in (whole, tmp_path / "two")
    )
    largest = max(weight.abs().max() for weight in one.values())
    # Sums over processes may round otherwise; the issue asks for 1e-6 of the largest weight.
    assert max((one[k] - two[k]).abs().max() for k in one) <= 1e-6 * largest
    assert done.stdout.count("KL(π*") == 2  # one process speaks: two columns of one heading


def test_a_batch_that_the_processes_cannot_share_is_refused() -> None:
    settings = load_config("embedded-game", SMALL).train
    assert fitting.accumulation(settings, 2) == 1
    with pytest.raises(InputError, match="times 3 processes"):
        fitting.accumulation(settings, 3)


def test_sharding_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^train\.arguments\.fsdp: not supported"):
        run(tmp_path / "run", "train.arguments.fsdp=full_shard")
    assert not (tmp_path / "run").exists()


# --- other configurations, rules, fits and judges -------------------------------------------------


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_configuration_names_a_rule_and_a_fit_that_go_together(name: str) -> None:
    config = load_config(name)
    rule, fit = rule_and_fit(config)
    assert (config.regularizer is None) == (rule.target[0] is None)
    if config.selection is None:  # best and worst of K are a biased choice
        for line in target_lines(source_of(config, rule), fit):
            assert "none is claimed" not in line
    if name == "mistral-7b-rspo":  # Eq. 52's square carries a factor 2: τ = λ/η there, λ/2η else
        taus = {aim.term: aim.tau for aim in fit.temperatures(rule, 1000, 5)}
        assert taus == {"forward_kl": pytest.approx(5e-5), "reverse_kl": pytest.approx(5e-4)}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "words",
    [
        ("fit=regression", "eta=1"),
        ("fit=regression", "fit_options.responses=best_worst", "diagonal=include"),
        (
            "fit=regression",
            "fit_options={estimator: published, direct_forward_kl: true}",
            "regularizer=0.1*forward_kl+0.5*reverse_kl",
        ),
        ("fit=regression", "tau=null", "lam=1", "regularizer=chi2"),
        ("fit=policy_gradient", "regularizer=js"),
        ("rule=nash_md", "eta=2"),  # other rules and fits: test_recipes.py
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_every_fit_trains(tmp_path: Path, words: Sequence[str]) -> None:
    run(tmp_path / "run", "iterations=1", *words)
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert math.isfinite(rows[1]["loss"])
    assert rows[1]["kl_to_reference"] > 0
    if "direct_forward_kl" in " ".join(words):
        assert (tmp_path / "run" / "reference" / "fold-0" / "00000.jsonl").is_file()


# Pairs of configurations that are one algorithm: their losses are the same, step by step. Those
# that agree to the bit are in test_recipes.py.
ONE_ALGORITHM = {
    "online IPO = INPO(η = 1/τ)": (
        ("rule=inpo", "fit=pairwise", "tau=0.5", "eta=2"),
        ("rule=ipo_md", "fit=pairwise", "tau=0.5", "eta=null", "rule_options.alpha=1"),
    ),
    "MNPO(h = 1) = INPO": (
        ("rule=inpo", "fit=pairwise", "tau=0.1", "eta=2"),
        ("rule=mnpo", "fit=pairwise", "tau=0.1", "eta=2", "rule_options.memory=1"),
    ),
}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", ONE_ALGORITHM)
def test_two_names_of_one_algorithm_train_alike(tmp_path: Path, name: str) -> None:
    losses = []
    for place, words in zip("ab", ONE_ALGORITHM[name], strict=True):
        run(tmp_path / place, *words, "data.prompts_per_iteration=8")
        files = sorted((tmp_path / place).glob("iterations/*/losses.json"))
        losses.append([json.loads(file.read_text()) for file in files])
    assert np.size(losses[0]) >= 4
    # Sums in another order, in float32, over a few steps.
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


own_rule = UpdateRule("own", direction=lambda plays, weights: -win_rate(plays, weights), eta=3.0)


def test_a_rule_of_ones_own_trains(tmp_path: Path) -> None:
    words = ("rule=tests.test_train:own_rule", "eta=null", "tau=null", "regularizer=null")
    run(tmp_path / "run", *words)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["win_rate"] < 0.49  # it goes for what loses


def test_a_judge_in_pairrms_layout_drives_a_run_end_to_end(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": f"Name {i} rivers."}) + "\n" for i in range(6))
    )
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"""
iterations: 1
samples_per_prompt: 3
rule: rspo
fit: regression
fit_options: {{estimator: published}}
eta: 100
lam: 1
regularizer: 0.1*forward_kl+0.5*reverse_kl
chunk_size: 2
model: {{path: {save_causal_lm(tmp_path / "model")}, device: cpu}}
lora: {{rank: 2}}
data: {{path: {prompts}}}
sample: {{max_new_tokens: 6}}
judge: {{kind: pairrm, path: {save_pairrm(tmp_path / "pairrm")}, device: cpu}}
train: {{batch_size: 6, micro_batch_size: 3, gradient_checkpointing: true}}
evaluation: {{prompts: 2}}
"""
    )
    shown = run(tmp_path / "run", config=str(config))
    assert "forward_kl: temperature τ = 0.0005" in shown
    assert "π_T" in shown
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["win_rate"] < 1
    assert last["kl_to_equilibrium"] is None
    assert last["self_bleu"] is not None


# --- what goes wrong ------------------------------------------------------------------------------

calls = 0


def broken_later(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """Judges the first two chunks, then returns NaN; as long as a file is there."""
    global calls
    calls += 1
    table = np.array(
        [[[0.5 + 0.1 * (a > b) - 0.1 * (a < b) for b in row] for a in row] for row in responses]
    )
    return table * np.nan if calls > 2 and Path(os.environ["BROKEN"]).exists() else table


def constant(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    return np.full((len(responses), len(responses[0]), len(responses[0])), 0.5)


@pytest.fixture
def restored() -> None:
    global calls
    calls = 0


JUDGED = ("judge.kind=callable",)


def test_a_judge_that_breaks_in_the_middle_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, restored
) -> None:
    (tmp_path / "broken").touch()
    monkeypatch.setenv("BROKEN", str(tmp_path / "broken"))
    path = tmp_path / "run"
    words = [*SMALL, *JUDGED, "judge.path=tests.test_train:broken_later", f"output_dir={path}"]
    words += ["iterations=1", "evaluation.prompts=0"]
    assert main(["--config", "embedded-game", *words]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "NaN" in said
    assert "the same command continues" in said
    stored = path / "iterations" / "000"
    before = snapshot(path)
    judged = len(list(stored.rglob("preferences/*.jsonl")))
    assert judged == 2
    (tmp_path / "broken").unlink()
    assert main(["--config", "embedded-game", *words]) == 0
    for file, content in before.items():
        if file.suffix == ".jsonl" and "iterations" in file.parts:
            assert (file.stat().st_mtime_ns, file.read_bytes()) == content


def test_a_judge_that_tells_nothing_apart_is_refused(tmp_path: Path) -> None:
    words = (*JUDGED, "judge.path=tests.test_train:constant", "evaluation.prompts=0")
    with pytest.raises(Interrupted, match=r"returned 0\.5 for all"):
        run(tmp_path / "run", *words)
    assert not (tmp_path / "run" / "iterations" / "000" / "preferences").exists()
    assert (tmp_path / "run" / "iterations" / "000" / "responses").exists()


def raising(error: Exception):
    def function(*args, **kwargs):
        raise error

    return function


@pytest.mark.parametrize(
    ("where", "what", "knob"),
    [
        (transformers_engine, "sample", "sample.batch_size"),
        (stages, "judge_responses", "judge.batch_size"),
        (fitting, "batch_loss", "train.gradient_checkpointing"),
    ],
)
def test_out_of_memory_names_the_knob(tmp_path, monkeypatch, where, what, knob) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    monkeypatch.setattr(where, what, raising(error))
    with pytest.raises(Interrupted) as caught:
        run(tmp_path / "run")
    assert knob in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    # The knob may be turned: memory is not the algorithm.
    run(tmp_path / "run", "sample.batch_size=16", "train.gradient_checkpointing=true")


def test_a_full_disk_stops_the_run_in_one_line(tmp_path: Path, monkeypatch) -> None:
    count, genuine = [0], os.fsync

    def full(handle: int) -> None:
        count[0] += 1
        if count[0] > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        genuine(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Interrupted, match="the disk is full"):
        run(tmp_path / "run")
    monkeypatch.undo()
    run(tmp_path / "run")


@pytest.mark.parametrize("size", [1_000, 20_000, 100_000])
def test_a_limit_on_the_size_of_files_stops_the_run_in_one_line(
    tmp_path: Path, monkeypatch, size: int
) -> None:
    """Of any file: what is logged, chunks, adapters by safetensors, optimizers by torch."""
    path = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    action = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start
    console = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # pytest's is a file, too
    config = load_config("embedded-game", [*SMALL, f"output_dir={path}"])
    check_settings(config)  # writes temporary files, once in a process
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        with pytest.raises(Interrupted, match=r"larger than allowed.* the same command continues"):
            train(config, console)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, action)
    run(path)
    assert (path / "final").is_dir()


def test_a_full_temporary_directory_is_not_a_wrong_setting(monkeypatch) -> None:
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("llm.run.checks._tried", set())
    monkeypatch.setattr("llm.run.checks.FitTrainer", full)
    with pytest.raises(InputError, match=r"temporary files cannot be written .* set TMPDIR"):
        check_settings(GAME)


def test_a_loss_that_explodes_stops_the_run_before_its_adapter_is_kept(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=r"lower eta or train\.learning_rate"):
        run(tmp_path / "run", "train.learning_rate=1e30", "train.max_grad_norm=0")
    assert not (tmp_path / "run" / "iterations" / "000" / "adapter").exists()


def cut_weights(path: Path) -> str:
    shutil.copytree(HERE / "game", path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return str(path)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model.path=/nowhere", "model.path=/nowhere"),
        ("model.path=CUT", "model.path="),
        ("model.adapter=/nowhere", "model.adapter=/nowhere"),
        ("model.device=cuda", "model.device=cuda"),
        ("data.path=nothing.jsonl", "data.path=nothing.jsonl: "),
        ("data.path=EMPTY", "no prompts"),
        ("data.chat_template=null", "no chat template"),
        ("data.max_prompt_length=1", "data"),
        ("sample.max_new_tokens=100", "exceed the context of 16 tokens"),
        (
            "judge.path=taste",
            "judge.path=taste: unknown embedded judge; choose from game, styles, length",
        ),
        ("rule=gmdm", "did you mean 'gmmd'"),
        ("rule=nowhere:rule", "rule 'nowhere:rule' cannot be imported"),
        ("regularizer=chi3", "chi2"),
        ("rule=spin", "rule 'spin' is unregularized"),
        ("fit_options.clp=3", "clp"),
        ("rule_options.speed=3", "rule_options"),
        ("train.batch_size=400", "train.batch_size=400: an iteration has only"),
        ("train.arguments.speed=3", "train.arguments.speed"),
        ("train.schedule=fast", "train:"),
        ("evaluation.prompts=9", "prompts are too few"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, word: str, said: str) -> None:
    if "CUT" in word:
        word = f"model.path={cut_weights(tmp_path / 'cut')}"
    if "EMPTY" in word:
        (tmp_path / "empty.jsonl").touch()
        word = f"data.path={tmp_path / 'empty.jsonl'}"
    path = tmp_path / "run"
    code = main(["--config", "embedded-game", *SMALL, f"output_dir={path}", word])
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1]
    assert lines[-1].startswith("error: ")
    assert code == 2
    assert not path.exists()


def test_tokens_without_an_embedding_are_named_with_their_row(tmp_path: Path, capsys) -> None:
    """The game's model has none for </s>, which a text may spell."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "ab"}\n{"prompt": "a</s>"}\n')
    words = ["--config", "embedded-game", f"data.path={data}", "--dry-run"]
    assert main([*words, f"output_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "data.jsonl:2: '</s>' is a token without an embedding (id 5 of 5)" in said


def test_an_adapter_of_another_base_model_is_refused(whole: Path, tmp_path: Path, capsys) -> None:
    words = ["model.path=embedded:text", "data.path=embedded:text", "data.chat_template=null"]
    words += ["judge.path=styles", f"model.adapter={whole / 'final'}", "sample.max_new_tokens=9"]
    path = tmp_path / "run"
    assert main(["--config", "embedded-game", *SMALL, *words, f"output_dir={path}"]) == 2
    assert "another base model" in capsys.readouterr().err
    # Of its own base model it is where the run starts from.
    run(path, f"model.adapter={whole / 'final'}", "iterations=1")
    first = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["kl_to_reference"] > 0.01


# --- without arguments ----------------------------------------------------------------------------


def test_without_a_configuration_only_three_things_can_be_given(capsys) -> None:
    assert main(["train.batch_size=10"]) == 2
    said = capsys.readouterr().err
    assert "iterations, output_dir, seed" in said
    assert "embedded-text" in said


def test_the_default_runs_both_embedded_configurations(tmp_path: Path, capsys) -> None:
    assert main([f"output_dir={tmp_path}", "iterations=1", "seed=3"]) == 0
    shown = capsys.readouterr().out
    assert "π* 0.5" in shown
    for part in ("game", "text"):
        assert len((tmp_path / part / "metrics.jsonl").read_text().splitlines()) == 2
        assert load_config(tmp_path / part / "config.yaml").seed == 3
    assert shown.splitlines()[-1] == str(tmp_path / "text" / "curves.png")


@pytest.mark.parametrize("first", ["import llm.train", "from llm import train", "import llm"])
def test_the_entry_is_imported_from_the_package_in_any_order(first: str) -> None:
    names = "from llm import TrainConfig, run_training\nfrom llm.train import train"
    code = f"{first}\n{names}\nassert train is run_training\nprint('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "ok\n", done.stderr


def test_the_trainer_runs_without_the_optional_libraries(tmp_path: Path) -> None:
    code = f"""
import sys
for name in ("datasets", "cvxpy", "llm_blender", "matplotlib", "sentencepiece"):
    sys.modules[name] = None
from llm.train import main
sys.exit(main(["--config", "embedded-game", *{SMALL!r}, "iterations=1",
               "output_dir={tmp_path / "run"}"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "pip install matplotlib" in (tmp_path / "run" / "run.log").read_text()
    assert not (tmp_path / "run" / "curves.png").exists()


# --- learning (minutes) ---------------------------------------------------------------------------


def shares(path: Path) -> np.ndarray:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return np.array([list(row["styles"].values()) for row in rows])


@pytest.mark.slow
def test_the_game_is_learnt_close_to_its_equilibrium(tmp_path: Path) -> None:
    path = tmp_path / "run"
    train(load_config("embedded-game", [f"output_dir={path}"]), Console(file=io.StringIO()))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    # Seen: 0.606 to 0.018, never more than 0.023 from the exact iterate.
    assert rows[0]["kl_to_equilibrium"] > 0.5
    assert rows[-1]["kl_to_equilibrium"] < 0.03
    assert max(row["kl_to_exact_iterate"] for row in rows) < 0.04


@pytest.mark.slow
def test_styles_settle_with_a_regulariser_and_cycle_without(tmp_path: Path) -> None:
    for name in ("embedded-text", "embedded-text-cycle"):
        config = load_config(name, [f"output_dir={tmp_path / name}"])
        train(config, Console(file=io.StringIO()))
    settled, cycling = shares(tmp_path / "embedded-text"), shares(tmp_path / "embedded-text-cycle")
    (first, *_) = (tmp_path / "embedded-text" / "metrics.jsonl").read_text().splitlines()
    star = np.array(list(json.loads(first)["equilibrium_styles"].values()))
    # 144 responses an iteration: a standard error of 0.04, and the policy's own noise.
    assert np.abs(settled[-5:].mean(0) - star).max() < 0.08
    # Each style has its day: seen .76, .72 and .96.
    assert (cycling[:, :3].max(0) > 0.55).all()


def test_an_infinite_step_size_is_text_in_the_plan(tmp_path: Path) -> None:
    words = ["--config", "embedded-text", "--dry-run", "--json", str(tmp_path / "plan.json")]
    assert main([*words, "recipe=dpo", f"output_dir={tmp_path / 'run'}"]) == 0
    assert json.loads((tmp_path / "plan.json").read_text())["eta"] == "inf"
