"""Speed and memory of the trainer on a language model, against bare loops and TRL.

python -m benchmarks.llm MODEL [--dtype bfloat16] [--json FILE]. MODEL is a directory, a .gguf
file or embedded:text. Each work alternates with its peers for --rounds rounds; the minimum times
(wall and CPU) are printed as a table. TRL is compared where it is installed (`make bench`).
On a GPU, the tokens per second of each phase, the use of its peak performance, peak memory and a
projection for 20,000 prompts with 5 responses are measured, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm.config.schema import FittingConfig, LoraConfig, ModelConfig, SampleConfig
from llm.embedded import directory
from llm.policy.fitting import FitDataset, batch_of, fit_policy
from llm.policy.loading import seeded
from llm.policy.log_probs import LOGIT_CHUNK, PromptResponse
from llm.policy.memory import peak_memory
from llm.policy.model import Policy
from llm.sampling.transformers_engine import sample
from solvers import get_rule
from solvers.fits import Items, get_fit
from solvers.plays import Plays

from .__main__ import _processor

NOT_MEASURED = "not measured"
# Dense bfloat16 operations per second, from the data sheets.
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
LEARNING_RATE = 1e-5
QUESTIONS = (
    "Explain how {} works.",
    "Write two sentences about {}.",
    "What should a beginner know about {}?",
    "Give three reasons to learn about {}, with an example.",
)
TOPICS = ("a bicycle", "the moon", "bread", "rain", "a library", "chess", "salt", "a bridge")


@dataclass(frozen=True)
class Size:
    """How much is measured. A prompt has `prompt_tokens` tokens in sampling and scoring."""

    prompts: int = 32
    samples: int = 5
    new_tokens: int = 24
    prompt_tokens: int = 48
    batch_size: int = 40
    micro_batch_size: int = 16


@dataclass(frozen=True)
class Timing:
    """The shortest of several rounds: wall seconds, CPU seconds, tokens."""

    wall: float
    cpu: float
    tokens: int


def timed(work: Callable[[], int]) -> Timing:
    """`work` returns the number of tokens that it processed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu, tokens)


def contest(contestants: dict[str, Callable[[], int]], rounds: int) -> dict[str, Timing]:
    """The contestants in turn, `rounds` times; the fastest per token of each."""
    seen: dict[str, list[Timing]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            seen[name].append(timed(work))
            print(f"{work.__name__}: {seen[name][-1]}", file=sys.stderr, flush=True)
    return {
        name: min(found, key=lambda t: t.wall / max(t.tokens, 1)) for name, found in seen.items()
    }


# --- what is measured -----------------------------------------------------------------------------


class Workload:
    """The phases of an iteration on one policy, ours and as bare loops over the same batches."""

    def __init__(self, path: str, dtype: str, size: Size, seed: int = 0) -> None:
        self.size = size
        path = str(directory(path) or path)
        settings = ModelConfig(path=path, dtype=dtype)
        self.policy = Policy.load(settings, LoraConfig(rank=16), seed=seed)
        self.sampling = SampleConfig(max_new_tokens=size.new_tokens, batch_size=size.batch_size)
        texts = [QUESTIONS[i % 4].format(TOPICS[i // 4 % 8]) for i in range(size.prompts)]
        self.texts = texts
        template: Any = self.policy.tokenizer.apply_chat_template
        self.chat: list[list[int]] = [
            template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
            for text in texts
        ]
        # Prompts of one length: their beginnings are repeated.
        n = size.prompt_tokens
        self.prompts = [(ids * (n // len(ids) + 1))[:n] for ids in self.chat]
        rng = np.random.default_rng(seed)
        self.rows = [
            PromptResponse(prompt, rng.integers(5, 300, size.new_tokens).tolist())
            for prompt in self.prompts
            for _ in range(size.samples)
        ]

    # Sampling: both count the tokens up to the end of each response.

    def sample(self) -> int:
        """K responses to each prompt."""
        drawn = sample(self.policy, self.prompts, self.size.samples, self.sampling, key=(0,))
        return sum(len(response.token_ids) for row in drawn for response in row)

    @torch.no_grad()
    def sample_bare(self) -> int:
        """generate() on repeated prompts, in batches of as many rows."""
        repeated = [prompt for prompt in self.prompts for _ in range(self.size.samples)]
        count, ends = 0, torch.tensor(self.policy.stop_ids, device=self.policy.device)
        with self.policy.acting(), seeded(0, self.policy.device):
            for first in range(0, len(repeated), self.size.batch_size):
                ids = torch.tensor(repeated[first : first + self.size.batch_size])
                made = self.policy.model.generate(
                    input_ids=ids.to(self.policy.device),
                    attention_mask=torch.ones_like(ids).to(self.policy.device),
                    do_sample=True,
                    top_k=0,
                    max_new_tokens=self.size.new_tokens,
                    eos_token_id=list(self.policy.stop_ids),
                    pad_token_id=self.policy.pad_token_id,
                )[:, ids.shape[1] :]
                ended = torch.isin(made, ends).int().cumsum(-1)
                count += int(((ended == 0) | (ended.cumsum(-1) == 1)).sum())
        return count

    # Scoring: both count all tokens of prompts and responses.

    def score(self) -> int:
        """log π_θ of each response."""
        self.policy.log_probs(self.rows, batch_size=self.size.batch_size)
        return sum(map(len, self.rows))

    @torch.no_grad()
    def score_bare(self) -> int:
        """All logits of each batch, and their log-softmax at the responses."""
        with self.policy.acting():
            for first in range(0, len(self.rows), self.size.batch_size):
                batch = self.policy.collate(self.rows[first : first + self.size.batch_size])
                logits = self.policy.model(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    position_ids=batch["position_ids"],
                    use_cache=False,
                ).logits[:, -self.size.new_tokens - 1 : -1]
                tokens = batch["input_ids"][:, -self.size.new_tokens :, None]
                logits.float().log_softmax(-1).gather(-1, tokens).sum((1, 2)).tolist()
        return sum(map(len, self.rows))

    # Training: one epoch of a squared distance to constant targets.

    def fitting(self) -> FittingConfig:
        """A batch is one micro-batch."""
        size = self.size.micro_batch_size
        return FittingConfig(batch_size=size, micro_batch_size=size, learning_rate=LEARNING_RATE)

    def train(self) -> int:
        """`fit_policy` on the rows of `score`."""
        k, b = self.size.samples, self.size.prompts
        completions = [self.rows[i : i + k] for i in range(0, b * k, k)]
        self.fit(completions, np.zeros((b, k)))
        used = b * k - b * k % self.size.micro_batch_size
        return sum(map(len, self.rows[:used]))

    def fit(self, completions: Sequence[Sequence[PromptResponse]], score: np.ndarray) -> None:
        """One epoch of `proximal` on responses (B, K) with these scores."""
        k = score.shape[-1]
        preference = 1 / (1 + np.exp(score[:, None, :] - score[:, :, None]))
        zero = np.zeros_like(score)
        length = np.array([[len(c.response_ids) for c in row] for row in completions], float)
        plays = Plays.sampled(preference, zero, zero, "exclude", length=length)
        rule, fit = get_rule("gmmd", eta=4.0, tau=0.05), get_fit("proximal")
        items: Items = fit.items(plays, rule(plays))
        assert items.weight.shape[-1] == k
        with tempfile.TemporaryDirectory() as here:
            rows = FitDataset(completions, items)
            settings = self.fitting()
            fit_policy(self.policy, fit, rows, settings, directory=Path(here), seed=(0,), start=1e9)

    def train_bare(self) -> int:
        """A loop over the same rows: log-probabilities, a squared loss, AdamW."""
        size, model = self.size.micro_batch_size, self.policy.model
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
        used = len(self.rows) - len(self.rows) % size
        model.train()
        for first in range(0, used, size):
            rows = [
                {"responses": [row], "weight": 1.0, "columns": {}}
                for row in self.rows[first : first + size]
            ]
            batch = batch_of(rows, self.policy.pad_token_id, torch.float32)
            batch = {n: x.to(self.policy.device) for n, x in batch.items() if n != "columns"}
            logits = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                position_ids=batch["position_ids"],
                use_cache=False,
                logits_to_keep=self.size.new_tokens + 1,
            ).logits[:, :-1]
            tokens = batch["input_ids"][:, -self.size.new_tokens :, None]
            logp = logits.float().log_softmax(-1).gather(-1, tokens).sum((1, 2))
            loss = (logp - 1).square().mean() * 1e-9
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return sum(map(len, self.rows[:used]))

    # One iteration as TRL's online trainer does it: two responses, a reward by a function, a step.

    def iteration(self) -> int:
        """32 prompts by default: sampled, scored under π_t and μ, judged, and trained on."""
        drawn = sample(self.policy, self.chat, 2, self.sampling, key=(1,))
        completions = [
            [PromptResponse(prompt, response.token_ids) for response in row]
            for prompt, row in zip(self.chat, drawn, strict=True)
        ]
        flat = [completion for row in completions for completion in row]
        for adapter in (True, False):
            self.policy.log_probs(flat, batch_size=self.size.batch_size, adapter=adapter)
        self.fit(completions, np.array([reward([r.text for r in row]) for row in drawn]))
        return len(self.chat)

    def trl(self, path: str, dtype: str) -> Callable[[], int]:
        """TRL's OnlineDPOTrainer on the same prompts and model, 8 prompts per step."""
        from datasets import Dataset
        from peft import LoraConfig as Lora
        from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

        # A base of its own: TRL puts an adapter on it.
        base = Policy.load(
            ModelConfig(path=str(directory(path) or path), dtype=dtype), LoraConfig(rank=16)
        )
        model = base.model.unload()
        prompts = [[{"role": "user", "content": text}] for text in self.texts]

        def run() -> int:
            with tempfile.TemporaryDirectory() as here:
                trainer = OnlineDPOTrainer(
                    model=model,
                    reward_funcs=lambda completions, **_: reward(
                        [c[0]["content"] if isinstance(c, list) else c for c in completions]
                    ),
                    args=OnlineDPOConfig(
                        output_dir=here,
                        per_device_train_batch_size=8,
                        num_train_epochs=1,
                        learning_rate=LEARNING_RATE,
                        max_new_tokens=self.size.new_tokens,
                        temperature=1.0,
                        missing_eos_penalty=None,
                        report_to="none",
                        save_strategy="no",
                        disable_tqdm=True,
                        use_cpu=self.policy.device.type == "cpu",
                        bf16=False,
                        gradient_checkpointing=False,
                    ),
                    train_dataset=Dataset.from_dict({"prompt": prompts}),
                    processing_class=base.tokenizer,
                    peft_config=Lora(
                        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
                    ),
                )
                began = timed(lambda: trainer.train() and 0)  # setting up is not counted
                self.trl_timing = began
                trainer.model.unload()
            return len(prompts)

        return run


def reward(texts: Sequence[str]) -> list[float]:
    """The number of distinct words: a judge that costs nothing."""
    return [float(len(set(text.split()))) for text in texts]


def scoring_memory(load: Workload, rows: int = 64) -> dict[str, float]:
    """MiB: weights, logits of a chunk, and what scoring adds to the process at its peak."""
    few = (load.rows * (rows // len(load.rows) + 1))[:rows]
    weights = sum(p.numel() * p.element_size() for p in load.policy.model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    load.policy.log_probs(few, batch_size=rows)
    added = _status("VmHWM") - before
    chunk = LOGIT_CHUNK * 4 / 2**20
    return {
        "weights": weights / 2**20,
        "chunk": chunk,
        "added": added,
        "ratio": (weights / 2**20 + added) / (weights / 2**20 + chunk),
    }


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


# --- the report -----------------------------------------------------------------------------------


def measure(path: str, dtype: str, size: Size, rounds: int, works: Sequence[str]) -> dict[str, Any]:
    """Everything that is measured on one model, as JSON."""
    load = Workload(path, dtype, size)
    contests: dict[str, dict[str, Timing]] = {}
    result: dict[str, Any] = {"model": path, "dtype": dtype, "device": str(load.policy.device)}
    result |= {"load_before": os.getloadavg()[0], "threads": torch.get_num_threads()}
    if "memory" in works and load.policy.device.type == "cpu" and Path("/proc/self").exists():
        result["scoring_memory_mib"] = scoring_memory(load)
    for name in ("sample", "score", "train"):
        if name in works:
            bare = getattr(load, f"{name}_bare")
            contests[name] = contest({"nashplay": getattr(load, name), "bare": bare}, rounds)
    if "iteration" in works:
        sides: dict[str, Callable[[], int]] = {"nashplay": load.iteration}
        if importlib.util.find_spec("trl") is not None:
            sides["trl"] = load.trl(path, dtype)
        found = contest(sides, rounds)
        contests["iteration"] = found
    result["works"] = {
        work: {side: vars(timing) for side, timing in found.items()}
        for work, found in contests.items()
    }
    result["load_after"] = os.getloadavg()[0]
    result["gpu"] = gpu_figures(load, contests)
    return result


def gpu_figures(load: Workload, contests: dict[str, dict[str, Timing]]) -> Any:
    """Tokens per second, MFU, peak memory and a projection; without a GPU a line that says so."""
    if load.policy.device.type != "cuda" or not {"sample", "score", "train"} <= set(contests):
        return NOT_MEASURED
    rate = {w: f["nashplay"].tokens / f["nashplay"].wall for w, f in contests.items()}
    name = torch.cuda.get_device_name()
    peak = next((flops for known, flops in PEAK.items() if known in name), None)
    weights = sum(p.numel() for p in load.policy.model.parameters() if not p.requires_grad)
    # A frozen base needs no gradients of its weights: 2 operations per weight and token in the
    # forward pass, 2 in the backward pass.
    mfu = None if peak is None else 4 * weights * rate["train"] / peak
    responses = 20_000 * 5
    whole = load.size.prompt_tokens + load.size.new_tokens
    seconds = responses * (
        load.size.new_tokens / rate["sample"] + 2 * whole / rate["score"] + whole / rate["train"]
    )
    return {
        "name": name,
        "tokens_per_second": {w: rate[w] for w in ("sample", "score", "train")},
        "training_mfu": mfu,
        "peak_memory_gib": peak_memory(),
        "hours_for_20000_prompts_of_5": seconds / 3600,
    }


def table(result: dict[str, Any]) -> list[str]:
    """Markdown: a row per work and peer."""
    lines = [
        "| work | nashplay | peer | | ratio of wall time | of CPU time | load |",
        "|---|---|---|---|---|---|---|",
    ]
    load = f"{result['load_before']:.1f}-{result['load_after']:.1f}"
    for work, sides in result["works"].items():
        ours = sides["nashplay"]
        for name, peer in sides.items():
            if name != "nashplay":
                ratio = {
                    c: peer[c] / max(peer["tokens"], 1) * ours["tokens"] / max(ours[c], 1e-9)
                    for c in ("wall", "cpu")
                }
                lines.append(
                    f"| {work} | {_cell(ours)} | {name} | {_cell(peer)} | {ratio['wall']:.2f}× "
                    f"| {ratio['cpu']:.2f}× | {load} |"
                )
    memory = result.get("scoring_memory_mib")
    if memory:
        lines.append(
            f"\nmemory of scoring 64 rows: weights {memory['weights']:.0f} MiB, added "
            f"{memory['added']:.0f} MiB: {memory['ratio']:.2f} × (weights + "
            f"{memory['chunk']:.0f} MiB of logits)"
        )
    lines.append(f"\nGPU: {json.dumps(result['gpu'])}")
    return lines


def _cell(timing: dict[str, Any]) -> str:
    return f"{timing['wall']:.2f} s ({timing['tokens'] / max(timing['wall'], 1e-9):.0f}/s)"


WORKS = ("memory", "sample", "score", "train", "iteration")


def main() -> None:
    """Prints the table; `--json` also writes the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llm", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("works", nargs="*", default=WORKS, choices=[*WORKS, []])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=Size.prompts)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = Size(prompts=args.prompts)
    result = measure(args.model, args.dtype, size, args.rounds, args.works or WORKS)
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "transformers", "peft"))
    print(f"{_processor()}, {args.threads} threads, {args.dtype}; Python ", end="")
    print(f"{platform.python_version()}, {versions}\n")
    print(*table(result), sep="\n")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
