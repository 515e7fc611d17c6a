"""A sampler of the geometric mixture ∝ π_θ(y)^(1−share) μ(y)^share, trained as a GFlowNet.

After Hu et al. 2023 ("Amortizing intractable inference in large language models") and α-SPIN
App. A: a LoRA adapter of rank 16 is trained on top of π_θ until the probability q(y) of each
response is proportional to its reward R(y) = π_θ(y)^(1−share) μ(y)^share.

**The loss.** States are prefixes s of responses; from each, a token is appended or the response
terminates, by one of the model's end-of-sequence tokens ⊤. At the length limit L termination is
forced: the reward of a response that is cut there has no factor for EOS, and neither has its q.
With F(s) the flow through s (the reward of all responses that begin with s), a sampler ∝ R obeys,
for each prefix s_i of a response y = (y_1, …, y_n) and each later one s_j,

    F(s_i) q(y_{i+1} | s_i) ⋯ q(y_j | s_{j−1}) = F(s_j)      (sub-trajectory balance)
    F(s_i) q(⊤ | s_i) = R(s_i ⊤)                             (each state can terminate)

The second line gives F(s_i) = R(s_i ⊤)/q(⊤ | s_i), which makes the first, with
q(s_i ⊤) = q(y_1 | s_0) ⋯ q(y_i | s_{i−1}) q(⊤ | s_i),

    b_i = b_j      where b_i = log R(s_i ⊤) − log q(s_i ⊤)   (the modified balance of Hu et al.)

and at the limit s_L, whose flow is its reward, b_L = log R(y) − log q(y). So the mean square of all
sub-trajectory terms, b_i − b_j over i < j, is twice the sample variance of b along the response.

It is zero for every response if and only if q ∝ R: all b_i of a response are then equal, and all
responses share b_0, so that R = e^{b_0} q for all of them; q sums to 1, so e^{b_0} is the
normalizing constant. Conversely, q ∝ R makes b constant. Only q is learned: no flow, no constant.

Differs from Hu et al.: the mean over pairs is taken within each response, not over a batch, so that
a response's loss does not depend on the others (theirs weights a response by its number of pairs);
the weights λ of sub-trajectories are all 1, which is their setting; trajectories are drawn half
from the current q and half from μ, where they use a replay buffer and tempered draws of q. Any
distribution of full support has the same minimizer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback

from games.errors import InputError
from llm.config.schema import FittingConfig, GFlowNetConfig, SampleConfig
from llm.policy.adapters import ADAPTER, ADAPTER_WEIGHTS
from llm.policy.fitting import FitTrainer, training_arguments
from llm.policy.loading import seeded
from llm.policy.log_probs import PromptResponse, response_logits, token_log_probs
from llm.policy.model import Policy
from llm.sampling.engine import Response
from llm.sampling.transformers_engine import generate, sample, uniforms
from llm.storage.chunks import World
from solvers.arrays import log_mixture

SAMPLER = "sampler"  # peft's name of the adapter that turns π_θ into q


def log_terminated(
    log_token: torch.Tensor, log_stop: torch.Tensor, response: torch.Tensor
) -> torch.Tensor:
    """(B, T), (B, T, E), (B, T) -> (B, T + 1, E): log q of each terminated prefix, and of all.

    log_token and log_stop are log-probabilities of the tokens at each position and of the E tokens
    that would have terminated there; `response` masks the responses. The last entry is the whole
    response, whether it terminated or was cut.
    """
    taken = log_token.where(response, 0).unsqueeze(-1)
    before = taken.cumsum(1) - taken
    whole = taken.sum(1, keepdim=True).expand(-1, -1, log_stop.shape[-1])
    return torch.cat([before + log_stop, whole], dim=1)


def balance_loss(
    log_q: torch.Tensor, log_reward: torch.Tensor, response: torch.Tensor, finished: torch.Tensor
) -> torch.Tensor:
    """(B, T + 1, E), (B, T + 1, E), (B, T), (B,) -> (B,): mean square of b_i − b_j over i < j.

    Both from `log_terminated`: of the sampler, and of the mixture of π_θ and μ.
    """
    # Termination is one event, whichever token causes it. The whole response has one value in E
    # copies, whose log E cancels.
    b = log_reward.logsumexp(-1) - log_q.logsumexp(-1)
    # With one such token, a finished response equals its last prefix, terminated.
    twice = finished & (log_q.shape[-1] == 1)
    last = response.cumsum(-1) == response.sum(-1, keepdim=True)
    points = torch.cat(
        [response & ~(last & twice[:, None]), torch.ones_like(finished)[:, None]], dim=1
    )
    count = points.sum(-1)
    mean = b.where(points, 0).sum(-1) / count
    square = (b - mean[:, None]).where(points, 0).square().sum(-1)
    return 2 * square / (count - 1).clamp(min=1)  # an empty response has one point only


def _log_terminated(
    model: torch.nn.Module,
    batch: Mapping[str, torch.Tensor],
    stop_ids: Sequence[int],
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T + 1, E), and the response mask (B, T)."""
    logits, tokens, response = response_logits(model, batch)
    stops = torch.tensor(stop_ids, device=tokens.device).expand(*tokens.shape, -1)
    asked = torch.cat([tokens.unsqueeze(-1), stops], dim=-1)
    log_probs = token_log_probs(logits, asked, temperature)
    return log_terminated(log_probs[..., 0], log_probs[..., 1:], response), response


def check_termination(policy: Policy) -> tuple[int, ...]:
    """The tokens that terminate a response. Raises InputError if the model has none."""
    rows = policy.model.get_input_embeddings().weight.shape[0]
    known = tuple(token for token in policy.stop_ids if token < rows)
    if not known:
        raise InputError(
            f"model.path={policy.base['path']}: has no embedding for an end-of-sequence token, so "
            "a GFlowNet cannot terminate; take sample.distribution=token_mixture"
        )
    return known


def attach_sampler(policy: Policy, config: LoraConfig, seed: int = 0) -> None:
    """Adds a new sampler adapter, which replaces an earlier one and leaves π_θ unchanged."""
    remove_sampler(policy)
    with seeded(seed, policy.device):
        policy.model.add_adapter(SAMPLER, config)
    policy.model.set_adapter(ADAPTER)


def remove_sampler(policy: Policy) -> None:
    """Removes the sampler adapter, if there is one."""
    if SAMPLER in policy.model.peft_config:
        policy.model.delete_adapter(SAMPLER)
        policy.model.set_adapter(ADAPTER)


def save_sampler(policy: Policy, directory: str | Path) -> None:
    """Writes the sampler's adapter, which applies on top of the π_θ that it was trained with."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(
        policy.model, adapter_name=SAMPLER, save_embedding_layers=False
    )
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        Path(directory) / ADAPTER_WEIGHTS,
    )
    policy.model.peft_config[SAMPLER].save_pretrained(str(directory))


def load_sampler(policy: Policy, directory: str | Path) -> None:
    """Attaches what `save_sampler` wrote; the policy must be the same π_θ."""
    config = LoraConfig.from_pretrained(str(directory))
    config.inference_mode = False
    attach_sampler(policy, config)  # pyright: ignore[reportArgumentType]
    weights = load_file(Path(directory) / ADAPTER_WEIGHTS)
    set_peft_model_state_dict(policy.model, weights, adapter_name=SAMPLER)


@contextmanager
def sampling(policy: Policy) -> Iterator[None]:
    """Inside, the model is q: the sampler's adapter on top of π_θ's, and only it is trainable."""
    try:
        _act_as_sampler(policy)
        yield
    finally:
        policy.model.set_adapter(ADAPTER)


def _act_as_sampler(policy: Policy) -> None:
    tuner: Any = policy.model.base_model  # PeftModel.set_adapter takes a single adapter
    tuner.set_adapter([ADAPTER, SAMPLER])
    policy.model.set_requires_grad(ADAPTER, False)


def sample_gflownet(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    samples_per_prompt: int,
    settings: SampleConfig,
    *,
    key: Sequence[int],
) -> tuple[list[list[Response]], torch.Tensor]:
    """Token ids of B prompts -> B lists of K responses, and (B, K) their log q on the CPU.

    Random numbers, settings and errors are those of `sample`.
    """
    with sampling(policy):
        drawn = sample(policy, prompts, samples_per_prompt, settings, key=key)
        completions = [
            PromptResponse(prompt, response.token_ids)
            for prompt, responses in zip(prompts, drawn, strict=True)
            for response in responses
        ]
        logp = policy.log_probs(
            completions, batch_size=settings.batch_size, temperature=settings.temperature
        )
    return drawn, logp.view(len(prompts), samples_per_prompt)


class _Trajectories(Dataset):
    """The prompt of each trajectory, in training order."""

    def __init__(
        self, prompts: Sequence[Sequence[int]], settings: GFlowNetConfig, seed: Sequence[int]
    ) -> None:
        rng = np.random.default_rng(seed)
        taken = rng.permutation(len(prompts))[: settings.prompts]
        epochs = [
            rng.permutation(np.repeat(taken, settings.samples)) for _ in range(settings.epochs)
        ]
        self.prompts = prompts
        self.order = np.concatenate(epochs)[: steps(settings, len(prompts)) * settings.batch_size]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> tuple[int, Sequence[int]]:
        return i, self.prompts[self.order[i]]


def steps(settings: GFlowNetConfig, prompts: int) -> int:
    """Optimizer steps for that many prompts; an incomplete last batch is left out.

    Raises InputError if there are none.
    """
    drawn = settings.epochs * settings.samples * min(prompts, settings.prompts)
    if drawn < settings.batch_size:
        raise InputError(
            f"gflownet.batch_size={settings.batch_size}: {prompts} prompts make only {drawn} "
            "responses to train the sampler on; lower it, or raise gflownet.epochs"
        )
    return drawn // settings.batch_size


def train_sampler(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    share: float,
    settings: GFlowNetConfig,
    sample_settings: SampleConfig,
    *,
    seed: Sequence[int],
    directory: Path,
    world: World = World(),  # noqa: B008 - frozen
    on_steps: Callable[[int], object] = lambda more: None,
) -> list[float]:
    """Attaches an adapter that samples ∝ π_θ^(1−share) μ^share; returns the loss of each step.

    π_θ and μ are unchanged, and the policy acts as π_θ afterwards. Responses have at most
    `sample_settings.max_new_tokens` tokens, and all distributions have its temperature. `directory`
    is for the Trainer's files. Raises InputError for a model without EOS, and FloatingPointError if
    the loss becomes NaN or infinite.
    """
    stop_ids = check_termination(policy)
    rows = _Trajectories(prompts, settings, seed)
    taught: Any = policy.model.peft_config[ADAPTER]
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] - any number will do
        target_modules=taught.target_modules,
    )
    attach_sampler(policy, lora, seed=int(np.random.SeedSequence([*seed]).generate_state(1)[0]))
    untruncated = dataclasses.replace(sample_settings, top_k=0, top_p=1.0)

    def loss(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        completions, finished = _trajectories(policy, batch["rows"], untruncated, seed)
        made = policy.collate(completions)
        log_reward = _log_reward(policy, made, share, stop_ids, untruncated.temperature)
        log_q, response = _log_terminated(model, made, stop_ids, untruncated.temperature)
        return balance_loss(log_q, log_reward, response, finished).mean()

    fitting = FittingConfig(
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        learning_rate=settings.learning_rate,
        schedule="constant",
        arguments={"save_strategy": "no"},
    )
    on_cpu = policy.device.type == "cpu"
    with sampling(policy):
        trainer = FitTrainer(
            model=policy.model,
            args=training_arguments(fitting, directory, world, seed[0], on_cpu),
            train_dataset=rows,
            data_collator=lambda batch: {"rows": batch},
            callbacks=[_TellSteps(on_steps)],
            loss=loss,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    if not all(map(math.isfinite, losses)):
        raise FloatingPointError(
            "the sampler's loss became NaN or infinite; lower gflownet.learning_rate"
        )
    return losses


def _trajectories(
    policy: Policy,
    rows: Sequence[tuple[int, Sequence[int]]],
    settings: SampleConfig,
    seed: Sequence[int],
) -> tuple[list[PromptResponse], torch.Tensor]:
    """A response to each prompt, alternately of q and of μ, and (B,) which of them terminated."""
    drawn: dict[int, Response] = {}
    for turn, from_sampler in enumerate((True, False)):
        own = [(i, prompt) for i, prompt in rows if i % 2 == turn]
        if own:
            random = np.stack([uniforms(seed, i, settings.max_new_tokens) for i, _ in own])
            with policy.acting(from_sampler):
                made = generate(policy, [prompt for _, prompt in own], random, settings)
            drawn |= {i: response for (i, _), response in zip(own, made, strict=True)}
    completions = [PromptResponse(prompt, drawn[i].token_ids) for i, prompt in rows]
    finished = torch.tensor([drawn[i].finished for i, _ in rows], device=policy.device)
    return completions, finished


@torch.no_grad()
def _log_reward(
    policy: Policy,
    batch: Mapping[str, torch.Tensor],
    share: float,
    stop_ids: Sequence[int],
    temperature: float,
) -> torch.Tensor:
    """(B, T + 1, E): log R of each terminated prefix, and of the whole response."""
    policy.model.set_adapter(ADAPTER)
    own, _ = _log_terminated(policy.model, batch, stop_ids, temperature)
    with policy.model.disable_adapter():
        reference, _ = _log_terminated(policy.model, batch, stop_ids, temperature)
    _act_as_sampler(policy)  # peft makes π_θ's adapter trainable again
    return log_mixture(own, reference, share)


class _TellSteps(TrainerCallback):
    def __init__(self, on_steps: Callable[[int], object]) -> None:
        self.on_steps = on_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_steps(1)
