"""Judges: B prompts, B x K responses -> preferences (B, K, K).

`judge(prompts, responses)[b, i, j]` is the probability in [0, 1] that response i to prompt b is
preferred to response j: float64, P + P^T = 1 exactly, 1/2 on the diagonal. A prompt is a string, or
a list of chat messages `{"role", "content"}` that ends with the user's.

    pairrm           PairRM as llm-blender saves it, or PairRM-hf; both orders averaged
    pair_preference  a causal LM that answers A or B (RLHFlow); both orders averaged
    reward_model     a sequence classifier with one output (Bradley-Terry)
    callable         a Python function
    embedded         the same, handed over as an object
"""

from __future__ import annotations

from typing import Any

import torch

from games.errors import InputError
from llm.judges.checkpoints import checkpoint_directory, count_parameters, is_local
from llm.judges.function import FunctionJudge
from llm.judges.model import Judge, ModelJudge, Prompt, Settings
from llm.judges.pair_preference import PairPreference
from llm.judges.pairrm import PairRM
from llm.judges.preferences import JudgeError, check_preferences
from llm.judges.reward_model import RewardModel

__all__ = [
    "Judge",
    "JudgeError",
    "Prompt",
    "build_judge",
    "check_judge_files",
    "check_preferences",
    "judge_device",
]

MODELS: dict[str, type[ModelJudge]] = {
    "pairrm": PairRM,
    "pair_preference": PairPreference,
    "reward_model": RewardModel,
}
KINDS = (*MODELS, "callable", "embedded")
DTYPES = ("float32", "bfloat16", "float16")


def build_judge(
    kind: str,
    path: Any = None,
    *,
    preference: str = "general",
    batch_size: int = 32,
    max_length: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> Judge:
    """The judge of a kind, its weights on the device.

    `path`: a checkpoint directory or a name on the Hugging Face Hub; for `callable` and `embedded`
    a function or its `module:function`. `preference="bradley_terry"` is PairRM's published
    score-and-sigmoid detour (and what a reward model does anyway). `batch_size` counts sequences in
    a forward pass; `max_length` the judge's tokens of prompt and responses together, to which
    responses are cut (None: its own limit). `device="auto"` takes a GPU where there is one.

    Raises:
        InputError: an option, a file or a library that is missing or does not fit.
    """
    _check_choice("judge.kind", kind, KINDS)
    _check_choice("judge.preference", preference, ("general", "bradley_terry"))
    _check_choice("judge.dtype", dtype, DTYPES)
    if preference == "bradley_terry" and kind not in ("pairrm", "reward_model"):
        raise InputError(f"judge.preference=bradley_terry: is PairRM's; {kind} takes general")
    if kind not in MODELS:
        return FunctionJudge(path)
    place = judge_device(device)
    _check_path(kind, path)
    directory = checkpoint_directory(path, code=trust_remote_code)
    MODELS[kind].check_files(directory)
    settings = Settings(
        name=f"{kind} {path}",
        dtype=getattr(torch, dtype),
        batch_size=batch_size,
        max_length=max_length,
        preference=preference,
        trust_remote_code=trust_remote_code,
    )
    return MODELS[kind](directory, settings).to(place)


def check_judge_files(kind: str, path: Any) -> int | None:
    """Checks a judge without loading its weights; returns the number of its parameters.

    0 for a function; None for a name on the Hub that is yet to be downloaded.

    Raises:
        InputError: a missing, incomplete or damaged file, or a missing library.
    """
    _check_choice("judge.kind", kind, KINDS)
    if kind not in MODELS:
        FunctionJudge(path)
        return 0
    _check_path(kind, path)
    if not is_local(path):
        return None
    directory = checkpoint_directory(path)
    MODELS[kind].check_files(directory)
    return count_parameters(directory)


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{field}={value}: choose from {', '.join(choices)}")


def _check_path(kind: str, path: Any) -> None:
    if not path:
        raise InputError(f"judge.path: {kind} needs a checkpoint directory or a name on the Hub")


def judge_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one. Raises InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"judge.device={name}: choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"judge.device={name}: no such device here; set judge.device=cpu")
    return device
