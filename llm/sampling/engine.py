"""What a sampling engine is, and the engines by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from games.errors import InputError
from games.lookup import load_object
from llm.config.registries import ENGINES
from llm.config.schema import SampleConfig, TrainConfig

if TYPE_CHECKING:
    from llm.policy.model import Policy

logger = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """An engine failed while it sampled; the run keeps what is stored."""


@dataclass(frozen=True)
class Response:
    """A sampled response: token ids, with the end-of-sequence token where there is one, and text.

    `token_ids` are what log-probabilities are computed of: tokenizing `text` again need not give
    them back. `token_log_probs` are the engine's own log-probabilities of the tokens in nats, for
    engines that report them.
    """

    token_ids: tuple[int, ...]
    finished: bool
    text: str
    token_log_probs: tuple[float, ...] | None = None

    @property
    def content_ids(self) -> tuple[int, ...]:
        """The tokens without the end-of-sequence token."""
        return self.token_ids[:-1] if self.finished else self.token_ids


def response_of(
    policy: Policy, tokens: Sequence[int], log_probs: Sequence[float] | None = None
) -> Response:
    """Generated tokens, cut after the first stop token; `log_probs` are the engine's own."""
    end = next((i for i, token in enumerate(tokens) if token in policy.stop_ids), None)
    length = len(tokens) if end is None else end + 1
    return Response(
        token_ids=tuple(tokens[:length]),
        finished=end is not None,
        text=str(policy.tokenizer.decode(list(tokens[:end]), skip_special_tokens=True)),
        token_log_probs=None if log_probs is None else tuple(log_probs[:length]),
    )


class Engine(Protocol):
    """Generates responses of the base model with a LoRA adapter on it.

    Its class may also have

    reports_log_probs = True       where responses have `token_log_probs`
    check(config: TrainConfig)     a class method that raises InputError for a configuration that it
                                   cannot serve; it is called before the model is loaded
    start(prompt_tokens: int)      is called before anything is sampled, with the length of the
                                   longest prompt; raises InputError where the engine does not start
    close()                        frees everything, at the end of a run
    """

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


def stream(key: Sequence[int], row: int) -> np.random.SeedSequence:
    """The random numbers of response number `row` under a key."""
    # The length distinguishes (1, 2) from (1, 2, 0), which numpy seeds alike.
    return np.random.SeedSequence([len(key), *key], spawn_key=(row,))


@contextmanager
def closing(engine: Engine) -> Iterator[None]:
    """Closes the engine afterwards, where it has something to close."""
    try:
        yield
    finally:
        close: Callable[[], object] | None = getattr(engine, "close", None)
        if close is not None:
            close()


def build_engine(policy: Policy, settings: SampleConfig, prompt_tokens: int) -> Engine:
    """The engine that `sample.engine` names, for prompts of up to that many tokens.

    Raises InputError where it cannot be used.
    """
    engine = _factory(settings)(policy, settings)
    start: Callable[[int], object] | None = getattr(engine, "start", None)
    if start is not None:
        start(prompt_tokens)
    return engine


def check_engine(config: TrainConfig) -> None:
    """Raises InputError where the engine is unknown or cannot serve the configuration."""
    factory = _factory(config.sample)
    if config.sample.correct_drift and not reports_log_probs(factory):
        raise InputError(
            f"sample.correct_drift=true: engine '{config.sample.engine}' reports no "
            "log-probabilities; leave it out"
        )
    check: Callable[[TrainConfig], object] | None = getattr(factory, "check", None)
    if check is not None:
        check(config)


def reports_log_probs(engine: object) -> bool:
    """Whether the responses of an engine, or of a class of engines, have `token_log_probs`."""
    return bool(getattr(engine, "reports_log_probs", False))


def _factory(settings: SampleConfig) -> Callable[[Policy, SampleConfig], Engine]:
    chosen = settings.engine
    if isinstance(chosen, str):
        chosen = load_object(ENGINES.get(chosen, chosen), "sample.engine")
    return chosen


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
