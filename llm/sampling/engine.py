"""TODO llm.sampling.engine."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from llm.config.schema import SampleConfig

logger = logging.getLogger(__name__)


def on_policy(settings: SampleConfig) -> bool:
    """Whether samples come from the distribution that is scored; a warning says so if not.

    `temperature` enters the scored distribution (pass it to `Policy.log_probs` too), truncation by
    `top_k` or `top_p` does not.
    """
    if settings.top_k == 0 and settings.top_p == 1:
        return True
    logger.warning(
        "off policy: sample.top_k=%d, sample.top_p=%g truncate the distribution that is sampled, "
        "not the one that is scored; top_k=0, top_p=1 is on policy",
        settings.top_k,
        settings.top_p,
    )
    return False


@dataclass(frozen=True)
class Response:
    """A sampled response: its tokens, with the EOS that ended it where there is one, and its text.

    Score `token_ids` as they are: tokenizing `text` again need not give them back.
    """

    token_ids: tuple[int, ...]
    finished: bool
    text: str

    @property
    def content_ids(self) -> tuple[int, ...]:
        """The tokens without the end-of-sequence token."""
        return self.token_ids[:-1] if self.finished else self.token_ids
