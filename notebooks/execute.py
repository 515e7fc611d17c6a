"""Executes notebooks in place: `python notebooks/execute.py [NAME ...]` (default: all).

Outputs that differ between runs are removed, so that a second run changes no file. The picture of a
cell tagged with a path, such as `docs/rates.png`, is also written to that path, for the README.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))
# Two threads on busy cores were up to 30 times slower than one.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def executed(path: Path, first: str = "") -> NotebookNode:
    """Executes the notebook in a new kernel; the code in `first` runs before its cells."""
    notebook = nbformat.read(path, as_version=4)
    if first:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    os.environ.update(ONE_THREAD | {"HF_HUB_OFFLINE": "1"})
    NotebookClient(
        notebook,
        timeout=300,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(HERE)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    ).execute()
    return tidied(notebook)


def tidied(notebook: NotebookNode) -> NotebookNode:
    """Removes metadata that depends on machine and time; reduces pictures to a third in size."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = _in_256_colors(output.data["image/png"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _in_256_colors(picture: str) -> str:
    """Converts a base64 PNG to a palette of 256 colors."""
    image, file = Image.open(io.BytesIO(base64.b64decode(picture))), io.BytesIO()
    if image.mode == "P":
        return picture
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def pictures(notebook: NotebookNode) -> dict[Path, bytes]:
    """{path: PNG} of the cells tagged with a path."""
    return {
        HERE.parent / tag: base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        for tag in cell.metadata.get("tags", ())
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    }


def main(names: list[str]) -> None:
    """Executes the notebooks of these names in place."""
    for path in [path for path in NOTEBOOKS if not names or path.stem in names]:
        print(path.name, flush=True)
        notebook = executed(path)
        nbformat.write(notebook, path)
        for file, picture in pictures(notebook).items():
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(picture)


if __name__ == "__main__":
    main(sys.argv[1:])
