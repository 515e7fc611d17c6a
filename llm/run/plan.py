"""`--dry-run`: what a run would do, checked as far as possible without a GPU or the weights."""

from __future__ import annotations

import heapq
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from gguf import GGUFReader
from rich.console import Console
from transformers.utils.hub import cached_file

from games.errors import InputError
from llm.config.loading import to_yaml
from llm.config.schema import TrainConfig
from llm.config.section import as_dict
from llm.data.examples import Examples
from llm.data.prompts import PromptSet
from llm.embedded import resolve
from llm.judges.build import check_judge_files
from llm.policy.fitting import accumulation
from llm.policy.loading import check_weight_files, is_gguf, naming_field
from llm.policy.model import Policy
from llm.run.setup import check_batches, check_sampler, checked, encoded, shape_of, target_lines
from llm.sources.base import Source
from llm.storage.directory import find_run
from llm.storage.files import read_json, read_rows
from llm.storage.provenance import hardware

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


EXAMPLES = 100  # at most, in the JSON form of the plan


def print_plan(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Checks configuration, data, template, judge files and disk, and prints the plan.

    Returns the plan as values that JSON can hold. `examples` are those that are trained on, in the
    order of the data, at most `EXAMPLES` of them: prompt, answer and rejected answer as text after
    decoding their tokens; null for an answer that the data do not contain. Raises InputError for
    what would stop the run.
    """

    def say(name: str, text: object) -> None:
        console.print(f"{name:<12} {text}", markup=False, highlight=False, soft_wrap=True)

    source, fit, examples = checked(config)
    rule = source.rule
    run = find_run(config)
    finished = run.finished_for(config.iterations)
    state = "finished" if finished else f"{run.trained()} of {config.iterations} iterations done"
    say("run", f"{run.path} ({state})")
    say("rule", f"{rule.name}, fit {fit.name}, eta {rule.eta_at(0):g}")
    for line in target_lines(source, fit):
        say("", line)

    known = resolve(config)
    policy = shape_of(known)
    base = sum(p.numel() for p in policy.model.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    say("model", f"{known.model.path}: {base:,} parameters, {trained:,} trained")
    say("", weights_at(known, policy))

    prompts = encoded(known, policy, examples)
    longest = max(len(p.token_ids) for fold in (*prompts.folds, prompts.held_out) for p in fold)
    folds = " + ".join(str(len(fold)) for fold in prompts.folds)
    say("prompts", f"{folds}, {len(prompts.held_out)} held out, {prompts.dropped} too long")
    shown = decoded_examples(policy, prompts, examples)
    say("", f"longest {longest} tokens; the first example as the model sees it:")
    for text in example_lines(shown[0]):
        say("", text)

    judge = judge_size(config)
    if config.judge.kind == "none":
        say("judge", "none")
    else:
        size = "on the hub, to be downloaded" if judge is None else f"{judge:,} parameters"
        say("judge", f"{config.judge.kind} {config.judge.path}: {size}")

    check_batches(source, fit, prompts)
    check_sampler(known, policy, prompts)
    uses = uses_of(source, prompts)
    items = uses.prompts * source.items_per_prompt(fit)
    steps = items // config.train.batch_size * config.train.epochs
    say(
        "iteration",
        f"{uses.asked} prompts in {-(-uses.asked // config.chunk_size)} chunks: "
        f"{uses.sampled} responses sampled, {uses.comparisons} pairs compared; "
        f"{uses.trained} responses trained on in {steps} optimizer steps of "
        f"{accumulation(config.train, 1)} micro-batches on one process",
    )
    if uses.past:
        say("", f"log-probabilities are also computed under up to {uses.past} past iterates")
    parts = memory(known, policy, base, trained, judge or 0, longest)
    for name, size in parts.items():
        say("memory", f"{name}: {_size(size)}")
    say("", "activations of the training pass are not in it")
    needed = disk(config, trained, uses.log_probs)
    there = next(p for p in (run.path, *run.path.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    say("disk", f"up to {_size(needed)}, free {_size(free)}")
    if needed > free:
        raise InputError(
            f"output_dir={run.path}: the run takes up to {_size(needed)} and {_size(free)} are "
            "free; make room, or give another output_dir"
        )
    say("time", time_of(config, prompts, uses))
    console.print(to_yaml(config), markup=False, highlight=False, end="")
    return {
        "run": str(run.path),
        "finished": finished,
        "rule": rule.name,
        "fit": fit.name,
        "eta": rule.eta_at(0),
        "parameters": {"model": base, "trained": trained, "judge": judge},
        "prompts": {
            "folds": [len(fold) for fold in prompts.folds],
            "held_out": len(prompts.held_out),
            "dropped": prompts.dropped,
            "longest": longest,
        },
        "iteration": asdict(uses) | {"optimizer_steps": steps},
        "memory_bytes": parts,
        "disk_bytes": needed,
        "examples": shown,
        "config": as_dict(config),
    }


def decoded_examples(
    policy: Policy, prompts: PromptSet, examples: Examples
) -> list[dict[str, str | None]]:
    """[{prompt, answer, rejected}] in the order of the data: exactly what the tokens are."""
    order = {p.where: i for group in examples.groups for i, p in enumerate(group)}
    each = (prompt for fold in prompts.folds for prompt in fold)
    first = heapq.nsmallest(EXAMPLES, each, key=lambda prompt: order[prompt.where])

    def text(ids: Sequence[int]) -> str:
        decoded = policy.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return str(decoded)

    return [
        dict(
            zip(
                ("prompt", "answer", "rejected"),
                [text(p.token_ids), *map(text, p.answers), None, None],
                strict=False,
            )
        )
        for p in first
    ]


def example_lines(example: dict[str, str | None]) -> list[str]:
    """An example in the plan: the prompt, and each answer after it."""
    prompt, answer, rejected = example["prompt"], example["answer"], example["rejected"]
    lines = [repr(prompt) if answer is None else f"{prompt!r} -> {answer!r}"]
    return lines if rejected is None else [*lines, f"rejected: {prompt!r} -> {rejected!r}"]


@dataclass(frozen=True)
class Uses:
    """What the last iteration takes, if every selected pair is trained on.

    asked        prompts of the iteration
    prompts      prompts that are trained on, those of pooled iterations included
    sampled      responses that are generated
    comparisons  pairs that are judged
    log_probs    responses whose log-probabilities are computed under π_t and μ
    trained      responses that are trained on
    past         earlier iterates under which log-probabilities are computed as well
    """

    asked: int
    prompts: int
    sampled: int
    comparisons: int
    log_probs: int
    trained: int
    past: int


def uses_of(source: Source, prompts: PromptSet) -> Uses:
    """The numbers of a configuration."""
    config, cost = source.config, source.cost
    asked = config.data.prompts_per_iteration or len(prompts.folds[0])
    last = config.iterations - 1
    past = set(source.required_iterates(last)) - {last}
    return Uses(
        asked=asked,
        prompts=asked * cost.groups,
        sampled=asked * cost.sampled,
        comparisons=asked * cost.comparisons,
        log_probs=asked * cost.log_probs,
        trained=asked * cost.trained,
        past=len(past),
    )


def judge_size(config: TrainConfig) -> int | None:
    """The judge's parameters, 0 without one; None for one that is yet to be downloaded."""
    if config.judge.kind == "none":
        return 0
    return check_judge_files(config.judge.kind, config.judge.path)


def weights_at(config: TrainConfig, policy: Policy) -> str:
    """Where the weights are, after a check of their shapes with those of a policy without weights.

    Raises InputError for a directory without safetensors, and for weights that do not fit.
    """
    model = config.model
    if model.random_from_config is not None:
        return "random weights"
    if is_gguf(model.path):
        with naming_field("model.path", model.path):
            GGUFReader(model.path)  # raises for a truncated file
        return f"weights: {model.path}, unpacked into model.dtype"
    local = Path(model.path).is_dir()
    for name in WEIGHTS:
        if found := _cached(model.path, name):
            files = [found] if name == WEIGHTS[0] else _shards(model.path, found)
            check_weight_files(files, base_shapes(policy), model.path)
            return f"weights: {found}"
    if local:
        raise InputError(
            f"model.path={model.path}: no {WEIGHTS[0]}; weights are read from safetensors only"
        )
    return "weights: on the hub, to be downloaded"


def _cached(path: str, name: str) -> Path | None:
    """A file of a checkpoint that is on this machine."""
    found = cached_file(
        path,
        name,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _shards(path: str, index: Path) -> list[Path]:
    """The files that an index names. Raises InputError where one is missing."""
    with naming_field("model.path", path):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [_cached(path, name) for name in names]
    if None in shards:
        missing = names[shards.index(None)]
        raise InputError(f"model.path={path}: {missing}, which {index.name} names, is missing")
    return [shard for shard in shards if shard is not None]


def base_shapes(policy: Policy) -> dict[str, torch.Size]:
    """{name in a checkpoint: shape} of the base model's weights."""
    names = {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): weight.shape
        for name, weight in policy.model.get_base_model().state_dict().items()
        if "lora_" not in name and ".modules_to_save." not in name
    }
    return names


def memory(
    config: TrainConfig, policy: Policy, base: int, trained: int, judge: int, longest: int
) -> dict[str, float]:
    """Bytes that the parameter counts and sizes say will be taken."""
    shape = policy.model.config
    wide = {"float32": 4, "float64": 8}.get(str(policy.model.dtype).removeprefix("torch."), 2)
    length = longest + config.sample.max_new_tokens
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    cache = 2 * shape.num_hidden_layers * heads * head * wide
    # Logits in the model's dtype, in float32, and their gradient.
    logits = shape.vocab_size * config.sample.max_new_tokens * (2 * wide + 4)
    judged = 4 if config.judge.dtype == "float32" else 2
    return {
        "base weights": base * (0.5 if config.model.load_in_4bit else wide),
        "adapter, gradients and Adam (float32)": trained * 16,
        "logits of a micro-batch": config.train.micro_batch_size * logits,
        "key-value cache while sampling": config.sample.batch_size * length * cache,
        "judge's weights, while it judges": judge * judged,
    }


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def disk(config: TrainConfig, trained: int, responses: int) -> int:
    """Bytes at most: adapters, two Trainer checkpoints, responses as text and numbers."""
    adapters = 4 * trained * (config.iterations + 1)
    checkpoints = 2 * 12 * trained
    texts = config.iterations * responses * config.sample.max_new_tokens * 12
    return adapters + checkpoints + texts


def time_of(config: TrainConfig, prompts: PromptSet, uses: Uses) -> str:
    """From the throughput of an earlier run of this model on the same hardware."""
    here = hardware()
    for metrics in Path(config.output_dir).parent.glob("*/metrics.jsonl"):
        starts = read_json(metrics.parent / "provenance.json", {"starts": []})["starts"]
        stored = metrics.parent / "config.yaml"
        if not starts or not stored.is_file() or starts[-1]["hardware"] != here:
            continue
        old, rows = yaml.safe_load(stored.read_text(encoding="utf-8")), read_rows(metrics)
        per_second = rows[-1].get("per_second", {}) if rows else {}
        if old["model"]["path"] != config.model.path or "tokens trained" not in per_second:
            continue
        length = rows[-1]["length"]
        prompt = sum(len(p.token_ids) for p in prompts.folds[0]) / len(prompts.folds[0])
        amounts = {
            "tokens sampled": uses.sampled * length,
            "tokens scored": (2 * uses.log_probs + uses.past * uses.trained) * (length + prompt),
            "comparisons": uses.comparisons,
            "tokens trained": uses.trained * (length + prompt) * config.train.epochs,
        }
        seconds = sum(n / per_second[what] for what, n in amounts.items() if what in per_second)
        return f"about {seconds:.0f} s an iteration, at the rates of {metrics.parent}"
    return "unknown: no earlier run of this model on this hardware next to output_dir"
