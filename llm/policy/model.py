"""One language model in memory that is both policies: π_θ (LoRA adapter on) and μ (adapter off).

Log-probabilities are those of whole responses: the sum over the response's tokens, end-of-sequence
included, in float32 at least.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from games.errors import InputError
from llm.config.schema import LoraConfig as LoraSettings
from llm.config.schema import ModelConfig
from llm.policy import prompt_cache
from llm.policy.adapters import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    BASE_MODEL_RECORD,
    add_adapter,
    check_base,
    new_adapter_config,
    read_adapter_config,
)
from llm.policy.devices import named_device
from llm.policy.loading import (
    check_finite,
    disable_dropout,
    fingerprint_of,
    keep_head_input_contiguous,
    load_base_model,
    naming_field,
    padding_token_id,
    random_base_model,
    random_fingerprint,
    seeded,
    source_arguments,
    stop_token_ids,
)
from llm.policy.log_probs import (
    PromptResponse,
    collate,
    response_log_probs,
    response_logits,
    sequence_log_probs,
    shared_prompt_log_probs,
    token_kl,
    token_log_probs,
)
from llm.storage.files import is_intact

# Elements of the logits of a batch that is scored: on a GPU, and on a CPU, where larger batches are
# no faster.
LOGITS_OF_A_BATCH = (2**28, 2**24)


@dataclass(eq=False)
class Policy:
    """A base model with a LoRA adapter: π_θ with the adapter on, μ exactly with it off.

    `adapter` is the directory that the adapter's weights were last read from or written to; None
    for weights that are stored nowhere: a new adapter, or one in training.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    pad_token_id: int
    context_length: int | None
    base: dict[str, str]
    adapter: Path | None = None

    @classmethod
    def load(
        cls, settings: ModelConfig, lora: LoraSettings | None = None, *, seed: int = 0
    ) -> Policy:
        """The causal LM of `settings` with a new adapter, drawn from `seed`, or a given one.

        Dropout and the checkpoint's generation defaults are disabled, so that sampling, recorded
        log-probabilities and training use one distribution. Weights are read from safetensors
        only. A given adapter uses only the dropout of `lora`. Raises InputError naming the field.
        """
        lora = lora or LoraSettings()
        # On the meta device a policy has a shape and no weights.
        meta = settings.device == "meta"
        device = torch.device("meta") if meta else named_device("model.device", settings.device)
        remote: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
        shape = settings.random_from_config
        source = shape or settings.path
        key = "model.random_from_config" if shape else "model.path"
        with naming_field(key, source):
            config = AutoConfig.from_pretrained(**source_arguments(key, source), **remote)
        with naming_field("model.path", settings.path):
            tokenizer = AutoTokenizer.from_pretrained(
                **source_arguments("model.path", settings.path), **remote
            )
        if shape is None:
            base = load_base_model(settings, config, device)
            fingerprint = fingerprint_of(settings.path)
        else:
            base = random_base_model(settings, config, device, seed)
            fingerprint = random_fingerprint(config, seed)
        stop_ids = stop_token_ids(base, tokenizer, settings.path)
        pad_token_id = padding_token_id(base, tokenizer, stop_ids, settings.path)
        base.generation_config = GenerationConfig()
        disable_dropout(base)

        given = settings.adapter
        new = given is None
        lora_config = new_adapter_config(lora) if new else read_adapter_config(given, lora)
        with seeded(seed, device):
            where = "lora.target_modules" if new else f"{given}/adapter_config.json"
            model = add_adapter(base, lora_config, where)
        # After peft has wrapped the head: an adapter on it reads the hidden states, too.
        keep_head_input_contiguous(model)
        policy = cls(
            model=model,
            tokenizer=tokenizer,
            stop_ids=stop_ids,
            pad_token_id=pad_token_id,
            context_length=getattr(config, "max_position_embeddings", None),
            base={"path": source, "fingerprint": fingerprint},
        )
        if given is not None:
            policy.load_adapter(given)
        return policy

    @property
    def device(self) -> torch.device:
        return self.model.device

    @contextmanager
    def acting(self, adapter: bool = True) -> Iterator[None]:
        """Inside, the model is in evaluation mode and is π_θ, or μ with `adapter=False`."""
        training = self.model.training
        self.model.eval()
        try:
            if adapter:
                yield
            else:
                with self.model.disable_adapter():
                    yield
        finally:
            self.model.train(training)

    @contextmanager
    def using(self, adapter: Path | None) -> Iterator[None]:
        """Inside, π_θ has the weights of that directory; afterwards those that it had.

        None leaves it as it is: the base model is not changed by any adapter. Raises RuntimeError
        where the present weights are stored nowhere, so that they would be lost.
        """
        before = self.adapter
        if adapter is None or adapter == before:
            yield
            return
        if before is None:
            raise RuntimeError("the adapter's weights are not saved and would be lost")
        self.load_adapter(adapter)
        yield
        self.load_adapter(before)

    def collate(self, completions: Sequence[PromptResponse]) -> dict[str, torch.Tensor]:
        """B completions -> a batch on the model's device.

        Raises InputError if one exceeds the context length.
        """
        self.check_length(max(len(completion) for completion in completions))
        batch = collate(completions, self.pad_token_id)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def batch_log_probs(
        self, batch: Mapping[str, torch.Tensor], adapter: bool = True, temperature: float = 1.0
    ) -> torch.Tensor:
        """Batch -> (B,): log π_θ of the responses, or log μ with `adapter=False`."""
        if adapter:
            return sequence_log_probs(self.model, batch, temperature)
        with self.model.disable_adapter():
            return sequence_log_probs(self.model, batch, temperature)

    @torch.no_grad()
    def log_probs(
        self,
        completions: Sequence[PromptResponse],
        *,
        batch_size: int,
        adapter: bool = True,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """N completions -> (N,) on the CPU: log-probabilities without gradients."""
        share = prompt_cache.pays([c.prompt_ids for c in completions])
        share = share and prompt_cache.is_repeatable(self.model)

        def values(rows: Sequence[PromptResponse]) -> list[float]:
            if share and prompt_cache.pays([c.prompt_ids for c in rows]):
                found = shared_prompt_log_probs(
                    self.model, rows, self.pad_token_id, self.device, temperature
                )
            else:
                found = sequence_log_probs(self.model, self.collate(rows), temperature)
            return found.tolist()

        with self.acting(adapter):
            found = self._by_length(completions, batch_size, values, by_prompt=share)
        return self._recorded(found)

    @torch.no_grad()
    def log_probs_and_kl(
        self, completions: Sequence[PromptResponse], *, batch_size: int, temperature: float = 1.0
    ) -> torch.Tensor:
        """N completions -> (N, 3) on the CPU: log π_θ, log μ, and the KL divergence along each.

        The last is Σ_s KL(π_θ(· | prefix_s) ‖ μ(· | prefix_s)) over the prefixes of the response:
        for responses of π_θ its expectation is KL(π_θ‖μ), as that of log π_θ − log μ, but it is
        never negative, and each token is averaged over what could have been sampled
        (Rao-Blackwell; Amini et al. 2025, arXiv 2504.10637).
        """

        def values(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            own, tokens, response = response_logits(self.model, batch)
            with self.model.disable_adapter():
                reference, _, _ = response_logits(self.model, batch)
            columns = (
                token_log_probs(own, tokens, temperature),
                token_log_probs(reference, tokens, temperature),
                token_kl(own, reference, temperature),
            )
            return torch.stack([each.where(response, 0).sum(-1) for each in columns], dim=-1)

        with self.acting():
            return self.in_batches(completions, batch_size, values)

    @torch.no_grad()
    def token_log_probs(
        self,
        completions: Sequence[PromptResponse],
        *,
        batch_size: int,
        adapter: bool = True,
        temperature: float = 1.0,
    ) -> tuple[torch.Tensor, list[list[float]]]:
        """N completions -> (N,) as `log_probs`, and the log-probabilities of each one's tokens."""

        def values(rows: Sequence[PromptResponse]) -> list[tuple[float, list[float]]]:
            each, response = response_log_probs(self.model, self.collate(rows), temperature)
            tokens = [row[mask].tolist() for row, mask in zip(each, response, strict=True)]
            return list(zip(each.sum(-1).tolist(), tokens, strict=True))

        with self.acting(adapter):
            sums, tokens = zip(*self._by_length(completions, batch_size, values), strict=True)
        return self._recorded(sums), list(tokens)

    def in_batches(
        self,
        completions: Sequence[PromptResponse],
        batch_size: int,
        values: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    ) -> torch.Tensor:
        """N completions -> (N, ...) on the CPU: `values(batch) -> (B, ...)`, batches by length.

        A batch has at most `batch_size` rows, and logits of at most `LOGITS_OF_A_BATCH` elements.
        """
        return self._recorded(
            self._by_length(
                completions, batch_size, lambda rows: values(self.collate(rows)).tolist()
            )
        )

    def _by_length(
        self,
        completions: Sequence[PromptResponse],
        batch_size: int,
        values: Callable[[Sequence[PromptResponse]], Sequence[Any]],
        by_prompt: bool = False,
    ) -> list[Any]:
        """N completions -> N values, computed in batches of similar length."""
        self.check_length(max(map(len, completions)))

        def length(i: int) -> tuple[int, ...]:
            row = completions[i]
            if by_prompt:  # the rows of a prompt stay together
                return (len(row.prompt_ids), *row.prompt_ids, len(row.response_ids))
            return (len(row),)

        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        most = max(1, LOGITS_OF_A_BATCH[self.device.type == "cpu"] // vocabulary)
        recorded: list[Any] = [None] * len(completions)
        batches: list[list[int]] = [[]]
        for i in sorted(range(len(completions)), key=length):
            grown = [*batches[-1], i]
            columns = 1 + max(len(completions[j].response_ids) for j in grown)
            if len(grown) > batch_size or (batches[-1] and len(grown) * columns > most):
                batches.append([i])
            else:
                batches[-1] = grown
        for rows in filter(None, batches):
            found = values([completions[i] for i in rows])
            for i, value in zip(rows, found, strict=True):
                recorded[i] = value
        return recorded

    def _recorded(self, values: Sequence[float]) -> torch.Tensor:
        """(N,) on the CPU."""
        return torch.tensor(values, dtype=torch.promote_types(self.model.dtype, torch.float32))

    def check_length(self, prompt_tokens: int, new_tokens: int = 0) -> None:
        """Raises InputError when prompt and response together do not fit the model's context."""
        if self.context_length is not None and prompt_tokens + new_tokens > self.context_length:
            raise InputError(
                f"a prompt of {prompt_tokens} tokens and {new_tokens} new ones exceed the context "
                f"of {self.context_length} tokens of model.path={self.base['path']}; "
                "lower data.max_prompt_length or sample.max_new_tokens"
            )

    def save_adapter(self, directory: str | Path) -> None:
        """Writes the adapter in peft's layout, with a record of its base model."""
        # peft would ask the hub for the vocabulary size if embedding layers were not excluded.
        self.model.save_pretrained(
            str(directory), selected_adapters=[ADAPTER], save_embedding_layers=False
        )
        (Path(directory) / BASE_MODEL_RECORD).write_text(json.dumps(self.base, indent=1) + "\n")

    def load_adapter(self, directory: str | Path) -> None:
        """Loads the weights that `save_adapter` (or peft) wrote.

        Raises InputError if they are missing, damaged, of another shape or of another base.
        """
        if not is_intact(Path(directory)):
            raise InputError(f"model.adapter={directory}: damaged, its checksums do not match")
        check_base(directory, self.base)
        path = Path(directory) / ADAPTER_WEIGHTS
        if not path.is_file():
            raise InputError(f"{path}: no such file; adapters are read from safetensors only")
        with naming_field("model.adapter", directory):
            weights = load_file(path)
        expected = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in expected.items()}:
            raise InputError(
                f"{path}: its weights do not fit the adapter of model.path={self.base['path']}; "
                "give the base model that the adapter was trained on, and the same lora settings"
            )
        check_finite(weights, str(path))
        set_peft_model_state_dict(self.model, weights)
        self.adapter = Path(directory)
