"""The update rules of `solvers` on a language model: sample, judge, fit, repeat.

from llm import load_config, run_training

run_training(load_config("embedded-text", ["iterations=3"]))
"""

import games.startup  # noqa: F401 - first, for the time that the others take

# isort: split
from typing import TYPE_CHECKING, Any

from llm.config.loading import load_config
from llm.config.schema import TrainConfig

if TYPE_CHECKING:
    from llm.train import run_training

__all__ = ["TrainConfig", "load_config", "run_training"]


def __getattr__(name: str) -> Any:
    # Not imported above: `python -m llm.train` would find the module imported before it runs.
    if name == "run_training":
        from llm.train import run_training

        return run_training
    raise AttributeError(f"module 'llm' has no attribute '{name}'")
