"""Inputs with the answers that a user should get: `python -m tests.field_cases [CASES.json]`.

The cases are data outside the repository: a list of arguments, files and accepted outcomes. Prints
a line per case; the exit code is 1 where one fails. `tests/test_field_cases.py` runs the same.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CASES = Path(__file__).parents[2] / "shared" / "field-cases" / "cases.json"
NUMBERS = ("policy", "opponent_policy", "value")

Case = dict[str, Any]


def load_cases(path: Path = CASES) -> list[Case]:
    """The cases of a file; none where it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def failure(case: Case, files: Path) -> str | None:
    """Runs a case in this process, in the current directory; what is wrong, None if it is right.

    `files`: the directory of the files that cases name. An exception of the command is raised.
    """
    file = str(files / case["file"])
    arguments = [argument.replace("{file}", file) for argument in case["args"]]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = _run(arguments)
        except SystemExit as error:  # of --help
            code = error.code if isinstance(error.code, int) else 1
    said = (out.getvalue() + err.getvalue()).replace(file, "").replace(case["file"], "")
    forbidden = [text for text in ("Traceback", case.get("never")) if text and text in said]
    if forbidden:
        return f"exit {code}, says {forbidden[0]!r}: {said[-1000:]}"
    if not any(_fits(outcome, code, out.getvalue(), said) for outcome in case["accept"]):
        return f"exit {code}, {said[-1000:]}"
    return None


def _run(arguments: Sequence[str]) -> int:
    if arguments[0] == "train":
        from llm.train import main as train  # slow to import

        return train([*arguments[1:], "output_dir=run"])
    from solvers.__main__ import main as solvers

    return solvers(arguments)


def _fits(outcome: dict[str, Any], code: int, out: str, said: str) -> bool:
    """Whether the exit code, and the numbers or one of the patterns, are those of the outcome."""
    if code != outcome["exit"]:
        return False
    if "says" in outcome:
        return any(re.search(pattern, said, re.IGNORECASE) for pattern in outcome["says"])
    found = json.loads(out) if any(key in outcome for key in NUMBERS) else {}
    tolerance = outcome.get("tol", 1e-6)
    return all(
        np.shape(found[key]) == np.shape(outcome[key])
        # Policies have exact zeros, which rounding may miss.
        and np.allclose(found[key], outcome[key], rtol=tolerance, atol=outcome.get("tol", 1e-12))
        for key in NUMBERS
        if key in outcome
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all cases of a file, each in an empty directory."""
    words = sys.argv[1:] if argv is None else argv
    path = (Path(words[0]) if words else CASES).resolve()
    cases = load_cases(path)
    if not cases:
        print(f"field_cases: {path}: no cases there", file=sys.stderr)
        return 2
    failed, here = 0, Path.cwd()
    for case in cases:
        with tempfile.TemporaryDirectory() as directory:
            os.chdir(directory)
            try:
                wrong = failure(case, path.parent / "files")
            except Exception as error:  # one broken case must not hide the others
                wrong = f"{type(error).__name__}: {error}"
            finally:
                os.chdir(here)
        failed += wrong is not None
        result = "ok" if wrong is None else "FAILED " + " ".join(wrong.split())
        print(f"{case['id']}  {case.get('kind', '')}: {result}", flush=True)
    print(f"{len(cases) - failed} of {len(cases)} cases are answered as accepted")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
