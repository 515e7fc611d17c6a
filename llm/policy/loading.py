"""Loading the base model and what identifies it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GgufConfig, PreTrainedConfig
from transformers.utils.hub import cached_file

from games.errors import InputError
from llm.config.schema import ModelConfig

logger = logging.getLogger(__name__)

DTYPES = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


HINTS = {
    "model.path": "a directory or hub name with config.json, tokenizer and safetensors weights, or "
    "a .gguf file",
    "model.random_from_config": "a directory with a config.json of a causal language model",
    "model.adapter": "a directory with a LoRA adapter as peft saves it",
}


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators start from `seed`; afterwards they have their old state."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def naming_field(key: str, path: str | Path) -> Iterator[None]:
    """Turns a library's error about a checkpoint into one line that names the field."""
    try:
        yield
    except (torch.OutOfMemoryError, InputError):
        raise
    except Exception as error:  # the libraries raise OSError, ValueError, KeyError, SafetensorError
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{key}={path}: cannot be read ({said[0]}); give {HINTS[key]}") from error


def is_gguf(path: str) -> bool:
    """Whether a model path names a GGUF file, which holds configuration, tokenizer and weights."""
    return path.lower().endswith(".gguf") and not Path(path).is_dir()


def source_arguments(key: str, path: str) -> dict[str, Any]:
    """The arguments of transformers' `from_pretrained` methods that name a checkpoint.

    Raises InputError for a GGUF file that does not exist.
    """
    if not is_gguf(path):
        return {"pretrained_model_name_or_path": path}
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{key}={path}: no such file; give {HINTS[key]}")
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}


def load_base_model(settings: ModelConfig, config: PreTrainedConfig, device: torch.device):
    """The causal LM of `model.path`; weights of a GGUF file are unpacked into `model.dtype`.

    Raises InputError where weights are missing.
    """
    # Weights are placed while they are read, so that a large model is never held in host memory.
    # There is no device map for the CPU: peft would put hooks on every module.
    device_map = None if device.type == "cpu" else {"": device}
    if settings.attn is not None:
        with torch.device("meta"):
            model_of_config(settings, config, None)
    source = source_arguments("model.path", settings.path)
    with naming_field("model.path", settings.path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **source,
            config=config,
            dtype=DTYPES[settings.dtype],
            attn_implementation=settings.attn,
            device_map=device_map,
            quantization_config=_quantization(settings, device),
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    model, report = loaded
    if report["missing_keys"]:
        absent = sorted(report["missing_keys"])
        raise InputError(
            f"model.path={settings.path}: {len(absent)} weights are missing ({absent[0]}, ...) and "
            "would be initialized at random; give a complete checkpoint of a causal language model"
        )
    check_finite(dict(model.named_parameters()), f"model.path={settings.path}")
    if is_gguf(settings.path):
        model.name_or_path = settings.path
    return model


def model_of_config(settings: ModelConfig, config: PreTrainedConfig, dtype: Any):
    """A causal LM of that configuration, on the current device.

    Raises InputError for an attention implementation that the model or the machine does not have.
    """
    try:
        return AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=settings.attn,
            trust_remote_code=settings.trust_remote_code,
        )
    except Exception as error:  # ValueError for an unknown name, ImportError for a missing library
        if settings.attn is None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model.attn={settings.attn}: cannot be used ({reason}); set it to null, eager or sdpa"
        ) from error


def check_finite(weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Raises InputError for weights that are NaN or infinite."""
    for name, weight in weights.items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise InputError(f"{where}: {name} contains NaN or infinity; give an intact checkpoint")


def check_weight_files(files: Iterable[Path], shapes: Mapping[str, torch.Size], path: str) -> None:
    """Compares the headers of safetensors files with the shapes that a model has.

    Raises InputError for a file that is missing, truncated or damaged, and for a weight of another
    shape.
    """
    for file in files:
        with naming_field("model.path", path), safe_open(file, framework="pt") as stored:
            found = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
        for name, shape in found.items():
            if tuple(shapes.get(name, shape)) != shape:
                raise InputError(
                    f"model.path={path}: {name} has the shape {shape} in {file.name}, and "
                    f"{tuple(shapes[name])} in the model that config.json describes; give files "
                    "that belong together"
                )


def random_base_model(
    settings: ModelConfig, config: PreTrainedConfig, device: torch.device, seed: int
):
    """A causal LM of that configuration with random weights."""
    if settings.load_in_4bit:
        raise InputError(
            "model.load_in_4bit: quantizes stored weights; leave it out with "
            "model.random_from_config"
        )
    dtype = DTYPES[settings.dtype] if settings.dtype != "auto" else config.dtype or torch.float32
    with seeded(seed, device), device:
        return model_of_config(settings, config, dtype)


def _quantization(
    settings: ModelConfig, device: torch.device
) -> BitsAndBytesConfig | GgufConfig | None:
    if is_gguf(settings.path):
        if settings.load_in_4bit:
            raise InputError(
                "model.load_in_4bit: not for a GGUF file, which is unpacked into model.dtype; set "
                "it to false, or give a directory with safetensors weights"
            )
        # A plain model, which is trained and merged as any other.
        return GgufConfig(dequantize=True)
    if not settings.load_in_4bit:
        return None
    if device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "model.load_in_4bit: needs a CUDA device and bitsandbytes; "
            "pip install bitsandbytes, or set it to false"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=(
            torch.bfloat16 if settings.dtype == "auto" else DTYPES[settings.dtype]
        ),
    )


def disable_dropout(model: torch.nn.Module) -> None:
    """Sets every dropout probability to 0, so that π_θ in training mode starts at π_t."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def keep_head_input_contiguous(model: Any) -> None:
    """Makes the hidden states contiguous before the LM head of a causal LM.

    `logits_to_keep` gives a slice of them. On a CPU, torch's matmul multiplies a slice with a
    frozen head as a batch of matrices, with a copy of the head for each row.
    """
    model.get_output_embeddings().register_forward_pre_hook(_contiguous_input)


def _contiguous_input(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden, *others = inputs
    return (hidden.contiguous(), *others)


def stop_token_ids(model, tokenizer, path: str | Path) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's EOS and those of generation_config.json."""
    named = model.generation_config.eos_token_id
    each = named if isinstance(named, list | tuple) else [] if named is None else [named]
    if not all(isinstance(id, int) and id >= 0 for id in each):
        raise InputError(
            f"model.path={path}: eos_token_id={named!r} in its generation_config.json is not a "
            "token id; correct it"
        )
    ids = set(each)
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if not ids:
        raise InputError(
            f"model.path={path}: no EOS token, so no response would end; "
            'set "eos_token" in its tokenizer_config.json'
        )
    return tuple(sorted(ids))


def padding_token_id(model, tokenizer, stop_ids: tuple[int, ...], path: str) -> int:
    """A padding token that has an embedding; masks exclude it.

    Raises InputError if any other token has no embedding.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    pad = tokenizer.pad_token_id
    # In many checkpoints PAD was added to the tokenizer later, beyond the last embedding.
    largest = max(set(tokenizer.get_vocab().values()) - {pad})
    if largest >= rows:
        raise InputError(
            f"model.path={path}: the tokenizer has ids up to {largest}, the model {rows} "
            "embeddings; give the tokenizer that belongs to the model"
        )
    if pad is not None and pad < rows:
        return pad
    logger.info("model.path=%s has no PAD token: EOS is used for padding", path)
    return next((token for token in stop_ids if token < rows), 0)


def fingerprint_of(path: str) -> str:
    """Hash of a checkpoint's tensor names, shapes and some values, independent of its location."""
    if is_gguf(path):
        files = [Path(path)]
    else:
        directory = Path(str(cached_file(path, "config.json"))).parent
        files = sorted(directory.glob("model*.safetensors"))
    digest = hashlib.sha256()
    window = 2**16
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stream:
            for offset in (0, size // 3, 2 * size // 3, max(0, size - window)):
                stream.seek(offset)
                digest.update(stream.read(window))
    return digest.hexdigest()


def random_fingerprint(config: PreTrainedConfig, seed: int) -> str:
    """What identifies a model of `random_base_model`."""
    settings = config.to_dict() | {"transformers_version": None, "seed": seed}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
