"""Text from outside never reaches a terminal as a control sequence."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from games.printable import printable
from llm import load_config, run_training
from llm.evaluation import report as reports
from llm.evaluation.report import Report, compare_responses
from llm.run.lifecycle import Interrupted
from solvers.__main__ import main as solvers
from tests.test_train import SMALL

ESCAPE = "\x1b]0;owned\x07\x1b[2J"


@given(st.text())
def test_only_line_feeds_and_tabs_remain_of_control_characters(text: str) -> None:
    shown = printable(text)
    assert all(char in "\n\t" or ord(char) >= 32 for char in shown)
    assert not {"\x7f", "\x9b", "\u202e"} & set(shown)
    shown.encode("utf-8")  # no lone surrogate
    assert printable(shown) == shown


def test_words_in_any_script_are_kept() -> None:
    for text in ("π* ≻ μ", "日本語", "नमस्ते", "👩\u200d🔬", "a\tb\nc"):
        assert printable(text) == text


def test_labels_and_names_of_files(tmp_path: Path, capsys) -> None:
    labels = [f"a{ESCAPE}", "b"]
    file = tmp_path / "game.json"
    file.write_text(json.dumps({"payoff": [[0.5, 0.7], [0.3, 0.5]], "labels": labels}))
    assert solvers(["nash", str(file)]) == 0
    assert solvers(["nash", f"{ESCAPE}.csv"]) == 2
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "\\x1b]0;owned" in shown.out


def test_responses_of_a_run(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO(), width=200)
    row = {"prompt": f"p{ESCAPE}", "responses": [f"r{ESCAPE}"]}
    with caplog.at_level("INFO"):
        for line in compare_responses([row], [row]):
            Report(console, 1).say(line)
    shown = console.file.getvalue() + caplog.text  # pyright: ignore[reportAttributeAccessIssue]
    assert "\x1b" not in shown
    assert "r\\x1b]0;owned" in shown


def test_a_long_stage_says_where_it_is_without_a_terminal(monkeypatch, capsys, caplog) -> None:
    """Also while a single piece of it takes long."""
    monkeypatch.setattr(reports._ProgressLines, "EVERY", 0.05)
    report = Report(Console(file=io.StringIO()), 1)
    with caplog.at_level("INFO"), report.stage("sample", 100) as advance:
        time.sleep(0.2)
        advance(10)
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"sample: 0 of 100 after \d+ s", lines[0])
    assert re.fullmatch(r"sample: 10 of 100 after \d+ s, \S+ per second, \d+ s left", lines[-1])
    assert lines[-1] in caplog.text
    time.sleep(0.1)
    assert capsys.readouterr().err == ""  # not after its end


def test_an_error_reaches_the_log_without_control_characters(tmp_path: Path) -> None:
    console, path = Console(file=io.StringIO()), tmp_path / "run"
    words = [*SMALL, "judge.kind=callable", "judge.path=tests.test_printable:escaping"]
    with pytest.raises(Interrupted):
        run_training(load_config("embedded-game", [*words, f"output_dir={path}"]), console)
    log = (path / "run.log").read_text()
    assert "\\x1b]0;owned" in log
    assert "\x1b" not in log


def escaping(prompts, responses):
    raise ValueError(ESCAPE)


def test_a_message_with_a_line_feed_is_one_line(tmp_path: Path, capsys) -> None:
    file = tmp_path / "game.csv"
    file.write_text('ada,"two\nlines"\n0.5,x\n0.5,0.5\n')
    assert solvers(["nash", f"{file}\n.csv"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
