"""Names on the Hugging Face Hub on a machine that may have no network.

The libraries repeat failed requests, for 40 seconds per file of a checkpoint. Here the Hub is asked
once, before they are imported, and they work offline if it does not respond.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from games.errors import InputError
from llm.config.schema import TrainConfig
from llm.data.formats import READERS

logger = logging.getLogger(__name__)

SECONDS = 3.0  # that the Hub has for a response of any kind
NO_CHECKPOINT = ("callable", "embedded", "none")  # kinds of judges whose path is no checkpoint


def check_hub_names(config: TrainConfig) -> None:
    """Raises InputError for a name that is neither local nor cached, if there is no Hub to ask.

    If the Hub does not respond and all names are cached, this process uses the cache only.
    """
    names = {field: path for field, path in _paths(config) if _may_be_on_hub(field, path)}
    if not names:
        return
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    problem = "HF_HUB_OFFLINE is set" if offline else _unreachable(constants.ENDPOINT)
    if problem is None:
        return
    for field, path in names.items():
        kind = "datasets" if field == "data.path" else "models"
        if not _is_cached(kind, path):
            raise InputError(
                f"{field}={path}: there is no such file or directory, and it cannot be downloaded "
                f"from the Hugging Face Hub ({problem}); give a local path, or connect this machine"
            )
    if not offline:
        logger.warning(
            "the Hugging Face Hub cannot be reached (%s): %s read from its cache",
            problem,
            ", ".join(f"{field}={path}" for field, path in names.items()),
        )
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by libraries that are imported later
        constants.HF_HUB_OFFLINE = True


def _paths(config: TrainConfig) -> Iterator[tuple[str, str]]:
    yield "model.path", config.model.path
    if config.model.random_from_config is not None:
        yield "model.random_from_config", config.model.random_from_config
    yield "data.path", config.data.path
    if config.judge.kind not in NO_CHECKPOINT and isinstance(config.judge.path, str):
        yield "judge.path", config.judge.path


def _may_be_on_hub(field: str, path: str) -> bool:
    file = field == "data.path" and Path(path).suffix.lower() in READERS
    named = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) is not None
    return named and not file and not Path(path).exists()


def _is_cached(kind: str, path: str) -> bool:
    """Whether the caches hold something of a repository; the libraries check whether it is all."""
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"{kind}--{path.replace('/', '--')}" / "snapshots"
    if snapshots.is_dir() and any(snapshots.iterdir()):
        return True
    if kind == "models":
        return False
    # Prepared tables, which may outlive their download. Names are stored in snake case.
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    names = [entry.name for entry in prepared.iterdir()] if prepared.is_dir() else []
    wanted = path.replace("/", "").replace("_", "").lower()
    return wanted in [name.replace("_", "").lower() for name in names]


def _unreachable(endpoint: str) -> str | None:
    """Why the Hub gives no response; None if it does.

    In a thread of its own: looking up a host name can take longer than any time limit of a request.
    """
    from huggingface_hub import get_session

    host = urlsplit(endpoint).netloc
    said = [f"no response from {host} within {SECONDS:.0f} s"]

    def ask() -> None:
        try:
            response = get_session().head(endpoint, timeout=SECONDS)
            if response.status_code >= 500:  # the libraries repeat such requests
                said[:] = [f"{host} responds with HTTP status {response.status_code}"]
            else:
                said.clear()
        except Exception as error:  # those of the HTTP library, of proxies, of a wrong endpoint
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            said[:] = [f"{host} cannot be reached: {reason}"]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return said[0] if said else None
