"""A file outside the package adds a kernel, a fit, a rule, a metric, a judge and an engine."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from games import zoo
from llm import load_config, run_training
from llm.config.schema import EvaluationConfig
from llm.train import main as train
from solvers import duality_gap, parse
from solvers.__main__ import main as solvers

EXTENSION = '''
"""One of each extension point; nothing of the package is changed."""

from dataclasses import dataclass, replace

import numpy as np
from array_api_compat import array_namespace

from llm.evaluation.metrics import Metric
from llm.sampling.transformers_engine import TransformersEngine
from solvers import RULES
from solvers.fits import Proximal
from solvers.kernels import Kernel
from solvers.steps import step


def exp(r):
    return array_namespace(r).exp(r)


# Le Cam's divergence, f(u) = (u - 1)^2 / (2(u + 1)): floor and ceiling of f' are both finite.
# In v = 1/(1 + u): f = (1 - 2v)^2 / (2v) and f' = (1 - 2v)(1 + 2v)/2.
def v(r):
    return 1 / (1 + exp(r))


le_cam = Kernel(
    "le_cam",
    f=lambda r: 0.5 * (exp(r) - 1) ** 2 * v(r),
    slope=lambda r: 0.5 - 2 * v(r) ** 2,
    slope_derivative=lambda r: 4 * exp(r) * v(r) ** 3,
    floor=-1.5,
    ceiling=0.5,
)


# An opponent of its own: halfway between the current policy and the next one.
def halfway(plays, rule, eta):
    theirs = plays.reversed
    ahead = replace(rule, opponent=RULES["gmmd"].opponent, eta=eta)
    following = plays.other.weights_of(step(ahead(theirs), theirs))
    return 0.5 * (plays.other.weights + following)


anticipating = replace(RULES["gmmd"], name="anticipating", opponent=halfway, theory=None)


@dataclass(frozen=True)
class LogCosh(Proximal):
    """The proximal target with a loss that grows linearly for outliers."""

    name = "log_cosh"
    scale: float = 1.0

    def loss(self, logp_items, columns, regularizer=None):
        error = (logp_items[..., 0] - columns["target"]) / self.scale
        xp = array_namespace(error)
        return self.scale**2 * (xp.logaddexp(error, -error) - np.log(2))


repeats = Metric.of_responses(
    "repeats",
    lambda evaluation: [
        [len(text) - len(set(text)) for text in row] for row in evaluation.texts
    ],
    unit="symbols",
    heading=("repeated", "symbols"),
)


def few_repeats(prompts, responses):
    """A judge: the response with fewer repeated symbols is preferred with probability 0.9."""
    counts = np.array([[len(text) - len(set(text)) for text in row] for row in responses])
    gap = counts[:, None, :] - counts[:, :, None]
    return 0.5 + 0.4 * np.sign(gap)


class Counting(TransformersEngine):
    """The default engine, counting its calls."""

    calls = 0

    def sample(self, *args, **options):
        Counting.calls += 1
        return super().sample(*args, **options)
'''


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    directory = tmp_path_factory.mktemp("outside")
    (directory / "my_extension.py").write_text(EXTENSION)
    sys.path.insert(0, str(directory))
    yield importlib.import_module("my_extension")
    sys.path.remove(str(directory))
    del sys.modules["my_extension"]


TAU = 0.2
LE_CAM = "my_extension:le_cam"
SMALL = (
    "data.prompts_per_iteration=32",
    "train.batch_size=32",
    "train.micro_batch_size=32",
    "train.epochs=6",
    "iterations=1",
    "eta=2",
    f"tau={TAU}",
    f"regularizer={LE_CAM}",
)


def last_json(capsys: pytest.CaptureFixture[str]):
    return json.loads(capsys.readouterr().out)


def test_solvers_play_with_it(extension: ModuleType, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    game = zoo.get("random:6")
    settings = ["random:6", "--regularizer", LE_CAM, "--tau", str(TAU)]
    assert solvers(["nash", *settings, "--json", "-"]) == 0
    exact = last_json(capsys)
    star = np.log(exact["policy"])
    uniform = np.full(6, -np.log(6))
    # The gap is computed from the conjugate alone, not from the solver that found the policy.
    gap = duality_gap(game, star, None, parse(LE_CAM), TAU, uniform)
    assert abs(float(gap)) < 1e-10
    # First-order condition: P π* − τφ(log π*/μ) is one number on the support.
    v = 1 / (1 + 6 * np.exp(star))
    slope = 0.5 - 2 * v**2
    multiplier = game.payoff @ np.exp(star) - TAU * slope
    assert np.ptp(multiplier[star > -20]) < 1e-8  # rounding of the solver's 1e-10 gap

    rule = ["--rule", "my_extension:anticipating", "--eta", "0.5", "--steps", "3000"]
    assert solvers(["solve", *settings, *rule, "--json", "-"]) == 0
    played = last_json(capsys)
    assert played["status"] == "converged"
    assert played["regularizer"] == LE_CAM
    # The gap of 1e-10 bounds the squared distance.
    np.testing.assert_allclose(played["policy"], exact["policy"], atol=1e-5)

    rules = "my_extension:anticipating,gmmd"
    assert solvers(["compare", *settings, "--rules", rules, "--eta", "0.5", "--json", "-"]) == 0
    runs = last_json(capsys)
    assert [run["rule"] for run in runs] == ["anticipating", "gmmd"]
    assert all(run["kl_to_equilibrium"] < 1e-6 for run in runs)


def test_it_stands_in_a_sum(extension: ModuleType, capsys) -> None:
    spec = f"0.1*{LE_CAM}+0.5*reverse_kl"
    assert parse(spec).name == spec
    assert solvers(["nash", "rps", "--regularizer", spec, "--tau", "0.3", "--json", "-"]) == 0
    np.testing.assert_allclose(last_json(capsys)["policy"], [1 / 3] * 3, atol=1e-9)


def test_cvxpy_derives_the_program_of_a_kernel_or_refuses_it(extension: ModuleType, capsys) -> None:
    arguments = ["nash", "rps", "--regularizer", LE_CAM, "--tau", "0.3", "--method", "cvxpy"]
    code = solvers(arguments)
    said = capsys.readouterr()
    assert code in (0, 2)
    assert code == 0 or len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    "fit", ["regression", "proximal", "pairwise", "policy_gradient", "my_extension:LogCosh"]
)
def test_it_trains_a_model(extension: ModuleType, tmp_path: Path, capsys, fit: str) -> None:
    """One iteration moves the model towards the exact step of the same rule and kernel."""
    words = [*SMALL, f"fit={fit}", "rule=my_extension:anticipating"]
    words += ["evaluation.metrics=[my_extension:repeats]", "sample.engine=my_extension:Counting"]
    before = extension.Counting.calls
    path = tmp_path / "run"
    assert train(["--config", "embedded-game", *words, f"output_dir={path}"]) == 0
    start, end = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    assert end["kl_to_equilibrium"] < start["kl_to_equilibrium"]
    # What is left of the exact step is less than what was taken of it.
    moved = start["kl_to_equilibrium"] - end["exact_kl_to_equilibrium"]
    assert end["kl_to_exact_iterate"] < moved
    assert LE_CAM in capsys.readouterr().out
    assert 0 <= start["repeats"] <= 2
    assert extension.Counting.calls > before


def test_its_judge_and_metric_in_table_and_picture(
    extension: ModuleType, tmp_path: Path, capsys
) -> None:
    words = [*SMALL, "judge.kind=callable", "judge.path=my_extension:few_repeats"]
    words += ["evaluation.metrics=[my_extension:repeats]", "evaluation.samples=4", "iterations=2"]
    path = tmp_path / "run"
    assert train(["--config", "embedded-game", *words, f"output_dir={path}"]) == 0
    shown = capsys.readouterr().out
    assert "repeated" in shown
    assert "symbols" in shown
    assert (path / "curves.png").stat().st_size > 10_000
    first, *_, last = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    assert last["standard_errors"]["repeats"] >= 0
    assert last["win_rate"] > first["win_rate"]


def test_objects_are_given_from_python(extension: ModuleType, tmp_path: Path, capsys) -> None:
    from dataclasses import replace

    config = load_config("embedded-game", [*SMALL[:5], f"output_dir={tmp_path / 'run'}"])
    config = replace(
        config,
        eta=2.0,
        tau=TAU,
        rule=extension.anticipating,
        regularizer=extension.le_cam,
        fit=extension.LogCosh(),
        evaluation=EvaluationConfig(prompts=0, metrics=(extension.repeats,)),
    )
    run = run_training(config)
    assert run.finished
    assert "repeats" in run.metrics()[-1]
