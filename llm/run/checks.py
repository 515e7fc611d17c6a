"""Checks of settings that need neither data nor weights: devices, and the Trainer's arguments.

The Trainer itself is built and makes two steps on a tiny model, so that whatever transformers,
accelerate or the optimizer would refuse is refused before anything is sampled.
"""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DefaultFlowCallback, LlamaConfig

from games.errors import InputError
from llm.config.schema import FittingConfig, TrainConfig
from llm.policy.devices import named_device
from llm.policy.fitting import FitTrainer, training_arguments
from llm.run.tracking import check_tracker
from llm.storage.chunks import World
from llm.storage.files import is_disk_error

# Arguments of the Trainer that a run sets itself, and those that would publish its checkpoints.
RESERVED = ("output_dir", "num_train_epochs", "push_to_hub", "resume_from_checkpoint", "report_to")
# With these the Trainer needs several processes or the model itself: they are not tried out.
UNTRIED = ("deepspeed", "fsdp", "fsdp_config", "parallelism_config", "optim_target_modules")
COMPILED = "torch_compile"  # compiling takes longer than all other checks

_tried: set[str] = set()  # settings that are known to work


def check_settings(config: TrainConfig) -> None:
    """Raises InputError, naming the field, for a device or Trainer setting that cannot be used."""
    name = config.model.device
    # A configuration for a GPU can be checked on a machine without one.
    given = None if name is not None and name.startswith("cuda") else name
    device = named_device("model.device", given)
    check_tracker(config.train.report_to)
    check_training(config.train, config.seed, device.type == "cpu")


def check_training(settings: FittingConfig, seed: int, on_cpu: bool) -> None:
    """Makes two steps with the settings on a tiny model.

    Raises InputError for settings that fail. It names the field without which they do not.
    """
    for key in RESERVED:
        if key in settings.arguments:
            raise InputError(
                f"train.arguments.{key}: the run sets it itself, or has no use for it; leave it out"
            )
    if not settings.arguments.keys().isdisjoint(UNTRIED):
        return
    settings = replace(
        settings,
        batch_size=1,
        micro_batch_size=1,
        save_steps=100,
        arguments={k: v for k, v in settings.arguments.items() if not k.startswith(COMPILED)},
    )
    key = f"{settings!r} {on_cpu}"
    if key in _tried:
        return
    error = _failure(settings, seed, on_cpu)
    if error is None:
        _tried.add(key)
        return
    if is_disk_error(error):
        raise InputError(
            f"{tempfile.gettempdir()}: temporary files cannot be written there (the disk is full, "
            "or a file larger than allowed); free some space, or set TMPDIR"
        ) from error
    if isinstance(error, InputError) and str(error).startswith("train."):
        raise error
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    reason = reason.removeprefix("InputError: train: ")[:200]
    names = [
        name for name, without in _changed_back(settings) if _failure(without, seed, on_cpu) is None
    ]
    what = names[0] if names else "these settings"
    raise InputError(
        f"train: {what} cannot be used ({reason}); change it or leave it out"
    ) from error


def _changed_back(settings: FittingConfig) -> Iterator[tuple[str, FittingConfig]]:
    """(name=value, the settings without it) for each argument and field that is not the default."""
    for name, value in settings.arguments.items():
        rest = {k: v for k, v in settings.arguments.items() if k != name}
        yield f"train.arguments.{name}={value}", replace(settings, arguments=rest)
    defaults = FittingConfig()
    for name in (field.name for field in fields(settings)):
        value, default = getattr(settings, name), getattr(defaults, name)
        if value != default and name not in ("batch_size", "micro_batch_size", "arguments"):
            yield f"train.{name}={value}", replace(settings, **{name: default})


def _failure(settings: FittingConfig, seed: int, on_cpu: bool) -> Exception | None:
    """What the Trainer raises in two steps on a tiny model; None if it raises nothing."""
    try:
        with (
            tempfile.TemporaryDirectory() as directory,
            warnings.catch_warnings(),
            _random_state_kept(),
        ):
            warnings.simplefilter("ignore")
            arguments = training_arguments(settings, Path(directory), World(), seed, on_cpu)
            model = _tiny_model()
            trainer = FitTrainer(
                model=model,
                args=arguments,
                train_dataset=[{"responses": [1, 2]}] * 2,  # pyright: ignore[reportArgumentType]
                data_collator=_batch,
                loss=lambda model, batch: model(**batch).logits.square().mean(),
            )
            for callback in list(trainer.callback_handler.callbacks):
                if not isinstance(callback, DefaultFlowCallback):  # nothing is reported
                    trainer.remove_callback(callback)
            trainer.train()
            if not all(p.isfinite().all() for p in model.parameters()):
                return FloatingPointError("the weights become NaN or infinite in two steps")
    except Exception as error:  # transformers, accelerate and trackers raise anything
        return error
    return None


def _tiny_model() -> Any:
    config = LlamaConfig(
        vocab_size=4,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=8,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    base = AutoModelForCausalLM.from_config(config)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=1, target_modules=["q_proj"]))


def _batch(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([row["responses"] for row in rows])}


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """The Trainer seeds the generators of Python, numpy and torch."""
    # The global generator of numpy, which accelerate seeds.
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002
