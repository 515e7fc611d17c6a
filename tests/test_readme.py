"""The README says what the ledger says, and links to what is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_verdicts_are_the_ledgers():
    ledger = (ROOT / "CLAIMS.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| RSPO ([^:|]+): [^|]+\| (\w+) \|", README, re.MULTILINE)
    assert len(rows) == 5
    for equation, verdict in rows:
        assert f"### {equation}: {verdict}" in ledger


def test_its_links_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert missing == []


def test_its_tree_is_what_ls_shows():
    (tree,) = re.findall(r"## Where things are\n\n```\n(.*?)```", README, re.DOTALL)
    listed, parent = set(), ""
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            parent = name if name.endswith("/") else ""
        listed.add(name if not line.startswith(" ") else parent + name)
    tops = ("games", "solvers", "llm", "notebooks", "benchmarks", "tests", "docs")
    there = {f"{top}/" for top in tops}
    for top in ("games", "solvers", "llm"):
        folders = [path for path in (ROOT / top).iterdir() if path.is_dir()]
        there |= {f"{top}/{path.name}/" for path in folders if path.name != "__pycache__"}
    documents = {path.name for path in ROOT.glob("*.md")} - {"README.md"}
    assert listed == there | documents


def test_documents_name_files_and_tests_that_exist():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    missing = []
    for document in documents:
        text = document.read_text(encoding="utf-8")
        for file, name in re.findall(r"(test_\w+\.py)::(\w+)", text):
            path = ROOT / "tests" / file
            if not path.exists() or f"def {name}" not in path.read_text(encoding="utf-8"):
                missing.append(f"{document.name}: {file}::{name}")
        paths = re.findall(r"`((?:games|solvers|llm)/[\w/]+\.\w+)`", text)
        missing += [f"{document.name}: {path}" for path in paths if not (ROOT / path).exists()]
    assert missing == []
