"""The training phase: a fit of `solvers.fits` as the loss of transformers.Trainer.

A row of the dataset is an item of the fit: one response or a pair, with the numbers recorded at the
start of the iteration. The Trainer evaluates log π_θ and calls `fit.loss`; the algorithm itself is
in `solvers`.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from games.errors import InputError
from games.startup import Stop
from llm.config.schema import FittingConfig, GFlowNetConfig
from llm.policy.interrupts import deferred
from llm.policy.log_probs import PromptResponse, collate, sequence_log_probs
from llm.policy.model import Policy
from llm.storage.chunks import World
from llm.storage.files import is_intact, seal
from solvers.divergences import Divergence
from solvers.fits import Fit, Items, direct_forward_kl

# A loss this many times larger than at the start of an iteration, where π_θ = π_t, has diverged.
DIVERGED = 1000
LOWER = "lower eta or train.learning_rate, or use fit=proximal"
COMPLETE = "whole"  # file in a Trainer checkpoint, written last


@dataclass(frozen=True)
class FitDataset(Dataset):
    """Items of B prompts as rows; items of zero weight are left out.

    completions  B × K responses, which `items.index` refers to
    items        index (B, I, arity), weight (B, I), columns {name: (B, I)}
    from_base    one response of μ per prompt and λ, where forward KL is estimated on those
    """

    completions: Sequence[Sequence[PromptResponse]]
    items: Items
    from_base: tuple[Sequence[PromptResponse], float] | None = None

    @cached_property
    def places(self) -> np.ndarray:
        """(rows, 2): the indices of prompt and item of each row."""
        return np.argwhere(self.items.weight != 0)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> dict[str, Any]:
        prompt, item = self.places[row]
        responses = [self.completions[prompt][k] for k in self.items.index[prompt, item]]
        if self.from_base is not None:
            responses.append(self.from_base[0][prompt])
        # A prompt's loss is the sum of weight · loss over its I items: a mean needs the factor I.
        weight = self.items.weight[prompt, item] * self.items.weight.shape[1]
        columns = {name: column[prompt, item] for name, column in self.items.columns.items()}
        return {"responses": responses, "weight": weight, "columns": columns}


@dataclass(frozen=True)
class InOrder(Dataset):
    """Rows in training order: complete batches, one epoch after another."""

    rows: FitDataset
    order: np.ndarray

    @classmethod
    def shuffled(
        cls, rows: FitDataset, batch_size: int, epochs: int, seed: Sequence[int]
    ) -> InOrder:
        """A new permutation per epoch, without an incomplete last batch."""
        rng = np.random.default_rng(seed)
        whole = len(rows) - len(rows) % batch_size
        order = [rng.permutation(len(rows))[:whole] for _ in range(epochs)]
        return cls(rows, np.concatenate(order))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.rows[int(self.order[i])]


def batch_of(rows: Sequence[dict[str, Any]], pad_token_id: int, dtype: torch.dtype) -> dict:
    """R rows -> the batch of `collate`, with weight (R,) and columns {name: (R,)}."""
    batch: dict[str, Any] = collate([c for row in rows for c in row["responses"]], pad_token_id)
    batch["weight"] = torch.tensor([row["weight"] for row in rows], dtype=dtype)
    batch["columns"] = {
        name: torch.tensor([row["columns"][name] for row in rows], dtype=dtype)
        for name in rows[0]["columns"]
    }
    return batch


def batch_loss(
    model: torch.nn.Module,
    batch: dict[str, Any],
    fit: Fit,
    temperature: float = 1.0,
    lam_from_base: float | None = None,
    regularizer: Divergence | None = None,
) -> torch.Tensor:
    """The mean of weight × loss over the rows of a batch; `regularizer` is that of the items."""
    weight, columns = batch["weight"], batch["columns"]
    logp = sequence_log_probs(model, batch, temperature).view(len(weight), -1)
    if lam_from_base is None:
        return (weight * fit.loss(logp, columns, regularizer)).mean()
    penalty = direct_forward_kl(logp[:, -1:], lam_from_base)
    return (weight * fit.loss(logp[:, :-1], columns, regularizer) + penalty).mean()


class FitTrainer(Trainer):
    """A Trainer with sequential rows and the loss of a fit."""

    def __init__(self, *args: Any, loss: Callable[..., torch.Tensor], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loss = loss
        # The loss is a mean: the Trainer scales it for accumulation.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: Any,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The fit's loss on a micro-batch."""
        return self.loss(model, inputs)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)


class _Checkpoints(TrainerCallback):
    """Marks a checkpoint as complete when all of it is on disk, and reports steps.

    Writes one and ends the training where `should_stop()` is true after a step.
    """

    def __init__(
        self,
        world: World,
        on_steps: Callable[[int], object],
        on_logs: Callable[[int, Mapping[str, Any]], object],
        should_stop: Callable[[], bool],
        start: float,
    ) -> None:
        self.world, self.on_steps, self.on_logs = world, on_steps, on_logs
        self.should_stop, self.start = should_stop, start

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_steps(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_steps(1)
        if self.should_stop():
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.on_logs(state.global_step, logs or {})
        check_losses([line["loss"] for line in state.log_history if "loss" in line], self.start)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.world.barrier()  # every process writes its random state into it
        if self.world.is_main:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", COMPLETE)


def last_complete_checkpoint(directory: Path, world: World) -> str | None:
    """The latest complete checkpoint; incomplete and damaged ones are removed."""
    if world.is_main:
        for checkpoint in directory.glob("checkpoint-*"):
            # Without hashes it was written by an earlier version, or not to its end.
            hashed = (checkpoint / COMPLETE).exists() and (checkpoint / COMPLETE).stat().st_size
            if not hashed or not is_intact(checkpoint, COMPLETE):
                shutil.rmtree(checkpoint)
    world.barrier()
    steps = [int(path.name.split("-")[1]) for path in directory.glob("checkpoint-*")]
    return str(directory / f"checkpoint-{max(steps)}") if steps else None


def accumulation(settings: FittingConfig | GFlowNetConfig, processes: int) -> int:
    """Micro-batches per process and optimizer step. Raises InputError if they do not divide."""
    at_once = settings.micro_batch_size * processes
    if settings.batch_size % at_once:
        raise InputError(
            f"{settings.prefix}batch_size={settings.batch_size} is not a multiple of "
            f"{settings.prefix}micro_batch_size={settings.micro_batch_size} times {processes} "
            "processes; change one of them"
        )
    return settings.batch_size // at_once


def training_arguments(
    settings: FittingConfig, directory: Path, world: World, seed: int, on_cpu: bool
) -> TrainingArguments:
    """The Trainer's arguments. Raises InputError for unknown or invalid ones."""
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    # The option was renamed within transformers 5.x.
    new = "activation_checkpointing" in known
    checkpointing = "activation_checkpointing" if new else "gradient_checkpointing"
    arguments: dict[str, Any] = {
        "output_dir": str(directory),
        "per_device_train_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": accumulation(settings, world.size),
        "num_train_epochs": 1,  # the dataset holds the rows of all epochs
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,
        "optim": settings.optimizer,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "save_steps": settings.save_steps,
        "save_total_limit": 2,  # the last one stays while the next is written
        "report_to": "none",  # it would make a tracked run of every iteration: llm.run.tracking
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": [],
        "seed": seed,
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "ddp_find_unused_parameters": False,
    }
    if settings.gradient_checkpointing:
        arguments |= {checkpointing: True, f"{checkpointing}_kwargs": {"use_reentrant": False}}
    unknown = sorted(set(settings.arguments) - known)
    if unknown:
        raise InputError(
            f"train.arguments.{unknown[0]}: unknown argument of transformers' TrainingArguments"
        )
    try:
        made = TrainingArguments(**arguments | settings.arguments)
    except (ValueError, ImportError, TypeError) as error:
        raise InputError(f"train: {str(error).splitlines()[0]}") from error
    if made.fsdp:
        # On CPUs accelerate trains whole copies without a word; a model that is sharded stays so
        # after the training, and rank 0 alone could not save its adapter.
        raise InputError(
            "train.arguments.fsdp: not supported: each process samples, scores and saves with "
            "whole weights; leave it out"
        )
    if made.n_gpu > 1:  # one GPU per process; no nn.DataParallel
        made._n_gpu = 1
    return made


def fit_policy(
    policy: Policy,
    fit: Fit,
    rows: FitDataset,
    settings: FittingConfig,
    *,
    directory: Path,
    seed: Sequence[int],
    start: float = 0.0,
    temperature: float = 1.0,
    world: World = World(),  # noqa: B008 - frozen
    on_steps: Callable[[int], object] = lambda more: None,
    on_logs: Callable[[int, Mapping[str, Any]], object] = lambda step, logs: None,
) -> list[float]:
    """Trains π_θ on the rows; the loss of each optimizer step. `start` is the loss of π_t.

    on_steps(n) is called after every n steps, on_logs(step, logs) with what the Trainer logs.
    Continues from the last complete checkpoint in `directory`. Raises FloatingPointError if the
    loss diverges, and KeyboardInterrupt, after a checkpoint, on a signal.
    """
    policy.adapter = None  # the weights are about to change
    ordered = InOrder.shuffled(rows, settings.batch_size, settings.epochs, seed)
    dtype = torch.promote_types(policy.model.dtype, torch.float32)
    lam = None if rows.from_base is None else rows.from_base[1]
    regularizer = rows.items.regularizer
    trainer = FitTrainer(
        model=policy.model,
        args=training_arguments(settings, directory, world, seed[0], policy.device.type == "cpu"),
        train_dataset=ordered,
        data_collator=lambda batch: batch_of(batch, policy.pad_token_id, dtype),
        callbacks=[_Checkpoints(world, on_steps, on_logs, lambda: interrupted(), start)],
        loss=lambda model, batch: batch_loss(model, batch, fit, temperature, lam, regularizer),
    )
    trainer.remove_callback(PrinterCallback)
    # Several processes would not all be interrupted after the same step.
    with deferred(enabled=world.size == 1) as interrupted:
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(directory, world))
    if interrupted():
        raise Stop
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    check_losses(losses, start)
    check_weights(policy.model)
    return losses


def check_weights(model: torch.nn.Module) -> None:
    """Raises FloatingPointError if trained weights are not finite.

    No loss shows what the last step did. A large gradient alone does no harm: it is clipped, and
    Adam's steps do not depend on its size.
    """
    if not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):
        raise FloatingPointError(f"the weights became NaN or infinite at the last step; {LOWER}")


def check_losses(losses: Sequence[float], start: float) -> None:
    """Raises FloatingPointError if the losses of an iteration's steps are not finite or diverge.

    A loss diverges if it exceeds `DIVERGED` times `start`, the loss of π_t, and `DIVERGED` itself.
    """
    for step, loss in enumerate(losses, start=1):
        grown = loss > DIVERGED * max(start, 1.0)
        if grown or not math.isfinite(loss):
            growth = f"grew from {start:.3g} to {loss:.3g}"
            found = growth if grown and math.isfinite(loss) else "became NaN or infinite"
            raise FloatingPointError(f"the loss {found} at step {step} of the iteration; {LOWER}")
