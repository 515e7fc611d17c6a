"""The field cases, and the command that runs them: `tests/field_cases.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.field_cases import CASES, Case, failure, load_cases, main


@pytest.mark.skipif(not CASES.exists(), reason="the field cases are not here")
@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in load_cases()])
def test_field_case(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert failure(case, CASES.parent / "files") is None


def test_the_command_says_which_cases_fail(tmp_path: Path, capsys) -> None:
    """Wrong numbers, a wrong exit code, missing words, and words that must not be said."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "game.csv").write_text("0.5,0.9\n0.1,0.5\n")
    solved = ["nash", "{file}", "--json", "-"]

    def run(*accept: dict, args: list[str] = solved, **rest: str) -> int:
        case = {"id": "X1", "file": "game.csv", "args": args, "accept": list(accept), **rest}
        (tmp_path / "cases.json").write_text(json.dumps([case]))
        return main([str(tmp_path / "cases.json")])

    right = {"exit": 0, "policy": [1, 0], "value": 0.5}
    assert run({"exit": 2, "says": ["x"]}, right) == 0
    assert run(right | {"policy": [0.9, 0.1]}) == 1
    assert run(right | {"exit": 1}) == 1
    assert run(right, never="policy") == 1
    refused = ["nash", "{file}", "--as", "zero"]
    assert run({"exit": 2, "says": ["invalid choice"]}, args=refused) == 0
    assert run({"exit": 2, "says": ["no such words"]}, args=refused) == 1
    assert "X1  : FAILED exit 2" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing.json")]) == 2
