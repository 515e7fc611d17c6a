from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from games.errors import InputError
from llm.config.schema import LoraConfig, ModelConfig, SampleConfig
from llm.policy import log_probs as policy_module
from llm.policy import model as model_module
from llm.policy import prompt_cache
from llm.policy.loading import seeded
from llm.policy.log_probs import (
    PromptResponse,
    collate,
    sequence_log_probs,
    token_kl,
    token_log_probs,
)
from llm.policy.model import Policy
from llm.sampling.transformers_engine import sample
from tests.tiny_models import byte_tokenizer, save_causal_lm, save_gguf, symbol_tokenizer

ARCHITECTURES = ("mistral", "llama", "gpt2", "qwen2")
COMPLETIONS = [
    PromptResponse([0, 40, 41, 42], [50, 51, 1]),
    PromptResponse([0, 60], [70, 71, 72, 73, 74]),
    PromptResponse([0, 80, 81, 82, 83, 84, 85], [90, 1]),
    PromptResponse([0], [7]),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory per architecture; GPT-2 ties its embeddings and has dropout, Qwen2 ties too."""
    root = tmp_path_factory.mktemp("checkpoints")
    for architecture in ARCHITECTURES:
        tied = {"tie_word_embeddings": True} if architecture == "qwen2" else {}
        # Qwen2's tokenizer class adds a token of its own to any vocabulary.
        save_causal_lm(root / architecture, architecture, vocab_size=304, **tied)
    return root


def load(path: Path, *, seed: int = 0, lora: dict | None = None, **settings) -> Policy:
    given = {name: str(v) if isinstance(v, Path) else v for name, v in settings.items()}
    model = ModelConfig(path=str(path), device="cpu", **given)
    return Policy.load(model, LoraConfig(**{"rank": 4, "alpha": 8.0} | (lora or {})), seed=seed)


def perturb(policy: Policy, scale: float = 0.2) -> Policy:
    """Moves the adapter away from the zero that it starts at, so that π_θ is not μ."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator).to(
                    parameter.dtype
                )
    return policy


def by_hand(model: torch.nn.Module, completion: PromptResponse, temperature: float = 1.0) -> float:
    """The definition, one token and one forward pass at a time, in float64."""
    total = 0.0
    ids = list(completion.prompt_ids)
    for token in completion.response_ids:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double().numpy() / temperature
        total += logits[token] - np.logaddexp.reduce(logits)
        ids.append(token)
    return total


def enumerable_policy(directory: Path) -> tuple[Policy, list[PromptResponse]]:
    """A policy in float64, and all responses of up to three of four tokens, EOS included."""
    path = save_causal_lm(directory, tokenizer=symbol_tokenizer("ab"))
    others = (0, 2, 3)
    ids = [(1,), *((a, 1) for a in others)]
    ids += [(a, b, c) for a in others for b in others for c in (0, 1, 2, 3)]
    return perturb(load(path, dtype="float64")), [PromptResponse([0, 2], r) for r in ids]


# --- log-probabilities ----------------------------------------------------------------------------


def test_collate_lays_out_prompt_and_response() -> None:
    pair = [PromptResponse([5, 6], [7]), PromptResponse([8], [9, 10, 1])]
    expected = {
        "left": {
            "input_ids": [[2, 5, 6, 7], [8, 9, 10, 1]],
            "attention_mask": [[0, 1, 1, 1], [1, 1, 1, 1]],
            "position_ids": [[0, 0, 1, 2], [0, 1, 2, 3]],
            "response_mask": [[0, 0, 0, 1], [0, 1, 1, 1]],
        },
        "right": {
            "input_ids": [[5, 6, 7, 2], [8, 9, 10, 1]],
            "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]],
            "position_ids": [[0, 1, 2, 2], [0, 1, 2, 3]],
            "response_mask": [[0, 0, 1, 0], [0, 1, 1, 1]],
        },
    }
    for side, layout in expected.items():
        batch = collate(pair, 2, side)
        assert {name: tensor.tolist() for name, tensor in batch.items()} == layout


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_the_sum_over_the_response_by_hand(
    checkpoints: Path, architecture: str, temperature: float
) -> None:
    policy = perturb(load(checkpoints / architecture, dtype="float64"))
    batch = policy.collate(COMPLETIONS)
    with torch.no_grad():
        ours = policy.batch_log_probs(batch, temperature=temperature)
    expected = [by_hand(policy.model, c, temperature) for c in COMPLETIONS]
    # float64 throughout; only the order of sums and the padding differ.
    assert ours.numpy() == pytest.approx(expected, rel=1e-12)
    assert ours.dtype == torch.float64


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("window", [None, 6])
def test_scoring_encodes_a_prompt_once_for_its_responses(
    checkpoints: Path, architecture: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if window is not None and architecture != "mistral":
        pytest.skip("without a sliding window")
    policy = perturb(load(checkpoints / architecture, dtype="float64"))
    policy.model.get_base_model().config.sliding_window = window
    prompts = [list(range(40, 60)), list(range(60, 78)), list(range(100, 130))]
    rows = [
        PromptResponse(prompt, list(range(70, 71 + 3 * k))) for k in range(4) for prompt in prompts
    ]
    encoded: list[int] = []
    policy.model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, output: encoded.append(inputs[0].numel())
    )
    shared = policy.log_probs(rows, batch_size=12)
    # 3 prompts of 29 columns, and 12 responses of 10 whose last token predicts nothing.
    assert sum(encoded) == 3 * 29 + 12 * 10
    monkeypatch.setattr(prompt_cache, "REPEATABLE", ())  # as for a cache that cannot be repeated
    # float64: sums in another order.
    assert policy.log_probs(rows, batch_size=12).numpy() == pytest.approx(shared.numpy(), rel=1e-12)
    assert sum(encoded) > 12 * 30


def test_a_batch_is_limited_by_its_logits(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = perturb(load(checkpoints / "mistral"))
    whole = policy.log_probs(COMPLETIONS, batch_size=4)
    seen: list[int] = []
    policy.model.get_output_embeddings().register_forward_hook(
        lambda _, inputs, output: seen.append(output.numel())
    )
    monkeypatch.setattr(model_module, "LOGITS_OF_A_BATCH", (0, 8 * 304))
    limited = policy.log_probs(COMPLETIONS, batch_size=4)
    assert max(seen) <= 8 * 304
    assert len(seen) > 1
    # float32 sums of about -50 in another order.
    assert limited.numpy() == pytest.approx(whole.numpy(), abs=5e-5)


@pytest.mark.parametrize("lora", [{}, {"train_lm_head": True}, {"target_modules": ["lm_head"]}])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_lm_head_is_not_copied_for_each_row(
    checkpoints: Path, architecture: str, lora: dict
) -> None:
    """A frozen head on a slice of the hidden states is multiplied by one large matrix, not by B."""
    if "target_modules" in lora and architecture in ("gpt2", "qwen2"):
        pytest.skip("tied embeddings take no LoRA")
    policy = load(checkpoints / architecture, lora=lora)
    seen: list[torch.Tensor] = []
    for module in policy.model.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features == 304:
            module.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    for adapter in (True, False):
        policy.log_probs(COMPLETIONS, batch_size=4, adapter=adapter)
        sample(policy, [[0, 40], [0, 50]], 2, SampleConfig(max_new_tokens=2), key=(0,))
    assert seen
    assert all(hidden.is_contiguous() for hidden in seen)


def test_end_of_sequence_counts_and_a_cut_response_has_none(checkpoints: Path) -> None:
    policy = load(checkpoints / "mistral", dtype="float64")
    cut, ended = PromptResponse([0, 5], [9, 8]), PromptResponse([0, 5], [9, 8, 1])
    with torch.no_grad():
        short, long = policy.batch_log_probs(policy.collate([cut, ended])).tolist()
        logits = policy.model(torch.tensor([[0, 5, 9, 8]])).logits[0, -1]
    assert long - short == pytest.approx(logits.log_softmax(-1)[1].item(), rel=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_side_order_and_split_do_not_matter(checkpoints: Path, architecture: str) -> None:
    policy = perturb(load(checkpoints / architecture))
    with torch.no_grad():
        left = sequence_log_probs(policy.model, collate(COMPLETIONS, 2, "left"))
        right = sequence_log_probs(policy.model, collate(COMPLETIONS, 2, "right"))
        reverse = sequence_log_probs(policy.model, collate(COMPLETIONS[::-1], 2, "left"))
        single = torch.cat([sequence_log_probs(policy.model, collate([c], 2)) for c in COMPLETIONS])
    # float32 sums of about -50 in another order: a few units of 50 * 2^-24 each.
    for other in (right, reverse.flip(0), single, policy.log_probs(COMPLETIONS, batch_size=3)):
        assert other.numpy() == pytest.approx(left.numpy(), abs=5e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_gradients_are_finite_and_blind_to_padding(checkpoints: Path, side: str) -> None:
    policy = perturb(load(checkpoints / "mistral", dtype="float64"))
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    batch = collate(COMPLETIONS, policy.pad_token_id, side)
    together = torch.autograd.grad(policy.batch_log_probs(batch).sum(), parameters)
    apart = [
        torch.autograd.grad(policy.batch_log_probs(collate([c], 2)).sum(), parameters)
        for c in COMPLETIONS
    ]
    for gradient, parts in zip(together, zip(*apart, strict=True), strict=True):
        # float64 sums in another order.
        torch.testing.assert_close(gradient, torch.stack(parts).sum(0), rtol=1e-9, atol=1e-10)


def test_logits_in_chunks_give_the_same_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 11, generator=generator, requires_grad=True)
    tokens = torch.randint(11, (3, 7), generator=generator)
    whole = token_log_probs(logits, tokens, 0.8)
    (expected,) = torch.autograd.grad(whole.square().sum(), logits)
    monkeypatch.setattr(policy_module, "LOGIT_CHUNK", 2 * 3 * 11)
    chunked = token_log_probs(logits, tokens, 0.8)
    (gradient,) = torch.autograd.grad(chunked.square().sum(), logits)
    # The same arithmetic on the same numbers.
    assert torch.equal(chunked, whole)
    assert torch.equal(gradient, expected)


def test_chunks_bound_the_float32_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the backward pass no chunk of bfloat16 logits is kept as float32."""
    monkeypatch.setattr(policy_module, "LOGIT_CHUNK", 2 * 64)
    logits = torch.zeros(2, 16, 64, dtype=torch.bfloat16, requires_grad=True)
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_log_probs(logits, torch.zeros(2, 16, dtype=torch.int64))
    assert not [t for t in kept if t.dtype == torch.float32 and t.numel() >= 2 * 64]


def test_low_precision_logits_are_summed_in_float32(checkpoints: Path) -> None:
    policy = load(checkpoints / "mistral", dtype="bfloat16")
    batch = policy.collate([PromptResponse([0, 5, 6], [9] * 40)])
    with torch.no_grad():
        ours = policy.batch_log_probs(batch)
        keep = batch["response_mask"].sum() + 1
        logits = policy.model(**{k: batch[k] for k in batch if k != "response_mask"}).logits
    assert ours.dtype == torch.float32
    rows = logits[0, -keep:-1].double().log_softmax(-1)[:, 9]
    # Sums in bfloat16 would be off by about 1; these are float32 sums of 40 numbers near -10.
    assert ours.item() == pytest.approx(rows.sum().item(), rel=1e-6)


def test_total_probability_is_one(tmp_path: Path) -> None:
    """EOS included, cut responses as they are: all responses up to three tokens sum to 1."""
    policy, responses = enumerable_policy(tmp_path)
    for temperature in (1.0, 0.5):
        logp = policy.log_probs(responses, batch_size=16, temperature=temperature)
        # float64 rounding.
        assert logp.exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_the_kl_along_responses_has_the_right_mean_and_less_variance(tmp_path: Path) -> None:
    """By enumeration of all responses, none of which has a negative value."""
    policy, responses = enumerable_policy(tmp_path)
    for temperature in (1.0, 0.5):
        found = policy.log_probs_and_kl(responses, batch_size=7, temperature=temperature)
        logp, logp_ref, kl = found.numpy().T
        expected = [
            policy.log_probs(responses, batch_size=7, adapter=on, temperature=temperature)
            for on in (True, False)
        ]
        assert torch.equal(found[:, 0], expected[0])
        assert torch.equal(found[:, 1], expected[1])
        pi, plain = np.exp(logp), logp - logp_ref
        exact = pi @ plain
        assert kl.min() >= 0 > plain.min()
        assert pi @ kl == pytest.approx(exact, abs=1e-10)
        assert pi @ (kl - exact) ** 2 < 0.5 * (pi @ (plain - exact) ** 2)


def test_the_kl_of_tokens_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's own, in float32 for bfloat16 logits."""
    logits, other = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = torch.nn.functional.kl_div(
        other.float().log_softmax(-1), logits.float().log_softmax(-1), reduction="none",
        log_target=True,
    ).sum(-1)  # fmt: skip
    for chunk in (2**25, 21):
        monkeypatch.setattr(policy_module, "LOGIT_CHUNK", chunk)
        # float32 rounding of a sum of seven terms.
        torch.testing.assert_close(token_kl(logits, other), expected, rtol=1e-5, atol=1e-6)


# --- one model, two policies ----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("train_lm_head", [False, True])
def test_reference_is_the_base_model_to_the_bit(
    checkpoints: Path, architecture: str, train_lm_head: bool
) -> None:
    policy = load(checkpoints / architecture, lora={"train_lm_head": train_lm_head})
    base = AutoModelForCausalLM.from_pretrained(checkpoints / architecture).eval()
    batch = policy.collate(COMPLETIONS)
    with torch.no_grad():
        expected = sequence_log_probs(base, batch)
        assert torch.equal(policy.batch_log_probs(batch), expected)  # a new adapter changes nothing
        perturb(policy)
        moved = policy.batch_log_probs(batch)
        assert torch.equal(policy.batch_log_probs(batch, adapter=False), expected)
        assert torch.equal(policy.batch_log_probs(batch), moved)  # and is on again afterwards
    assert (moved - expected).abs().min() > 1e-2
    recorded = policy.log_probs(COMPLETIONS, batch_size=len(COMPLETIONS), adapter=False)
    # Rows sorted by length: the same numbers up to float32 rounding of sums near -50.
    assert recorded.numpy() == pytest.approx(expected.numpy(), abs=5e-5)


def test_train_mode_does_not_change_the_policy(tmp_path: Path) -> None:
    rates = {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}
    gpt2 = save_causal_lm(tmp_path / "gpt2", "gpt2", **rates)
    mistral = save_causal_lm(tmp_path / "mistral", "mistral", attention_dropout=0.5)
    for path in (gpt2, mistral):
        policy = perturb(load(path))
        batch = policy.collate(COMPLETIONS)
        with torch.no_grad():
            still = policy.model.eval() and policy.batch_log_probs(batch)
            assert torch.equal(policy.model.train() and policy.batch_log_probs(batch), still)
        policy.log_probs(COMPLETIONS, batch_size=2)
        assert policy.model.training  # put back as it was


def test_scoring_is_in_evaluation_mode(checkpoints: Path) -> None:
    policy = perturb(load(checkpoints / "mistral", lora={"dropout": 0.5}))
    policy.model.train()
    first = policy.log_probs(COMPLETIONS, batch_size=2)
    assert torch.equal(first, policy.log_probs(COMPLETIONS, batch_size=2))


def test_only_the_adapter_is_trained_and_in_float32(checkpoints: Path) -> None:
    policy = load(checkpoints / "mistral", dtype="bfloat16", lora={"train_lm_head": True})
    trained = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "lm_head" in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in policy.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    batch = policy.collate(COMPLETIONS)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad():
        assert policy.model(**inputs).logits.dtype == torch.bfloat16  # rounded as the base's are
        # bfloat16 logits of both heads round alike but for the order of sums: 2^-8 of about 10,
        # over at most five tokens.
        assert policy.batch_log_probs(batch).numpy() == pytest.approx(
            policy.batch_log_probs(batch, adapter=False).numpy(), abs=0.2
        )


def test_a_seed_gives_the_adapter_and_leaves_the_generator(checkpoints: Path) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, again, other = (load(checkpoints / "mistral", seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    drawn = [
        {n: p for n, p in policy.model.named_parameters() if "lora_A" in n}
        for policy in (first, again, other)
    ]
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not any(torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])


def test_seeded_restores_the_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded(7, torch.device("cpu")):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(7, torch.device("cpu")):
        assert torch.equal(torch.rand(3), inside)


# --- adapters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("train_lm_head", [False, True])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft, on tied heads
def test_adapter_round_trip_is_exact(
    checkpoints: Path, tmp_path: Path, architecture: str, train_lm_head: bool
) -> None:
    lora = {"train_lm_head": train_lm_head}
    policy = perturb(load(checkpoints / architecture, lora=lora))
    policy.save_adapter(tmp_path / "adapter")
    batch = policy.collate(COMPLETIONS)
    with torch.no_grad():
        expected = policy.batch_log_probs(batch)
        resumed = load(checkpoints / architecture, lora=lora, seed=9)
        resumed.load_adapter(tmp_path / "adapter")
        assert torch.equal(resumed.batch_log_probs(batch), expected)
        continued = load(checkpoints / architecture, adapter=tmp_path / "adapter")
        assert torch.equal(continued.batch_log_probs(batch), expected)
        base = AutoModelForCausalLM.from_pretrained(checkpoints / architecture)
        by_peft = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert torch.equal(sequence_log_probs(by_peft, batch), expected)
    assert [p.requires_grad for p in continued.model.parameters()] == [
        p.requires_grad for p in policy.model.parameters()
    ]
    continued.save_adapter(tmp_path / "again")
    weights = "adapter_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (
        tmp_path / "adapter" / weights
    ).read_bytes()


def test_float32_head_of_a_bfloat16_model_survives_the_round_trip(
    checkpoints: Path, tmp_path: Path
) -> None:
    settings = {"dtype": "bfloat16", "lora": {"train_lm_head": True}}
    policy = perturb(load(checkpoints / "mistral", **settings), scale=1e-3)
    policy.save_adapter(tmp_path)
    continued = load(checkpoints / "mistral", adapter=tmp_path, **settings)
    for ours, theirs in zip(policy.model.parameters(), continued.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_lora_on_tied_embeddings_is_refused(checkpoints: Path, tmp_path: Path, target: str) -> None:
    targets = {"target_modules": ["q_proj", target]}
    refused = rf"lora\.target_modules: \S*{target}: .* share their weights.*train_lm_head=true"
    with pytest.raises(InputError, match=refused) as caught:
        load(checkpoints / "qwen2", lora=targets)
    assert "\n" not in str(caught.value)
    # On a model with weights of their own it is not, and its adapter is refused on a tied one.
    perturb(load(checkpoints / "mistral", lora=targets)).save_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / "base_model.json").unlink()
    with pytest.raises(InputError, match=r"share their weights"):
        load(checkpoints / "qwen2", adapter=tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
@pytest.mark.parametrize(
    "lora", [{}, {"target_modules": ".*(q_proj|c_attn)"}, {"train_lm_head": True}]
)
def test_adapters_of_tied_models_that_are_accepted_can_be_merged(
    checkpoints: Path, tmp_path: Path, architecture: str, lora: dict
) -> None:
    policy = perturb(load(checkpoints / architecture, lora=lora))
    policy.save_adapter(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(checkpoints / architecture)
    merged = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    batch = policy.collate(COMPLETIONS)
    with torch.no_grad():
        own = policy.batch_log_probs(batch)
        # W + BA rounded in float32, through two layers and a sum of log-probabilities near -50.
        assert sequence_log_probs(again, batch).numpy() == pytest.approx(own.numpy(), abs=1e-3)
        assert (own - policy.batch_log_probs(batch, adapter=False)).abs().max() > 0.1


def test_adapters_with_settings_that_cannot_be_are_refused(
    checkpoints: Path, tmp_path: Path
) -> None:
    load(checkpoints / "mistral").save_adapter(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    genuine = json.loads(file.read_text())
    for wrong in ({"r": "x"}, {"r": -1}, {"target_modules": "("}, {"lora_alpha": "x"}):
        file.write_text(json.dumps(genuine | wrong))
        with pytest.raises(InputError, match=r"adapter_config\.json: "):
            load(checkpoints / "mistral", adapter=tmp_path / "adapter")


def test_adapters_with_a_damaged_record_of_their_base_are_refused(
    checkpoints: Path, tmp_path: Path
) -> None:
    load(checkpoints / "mistral").save_adapter(tmp_path / "adapter")
    for content in (b"{", b"[]", b"{}", b"\xff", b'{"fingerprint": "0"}'):
        (tmp_path / "adapter" / "base_model.json").write_bytes(content)
        with pytest.raises(InputError, match=r"base_model\.json: damaged .*; restore it") as caught:
            load(checkpoints / "mistral", adapter=tmp_path / "adapter")
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
def test_merged_adapter_with_a_tied_head_is_the_policy(checkpoints: Path, tmp_path: Path) -> None:
    policy = perturb(load(checkpoints / "qwen2", lora={"train_lm_head": True}))
    policy.save_adapter(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(checkpoints / "qwen2")
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    batch = policy.collate(COMPLETIONS)
    with torch.no_grad():
        expected = policy.batch_log_probs(batch).numpy()
        # W x + B A x in one matrix: float32 rounding of sums near -50.
        assert sequence_log_probs(again, batch).numpy() == pytest.approx(expected, abs=1e-3)


def test_adapter_of_another_base_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    load(checkpoints / "mistral").save_adapter(tmp_path / "adapter")
    # The same shapes, other weights.
    other = save_causal_lm(tmp_path / "other", "mistral", seed=1, vocab_size=304)
    with pytest.raises(InputError, match=r"model\.adapter=.*another base model than model\.path="):
        load(other, adapter=tmp_path / "adapter")
    # The same weights in another place.
    moved = shutil.copytree(checkpoints / "mistral", tmp_path / "moved")
    load(moved, adapter=tmp_path / "adapter")


def test_adapter_that_peft_alone_wrote_is_known_by_name(checkpoints: Path, tmp_path: Path) -> None:
    load(checkpoints / "mistral").save_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / "base_model.json").unlink()
    load(checkpoints / "mistral", adapter=tmp_path / "adapter")
    other = shutil.copytree(checkpoints / "mistral", tmp_path / "other")
    with pytest.raises(InputError, match="another base model"):
        load(other, adapter=tmp_path / "adapter")


def test_a_given_adapter_keeps_its_shape_and_takes_this_runs_dropout(
    checkpoints: Path, tmp_path: Path
) -> None:
    given = {"rank": 3, "dropout": 0.5, "target_modules": ("q_proj",)}
    load(checkpoints / "mistral", lora=given).save_adapter(tmp_path)
    policy = load(checkpoints / "mistral", adapter=tmp_path)
    config = policy.model.peft_config["default"]
    assert (config.r, config.target_modules, config.lora_dropout) == (3, {"q_proj"}, 0.0)
    assert not [m for m in policy.model.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]


def test_adapter_that_cannot_be_used_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.adapter=.*holds no adapter_config\.json"):
        load(checkpoints / "mistral", adapter=tmp_path / "nowhere")
    adapter = tmp_path / "adapter"
    load(checkpoints / "mistral").save_adapter(adapter)
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model\.adapter=.*cannot be read.*LoRA adapter"):
        load(checkpoints / "mistral", adapter=adapter)
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="from safetensors only"):
        load(checkpoints / "mistral", adapter=adapter)
    weights.write_bytes(whole)
    with pytest.raises(InputError, match="do not fit"):
        load(checkpoints / "mistral", lora={"rank": 2}).load_adapter(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    tuned = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(tuned))
    with pytest.raises(InputError, match=r"PROMPT_TUNING; give a LoRA adapter"):
        load(checkpoints / "mistral", adapter=adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"bias": "all"}))
    with pytest.raises(InputError, match=r"bias all.*would change the base model"):
        load(checkpoints / "mistral", adapter=adapter)


# --- loading --------------------------------------------------------------------------------------


def test_random_weights_from_a_config(checkpoints: Path, tmp_path: Path) -> None:
    """Only the tokenizer of `path` and the config.json of `random_from_config` are read."""
    for source, name in (("mistral", "tokenizer.json"), ("mistral", "tokenizer_config.json")):
        (tmp_path / "tokenizer").mkdir(exist_ok=True)
        shutil.copy(checkpoints / source / name, tmp_path / "tokenizer" / name)
    (tmp_path / "shape").mkdir()
    shutil.copy(checkpoints / "llama" / "config.json", tmp_path / "shape")
    settings = {"random_from_config": tmp_path / "shape", "dtype": "float32"}
    first, again, other = (load(tmp_path / "tokenizer", seed=s, **settings) for s in (0, 0, 1))
    assert first.model.config.model_type == "llama"
    scores = [p.log_probs(COMPLETIONS, batch_size=4) for p in (first, again, other)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    first.save_adapter(tmp_path / "adapter")
    again.load_adapter(tmp_path / "adapter")
    with pytest.raises(InputError, match="another base model"):
        other.load_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("damage", ["none", "config", "weights", "tokenizer", "pickle", "tensor"])
def test_unreadable_checkpoint_is_refused_in_one_line(
    checkpoints: Path, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "model"
    if damage != "none":
        shutil.copytree(checkpoints / "mistral", path)
    weights = path / "model.safetensors"
    if damage == "config":
        (path / "config.json").write_text("{")
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "tokenizer":
        (path / "tokenizer.json").write_text("{}")
    elif damage == "pickle":
        torch.save(
            AutoModelForCausalLM.from_pretrained(path).state_dict(), path / "pytorch_model.bin"
        )
        weights.unlink()
    elif damage == "tensor":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        del tensors["model.norm.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.path=.*model") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_gguf_file_is_the_checkpoint_that_it_was_made_of(
    checkpoints: Path, tmp_path: Path
) -> None:
    """Configuration, tokenizer, chat template and weights come from the one file."""
    file = save_gguf(checkpoints / "llama", tmp_path / "model.gguf")
    original, policy = load(checkpoints / "llama"), load(file)
    assert policy.model.dtype == torch.float32
    assert policy.stop_ids == original.stop_ids
    assert policy.context_length == original.context_length
    chat = [{"role": "user", "content": "Name three rivers."}]
    ids, expected = (
        each.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        for each in (policy, original)
    )
    assert ids == expected
    # The same float32 weights: only the RMS norm's epsilon went through GGUF's float32.
    torch.testing.assert_close(
        policy.log_probs(COMPLETIONS, batch_size=4),
        original.log_probs(COMPLETIONS, batch_size=4),
        rtol=1e-5,
        atol=1e-5,
    )
    assert load(file, dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_quantized_gguf_file_is_unpacked_and_trained(checkpoints: Path, tmp_path: Path) -> None:
    file = save_gguf(checkpoints / "llama", tmp_path / "model.gguf", quantized=True)
    policy = load(file)
    name = "model.layers.0.mlp.up_proj.base_layer.weight"
    weights, exact = (
        each.model.get_base_model().state_dict()[name]
        for each in (policy, load(checkpoints / "llama"))
    )
    # Q8_0 rounds each block of 32 to 127 steps of its largest entry.
    assert 0 < (weights - exact).abs().max() <= exact.abs().max() / 127
    assert not getattr(policy.model.get_base_model(), "is_quantized", False)
    perturb(policy).save_adapter(tmp_path / "adapter")
    scores = policy.log_probs(COMPLETIONS, batch_size=4)
    again = load(file, adapter=tmp_path / "adapter")
    assert torch.equal(again.log_probs(COMPLETIONS, batch_size=4), scores)
    merged = again.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float32
    other = save_gguf(checkpoints / "llama", tmp_path / "other.gguf")
    with pytest.raises(InputError, match="another base model"):
        load(other, adapter=tmp_path / "adapter")


@pytest.mark.parametrize("damage", ["absent", "cut", "header", "text", "4bit"])
def test_a_gguf_file_that_cannot_be_read_is_refused_in_one_line(
    checkpoints: Path, tmp_path: Path, damage: str
) -> None:
    file, settings = tmp_path / "model.gguf", {}
    if damage != "absent":
        save_gguf(checkpoints / "llama", file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-5000])
    elif damage == "header":
        file.write_bytes(file.read_bytes()[:500])
    elif damage == "text":
        file.write_text("no model")
    elif damage == "4bit":
        settings = {"load_in_4bit": True}
    with pytest.raises(InputError, match=r"model\.(path=.*gguf|load_in_4bit)") as caught:
        load(file, **settings)
    assert "\n" not in str(caught.value)


def test_missing_special_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = byte_tokenizer(eos=False, pad=False)
    with pytest.raises(InputError, match="no EOS token"):
        load(save_causal_lm(tmp_path / "no-eos", tokenizer=bare))
    with caplog.at_level("INFO", logger="llm.policy.loading"):
        policy = load(save_causal_lm(tmp_path / "no-pad", tokenizer=byte_tokenizer(pad=False)))
    assert policy.pad_token_id == policy.tokenizer.eos_token_id
    assert "no PAD token" in caplog.text


def test_pad_token_without_an_embedding(tmp_path: Path) -> None:
    """As in checkpoints whose tokenizer was given a PAD token after training."""
    tokenizer = byte_tokenizer(pad=False)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<late>"})
    assert tokenizer.pad_token_id == rows
    policy = load(save_causal_lm(tmp_path, tokenizer=tokenizer, vocab_size=rows))
    assert policy.pad_token_id == tokenizer.eos_token_id
    assert policy.log_probs(COMPLETIONS, batch_size=4).isfinite().all()


def test_stop_token_without_an_embedding(tmp_path: Path) -> None:
    """As in the embedded game, whose responses end by their length."""
    tokenizer = byte_tokenizer(pad=False)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<late>", "pad_token": "<late>"})
    settings = {"vocab_size": rows, "eos_token_id": None}
    path = save_causal_lm(
        tmp_path, tokenizer=tokenizer, generation={"eos_token_id": rows}, **settings
    )
    policy = load(path)
    assert policy.stop_ids == (rows,)
    assert policy.pad_token_id < rows
    short = [PromptResponse(c.prompt_ids, [3, 4]) for c in COMPLETIONS]
    alone = [policy.log_probs([c], batch_size=1) for c in short]
    together = policy.log_probs([*short, *COMPLETIONS], batch_size=8)[: len(short)]
    assert together.allclose(torch.cat(alone), atol=1e-5)  # of other sizes of matrix products


def test_every_stop_token_of_the_checkpoint_is_known(tmp_path: Path) -> None:
    path = save_causal_lm(tmp_path, generation={"eos_token_id": [1, 7]})
    assert load(path).stop_ids == (1, 7)


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ids up to 299, the model 280 embeddings"):
        load(save_causal_lm(tmp_path, vocab_size=280))


def test_settings_that_cannot_work(checkpoints: Path) -> None:
    path = checkpoints / "mistral"
    with pytest.raises(InputError, match=r"model\.load_in_4bit"):
        load(path, load_in_4bit=True)
    with pytest.raises(InputError, match=r"model\.load_in_4bit"):
        load(path, load_in_4bit=True, random_from_config=str(path))
    with pytest.raises(InputError, match=r"lora\.target_modules"):
        load(path, lora={"target_modules": ("nowhere",)})
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"model\.device=cuda: .*model\.device=cpu"):
            Policy.load(ModelConfig(path=str(path), device="cuda"))


def test_what_the_context_cannot_hold_is_refused(checkpoints: Path) -> None:
    policy = load(checkpoints / "mistral")
    policy.collate([PromptResponse([0] * 100, [5] * 28)])
    with pytest.raises(InputError, match=r"context of 128 .*data\.max_prompt_length"):
        policy.collate([PromptResponse([0] * 100, [5] * 29)])


def test_dtypes(checkpoints: Path) -> None:
    for name in ("float32", "bfloat16", "float16", "float64"):
        policy = load(checkpoints / "mistral", dtype=name)
        assert policy.model.dtype == getattr(torch, name)
        scored = policy.log_probs(COMPLETIONS, batch_size=4)
        assert scored.dtype == (torch.float64 if name == "float64" else torch.float32)
        assert all(math.isfinite(value) for value in scored)
