"""The seams of the vLLM engine, with a stand-in for vLLM: what it is asked for, and refusals.

tests/test_vllm.py runs vLLM itself.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from games.errors import InputError
from llm import load_config
from llm.config.schema import LoraConfig, ModelConfig, SampleConfig
from llm.policy.model import Policy
from llm.run.lifecycle import Interrupted, resumable
from llm.run.setup import checked
from llm.sampling import vllm_engine
from llm.sampling.engine import build_engine, closing
from llm.sampling.vllm_engine import VLLMEngine, seed_of
from llm.storage.directory import RunDirectory
from tests.tiny_models import save_causal_lm, symbol_tokenizer

EOS = 1
PROMPTS = [[0, 2], [0, 3, 2]]
WITHOUT_HEAD = ("lora.train_lm_head=false", "sample.engine=vllm")


class Stub:
    """What vllm.LLM does as seen from outside: keeps what it is given and answers in that order."""

    made: ClassVar[list[Stub]] = []
    fails: ClassVar[Exception | None] = None

    def __init__(self, **arguments: Any) -> None:
        if Stub.fails is not None:
            raise Stub.fails
        self.arguments, self.environment = arguments, dict(os.environ)
        self.model_config = SimpleNamespace(max_model_len=128)
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self._shut_down))
        self.calls: list[tuple] = []
        self.asked: list[tuple] = []
        Stub.made.append(self)

    def _shut_down(self) -> None:
        self.calls.append(("shutdown",))

    def reset_prefix_cache(self) -> None:
        self.calls.append(("reset_prefix_cache",))

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.calls.append(("wake_up", tags))

    def enqueue(self, rows, parameters, *, lora_request, use_tqdm) -> None:
        self.calls.append(("enqueue",))
        self.asked = [(row, p, lora_request) for row, p in zip(rows, parameters, strict=True)]

    def wait_for_completion(self, *, use_tqdm) -> list[SimpleNamespace]:
        self.calls.append(("wait",))
        return [self._answer(p.seed) for _, p, _ in self.asked]

    def _answer(self, seed: int) -> SimpleNamespace:
        """One to three tokens that depend on the seed alone, the last the end of the response."""
        tokens = [2 + seed % 3, 2 + seed // 3 % 3, EOS][seed % 3 :]
        steps = [{token: SimpleNamespace(logprob=-0.5 * token)} for token in tokens]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, logprobs=steps)])


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The stand-in as an installed package for this machine's CPU; its platform can be changed."""
    platform = SimpleNamespace(device_type="cpu", is_sleep_mode_available=lambda: False)
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.platforms", "vllm.lora.request")}
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    package: Any = modules["vllm"]
    package.LLM, package.SamplingParams = Stub, lambda **given: SimpleNamespace(**given)
    platforms: Any = modules["vllm.platforms"]
    platforms.current_platform = platform
    requests: Any = modules["vllm.lora.request"]
    requests.LoRARequest = lambda *given: given
    monkeypatch.setattr(Stub, "made", [])
    monkeypatch.setattr(Stub, "fails", None)
    return platform


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    path = save_causal_lm(tmp_path_factory.mktemp("model"), tokenizer=symbol_tokenizer("abc"))
    return Policy.load(ModelConfig(path=str(path), device="cpu"), LoraConfig(rank=9))


def started(policy: Policy, **settings: Any) -> VLLMEngine:
    """An engine for prompts of up to 5 tokens."""
    engine = VLLMEngine(policy, SampleConfig(**settings))
    engine.start(5)
    return engine


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without vLLM."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name)
    )


# --- what vLLM is asked for -----------------------------------------------------------------------


def test_it_is_started_with_the_policys_own_model(vllm, policy: Policy) -> None:
    started(policy, max_new_tokens=7, engine_arguments={"block_size": 64})
    (stub,) = Stub.made
    assert stub.arguments["model"] == policy.base["path"]
    assert stub.arguments["dtype"] == "float32"
    assert stub.arguments["enable_lora"]
    assert stub.arguments["max_lora_rank"] == 16  # room for 9
    assert stub.arguments["generation_config"] == "vllm"  # nothing of the checkpoint's
    assert stub.arguments["logprobs_mode"] == "processed_logprobs"
    assert stub.arguments["max_model_len"] == 5 + 7
    assert not stub.arguments["enable_chunked_prefill"]  # fails with seeds on a CPU
    assert stub.arguments["max_num_batched_tokens"] >= stub.arguments["max_model_len"]
    assert stub.arguments["block_size"] == 64


def test_parameters_are_those_of_the_policy(vllm, policy: Policy) -> None:
    engine = started(policy, max_new_tokens=3, temperature=0.7, top_k=2, top_p=0.9)
    engine.sample(PROMPTS, 2, adapter=None, key=(1, 2))
    asked = Stub.made[0].asked
    assert [row["prompt_token_ids"] for row, _, _ in asked] == [
        PROMPTS[0],
        PROMPTS[0],
        PROMPTS[1],
        PROMPTS[1],
    ]
    for _, parameters, request in asked:
        assert (parameters.temperature, parameters.top_k, parameters.top_p) == (0.7, 2, 0.9)
        assert parameters.max_tokens == 3
        assert parameters.stop_token_ids == [EOS]
        assert parameters.ignore_eos  # no other stop tokens than the policy's
        assert request is None


def test_responses_have_the_engines_log_probabilities(vllm, policy: Policy) -> None:
    engine = started(policy, max_new_tokens=3)
    drawn = engine.sample(PROMPTS, 3, adapter=None, key=(1,))
    assert [len(row) for row in drawn] == [3, 3]
    for response in (r for row in drawn for r in row):
        assert response.token_ids[-1] == EOS
        assert response.finished
        assert response.token_log_probs == tuple(-0.5 * token for token in response.token_ids)
        assert response.text == policy.tokenizer.decode(response.content_ids)


def test_each_response_has_a_seed_of_its_own(vllm, policy: Policy) -> None:
    seeds = {(key, row): seed_of(key, row) for key in ((1, 2), (1, 2, 0), (2, 1)) for row in (0, 7)}
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds.values())
    engine = started(policy, max_new_tokens=3)
    together = engine.sample(PROMPTS, 4, adapter=None, key=(5, 6))
    first = engine.sample(PROMPTS[:1], 4, adapter=None, key=(5, 6))
    assert first == together[:1]
    used = [p.seed for _, p, _ in Stub.made[0].asked]
    assert used == [seed_of((5, 6), row) for row in range(4)]


def test_an_adapter_is_a_directory_with_one_number(vllm, policy: Policy, tmp_path: Path) -> None:
    engine = started(policy, max_new_tokens=3)
    requests = []
    for adapter in (tmp_path / "a", tmp_path / "b", tmp_path / "c" / ".." / "a", None):
        engine.sample(PROMPTS, 1, adapter=adapter, key=(0,))
        requests.append(Stub.made[0].asked[0][2])
    a, b, again, none = requests
    assert a == (str(tmp_path / "a"), 1, str(tmp_path / "a"))
    assert b == (str(tmp_path / "b"), 2, str(tmp_path / "b"))
    assert again == a
    assert none is None


def test_every_call_starts_from_the_same_state(vllm, policy: Policy) -> None:
    """No cached prompts, and no step before all requests are known."""
    engine = started(policy, max_new_tokens=3)
    engine.sample(PROMPTS, 1, adapter=None, key=(0,))
    assert Stub.made[0].calls == [
        ("reset_prefix_cache",),
        ("sleep", 0),
        ("enqueue",),
        ("wake_up", ["scheduling"]),
        ("wait",),
    ]


def test_it_sleeps_where_the_platform_can(vllm, policy: Policy) -> None:
    engine = started(policy, max_new_tokens=3)
    engine.release()
    assert Stub.made[0].calls == []
    engine = started(policy, max_new_tokens=3, engine_arguments={"enable_sleep_mode": True})
    engine.release()
    engine.release()
    assert Stub.made[1].calls == [("sleep", 1)]
    engine.sample(PROMPTS, 1, adapter=None, key=(0,))
    assert Stub.made[1].calls[1] == ("wake_up", None)
    engine.sample(PROMPTS, 1, adapter=None, key=(0,))
    assert Stub.made[1].calls.count(("wake_up", None)) == 1


def test_a_run_starts_it_for_its_longest_prompt(vllm, policy: Policy) -> None:
    settings = SampleConfig(engine="vllm", max_new_tokens=3)
    build_engine(policy, settings, 17)
    assert Stub.made[0].arguments["max_model_len"] == 20


def test_without_a_start_the_first_prompts_decide(vllm, policy: Policy) -> None:
    VLLMEngine(policy, SampleConfig(max_new_tokens=3)).sample(PROMPTS, 1, adapter=None, key=(0,))
    assert Stub.made[0].arguments["max_model_len"] == 3 + 3


def test_it_is_closed_after_a_run(vllm, policy: Policy) -> None:
    with pytest.raises(KeyError), closing(started(policy)):
        raise KeyError
    assert Stub.made[0].calls == [("shutdown",)]


def test_its_processes_are_not_those_of_torchrun(
    vllm, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    before = dict(os.environ)
    started(policy)
    assert dict(os.environ) == before
    inside = Stub.made[0].environment
    assert not {"RANK", "LOCAL_RANK", "MASTER_PORT"} & inside.keys()
    assert inside["VLLM_CPU_KVCACHE_SPACE"] == "7"  # the user's own
    assert inside["VLLM_NO_USAGE_STATS"] == "1"  # nothing is reported to anybody
    assert inside["OMP_NUM_THREADS"] == str(torch.get_num_threads())


@pytest.mark.parametrize(
    ("visible", "index", "expected"),
    [(None, 0, "0"), (None, 3, "3"), ("5", 0, "5"), ("4,GPU-ab,6", 1, "GPU-ab")],
)
def test_it_sees_the_policys_gpu_only(visible: str | None, index: int, expected: str) -> None:
    given = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = vllm_engine._device_variables(torch.device("cuda", index), given)
    assert found["CUDA_VISIBLE_DEVICES"] == expected


# --- refusals -------------------------------------------------------------------------------------


def test_it_is_refused_where_it_is_not_installed(missing, policy: Policy) -> None:
    config = load_config("embedded-game", WITHOUT_HEAD)
    for refused in (lambda: checked(config), lambda: VLLMEngine(policy, SampleConfig())):
        with pytest.raises(InputError, match=r"sample\.engine=vllm: vLLM is not installed; pip"):
            refused()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lora.train_lm_head=true"], "a trained lm_head; set lora.train_lm_head=false, or take"),
        (["lora.rank=513"], "lora.rank=513, and vLLM loads ranks up to 512; lower it"),
        (["sample.temperature=0.001"], "sample.temperature=0.001, and vLLM takes none below 0.01"),
        (["model.path=a/b.gguf"], "model.path=a/b.gguf is a GGUF file"),
        (["model.load_in_4bit=true"], "model.load_in_4bit=true"),
        (["model.random_from_config=somewhere"], "model.random_from_config"),
        (["model.trust_remote_code=true"], "sample.engine_arguments.trust_remote_code=true"),
        (["sample.engine_arguments.dtype=float16"], "sample.engine_arguments.dtype: follows from"),
    ],
)
def test_what_it_cannot_serve_is_refused_before_the_model_is_loaded(
    vllm, words: list[str], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        checked(load_config("embedded-game", [*WITHOUT_HEAD, *words]))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert Stub.made == []


def test_remote_code_is_run_where_that_is_asked_for(vllm) -> None:
    words = ["model.trust_remote_code=true", "sample.engine_arguments.trust_remote_code=true"]
    checked(load_config("embedded-game", [*WITHOUT_HEAD, *words]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("modules_to_save", ["lm_head"]), ("use_dora", True), ("alpha_pattern", {"q_proj": 3})],
)
def test_a_given_adapter_that_it_loads_otherwise_than_peft_is_refused(
    vllm, policy: Policy, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(policy.model.peft_config["default"], name, value)
    with pytest.raises(InputError, match=r"sample\.engine=vllm: .*sample\.engine=transformers"):
        VLLMEngine(policy, SampleConfig())


def test_a_build_for_another_device_is_refused(vllm, policy: Policy) -> None:
    vllm.device_type = "cuda"
    with pytest.raises(InputError, match="the installed vLLM runs on cuda, the model on cpu"):
        started(policy)


def test_a_dtype_that_it_does_not_have_is_refused(vllm, tmp_path: Path) -> None:
    path = save_causal_lm(tmp_path, tokenizer=symbol_tokenizer("abc"))
    wide = Policy.load(ModelConfig(path=str(path), device="cpu", dtype="float64"))
    with pytest.raises(InputError, match=r"the model is in float64.*set model\.dtype to one of"):
        VLLMEngine(wide, SampleConfig())


def test_an_engine_that_does_not_start_is_one_line(vllm, policy: Policy) -> None:
    Stub.fails = RuntimeError("no\nmemory")
    with pytest.raises(InputError, match=r"could not be started \(RuntimeError: no memory\)"):
        started(policy)
    assert "VLLM_LOGGING_LEVEL" not in os.environ


def test_an_engine_that_fails_is_one_line_that_says_how_to_continue(
    vllm, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(self: Stub, **given: Any) -> None:
        raise ValueError("the engine\nis dead")

    monkeypatch.setattr(Stub, "wait_for_completion", dead)
    engine = started(policy, max_new_tokens=3)
    said = r"sampling failed \(ValueError: the engine is dead\); the same command continues"
    with pytest.raises(Interrupted, match=said), resumable(RunDirectory(tmp_path)):
        engine.sample(PROMPTS, 1, adapter=None, key=(0,))


def test_what_exceeds_the_engines_context_is_refused(vllm, policy: Policy) -> None:
    engine = started(policy, max_new_tokens=60)
    Stub.made[0].model_config.max_model_len = 61
    with pytest.raises(InputError, match=r"exceed the engine's 61; raise sample\.engine_arguments"):
        engine.sample(PROMPTS, 1, adapter=None, key=(0,))
    with pytest.raises(InputError, match=r"exceed the context of 128"):
        engine.sample([[0] * 100], 1, adapter=None, key=(0,))
