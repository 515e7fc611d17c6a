"""The update rules of `solvers` on a language model: sample, judge, fit, repeat.

from llm import TrainConfig, load_config, train

train(load_config("embedded-text", ["iterations=3"]))
"""

from typing import TYPE_CHECKING

from llm.config.loading import load_config
from llm.config.schema import TrainConfig

if TYPE_CHECKING:
    from llm.train import train as train  # a module that can be called, see there

__all__ = ["TrainConfig", "load_config", "train"]
