"""What a run is told: one tree of frozen dataclasses, from YAML, `key=value` words or Python.

Every field carries its meaning, its default and its range; `--help`, the checks and `config.yaml`
are all read off the fields. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from games.errors import InputError
from llm.config.section import Section, about, knob

Diagonal = Literal["exclude", "include"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The base model, which with its adapter switched off is the reference policy μ."""

    prefix: ClassVar[str] = "model."
    path: str = knob(
        "directory or hub name of a causal language model in safetensors; embedded:game and "
        "embedded:text come with the package"
    )
    adapter: str | None = knob(
        "LoRA adapter of this base model that π_0 starts from (μ stays the base model); "
        "null: π_0 = μ",
        None,
    )
    random_from_config: str | None = knob(
        "directory of a config.json: weights are drawn at random in its shape, path gives only the "
        "tokenizer (for figures of speed and memory without a download)",
        None,
    )
    dtype: str = knob(
        "dtype of the base weights; auto: that of the checkpoint",
        "auto",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
    )
    load_in_4bit: bool = knob("quantise the base model to 4 bits (needs bitsandbytes)", False)
    device: str | None = knob(
        "cpu or cuda; null: a GPU where there is one (which: CUDA_VISIBLE_DEVICES)", None
    )
    attn: str | None = knob(
        "attention implementation of transformers: eager, sdpa, flash_attention_2, …", None
    )
    trust_remote_code: bool = knob("run code that comes with the model or the judge", False)


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Section):
    """The trained part of π_θ."""

    prefix: ClassVar[str] = "lora."
    rank: int = knob("rank of the update matrices", 16, at_least=1)
    alpha: float = knob("scale: the update is multiplied by alpha / rank", 32.0, above=0)
    dropout: float = knob(
        "dropout on the adapter's input; above 0 the policy that is trained is not the one that "
        "was sampled",
        0.0,
        at_least=0,
        at_most=0.9,
    )
    target_modules: str | tuple[str, ...] = knob("modules that are adapted", "all-linear")
    train_lm_head: bool = knob("train a full copy of the LM head besides", False)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """The prompts."""

    prefix: ClassVar[str] = "data."
    path: str = knob(
        "prompts: a .jsonl, .json, .parquet or .csv file, a dataset directory or a hub name; "
        "embedded:game and embedded:text come with the package"
    )
    split: str = knob("split of a dataset; several, as in a,b,c, are the folds in order", "train")
    field: str = knob("field that holds the prompt: a text, or a list of chat messages", "prompt")
    answer: str | None = knob(
        "field that holds the answer of the data (SPIN), or the preferred one: a text, or messages "
        "whose turns after the user's last are it",
        None,
    )
    rejected: str | None = knob(
        "field that holds the answer that lost to it: nothing is sampled or judged for training",
        None,
    )
    folds: int = knob(
        "parts that the prompts are cut into; iteration t uses part t mod folds", 1, at_least=1
    )
    prompts_per_iteration: int | None = knob(
        "prompts an iteration takes; more than its fold holds goes through it again; "
        "null: the whole fold",
        None,
        at_least=1,
    )
    shuffle: bool = knob("shuffle the prompts by the seed before they are cut into folds", True)
    max_prompt_length: int = knob(
        "tokens of a prompt; a longer one is left out and counted", 512, at_least=1
    )
    chat_template: str | None = knob(
        "null: the tokenizer's chat template; none: the prompts as they stand; else a Jinja file",
        None,
    )
    system_prompt: str | None = knob("system message put before each prompt", None)


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Section):
    """How responses are drawn from π_t."""

    prefix: ClassVar[str] = "sample."
    max_new_tokens: int = knob("tokens of a response, its EOS included", 512, at_least=1)
    engine: str = knob(
        "engine that generates responses: transformers, or package.module:object", "transformers"
    )
    distribution: str = knob(
        "training responses are drawn from the policy, or from its geometric mixture with μ in the "
        "rule's share, mixed token by token or sampled by a GFlowNet",
        "policy",
        choices=("policy", "token_mixture", "gflownet"),
    )
    temperature: float = knob(
        "softmax temperature of the policy that is sampled and scored", 1.0, above=0
    )
    top_k: int = knob("keep the k likeliest tokens (off policy); 0: all", 0, at_least=0)
    top_p: float = knob(
        "keep the likeliest tokens up to this mass (off policy); 1: all", 1.0, above=0, at_most=1
    )
    batch_size: int = knob(
        "sequences generated and scored at a time", 32, at_least=1, may_change=True
    )


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Section):
    """The preference model P(y ≻ y′ | x)."""

    prefix: ClassVar[str] = "judge."
    kind: str = knob(
        "what the judge is",
        choices=("pairrm", "pair_preference", "reward_model", "callable", "embedded", "none"),
    )
    path: str | None = knob(
        "checkpoint; module:function for callable; game, styles or length for embedded", None
    )
    preference: str = knob(
        "general: the judge's own table of pairs; bradley_terry: one score a response, the sigmoid "
        "of differences (what published SPPO and RSPO runs did with PairRM)",
        "general",
        choices=("general", "bradley_terry"),
    )
    dtype: str = knob(
        "dtype of the judge's weights", "float32", choices=("float32", "bfloat16", "float16")
    )
    batch_size: int = knob("sequences judged at a time", 32, at_least=1, may_change=True)
    device: str = knob(
        "auto, cpu, cuda or cuda:N; a judge on a GPU leaves it while the policy is at work",
        "auto",
        may_change=True,
    )
    max_length: int | None = knob(
        "tokens of prompt and responses together that the judge reads; null: its own limit",
        None,
        at_least=1,
    )


@dataclass(frozen=True, kw_only=True)
class FittingConfig(Section):
    """The training phase, on transformers.Trainer."""

    prefix: ClassVar[str] = "train."
    batch_size: int = knob(
        "items (responses, or pairs) per optimizer step over all processes", 64, at_least=1
    )
    micro_batch_size: int = knob(
        "items per forward pass of a process; batch_size must be a multiple of it times the number "
        "of processes",
        4,
        at_least=1,
        may_change=True,
    )
    epochs: int = knob("passes over an iteration's responses", 1, at_least=1)
    learning_rate: float = knob("peak learning rate", 5e-6, above=0)
    schedule: str = knob("learning-rate schedule, as transformers names them", "linear")
    warmup: float = knob("share of the steps spent warming up", 0.0, at_least=0, at_most=0.99)
    optimizer: str = knob("optimizer, as transformers names them", "adamw_torch")
    weight_decay: float = knob("weight decay", 0.0, at_least=0)
    max_grad_norm: float = knob(
        "gradient norm above which it is scaled down; 0: never", 1.0, at_least=0
    )
    gradient_checkpointing: bool = knob(
        "recompute activations to save memory (1.5 times slower)", False, may_change=True
    )
    save_steps: int = knob(
        "optimizer steps between checkpoints inside an iteration", 50, at_least=1, may_change=True
    )
    report_to: str = knob(
        "tracker of transformers: none, tensorboard, wandb, …", "none", may_change=True
    )
    arguments: dict[str, Any] = field(
        default_factory=dict,
        metadata=about(
            "further transformers.TrainingArguments as they stand: bf16, deepspeed, fsdp, …"
        ),
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """What metrics.jsonl is measured on, before the first and after every iteration."""

    prefix: ClassVar[str] = "evaluation."
    prompts: int = knob(
        "prompts that are held out for it; 0: none, it takes prompts that are trained on",
        64,
        at_least=0,
    )
    samples: int = knob("responses a prompt, of π_t and of μ", 2, at_least=2)
    metrics: tuple[str, ...] = knob("metrics of your own, [package.module:object, …]", ())


@dataclass(frozen=True, kw_only=True)
class GFlowNetConfig(Section):
    """The sampler of sample.distribution=gflownet, trained in each iteration (α-SPIN, App. A)."""

    prefix: ClassVar[str] = "gflownet."
    rank: int = knob("rank of the sampler's LoRA adapter, on the policy's modules", 16, at_least=1)
    alpha: float = knob("its scale: the update is multiplied by alpha / rank", 32.0, above=0)
    learning_rate: float = knob("learning rate, constant", 1e-4, above=0)
    epochs: int = knob("times that each prompt is gone through", 10, at_least=1)
    prompts: int = knob("prompts that it is trained on at most", 1000, at_least=1)
    samples: int = knob("responses drawn for a prompt in an epoch", 4, at_least=1)
    batch_size: int = knob("responses per optimizer step over all processes", 64, at_least=1)
    micro_batch_size: int = knob(
        "responses per forward pass of a process; batch_size must be a multiple of it times the "
        "number of processes",
        16,
        at_least=1,
        may_change=True,
    )


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(Section):
    """What a run may use up for training; evaluation is not counted."""

    prefix: ClassVar[str] = "budget."
    tokens: int | None = knob(
        "tokens of training responses (not those that train a GFlowNet): no iteration is started "
        "that would exceed it, going by the last one; "
        "null: as many as the iterations take",
        None,
        at_least=1,
    )
    comparisons: int | None = knob(
        "pairs of responses judged, likewise; both orders of a pair are one", None, at_least=1
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """One run of Algorithm 1."""

    output_dir: str = knob("run directory", "runs/train")
    fresh: bool = knob("start anew in the next free directory beside output_dir", False)
    seed: int = knob("seed of every random choice", 42, at_least=0)
    iterations: int = knob("iterations T", 3, at_least=1)
    samples_per_prompt: int = knob("responses K per prompt", 5, at_least=1)
    selection: str | None = knob(
        "best and worst of the K responses, which alone are trained on: by a knock-out tournament "
        "(INPO) or by all pairs; null: all K",
        None,
        choices=("tournament", "round_robin"),
    )
    pooled_iterations: int = knob(
        "generations of this many last iterations are trained on together (official SPIN: 2)",
        1,
        at_least=1,
    )
    rule: str = knob("update rule: a name of solvers.rules or package.module:object", "gmmd")
    fit: str = knob(
        "how the model is moved to the rule's step",
        "proximal",
        choices=("regression", "proximal", "pairwise", "logistic", "policy_gradient"),
    )
    eta: float | None = knob("step size η of the mirror step; null: the rule's own", None, above=0)
    tau: float | None = knob("temperature τ of the game; give tau or lam", None, at_least=0)
    lam: float | None = knob(
        "coefficient λ of the regulariser in the loss of RSPO Eq. 6; give tau or lam",
        None,
        at_least=0,
    )
    regularizer: str | None = knob("R, such as reverse_kl or 0.1*forward_kl+0.5*reverse_kl", None)
    rule_options: dict[str, Any] = field(
        default_factory=dict, metadata=about("further arguments of the rule, by name")
    )
    fit_options: dict[str, Any] = field(
        default_factory=dict, metadata=about("further arguments of the fit, by name")
    )
    diagonal: Diagonal = field(
        default="exclude",
        metadata=about(
            "exclude: a response meets the K − 1 others; include: itself too at ½, as published "
            "code does, which aims at τK/(K − 1)",
            choices=("exclude", "include"),
        ),
    )
    chunk_size: int = knob(
        "prompts in a piece of work: the unit that is stored, resumed and dealt to processes",
        64,
        at_least=1,
    )
    threads: int | None = knob(
        "torch threads per process; null: torch's own choice", None, at_least=1
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
        """Check each field, then what binds several."""
        super().__post_init__()
        if self.tau is not None and self.lam is not None:
            raise InputError("tau and lam: give one of them; lam = 2·eta·tau for a true divergence")
        if (self.tau or self.lam) and self.regularizer is None:
            raise InputError(
                "regularizer: missing; tau or lam weights one, such as reverse_kl: give it, or "
                "leave them out for a rule that has none"
            )
        if self.train.batch_size % self.train.micro_batch_size:
            raise InputError(
                f"train.batch_size: {self.train.batch_size} is no multiple of "
                f"train.micro_batch_size {self.train.micro_batch_size}"
            )
