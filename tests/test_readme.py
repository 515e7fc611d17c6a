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
