"""The update rules of `solvers` on a language model: sample, judge, fit, repeat.

from llm import TrainConfig, load_config, train

train(load_config("embedded-text", ["iterations=3"]))
"""

from typing import TYPE_CHECKING, Any

from llm.config import TrainConfig, load_config

if TYPE_CHECKING:
    from llm.train import train as train

__all__ = ["TrainConfig", "load_config", "train"]


def __getattr__(name: str) -> Any:
    """`train` on demand: it brings torch and transformers, which `--help` can do without."""
    if name == "train":
        from llm.train import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
