"""What holds for the project as a whole: import direction, lazy imports, package data."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("games", "solvers", "llm")
HEAVY = ("torch", "transformers", "peft", "cvxpy", "matplotlib")


# Packages of llm, each of which may import those before it; then the commands.
LLM_ORDER = (
    "config",
    "storage",
    "data",
    "policy",
    "sampling",
    "judges",
    "embedded",
    "evaluation",
    "sources",
    "run",
    "train",
    "compare",
)


def _modules() -> dict[str, Path]:
    """{dotted name: file} of every module."""
    files = [file for package in LAYERS for file in (ROOT / package).rglob("*.py")]
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)
    return {name.removesuffix(".__init__"): f for name, f in zip(names, files, strict=True)}


def _imports(name: str, modules: dict[str, Path]) -> set[str]:
    """The modules that a module imports: in functions and for type checking, too."""
    package = name if modules[name].name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(modules[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            members = {f"{base}.{alias.name}" for alias in node.names}
            found |= members & modules.keys() or {base}
    return (found & modules.keys()) - {name}


MODULES = _modules()
GRAPH = {name: _imports(name, MODULES) for name in MODULES}


def _circle(graph: Mapping[str, Collection[str]]) -> list[str]:
    """The nodes of a circle, or none."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_one_way(package: str) -> None:
    above = set(LAYERS[LAYERS.index(package) + 1 :])
    for name in GRAPH:
        if name.partition(".")[0] == package:
            assert not {other.partition(".")[0] for other in GRAPH[name]} & above, name


def test_no_module_imports_in_a_circle() -> None:
    assert len(GRAPH) > 100
    assert _circle(GRAPH) == []


def test_no_package_imports_in_a_circle() -> None:
    """Packages inside solvers and llm, and the modules beside them, as units."""

    def unit(name: str) -> str:
        return ".".join(name.split(".")[:2])

    graph: dict[str, set[str]] = {}
    for name, others in GRAPH.items():
        graph.setdefault(unit(name), set()).update({unit(o) for o in others} - {unit(name)})
    roots = [name for name in graph if "." not in name]  # __init__ of the top packages
    assert _circle({n: o - {*roots} for n, o in graph.items() if n not in roots}) == []


def test_packages_of_llm_import_only_those_before_them() -> None:
    packages = {name.split(".")[1] for name in MODULES if name.startswith("llm.")}
    assert packages == set(LLM_ORDER)
    for name, others in GRAPH.items():
        if not name.startswith("llm."):
            continue
        place = LLM_ORDER.index(name.split(".")[1])
        for other in others:
            if other.startswith("llm."):
                assert LLM_ORDER.index(other.split(".")[1]) <= place, f"{name} imports {other}"


@pytest.mark.parametrize("package", LAYERS)
def test_no_module_is_named_like_an_object_that_its_package_exports(package: str) -> None:
    exported = set(importlib.import_module(package).__all__)
    inside = {name.split(".")[1] for name in MODULES if name.startswith(f"{package}.")}
    modules = importlib.import_module(package).__dict__
    clash = {name for name in exported & inside if not isinstance(modules.get(name), ModuleType)}
    assert clash == set()


def test_no_module_only_re_exports_another() -> None:
    """Outside a package's own interface (`__init__`) every module defines something."""
    for name, file in MODULES.items():
        if file.name == "__init__.py":
            continue
        body = ast.parse(file.read_text()).body
        imports = (ast.Import, ast.ImportFrom)
        own = [node for node in body if not isinstance(node, (*imports, ast.Expr))]
        assert own, name


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
