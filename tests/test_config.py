from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from games.errors import InputError
from llm.config.help import describe
from llm.config.loading import differences, load_config, shipped_configs, to_yaml
from llm.config.registries import ENGINES, JUDGES
from llm.config.schema import (
    DataConfig,
    EvaluationConfig,
    JudgeConfig,
    ModelConfig,
    SampleConfig,
    TrainConfig,
)
from llm.config.section import flatten, unsavable
from llm.train import _configs, main
from solvers.divergences import NAMES, parse
from solvers.fits import FITS, Proximal
from solvers.rules import ALIASES, RULES

SMALLEST = {"model": {"path": "m"}, "data": {"path": "d"}, "judge": {"kind": "pairrm"}}


def build(**values) -> TrainConfig:
    return TrainConfig.from_dict(SMALLEST | values)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SMALLEST))
    return path


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_configuration_loads_and_survives_its_own_yaml(name: str, tmp_path) -> None:
    config = load_config(name)
    copy = tmp_path / "config.yaml"
    copy.write_text(to_yaml(config))
    assert load_config(copy) == config
    assert config.output_dir == f"runs/{name}"


def test_a_file_is_named_by_its_path_and_gives_the_run_its_name(file: Path) -> None:
    assert load_config(file).output_dir == "runs/mine"
    assert load_config(file, ["output_dir=elsewhere"]).output_dir == "elsewhere"


def test_overrides_reach_every_depth_and_win_over_the_file(file: Path) -> None:
    words = ["seed=7", "train.batch_size=32", "train.arguments.fsdp=full_shard", "tau=5e-2"]
    config = load_config(file, [*words, "regularizer=reverse_kl", "seed=8"])
    assert (config.seed, config.train.batch_size, config.tau) == (8, 32, 0.05)
    assert config.train.arguments == {"fsdp": "full_shard"}


def test_from_python_the_same_checks_hold() -> None:
    with pytest.raises(InputError, match=r"train\.batch_size: must be at least 1"):
        dataclasses.replace(build().train, batch_size=0)


@given(st.sampled_from([name for name in flatten(build()) if "." not in name]))
def test_a_missing_letter_is_answered_with_the_name(name: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainConfig.from_dict(SMALLEST | {name[:-1]: 1})
    assert f"{name[:-1]!r}" in str(caught.value)
    assert name in str(caught.value) or "did you mean" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sede": 1}, "did you mean 'seed'"),
        ({"batch_size": 1}, "did you mean 'train.batch_size'"),
        ({"train": {"lerning_rate": 1}}, "did you mean 'train.learning_rate'"),
        ({"fit": "regresion"}, "fit: there is no 'regresion'; did you mean 'regression'"),
        ({"judge": {"kind": "human"}}, "judge.kind: there is no 'human'; choose from pairrm"),
        ({"judge": {}}, "judge.kind: missing"),
        ({"model": {}}, "model.path: missing"),
        ({"model": "m"}, "model: expected fields"),
        ({"seed": 1.5}, "seed: expected int, got 1.5"),
        ({"seed": True}, "seed: expected int, got True"),
        ({"fresh": "yes"}, "fresh: expected bool, got 'yes'"),
        ({"eta": float("nan")}, "eta: expected float or null"),
        ({"eta": 0}, "eta: must be above 0"),
        ({"sample": {"top_p": 1.5}}, "sample.top_p: must be at most 1"),
        ({"lora": {"target_modules": [1.5, {}]}}, "lora.target_modules: expected str or list"),
        ({"tau": 0.1, "lam": 0.1, "regularizer": "chi2"}, "tau and lam: give only one"),
        ({"tau": 0.1}, "regularizer: missing"),
        (
            {"train": {"batch_size": 10, "micro_batch_size": 4}},
            "train.batch_size: 10 is not a multiple of train.micro_batch_size=4",
        ),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_that_names_the_field(values: dict, said: str) -> None:
    with pytest.raises(InputError) as caught:
        build(**values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed"], "seed: expected key=value"),
        (["=3"], "=3: expected key=value"),
        (["seed.deep=1"], "there is no 'seed.deep'"),
        (["trian.batch_size=1"], "did you mean 'train.batch_size'"),
        (["model.path.deep=1"], "there is no 'model.path.deep'"),
        (["tau=[1"], "tau: '[1' is not a YAML value"),
    ],
)
def test_a_bad_override_is_refused(file: Path, words: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(file, words)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not a YAML file"),
        ("just words", "expected lines"),
        ("", "expected lines"),
        ("seed: " + "9" * 5000, "not a YAML file"),
        ("[" * 5000, "not a YAML file"),
        ("train: {arguments: &x {a: [*x]}}", "not a YAML file .an alias refers"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"{path}: {said}"):
        load_config(path)


def test_an_alias_may_stand_twice(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(
        yaml.safe_dump(SMALLEST)
        + "rule_options: &x {a: [1]}\nfit_options: *x\ntrain: {arguments: *x}"
    )
    assert load_config(path).train.arguments == {"a": [1]}


def test_a_configuration_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.yaml")
    with pytest.raises(InputError, match=r"p\.yaml is not a regular file"):
        load_config(tmp_path / "p.yaml")
    with pytest.raises(InputError, match=r"there is no file '.*q\.yaml'$"):
        load_config(tmp_path / "q.yaml")


def test_without_a_file_the_words_are_the_configuration(capsys) -> None:
    words = ["model.path=m", "data.path=d", "judge.kind=pairrm"]
    assert load_config(None, words) == build()
    assert load_config(None, [*words, "recipe=inpo"]).output_dir == "runs/train-inpo"
    (config,) = _configs(None, [*words, "seed=3"])
    assert (config.seed, config.output_dir) == (3, "runs/train")
    with pytest.raises(InputError, match=r"^judge\.kind: missing"):
        load_config(None, words[:2])
    with pytest.raises(InputError, match=r"^data\.path, judge\.kind: missing; without --config"):
        _configs(None, words[:1])
    with pytest.raises(InputError, match=r"tau: without --config only iterations, .*judge\.kind$"):
        _configs(None, ["tau=1"])
    assert main(["--json", "-", "--dry-run"]) == 2
    assert "--json: goes with --dry-run and one run" in capsys.readouterr().err


def test_an_unknown_configuration_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'embedded-game'"):
        load_config("embeded-game")


@given(
    st.floats(1e-12, 1e12),
    st.integers(0, 2**31),
    st.sampled_from([None, "chi2", "0.1*forward_kl+0.5*reverse_kl"]),
    st.lists(st.text("abc_", min_size=1), max_size=3),
)
def test_yaml_gives_back_what_it_was_given(rate, seed, regularizer, modules) -> None:
    config = build(
        seed=seed,
        regularizer=regularizer,
        train={"learning_rate": rate},
        lora={"target_modules": modules},
    )
    assert TrainConfig.from_dict(yaml.safe_load(to_yaml(config))) == config


# --- objects --------------------------------------------------------------------------------------


def metric_of_this_module(*given) -> None:
    """An object with an import path."""


class FitOfThisModule(Proximal):
    """A class with an import path."""


def with_objects(rule: object, judge: object, metrics: tuple, **values) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(path="m"),
        data=DataConfig(path="d"),
        rule=rule,
        judge=JudgeConfig(kind="callable", path=judge),
        evaluation=EvaluationConfig(metrics=metrics),
        **values,
    )


def test_objects_with_an_import_path_are_stored_by_it(tmp_path: Path) -> None:
    here = f"{__name__}:metric_of_this_module"
    config = with_objects(
        RULES["omd"],
        metric_of_this_module,
        (metric_of_this_module, "a.b:c"),
        fit=FitOfThisModule,
        sample=SampleConfig(engine=metric_of_this_module),
    )
    # Entries of a registry have a name.
    assert (config.rule, config.fit) == ("omd", f"{__name__}:FitOfThisModule")
    assert dataclasses.replace(config, fit=FITS["pairwise"]).fit == "pairwise"
    assert config.judge.path == config.sample.engine == here
    assert config.evaluation.metrics == (here, "a.b:c")
    assert unsavable(config) == []
    stored = tmp_path / "config.yaml"
    stored.write_text(to_yaml(config))
    assert load_config(stored) == config


def test_objects_without_an_import_path_are_kept_and_named(tmp_path: Path) -> None:
    rule, regularizer = dataclasses.replace(RULES["omd"], name="mine"), parse("js+chi2")

    def judge(prompts: list, responses: list) -> None: ...

    config = with_objects(rule, judge, ("a.b:c", lambda: None), regularizer=regularizer, tau=0.1)
    assert (config.rule, config.regularizer, config.judge.path) == (rule, regularizer, judge)
    fields = ["rule", "regularizer", "judge.path", "evaluation.metrics"]
    assert unsavable(config) == fields
    stored = yaml.safe_load(to_yaml(config))
    assert stored["rule"] == "<mine without an import path>"
    assert stored["evaluation"]["metrics"][0] == "a.b:c"
    assert stored["evaluation"]["metrics"][1].endswith("<lambda> without an import path>")
    refused, _ = differences(config, config)
    assert [line.split(":")[0] for line in refused] == fields
    path = tmp_path / "config.yaml"
    for name in fields:
        values = build(judge={"kind": "callable", "path": "a:b"})
        section, _, last = name.rpartition(".")
        changed = yaml.safe_load(to_yaml(values))
        (changed[section] if section else changed)[last] = (
            stored[section][last] if section else stored[last]
        )
        path.write_text(yaml.safe_dump(changed))
        with pytest.raises(InputError) as caught:
            load_config(path)
        assert str(caught.value).startswith(f"{name}: <" if "metrics" not in name else name)
        assert "neither resumed nor repeated" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_object_among_the_options_is_named() -> None:
    config = build(rule_options={"alpha": np.float64(0.5), "memory": (1, object())})
    assert unsavable(config) == ["rule_options"]
    assert yaml.safe_load(to_yaml(config))["rule_options"] == {
        "alpha": 0.5,
        "memory": [1, "<object without an import path>"],
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rule": "gmdm"}, "rule: there is no 'gmdm'; did you mean 'gmmd'?"),
        ({"rule": "x"}, "spin, sppo, rspo, or give an import path package.module:object"),
        ({"rule": ["gmmd"]}, "rule: expected str, got ['gmmd']"),
        ({"sample": {"engine": "tgi"}}, "sample.engine: there is no 'tgi'; choose from"),
        ({"evaluation": {"metrics": ["length"]}}, "evaluation.metrics: expected an import path"),
        ({"evaluation": {"metrics": "a:b"}}, "evaluation.metrics: expected list, got 'a:b'"),
        (
            {"judge": {"kind": "pairrm", "path": lambda: 0}},
            "judge.path: a function needs judge.kind",
        ),
        ({"judge": {"kind": "callable", "path": object()}}, "judge.path: expected a function"),
        ({"output_dir": print}, "output_dir: expected str, got <built-in function print>"),
        ({"eta": 10**400}, "eta: expected float or null, got 1000"),
        ({"eta": 10**5000}, "eta: expected float or null, got a int that cannot be printed"),
        ({"seed": 2**32}, "seed: must be at most 4294967295"),
        ({"fit_options": {1: 2}}, "fit_options: names must be strings, got 1"),
    ],
)
def test_what_is_neither_a_name_nor_an_object_is_refused(values: dict, said: str) -> None:
    with pytest.raises(InputError) as caught:
        build(**values)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_path_is_text() -> None:
    assert JudgeConfig(kind="pairrm", path=Path("a") / "b").path == "a/b"


# --- comparing and describing ---------------------------------------------------------------------


def test_changes_of_memory_are_told_from_changes_of_the_algorithm() -> None:
    old = build(output_dir="a")
    new = build(output_dir="b", seed=1, train={"micro_batch_size": 2}, sample={"batch_size": 1})
    refused, allowed = differences(old, new)
    assert refused == ["seed: 42 -> 1"]
    assert [line.split(":")[0] for line in allowed] == [
        "output_dir",
        "sample.batch_size",
        "train.micro_batch_size",
    ]


def test_the_help_describes_every_field() -> None:
    shown = describe()
    for name in flatten(build()):
        assert f"{name}  [" in shown


def test_the_help_lists_the_registries() -> None:
    lines = describe().splitlines()
    own = "package.module:object"
    for name, known in {
        "rule": [*RULES, *ALIASES, own],
        "fit": [*FITS, own],
        "regularizer": [*NAMES, own],
        "judge.kind": [*JUDGES, "none"],
        "sample.engine": [*ENGINES, own],
    }.items():
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{name}  ["))
        assert lines[place + 1].endswith(f"({' | '.join(known)})")


def test_help_and_bad_configurations_answer_without_torch() -> None:
    code = (
        "import sys; from llm.train import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert main(['--config', 'embedded-game', 'sed=1']) == 2\n"
        "assert main(['train.batch_size=3']) == 2\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "samples_per_prompt" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(done.stderr.splitlines()) == 2


# --- sizes and names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("samples_per_prompt=1000000", "samples_per_prompt: must be at most 1024"),
        ("evaluation.samples=1000000", "evaluation.samples: must be at most 1024"),
        ("rule_options={memory: 1000000000000}", "rule_options.memory: must be at most 10000"),
        ("threads=100000", "threads: must be at most 1024"),
        ("lora.rank=1000000000000", "lora.rank: must be at most"),
        ("data.prompts_per_iteration=1000000000000", "must be at most 1000000000"),
        *(
            (f"{name}={'x' * 256}", f"{name}: .* has a name of 256 bytes")
            for name in ("output_dir", "model.path", "model.adapter", "data.path", "judge.path")
        ),
        (f"output_dir={'x/' * 2100}", "output_dir: .* file systems take at most 255, and 4095"),
        ('output_dir="a\\0b"', "output_dir: contains a null character"),
    ],
)
def test_sizes_and_names_that_cannot_be_meant_are_refused(word: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_config("embedded-game", [word])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_names_of_configurations_that_no_file_has(tmp_path: Path) -> None:
    for name in ("x" * 300, f"{'x' * 300}.yaml", "a\0b.yaml"):
        with pytest.raises(InputError, match="configuration: "):
            load_config(name)
    path = tmp_path / "a.yaml"
    path.write_text(f"extends: {'x' * 300}\n")
    with pytest.raises(InputError, match=r"extends: .* has a name of"):
        load_config(path)


def test_aliases_that_expand_to_too_much_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"a\.yaml: .*more than 100,000 values, with its aliases"):
        load_config(path)
    path.write_text("extends: embedded-game\nrule_options: &o {memory: 3}\nfit_options: {}\n")
    assert load_config(path).rule_options == {"memory": 3}


def test_numbers_and_dates_in_text_fields_are_kept_as_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: embedded-game\noutput_dir: 1.10\ndata: {field: 2024-01-01}\n")
    config = load_config(path, ["data.split=007", "seed=007"])
    assert (config.output_dir, config.data.field, config.data.split) == (
        "1.10",
        "2024-01-01",
        "007",
    )
    assert config.seed == 7


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "train: {epochs: 1, epochs: 2}\n"])
def test_a_field_given_twice_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: embedded-game\n{text}")
    with pytest.raises(InputError, match="occurs twice"):
        load_config(path)


def test_a_tag_that_does_not_fit_its_value_is_refused() -> None:
    with pytest.raises(InputError, match=r"seed: .* is not a YAML value"):
        load_config("embedded-game", ["seed=!!int ''"])
