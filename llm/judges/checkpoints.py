"""Finding, checking and loading the checkpoints of judges.

Weights are read from safetensors only; nothing is unpickled. Errors are one line with the fix.
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
    """The directory itself, or the local copy of a name on the Hub, downloaded if necessary."""
    directory = Path(path).expanduser()
    if directory.is_dir():
        return directory
    if not _is_hub_name(path):
        raise InputError(
            f"judge.path={path}: no such directory; give a checkpoint directory or a name on the "
            "Hub, such as llm-blender/PairRM"
        )
    patterns = CONFIGURATION + WEIGHTS * weights + ["*.py"] * code
    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(
            f"judge.path={path}: not a directory, and the download from the Hugging Face Hub "
            f"failed ({one_line(error)}); download it elsewhere and give its directory"
        ) from error


def is_local(path: str | Path) -> bool:
    """Whether nothing has to be downloaded; False for a name on the Hub that is not cached."""
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
    """The content of a JSON file that a checkpoint must have. Raises InputError."""
    if file.exists() and not file.is_file():
        raise InputError(f"{file}: not a regular file; download the checkpoint again")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{file}: missing; give the directory of a complete checkpoint") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: not valid JSON ({one_line(error)}); download the checkpoint again"
        ) from error
    if not isinstance(fields, dict):
        raise InputError(f"{file}: not a JSON object; download the checkpoint again")
    return fields


def count_parameters(directory: Path) -> int:
    """Number of parameters in a checkpoint's safetensors files, read from their headers.

    Raises:
        InputError: no safetensors file, or one that is missing, truncated or damaged.
    """
    return sum(_count_in_file(file) for file in _weight_files(directory))


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = read_json(index).get("weight_map")
        if not (isinstance(names, dict) and names) or not all(
            isinstance(n, str) for n in names.values()
        ):
            raise InputError(f"{index}: no weight_map of file names; download the checkpoint again")
        return [directory / name for name in sorted(set(names.values()))]
    file = directory / "model.safetensors"
    if not file.exists():
        raise InputError(
            f"{directory}: no model.safetensors; weights are read from safetensors only: download "
            "them, or convert the checkpoint elsewhere with from_pretrained and save_pretrained"
        )
    return [file]


def _count_in_file(file: Path) -> int:
    if file.exists() and not file.is_file():  # opening a FIFO would wait forever
        raise InputError(f"{file}: not a regular file; download the checkpoint again")
    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = [tensors.get_slice(key).get_shape() for key in list(tensors.keys())]
    except FileNotFoundError as error:
        raise InputError(f"{file}: missing; download the checkpoint again") from error
    except SafetensorError as error:
        raise InputError(
            f"{file}: damaged or truncated ({one_line(error)}); download the checkpoint again"
        ) from error
    return sum(map(math.prod, shapes))


def check_tokenizer_files(directory: Path) -> None:
    """Raises InputError if the tokenizer, or a library that it needs, is missing."""
    if (directory / "tokenizer.json").exists() or list(directory.glob("vocab.*")):
        return
    if not list(directory.glob("*.model")):
        raise InputError(
            f"{directory}: no tokenizer (tokenizer.json or spm.model); copy its files there"
        )
    # Without these transformers assumes another format, and its error names the wrong library.
    for module, package in (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")):
        if not _is_installed(module):
            raise InputError(
                f"{directory}: the tokenizer needs {package}; pip install {package}, or convert it "
                "to tokenizer.json"
            )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # no parent package; None in sys.modules
        return False


def load_tokenizer(directory: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint."""
    return loading(
        directory,
        lambda: AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code),
    )


def load_model(model_class: Any, directory: Path, dtype: torch.dtype, **options: Any) -> Any:
    """A model in eval mode on the CPU. Raises InputError if weights are missing."""
    model, report = loading(
        directory,
        lambda: model_class.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        ),
    )
    if report["missing_keys"]:
        raise InputError(
            f"{directory}: no weights {', '.join(sorted(report['missing_keys'])[:3])}, so this is "
            "another kind of checkpoint; change judge.kind or judge.path"
        )
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise InputError(
                f"{directory}: {name} contains NaN or infinity; download the checkpoint again"
            )
    return model.eval().requires_grad_(False)


def loading(directory: Path, load: Callable[[], Any]) -> Any:
    """The result of `load()`; its exceptions become InputError."""
    try:
        return load()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the libraries raise anything for files of the wrong type
        raise InputError(
            f"{directory}: cannot be loaded ({one_line(error)}); check judge.kind, or download "
            "the checkpoint again"
        ) from error


def one_line(error: BaseException) -> str:
    """An exception as one line: its type and the first 200 characters of its message."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:200]}" if message else type(error).__name__
