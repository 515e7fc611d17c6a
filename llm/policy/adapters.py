"""LoRA adapters: their configuration, and the base model that they belong to."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from games.errors import InputError
from llm.config.schema import LoraConfig as LoraSettings
from llm.policy.loading import naming_field

ADAPTER = "default"  # peft's name of the one that is π_θ


ADAPTER_WEIGHTS = "adapter_model.safetensors"


BASE_MODEL_RECORD = "base_model.json"


def new_adapter_config(lora: LoraSettings) -> LoraConfig:
    """peft's configuration of a new adapter."""
    targets = lora.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType] - any number will do
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=["lm_head"] if lora.train_lm_head else None,
    )


def read_adapter_config(directory: str, lora: LoraSettings) -> LoraConfig:
    """peft's configuration of a stored adapter. Raises InputError unless it is a plain LoRA."""
    path = Path(directory) / "adapter_config.json"
    if not path.is_file():
        raise InputError(f"model.adapter={directory}: holds no {path.name}; give a LoRA adapter")
    with naming_field("model.adapter", directory):
        config = LoraConfig.from_pretrained(directory)
    if not isinstance(config, LoraConfig):
        raise InputError(f"{path}: of type {config.peft_type}; give a LoRA adapter")
    plain = config.init_lora_weights in (True, False, "gaussian", "eva", "orthogonal")
    if config.bias != "none" or not plain:
        raise InputError(
            f"{path}: bias {config.bias}, init_lora_weights {config.init_lora_weights} "
            "would change the base model; give a plain LoRA adapter"
        )
    config.lora_dropout = lora.dropout
    config.inference_mode = False
    # peft writes the base model of this run there, and warns about any other.
    config.base_model_name_or_path = None
    return config


def add_adapter(base, config: LoraConfig, where: str = "lora.target_modules") -> PeftModel:
    """The base model with a new adapter.

    Raises InputError for unknown target modules, and for LoRA on one of two layers that share their
    weights: merging it would change both.
    """
    with warnings.catch_warnings():
        # GPT-2 stores its linear layers transposed; peft handles it and warns.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        # The trained copy of a tied head is separate from the input embeddings on purpose. When
        # merged, peft unties the two in the model's configuration (BaseTuner).
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        # peft 0.21 uses a name that transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        try:
            model = get_peft_model(base, config)
        except Exception as error:  # peft raises ValueError, TypeError, re.error, ...
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{where}: {reason}") from error
    _check_tied(model)
    for name, module in model.named_modules():
        if "modules_to_save." in name and isinstance(module, torch.nn.Linear):
            _train_in_float32(module)
    return model


def _check_tied(model: PeftModel) -> None:
    """Raises InputError for LoRA on the LM head or the embeddings where these share weights."""
    base: Any = model.get_base_model()
    layers = base.get_input_embeddings(), base.get_output_embeddings()
    weights = [getattr(getattr(layer, "base_layer", layer), "weight", None) for layer in layers]
    if weights[0] is None or weights[0] is not weights[1]:
        return
    adapted = [
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and any(module is layer for layer in layers)
    ]
    if adapted:
        raise InputError(
            f"lora.target_modules: {' and '.join(adapted)}: the LM head and the embeddings of this "
            "model share their weights, so that LoRA on one of them cannot be merged; leave it "
            "out, or set lora.train_lm_head=true to train a copy of the head"
        )


def _train_in_float32(module: torch.nn.Linear) -> None:
    """Keeps the weights in float32, where small steps are not rounded away; inputs and outputs
    keep the module's dtype.
    """
    outside = module.weight.dtype
    inside = torch.promote_types(outside, torch.float32)
    module.to(inside)
    module.register_forward_pre_hook(lambda _, inputs: inputs[0].to(inside))
    module.register_forward_hook(lambda _, inputs, output: output.to(outside))


def check_base(directory: str | Path, base: dict[str, str]) -> None:
    """Raises InputError for an adapter of another base model.

    Compares fingerprints, or names where the adapter was written by peft alone.
    """
    record = Path(directory) / BASE_MODEL_RECORD
    if record.is_file():
        try:
            trained_on = json.loads(record.read_text(encoding="utf-8"))
            same = trained_on["fingerprint"] == base["fingerprint"]
            trained_on["path"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(
                f"{record}: damaged ({type(error).__name__}); restore it, or delete it if the "
                f"adapter was trained on model.path={base['path']}"
            ) from error
    else:
        with naming_field("model.adapter", directory):
            settings = json.loads((Path(directory) / "adapter_config.json").read_text())
        trained_on = {"path": settings.get("base_model_name_or_path") or "a model without a name"}
        same = Path(trained_on["path"]).name == Path(base["path"]).name
    if not same:
        raise InputError(
            f"model.adapter={directory}: trained on {trained_on['path']}, another base model than "
            f"model.path={base['path']}; give the base that it was trained on"
        )
