"""A Python function as a judge."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from games.errors import InputError
from llm.judges.checkpoints import one_line
from llm.judges.model import Prompt
from llm.judges.preferences import JudgeError, complementary


class FunctionJudge:
    """A function `(prompts, responses) -> (B, K, K)`, or its name `module:function`.

    `prompts`: a list of B strings or lists of chat messages; `responses`: a list of B lists of K
    strings. What it returns (an array, a tensor or nested lists) must be in [0, 1] with
    P + P^T = 1 to 1e-6.
    """

    def __init__(self, function: Callable[..., Any] | str | None) -> None:
        self.function = function if callable(function) else _import(function)
        self.name = f"callable {getattr(function, '__qualname__', function)}"

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> np.ndarray:
        """B prompts, B x K responses -> (B, K, K) preferences."""
        rows = [list(row) for row in responses]
        try:
            table = self.function(list(prompts), rows)
        except torch.OutOfMemoryError:  # has a mend of its own, which the run names
            raise
        except Exception as error:
            raise JudgeError(f"judge {self.name}: raised {one_line(error)}; mend it") from error
        return complementary(table, (len(rows), len(rows[0]), len(rows[0])), self.name)

    def to(self, device: str | torch.device) -> FunctionJudge:
        """Nothing to move."""
        return self


def _import(path: str | None) -> Callable[..., Any]:
    module, _, attribute = (path or "").partition(":")
    if not module or not attribute:
        raise InputError(f"judge.path={path}: a callable judge is named module:function")
    try:
        function = operator.attrgetter(attribute)(importlib.import_module(module))
    except ModuleNotFoundError as error:
        raise InputError(
            f"judge.path={path}: no module {error.name}; install it, or start in its directory"
        ) from error
    except AttributeError as error:
        raise InputError(f"judge.path={path}: {error}; give the name of a function") from error
    except Exception as error:
        raise InputError(f"judge.path={path}: importing it raised {one_line(error)}") from error
    if not callable(function):
        raise InputError(f"judge.path={path}: is not callable; give the name of a function")
    return function
