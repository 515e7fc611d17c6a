"""Run configuration: one tree of frozen dataclasses, built from YAML, `key=value` words or Python.

Every field declares its meaning, default and range; `--help`, the checks and `config.yaml` are
derived from the fields. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from games.errors import InputError
from llm.config.registries import ENGINES, JUDGES
from llm.config.section import Section, metadata, name_problem, option, shorten

MOST_ITERATES = 10_000  # of which a rule may remember the log-probabilities
Diagonal = Literal["exclude", "include"]


def _rules() -> Mapping[str, Any]:
    from solvers.rules import ALIASES, RULES

    return {**RULES, **{alias: RULES[name] for alias, name in ALIASES.items()}}


def _fits() -> Mapping[str, Any]:
    from solvers.fits import FITS

    return FITS


def _regularizers() -> tuple[str, ...]:
    from solvers.divergences import NAMES

    return NAMES


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The base model; without its adapter it is the reference policy μ."""

    prefix: ClassVar[str] = "model."
    path: str = option(
        "directory or Hub name of a causal language model in safetensors, or a .gguf file; "
        "embedded:game and embedded:text are included in the package"
    )
    adapter: str | None = option(
        "LoRA adapter of this base model that π_0 starts from (μ stays the base model); "
        "null: π_0 = μ",
        None,
    )
    random_from_config: str | None = option(
        "directory of a config.json: a model of this shape with random weights, path gives only "
        "the tokenizer (for measuring speed and memory without a download)",
        None,
    )
    dtype: str = option(
        "dtype of the base weights; auto: that of the checkpoint",
        "auto",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
    )
    load_in_4bit: bool = option("quantize the base model to 4 bits (needs bitsandbytes)", False)
    device: str | None = option(
        "cpu or cuda; null: a GPU if there is one (choose it with CUDA_VISIBLE_DEVICES)", None
    )
    attn: str | None = option(
        "attention implementation of transformers: eager, sdpa, flash_attention_2, …", None
    )
    trust_remote_code: bool = option(
        "allow custom code from the repository of the model or the judge", False
    )


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Section):
    """The LoRA adapter: the trained part of π_θ."""

    prefix: ClassVar[str] = "lora."
    rank: int = option("rank of the update matrices", 16, at_least=1, at_most=65_536)
    alpha: float = option("scale: the update is multiplied by alpha / rank", 32.0, above=0)
    dropout: float = option(
        "dropout on the adapter's input; above 0 the trained policy differs from the sampled one",
        0.0,
        at_least=0,
        at_most=0.9,
    )
    target_modules: str | tuple[str, ...] = option("modules that get an adapter", "all-linear")
    train_lm_head: bool = option("also train a full copy of the LM head", False)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """The prompts, and the responses of the dataset."""

    prefix: ClassVar[str] = "data."
    path: str = option(
        "prompts: a .jsonl, .json, .parquet or .csv file, a dataset directory or a Hub name; "
        "embedded:game, embedded:text and embedded:instructions are included in the package"
    )
    split: str = option(
        "split of a dataset; several splits, as in a,b,c, are used as the folds, in this order",
        "train",
    )
    field: str = option("column with the prompt: a string, or a list of chat messages", "prompt")
    answer: str | None = option(
        "column with the reference response (SPIN) or the chosen response (DPO on given pairs): a "
        "string, or chat messages that end with the assistant's turn",
        None,
    )
    rejected: str | None = option(
        "column with the rejected response; with it, training neither samples nor judges responses",
        None,
    )
    folds: int = option(
        "number of folds that the prompts are split into; iteration t uses fold t mod folds",
        1,
        at_least=1,
    )
    prompts_per_iteration: int | None = option(
        "prompts per iteration; if this is larger than the fold, prompts repeat; "
        "null: the whole fold",
        None,
        at_least=1,
        at_most=10**9,
    )
    shuffle: bool = option("shuffle the prompts by the seed before splitting them into folds", True)
    max_prompt_length: int = option(
        "maximum tokens of a prompt; longer prompts are dropped and counted", 512, at_least=1
    )
    chat_template: str | None = option(
        "null: the tokenizer's chat template; none: prompts without a template; otherwise a Jinja "
        "file",
        None,
    )
    system_prompt: str | None = option("system message that precedes each prompt", None)


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Section):
    """How responses are sampled from π_t."""

    prefix: ClassVar[str] = "sample."
    engine: str | Any = option(
        "what generates the responses", "transformers", choices=lambda: ENGINES, objects=True
    )
    engine_arguments: dict[str, Any] = field(
        default_factory=dict,
        metadata=metadata(
            "arguments of the engine, passed as they are; of vllm.LLM for vllm: "
            "gpu_memory_utilization, max_model_len, …",
            may_change=True,
        ),
    )
    correct_drift: bool = option(
        "weigh training responses by π_t over the engine's own probability of them (for an engine "
        "that reports it)",
        False,
    )
    max_new_tokens: int = option("maximum tokens of a response, EOS included", 512, at_least=1)
    distribution: str = option(
        "distribution of the training responses: the policy, or its geometric mixture with μ, with "
        "the rule's weight of μ, mixed at every token or sampled by a GFlowNet",
        "policy",
        choices=("policy", "token_mixture", "gflownet"),
    )
    temperature: float = option(
        "softmax temperature of the policy, in sampling and in log-probabilities", 1.0, above=0
    )
    top_k: int = option("sample from the k most likely tokens (off policy); 0: all", 0, at_least=0)
    top_p: float = option(
        "sample from the most likely tokens up to this total probability (off policy); 1: all",
        1.0,
        above=0,
        at_most=1,
    )
    batch_size: int = option(
        "sequences per batch when generating and computing log-probabilities",
        32,
        at_least=1,
        may_change=True,
    )


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Section):
    """The preference model P(y ≻ y′ | x)."""

    prefix: ClassVar[str] = "judge."
    kind: str = option(
        "kind of judge; callable: a Python function; none: no judge (data.answer is given)",
        choices=lambda: [*JUDGES, "none"],
    )
    path: str | Any | None = option(
        "a checkpoint; for callable package.module:function, or from Python the function; for "
        "embedded game, styles or length",
        None,
        objects=True,
    )
    preference: str = option(
        "general: the judge's own pairwise preferences; bradley_terry: one score per response and "
        "the sigmoid of score differences (as published SPPO and RSPO runs used PairRM)",
        "general",
        choices=("general", "bradley_terry"),
    )
    dtype: str = option(
        "dtype of the judge's weights", "float32", choices=("float32", "bfloat16", "float16")
    )
    batch_size: int = option("sequences per batch of the judge", 32, at_least=1, may_change=True)
    device: str = option(
        "auto, cpu, cuda or cuda:N; a judge on a GPU is moved to the CPU while the policy runs",
        "auto",
        may_change=True,
    )
    max_length: int | None = option(
        "maximum tokens of the judge's input; responses are truncated to fit; null: its own limit",
        None,
        at_least=1,
    )

    def __post_init__(self) -> None:
        """Check each field, and that only a callable judge is a function."""
        super().__post_init__()
        if self.path is not None and not isinstance(self.path, str):
            if self.kind != "callable":
                raise InputError(
                    f"judge.path: a function needs judge.kind=callable, not {self.kind}"
                )
            if not callable(self.path):
                raise InputError(f"judge.path: expected a function, got {shorten(self.path)}")


@dataclass(frozen=True, kw_only=True)
class FittingConfig(Section):
    """Training within an iteration, by transformers.Trainer."""

    prefix: ClassVar[str] = "train."
    batch_size: int = option(
        "items (responses or pairs) per optimizer step, over all processes", 64, at_least=1
    )
    micro_batch_size: int = option(
        "items per forward pass of a process; batch_size must be a multiple of micro_batch_size "
        "times the number of processes",
        4,
        at_least=1,
        may_change=True,
    )
    epochs: int = option("passes over the responses of an iteration", 1, at_least=1)
    learning_rate: float = option("peak learning rate", 5e-6, above=0)
    schedule: str = option("learning-rate schedule, by its name in transformers", "linear")
    warmup: float = option("fraction of the steps used for warmup", 0.0, at_least=0, at_most=0.99)
    optimizer: str = option("optimizer, by its name in transformers", "adamw_torch")
    weight_decay: float = option("weight decay", 0.0, at_least=0)
    max_grad_norm: float = option("gradient clipping norm; 0: no clipping", 1.0, at_least=0)
    gradient_checkpointing: bool = option(
        "recompute activations to save memory (1.5 times slower)", False, may_change=True
    )
    save_steps: int = option(
        "optimizer steps between checkpoints within an iteration", 50, at_least=1, may_change=True
    )
    report_to: str = option(
        "experiment tracker: none, tensorboard, wandb, trackio, or another one of accelerate; a "
        "training is one tracked run",
        "none",
        may_change=True,
    )
    arguments: dict[str, Any] = field(
        default_factory=dict,
        metadata=metadata(
            "other transformers.TrainingArguments, passed as they are: bf16, deepspeed, …"
        ),
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """Evaluation before the first and after every iteration, written to metrics.jsonl."""

    prefix: ClassVar[str] = "evaluation."
    prompts: int = option(
        "held-out prompts; 0: none are held out, training prompts are used instead", 64, at_least=0
    )
    samples: int = option("responses per prompt, from π_t and from μ", 2, at_least=2, at_most=1024)
    metrics: tuple[str | Any, ...] = option(
        "metrics of your own, [package.module:object, …]", (), objects=True
    )

    def __post_init__(self) -> None:
        """Check each field, and that metrics are import paths or objects."""
        super().__post_init__()
        for metric in self.metrics:
            if isinstance(metric, str) and ":" not in metric:
                raise InputError(
                    f"evaluation.metrics: expected an import path package.module:object, "
                    f"got {shorten(metric)}"
                )


@dataclass(frozen=True, kw_only=True)
class GFlowNetConfig(Section):
    """The sampler of sample.distribution=gflownet, trained in each iteration (α-SPIN, App. A)."""

    prefix: ClassVar[str] = "gflownet."
    rank: int = option(
        "rank of the sampler's LoRA adapter, on the modules of the policy's", 16, at_least=1
    )
    alpha: float = option("its scale: the update is multiplied by alpha / rank", 32.0, above=0)
    learning_rate: float = option("learning rate, constant", 1e-4, above=0)
    epochs: int = option("passes over the prompts", 10, at_least=1)
    prompts: int = option("maximum number of prompts to train on", 1000, at_least=1)
    samples: int = option("responses sampled per prompt in an epoch", 4, at_least=1)
    batch_size: int = option("responses per optimizer step, over all processes", 64, at_least=1)
    micro_batch_size: int = option(
        "responses per forward pass of a process; batch_size must be a multiple of "
        "micro_batch_size times the number of processes",
        16,
        at_least=1,
        may_change=True,
    )


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(Section):
    """Limits on what a run generates and judges for training; evaluation is not counted."""

    prefix: ClassVar[str] = "budget."
    tokens: int | None = option(
        "limit on the tokens of training responses (those that train a GFlowNet are not counted): "
        "no iteration is started that would exceed it, estimated from the previous iteration; "
        "null: no limit",
        None,
        at_least=1,
    )
    comparisons: int | None = option(
        "the same limit for judged pairs of responses; both orders of a pair count once",
        None,
        at_least=1,
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """One run of Algorithm 1."""

    output_dir: str = option("run directory", "runs/train")
    fresh: bool = option(
        "start a new run in the next free directory: output_dir, output_dir-2, …", False
    )
    seed: int = option("seed of all random numbers", 42, at_least=0, at_most=2**32 - 1)
    iterations: int = option("number of iterations T", 3, at_least=1)
    samples_per_prompt: int = option(
        "number of responses K per prompt; K × K preferences are computed",
        5,
        at_least=1,
        at_most=1024,
    )
    selection: str | None = option(
        "train only on the best and the worst of the K responses, found by a knockout tournament "
        "(INPO) or by comparing all pairs; null: train on all K",
        None,
        choices=("tournament", "round_robin"),
    )
    pooled_iterations: int = option(
        "train on the responses of this many most recent iterations (official SPIN code: 2)",
        1,
        at_least=1,
    )
    rule: str | Any = option("update rule", "gmmd", choices=_rules, objects=True)
    fit: str | Any = option(
        "loss that fits the model to the step of the rule", "proximal", choices=_fits, objects=True
    )
    eta: float | None = option(
        "step size η of the mirror step; null: the rule's own", None, above=0
    )
    tau: float | None = option("temperature τ of the game; give tau or lam", None, at_least=0)
    lam: float | None = option(
        "coefficient λ of the regularizer in the loss of RSPO Eq. 6; give tau or lam",
        None,
        at_least=0,
    )
    regularizer: str | Any | None = option(
        "regularizer R: a name, or a sum such as 0.1*forward_kl+0.5*reverse_kl",
        None,
        listed=_regularizers,
        objects=True,
    )
    rule_options: dict[str, Any] = field(
        default_factory=dict, metadata=metadata("other arguments of the rule, by name")
    )
    fit_options: dict[str, Any] = field(
        default_factory=dict, metadata=metadata("arguments of the fit, by name")
    )
    diagonal: Diagonal = field(
        default="exclude",
        metadata=metadata(
            "exclude: a response is compared with the K − 1 others; include: also with itself at "
            "½, as published code does; the target temperature is then τK/(K − 1)",
            choices=("exclude", "include"),
        ),
    )
    chunk_size: int = option(
        "prompts per chunk: the unit that is stored, resumed and assigned to processes",
        64,
        at_least=1,
    )
    threads: int | None = option(
        "torch threads per process; null: the default of torch", None, at_least=1, at_most=1024
    )
    model: ModelConfig
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig
    sample: SampleConfig = field(default_factory=SampleConfig)
    judge: JudgeConfig
    train: FittingConfig = field(default_factory=FittingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    gflownet: GFlowNetConfig = field(default_factory=GFlowNetConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        """Check each field, then the relations between fields."""
        super().__post_init__()
        for name, path in self._paths():
            if isinstance(path, str) and (problem := name_problem(path)):
                raise InputError(f"{name}: {problem}")
        memory = self.rule_options.get("memory")
        if isinstance(memory, int) and memory > MOST_ITERATES:
            raise InputError(
                f"rule_options.memory: must be at most {MOST_ITERATES}, got {shorten(memory)}"
            )
        if self.tau is not None and self.lam is not None:
            raise InputError(
                "tau and lam: give only one of them; lam = 2·eta·tau for a true divergence"
            )
        if (self.tau or self.lam) and self.regularizer is None:
            raise InputError(
                "regularizer: missing; tau and lam are its weight: set it, for example to "
                "reverse_kl, or leave out tau and lam for a rule without a regularizer"
            )
        if self.train.batch_size % self.train.micro_batch_size:
            raise InputError(
                f"train.batch_size: {self.train.batch_size} is not a multiple of "
                f"train.micro_batch_size={self.train.micro_batch_size}"
            )

    def _paths(self) -> list[tuple[str, Any]]:
        """(name, value) of the fields that may name a file or directory."""
        return [
            ("output_dir", self.output_dir),
            ("model.path", self.model.path),
            ("model.adapter", self.model.adapter),
            ("model.random_from_config", self.model.random_from_config),
            ("data.path", self.data.path),
            ("data.chat_template", self.data.chat_template),
            ("judge.path", self.judge.path),
        ]
