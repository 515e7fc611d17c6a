"""What a sampling engine is, and the engines by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from games.lookup import load_object
from llm.config.registries import ENGINES
from llm.config.schema import SampleConfig

if TYPE_CHECKING:
    from llm.policy.model import Policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Response:
    """A sampled response: token ids, with the end-of-sequence token where there is one, and text.

    `token_ids` are what log-probabilities are computed of: tokenizing `text` again need not give
    them back. `log_prob` is the engine's own log-probability of the whole response in nats, for
    engines that report one.
    """

    token_ids: tuple[int, ...]
    finished: bool
    text: str
    log_prob: float | None = None

    @property
    def content_ids(self) -> tuple[int, ...]:
        """The tokens without the end-of-sequence token."""
        return self.token_ids[:-1] if self.finished else self.token_ids


class Engine(Protocol):
    """Generates responses of the base model with a LoRA adapter on it."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        samples_per_prompt: int,
        *,
        adapter: Path | None,
        key: Sequence[int],
    ) -> list[list[Response]]:
        """Token ids of B prompts -> B lists of K independent responses.

        adapter  directory of a LoRA adapter as peft saves it; None: the base model, μ
        key      integers that seed the random numbers, such as (seed, iteration, chunk): the same
                 key, prompts and adapter give the same responses
        Temperature, truncation and the length limit are those of `SampleConfig`.
        """
        ...

    def release(self) -> None:
        """Frees the engine's memory on the device until the next call of `sample`."""
        ...


def build_engine(policy: Policy, settings: SampleConfig) -> Engine:
    """The engine that `sample.engine` names. Raises InputError for an unknown name or import."""
    chosen = settings.engine
    if isinstance(chosen, str):
        chosen = load_object(ENGINES.get(chosen, chosen), "sample.engine")
    factory: Callable[[Policy, SampleConfig], Engine] = chosen
    return factory(policy, settings)


def on_policy(settings: SampleConfig) -> bool:
    """Whether responses are sampled from the distribution whose log-probabilities are recorded.

    `temperature` is part of that distribution (pass it to `Policy.log_probs` too); truncation by
    `top_k` or `top_p` is not, and a warning says so.
    """
    if settings.top_k == 0 and settings.top_p == 1:
        return True
    logger.warning(
        "off policy: sample.top_k=%d, sample.top_p=%g truncate the distribution that is sampled, "
        "but not the recorded log-probabilities; top_k=0, top_p=1 is on policy",
        settings.top_k,
        settings.top_p,
    )
    return False
