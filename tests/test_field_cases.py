"""Inputs modelled on public bug reports, with the answers that a user should get.

The cases are data outside the repository: their files, arguments and accepted outcomes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solvers.__main__ import main as solvers

CASES = Path(__file__).parents[2] / "shared" / "field-cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the field cases are not here")

NUMBERS = ("policy", "opponent_policy", "value")


def cases() -> list[dict[str, Any]]:
    path = CASES / "cases.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def run(arguments: list[str]) -> int:
    """The exit code of the command, run in this process; an exception is a failed test."""
    if arguments[0] != "train":
        return solvers(arguments)
    from llm.train import main as train

    return train([*arguments[1:], "output_dir=run"])


def fits(outcome: dict[str, Any], code: int, out: str, text: str) -> bool:
    """Whether the exit code, and the numbers or one of the patterns, are those of the outcome."""
    if code != outcome["exit"]:
        return False
    if "says" in outcome:
        return any(re.search(pattern, text, re.IGNORECASE) for pattern in outcome["says"])
    found = json.loads(out) if any(key in outcome for key in NUMBERS) else {}
    tolerance = outcome.get("tol", 1e-6)
    return all(
        np.shape(found[key]) == np.shape(outcome[key])
        # Policies have exact zeros, which rounding may miss.
        and np.allclose(found[key], outcome[key], rtol=tolerance, atol=outcome.get("tol", 1e-12))
        for key in NUMBERS
        if key in outcome
    )


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in cases()])
def test_field_case(case: dict[str, Any], tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(CASES / "files" / case["file"])
    try:
        code = run([argument.replace("{file}", file) for argument in case["args"]])
    except SystemExit as error:  # of the argument parser
        code = error.code if isinstance(error.code, int) else 1
    out, err = capsys.readouterr()
    text = (out + err).replace(file, "").replace(case["file"], "")
    assert any(fits(outcome, code, out, text) for outcome in case["accept"]), (code, text[-2000:])
    if "never" in case:
        assert case["never"] not in text
