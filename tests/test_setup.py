"""What holds for the project as a whole: import direction, lazy imports, package data."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("games", "solvers", "llm")
HEAVY = ("torch", "transformers", "peft", "cvxpy", "matplotlib")


def _imported_packages(file: Path) -> set[str]:
    """Top-level names imported anywhere in a file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_one_way(package: str) -> None:
    above = set(LAYERS[LAYERS.index(package) + 1 :])
    for file in (ROOT / package).rglob("*.py"):
        assert not _imported_packages(file) & above, file


@pytest.mark.parametrize("package", LAYERS[:2])
def test_a_fresh_import_loads_nothing_heavy(package: str) -> None:
    modules = sorted(
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in (ROOT / package).rglob("*.py")
        if file.stem not in ("__init__", "__main__")
    )
    code = (
        "import importlib, sys\n"
        f"for name in {[package, *modules]!r}: importlib.import_module(name)\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_distribution_carries_every_package_and_its_type_marker() -> None:
    assert metadata.version("nashplay")
    for package in LAYERS:
        assert (ROOT / package / "py.typed").is_file()
