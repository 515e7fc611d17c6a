"""Checkpoints of judges on disk: found, checked and loaded.

Weights are read from safetensors only; nothing is unpickled. What a file cannot do for a judge is
said in one line with the mend.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer

from games.errors import InputError

CONFIGURATION = ["*.json", "*.model", "*.txt", "*.jinja"]
WEIGHTS = ["*.safetensors"]


def checkpoint_directory(path: str | Path, *, weights: bool = True, code: bool = False) -> Path:
    """A directory as it is; a name on the Hub as its local copy, downloaded where it is not yet."""
    directory = Path(path).expanduser()
    if directory.is_dir():
        return directory
    if not _is_hub_name(path):
        raise InputError(
            f"judge.path={path}: no such directory; give a checkpoint's directory or its name on "
            "the Hub, such as llm-blender/PairRM"
        )
    patterns = CONFIGURATION + WEIGHTS * weights + ["*.py"] * code
    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(
            f"judge.path={path}: is no directory, and the Hugging Face Hub did not give it "
            f"({one_line(error)}); download it elsewhere and give its directory"
        ) from error


def is_local(path: str | Path) -> bool:
    """Whether nothing is to be downloaded; False for a name on the Hub that is not in the cache."""
    if Path(path).expanduser().is_dir() or not _is_hub_name(path):
        return True
    try:
        directory = Path(snapshot_download(str(path), local_files_only=True))
    except (OSError, ValueError, HfHubHTTPError):
        return False
    return any(directory.glob("*.safetensors"))


def _is_hub_name(path: str | Path) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)) is not None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that a checkpoint must have."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{file}: is missing; give the directory of a whole checkpoint") from error
    except ValueError as error:
        raise InputError(f"{file}: is not JSON ({error}); download the checkpoint again") from error


def count_parameters(directory: Path) -> int:
    """Number of parameters in a checkpoint's safetensors files, from their headers.

    Raises:
        InputError: no such file, or one that is missing, cut off or damaged.
    """
    return sum(_count_in_file(file) for file in _weight_files(directory))


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        return [directory / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    file = directory / "model.safetensors"
    if not file.exists():
        raise InputError(
            f"{directory}: holds no model.safetensors; weights are read from safetensors only: "
            "download those, or load the model elsewhere and save_pretrained it"
        )
    return [file]


def _count_in_file(file: Path) -> int:
    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = [tensors.get_slice(key).get_shape() for key in list(tensors.keys())]
    except FileNotFoundError as error:
        raise InputError(f"{file}: is missing; download the checkpoint again") from error
    except SafetensorError as error:
        raise InputError(
            f"{file}: is damaged or cut off ({one_line(error)}); download the checkpoint again"
        ) from error
    return sum(map(math.prod, shapes))


def check_tokenizer_files(directory: Path) -> None:
    """Raises InputError where a tokenizer, or a library that it needs, is missing."""
    if (directory / "tokenizer.json").exists() or list(directory.glob("vocab.*")):
        return
    if not list(directory.glob("*.model")):
        raise InputError(
            f"{directory}: holds no tokenizer (tokenizer.json or spm.model); copy its files there"
        )
    # Without these transformers takes the file for another format, and names that one's library.
    for module, package in (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")):
        if not _is_installed(module):
            raise InputError(
                f"{directory}: its tokenizer needs {package}; pip install {package}, or save it as "
                "tokenizer.json"
            )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # no parent package; blocked in sys.modules
        return False


def load_tokenizer(directory: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint."""
    return loading(
        directory,
        lambda: AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code),
    )


def load_model(model_class: Any, directory: Path, dtype: torch.dtype, **options: Any) -> Any:
    """A model for evaluation, on the CPU, every weight of which came from the checkpoint."""
    model, report = loading(
        directory,
        lambda: model_class.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        ),
    )
    if report["missing_keys"]:
        raise InputError(
            f"{directory}: has no weights {', '.join(sorted(report['missing_keys'])[:3])}, so it "
            "is another kind of checkpoint; set judge.kind, or judge.path, to match"
        )
    return model.eval().requires_grad_(False)


def loading(directory: Path, load: Callable[[], Any]) -> Any:
    """What `load()` returns; its failures as InputError."""
    try:
        return load()
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{directory}: cannot be loaded ({one_line(error)}); see that judge.kind fits it, or "
            "download it again"
        ) from error


def one_line(error: Exception) -> str:
    """An exception in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:200]}" if message else type(error).__name__
