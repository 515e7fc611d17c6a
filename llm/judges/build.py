"""Building a judge from its kind, and checking one without loading its weights."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import torch

from games.errors import InputError
from games.lookup import load_object, suggestion
from llm.config.registries import JUDGES
from llm.judges.model import Judge, JudgeKind, Settings
from llm.policy.devices import named_device

PREFERENCES = ("general", "bradley_terry")
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
    """The judge of a kind, with its weights on the device.

    path        a checkpoint directory or a name on the Hugging Face Hub; for `callable` a function
                or its import path `package.module:function`; for `embedded` the name of the judge
    preference  bradley_terry: the published score-and-sigmoid form of PairRM (a reward model always
                has this form)
    batch_size  sequences per forward pass
    max_length  maximum tokens of the judge's input, prompt and responses together; responses are
                truncated to fit; None: the judge's own limit
    device      auto: a GPU if there is one
    dtype       of the weights

    Raises:
        InputError: an unsuitable option, or a file or library that is missing or unsuitable.
    """
    judge_kind = _kind(kind)
    _check_choice("judge.preference", preference, PREFERENCES)
    _check_choice("judge.dtype", dtype, DTYPES)
    if preference not in judge_kind.preferences:
        raise InputError(
            f"judge.preference={preference}: not available for judge.kind={kind}; set it to "
            f"{' or '.join(judge_kind.preferences)}"
        )
    settings = Settings(
        name=f"{kind} {path}",
        dtype=getattr(torch, dtype),
        batch_size=batch_size,
        max_length=max_length,
        preference=preference,
        trust_remote_code=trust_remote_code,
    )
    target = named_device("judge.device", device)
    return judge_kind.build(path, settings).to(target)


def check_judge_files(kind: str, path: Any) -> int | None:
    """Checks a judge without loading its weights; returns its number of parameters.

    0 for a function; None for a name on the Hub that has not been downloaded yet.

    Raises:
        InputError: a missing, incomplete or damaged file, or a missing library.
    """
    return _kind(kind).check(path)


def _kind(name: str) -> JudgeKind:
    _check_choice("judge.kind", name, JUDGES)
    return cast(JudgeKind, load_object(JUDGES[name], "judge.kind"))


def _check_choice(field: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise InputError(f"{field}={value}: unknown; {suggestion(value, choices)}")
