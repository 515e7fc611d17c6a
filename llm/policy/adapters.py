"""LoRA adapters: their configuration, and the base model that they belong to."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

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


def add_adapter(base, config: LoraConfig) -> PeftModel:
    """The base model with a new adapter. Raises InputError for unknown target modules."""
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
        except ValueError as error:
            raise InputError(f"lora.target_modules: {str(error).splitlines()[0]}") from error
    for name, module in model.named_modules():
        if "modules_to_save." in name and isinstance(module, torch.nn.Linear):
            _train_in_float32(module)
    return model


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
        trained_on = json.loads(record.read_text())
        same = trained_on["fingerprint"] == base["fingerprint"]
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
