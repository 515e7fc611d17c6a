"""Recipes and shipped configurations: how they are read, and that each of them runs."""

from __future__ import annotations

import gc
import io
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from games import zoo
from games.errors import InputError
from llm.config.help import describe
from llm.config.loading import differences, load_config, shipped_configs, to_yaml
from llm.config.recipes import merge, recipes, with_recipe
from llm.run.setup import rule_and_fit
from llm.storage.files import read_json
from llm.train import main, train
from tests.tiny_models import save_causal_lm

NAMES = list(recipes())
SMALLEST = {"model": {"path": "m"}, "data": {"path": "d"}, "judge": {"kind": "pairrm"}}


def write(path: Path, **values) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


# --- extends --------------------------------------------------------------------------------------


def test_a_file_is_read_over_what_it_extends(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", **SMALLEST, seed=1, eta=3, train={"batch_size": 8})
    write(tmp_path / "middle.yaml", extends="base.yaml", eta=5, train={"epochs": 2})
    top = write(tmp_path / "top.yaml", extends=str(tmp_path / "middle.yaml"), seed=2)
    config = load_config(top, ["train.epochs=3"])
    assert (config.seed, config.eta) == (2, 5)
    assert (config.train.batch_size, config.train.epochs) == (8, 3)
    assert config.output_dir == "runs/top"


def test_a_file_may_extend_a_shipped_configuration(tmp_path: Path) -> None:
    mine = load_config(write(tmp_path / "mine.yaml", extends="embedded-game", tau=0.2))
    refused, _ = differences(load_config("embedded-game"), mine)
    assert refused == ["tau: 0.1 -> 0.2"]


def test_another_fit_or_rule_does_not_inherit_options() -> None:
    under = {"fit": "regression", "fit_options": {"clip": 3}, "rule_options": {"alpha": 1}}
    assert merge(under, {"fit": "proximal"}).get("fit_options") is None
    assert merge(under, {"fit": "regression"})["fit_options"] == {"clip": 3}
    assert merge(under, {"rule": "spin", "rule_options": {"memory": 2}})["rule_options"] == {
        "memory": 2
    }


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a": {"extends": "a.yaml"}}, "a.yaml: extends a.yaml, which extends this file"),
        (
            {"a": {"extends": "b.yaml"}, "b": {"extends": "c.yaml"}, "c": {"extends": "b.yaml"}},
            "c.yaml: extends b.yaml, which extends this file",
        ),
        (
            {"a": {"extends": "embeded-game"}},
            "a.yaml: extends: there is no 'embeded-game'; did you",
        ),
        ({"a": {"extends": ["b", "c"]}}, "a.yaml: extends: expected one name, got ['b', 'c']"),
        ({"a": {"recipe": {"rule": "gmmd"}}}, "a.yaml: recipe: expected one name, got {"),
        ({"a": {"extends": "embedded-game", "recipe": "inpoo"}}, "did you mean 'inpo'"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path: Path, files: dict, said: str) -> None:
    for name, values in files.items():
        write(tmp_path / f"{name}.yaml", **values)
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / "a.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# --- recipe=NAME ----------------------------------------------------------------------------------


def test_a_recipe_changes_the_method_and_nothing_else() -> None:
    refused, free = differences(
        load_config("embedded-game"), load_config("embedded-game", ["recipe=inpo"])
    )
    assert {line.split(":")[0] for line in refused} == {
        *("rule", "fit", "fit_options", "selection", "samples_per_prompt")
    }
    assert free == ["output_dir: runs/embedded-game -> runs/embedded-game-inpo"]


def test_words_win_over_a_recipe_wherever_they_stand() -> None:
    for words in (["eta=9", "selection=null", "recipe=inpo"], ["recipe=inpo", "selection=null"]):
        config = load_config("embedded-game", words)
        assert (config.rule, config.selection) == ("inpo", None)
        assert config.eta == (9 if "eta=9" in words else 4)


def test_words_do_not_change_the_recipe_itself() -> None:
    words = ["recipe=alpha_spin", "rule_options.alpha=0.5", "data.answer=gold"]
    assert load_config("embedded-game", words).rule_options["alpha"] == 0.5
    again = load_config("embedded-game", words[:1])
    assert (again.rule_options["alpha"], again.data.answer) == (0.95, "answer")


def test_a_recipe_replaces_the_one_before() -> None:
    config = load_config("llama3-8b-inpo", ["recipe=sppo"])
    assert (config.rule, config.fit_options, config.selection) == ("mwu", {}, None)
    assert (config.tau, config.regularizer, config.eta) == (None, None, 200)


def test_in_a_file_a_recipe_stands_between_what_it_extends_and_its_own(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", extends="embedded-game", recipe="dpo", regularizer="js")
    config = load_config(mine)
    assert (config.rule, config.eta, config.tau, config.regularizer) == ("dpo", None, 0.1, "js")
    over = load_config(mine, ["recipe=spin"])
    assert (over.rule, over.tau, over.regularizer) == ("spin", None, None)


def test_defaults_of_a_recipe_give_way_to_the_configuration() -> None:
    assert with_recipe({}, "spin")["data"] == {"answer": "answer"}
    mine = with_recipe({"data": {"answer": "gold", "path": "d"}}, "spin")
    assert mine["data"] == {"answer": "gold", "path": "d"}


def test_the_stored_configuration_is_the_resolved_one(tmp_path: Path) -> None:
    config = load_config("embedded-game", ["recipe=alpha_spin", "rule_options.memory=.inf"])
    stored = tmp_path / "config.yaml"
    stored.write_text(to_yaml(config))
    assert "recipe" not in stored.read_text()
    assert load_config(stored) == config
    assert config.rule_options == {"alpha": 0.95, "memory": math.inf}


def test_an_unknown_recipe_is_answered_with_the_nearest(capsys) -> None:
    assert main(["--config", "embedded-game", "recipe=inpoo"]) == 2
    assert capsys.readouterr().err == "error: recipe: there is no 'inpoo'; did you mean 'inpo'?\n"


def test_the_help_names_every_recipe_and_its_source() -> None:
    shown = describe().splitlines()
    for name, fields in recipes().items():
        assert any(line.split() == [name, *fields["source"].split()] for line in shown)


@pytest.mark.parametrize("name", NAMES)
def test_the_rule_and_the_fit_of_a_recipe_go_together(name: str) -> None:
    rule_and_fit(load_config("embedded-game", [f"recipe={name}"]))


@pytest.mark.parametrize("name", NAMES)
def test_an_unregularized_recipe_leaves_nothing_of_a_regularizer(name: str) -> None:
    config = load_config("mistral-7b-rspo", [f"recipe={name}"])
    rule, _ = rule_and_fit(config)
    if not rule.regularized:
        assert (config.tau, config.lam, config.regularizer) == (None, None, None)
    if rule.eta == math.inf:
        assert (config.eta, config.lam) == (None, None)


# --- they run -------------------------------------------------------------------------------------

# What a run may be told here: model, data, judge and sizes, nothing of rule, fit or their options.
SMALL = (
    "iterations=1",
    "train.batch_size=4",
    "train.micro_batch_size=4",
    "train.epochs=1",
    "train.arguments={max_steps: 2}",
    "threads=1",
)
TINY = (
    *SMALL,
    *("model.dtype=float32", "model.device=cpu", "lora.rank=2", "lora.alpha=4"),
    *("data.split=train", "data.folds=1", "data.prompts_per_iteration=8"),
    *("sample.max_new_tokens=5", "train.gradient_checkpointing=false"),
    *("evaluation.prompts=2", "evaluation.samples=2"),
)
GAME = (*SMALL, "data.prompts_per_iteration=16", "sample.batch_size=128")
TEXT = (*SMALL, "data.prompts_per_iteration=8", "sample.max_new_tokens=12", "evaluation.prompts=2")


def judge(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """Bradley-Terry with a checksum as reward: hardly ever a tie."""
    sums = [[zlib.crc32(text.encode()) for text in row] for row in responses]
    return zoo.bradley_terry(np.array(sums) / 2**31).payoff


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.run.session.draw_curves", lambda *metrics: False)


@pytest.fixture(scope="module", autouse=True)
def _old_garbage() -> Iterator[None]:
    """The Trainer collects all garbage when it starts, a fifth of a run's time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A checkpoint, and data in the fields that the shipped configurations name."""
    directory = tmp_path_factory.mktemp("tiny")
    with (directory / "data.jsonl").open("w") as stream:
        for i in range(10):
            asked = {"role": "user", "content": f"Name {i} rivers."}
            answered = [asked, {"role": "assistant", "content": "The answer is short."}]
            row = {"prompt": asked["content"], "context_messages": [asked]}
            stream.write(json.dumps(row | {"real": answered, "messages": answered}) + "\n")
    model = save_causal_lm(directory / "model")
    return f"model.path={model}", f"data.path={directory / 'data.jsonl'}"


def curves(path: Path, *words: str, config: str = "embedded-game") -> list[list[float]]:
    """The losses of a run, by optimizer step and iteration."""
    given = GAME if config == "embedded-game" else ()
    run = train(
        load_config(config, [*given, *words, f"output_dir={path}"]), Console(file=io.StringIO())
    )
    losses = [read_json(path, None) for path in sorted(run.path.glob("iterations/*/losses.json"))]
    assert all(np.isfinite(steps).all() for steps in losses)
    return losses


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_configuration_trains(name: str, tiny: tuple[str, str], tmp_path) -> None:
    if name.startswith("embedded"):
        words = list(GAME if name == "embedded-game" else TEXT)
    else:
        words = [*TINY, *tiny]
        if load_config(name).judge.kind != "none":
            words += ["judge.kind=callable", f"judge.path={__name__}:judge"]
    if name == "smoke-7b-shape":  # drawn at random in a shape
        words.append(tiny[0].replace("path", "random_from_config"))
    changed, _ = differences(load_config(name), load_config(name, words))
    assert not {line.split(":")[0] for line in changed} & {
        *("rule", "fit", "rule_options", "fit_options", "selection", "samples_per_prompt"),
        *("eta", "tau", "lam", "regularizer", "diagonal", "pooled_iterations"),
    }
    (losses,) = curves(tmp_path / "run", *words, config=name)
    assert len(losses) == 2


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_trains(name: str, tmp_path: Path) -> None:
    (losses,) = curves(tmp_path / "run", f"recipe={name}")
    assert len(losses) == 2


# --- equal training curves ------------------------------------------------------------------------

LONGER = ("iterations=2", "train.arguments={max_steps: 4}")


@pytest.mark.parametrize(
    ("general", "special"),
    [
        (("recipe=alpha_spin", "rule_options={alpha: 1, memory: 1}"), ("recipe=spin",)),
        (("recipe=rspo", "tau=null", "lam=0"), ("recipe=sppo",)),
        # Without log μ: the winner's and the loser's log π_θ/π_t, INPO's ablation (Table 3).
        (("recipe=inpo", "tau=0"), ("recipe=inpo", "rule=mwu", "tau=null", "regularizer=null")),
    ],
    ids=["α-SPIN(α = 1, h = 1) = SPIN", "RSPO(λ = 0) = SPPO", "INPO(τ = 0) without log μ"],
)
def test_a_special_case_has_the_same_curve(general, special, tmp_path: Path) -> None:
    one, other = (
        curves(tmp_path / str(i), *words, *LONGER) for i, words in enumerate((general, special))
    )
    assert one == other


def test_accumulated_batches_have_the_same_curve(tmp_path: Path) -> None:
    at_once, accumulated = (
        curves(tmp_path / size, *LONGER, "train.batch_size=8", f"train.micro_batch_size={size}")
        for size in ("8", "4")
    )
    # Sums in another order, in float32, over eight steps.
    np.testing.assert_allclose(at_once, accumulated, rtol=1e-4)
