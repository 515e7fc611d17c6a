"""Runs the benchmarks and prints a Markdown table: python -m benchmarks [NAME ...]."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata
from pathlib import Path

# Before numpy is imported. Two threads on busy cores were up to 30 times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["NUMBA_NUM_THREADS"] = "1"
os.environ["RAYON_NUM_THREADS"] = "1"  # Clarabel

from .contest import HEADER
from .rows import ROWS

PACKAGES = ("numpy", "scipy", "cvxpy", "clarabel", "nashpy", "quantecon", "numba")


def main() -> None:
    """Prints a description of the machine, then each row when it is finished."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(ROWS)} (default: all)"
    )
    parser.add_argument(
        "--seconds", type=float, default=20, help="minimum time per row (at least two rounds)"
    )
    args = parser.parse_args()
    unknown = set(args.names) - set(ROWS)
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    print(f"{_processor()}, {os.cpu_count()} cores; BLAS and every peer on 1 thread; ", end="")
    print(f"Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES), end="\n\n")
    print(HEADER)
    for name in args.names or ROWS:
        for contest in ROWS[name]():
            print(contest.play(args.seconds), flush=True)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


if __name__ == "__main__":
    main()
