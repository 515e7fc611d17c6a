"""Notebooks run from a clean kernel without the network, and are committed with what they show."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from notebooks.execute import NOTEBOOKS, executed, pictures, tidied

pytestmark = pytest.mark.notebook

MOST_LINES = 5  # of a function: a notebook imports, calls and plots
MOST_BYTES = 400_000
OFFLINE = """
import socket
def _refuse(self, address): raise ConnectionRefusedError(f"notebooks run offline: {address}")
socket.socket.connect = socket.socket.connect_ex = _refuse
"""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def wrong_outputs(notebook: NotebookNode) -> list[NotebookNode]:
    """Errors, and warnings, which go to standard error."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@each
def test_it_runs_from_a_clean_kernel(path: Path) -> None:
    assert not wrong_outputs(executed(path, first=OFFLINE))


@each
def test_it_is_committed_as_executed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not wrong_outputs(notebook)
    assert any("image/png" in o.get("data", {}) for cell in cells for o in cell.outputs)
    assert path.stat().st_size < MOST_BYTES
    before = nbformat.writes(notebook)
    assert nbformat.writes(tidied(notebook)) == before
    for file, picture in pictures(notebook).items():
        assert file.read_bytes() == picture


@each
def test_its_functions_are_short(path: Path) -> None:
    for cell in code_cells(nbformat.read(path, as_version=4)):
        code = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= MOST_LINES, node.name


def test_the_network_would_be_refused(tmp_path: Path) -> None:
    call = 'import socket\nsocket.create_connection(("192.0.2.1", 80), timeout=1)'
    path = tmp_path / "call.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(call)]), path)
    with pytest.raises(CellExecutionError, match="notebooks run offline"):
        executed(path, first=OFFLINE)
