"""Names on the Hub: refused at once, or read from the cache, where there is no network."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from games.errors import InputError
from llm.config.loading import load_config
from llm.config.schema import TrainConfig
from llm.run import hub
from llm.run.hub import check_hub_names


def named(*words: str) -> TrainConfig:
    return load_config("embedded-text", words)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # restored whatever the code sets


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    """A Hub that answers every request with `status`."""

    class Handler(BaseHTTPRequestHandler):
        status = 404

        def do_HEAD(self) -> None:
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, *given: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "words",
    [
        ["model.path=some/model"],
        ["model.path=gpt2"],
        ["model.random_from_config=some/model"],
        ["data.path=some/data.set"],
        ["judge.kind=pairrm", "judge.path=some/judge"],
    ],
)
def test_offline_a_name_that_is_not_cached_is_refused_in_one_line(words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        check_hub_names(named(*words))
    said = str(caught.value)
    assert said.startswith(f"{words[-1]}: there is no such file or directory")
    assert "HF_HUB_OFFLINE is set" in said
    assert "\n" not in said


def test_local_and_embedded_names_ask_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: None
) -> None:
    def refuse(endpoint: str) -> str:
        raise AssertionError("asked")

    monkeypatch.setattr(hub, "_unreachable", refuse)
    (tmp_path / "some" / "model").mkdir(parents=True)
    check_hub_names(named())
    # Files that do not exist have messages of their own.
    check_hub_names(named("model.path=some/model", "data.path=mine.jsonl"))
    check_hub_names(named("model.path=/not/there", "judge.kind=callable", "judge.path=os:getcwd"))


def test_a_hub_that_responds_is_left_to_the_libraries(online: None, endpoint: HTTPServer) -> None:
    check_hub_names(named("model.path=some/model"))
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_with_errors_counts_as_none(online: None, endpoint: HTTPServer) -> None:
    endpoint.RequestHandlerClass.status = 502  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match=r"127\.0\.0\.1:\d+ responds with HTTP status 502"):
        check_hub_names(named("model.path=some/model"))


def test_a_hub_that_is_silent_is_given_up(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never responds
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(InputError, match=r"127\.0\.0\.1"):
            check_hub_names(named("data.path=some/data"))
    assert time.monotonic() - began < 5


def test_without_a_hub_cached_names_are_read_offline(
    online: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub, "_unreachable", lambda endpoint: "no network")
    (tmp_path / "hub" / "models--some--model" / "snapshots" / "1").mkdir(parents=True)
    (tmp_path / "datasets" / "some___my_data").mkdir(parents=True)
    check_hub_names(named("model.path=some/model", "data.path=some/MyData"))
    assert constants.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "cannot be reached (no network): model.path=some/model, data.path=some/MyData read" in (
        caplog.text
    )


@pytest.mark.parametrize("module", ["llm.train", "llm.compare"])
def test_the_commands_refuse_before_torch_is_imported(module: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]  # closed again: connections are refused
    words = ["--config", "embedded-text", "model.path=some/model", f"output_dir={tmp_path / 'r'}"]
    code = (
        f"import sys; from {module} import main; code = main(sys.argv[1:]); "
        "print(code, 'torch' in sys.modules)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["2", "False"]
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: model.path=some/model: there is no such file or directory")
    assert f"127.0.0.1:{port} cannot be reached" in line
    assert not (tmp_path / "r").exists()
