"""Judge: a Python function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch

from games.errors import InputError
from games.lookup import load_object
from llm.judges.checkpoints import one_line
from llm.judges.model import Conversation, Settings
from llm.judges.preferences import JudgeError, complementary


class FunctionJudge:
    """A function `(prompts, responses) -> (B, K, K)`, or its import path `package.module:function`.

    `prompts` is a list of B strings or lists of chat messages, `responses` a list of B lists of K
    strings. The result (an array, a tensor or nested lists) must be in [0, 1] with P + P^T = 1 to
    1e-6, or to the rounding of its dtype. Raises InputError if the function cannot be imported.
    """

    preferences: ClassVar[Sequence[str]] = ("general",)

    def __init__(self, function: Callable[..., Any] | str | None) -> None:
        self.function = function if callable(function) else _imported(function)
        self.name = f"callable {getattr(function, '__qualname__', function)}"

    @classmethod
    def build(cls, path: Any, settings: Settings) -> Self:
        """The judge; a function has no settings."""
        return cls(path)

    @classmethod
    def check(cls, path: Any) -> int | None:
        """0 parameters. Raises InputError if the function cannot be imported."""
        cls(path)
        return 0

    def __call__(
        self, prompts: Sequence[Conversation], responses: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """B prompts, B x K responses -> (B, K, K) preferences."""
        rows = [list(row) for row in responses]
        try:
            # Restores the gradient mode, in case the function changes it.
            with torch.set_grad_enabled(torch.is_grad_enabled()):
                table = self.function(list(prompts), rows)
        except torch.OutOfMemoryError:  # the run suggests settings for it
            raise
        except (Exception, SystemExit) as error:
            raise JudgeError(f"judge {self.name}: raised {one_line(error)}") from error
        if inspect.isawaitable(table) or inspect.isasyncgen(table):
            if inspect.iscoroutine(table):
                table.close()  # or Python warns that it was never awaited
            raise JudgeError(
                f"judge {self.name}: is a coroutine; return the preferences themselves"
            )
        return complementary(table, (len(rows), len(rows[0]), len(rows[0])), self.name)

    def to(self, device: str | torch.device) -> Self:
        """Does nothing: there are no weights to move."""
        return self


def _imported(path: str | None) -> Callable[..., Any]:
    if path is None:
        raise InputError("judge.path: missing; a callable judge needs package.module:function")
    # Modules may change the gradient mode when they are imported, too.
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        return load_object(path, "judge.path", Callable)
