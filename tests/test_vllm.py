"""vLLM itself against the default engine, on a CPU: `make test-vllm`.

One engine starts per fixture: it takes half a minute.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from llm.config.schema import LoraConfig, ModelConfig, SampleConfig
from llm.policy.loading import load_base_model
from llm.policy.log_probs import PromptResponse
from llm.policy.model import Policy
from llm.run.lifecycle import Interrupted
from llm.sampling.engine import closing
from llm.sampling.transformers_engine import TransformersEngine, sample
from llm.train import main
from tests.tiny_models import byte_tokenizer, save_causal_lm, symbol_tokenizer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

from llm.sampling.vllm_engine import VLLMEngine  # noqa: E402

# What checkpoints ship in generation_config.json; none of it may reach a sample.
LEFTOVERS = {
    "do_sample": True,
    "temperature": 0.3,
    "top_p": 0.5,
    "top_k": 2,
    "repetition_penalty": 1.5,
}
PROMPTS = [[0, 2], [0, 3, 2, 4, 3, 3]]
VOCABULARY, EOS, STOP = 6, 1, 5  # <s>, </s>, a, b, c, d; d ends a response, too
DRAWS = 2000
# Heads of 32, the smallest that vLLM has on a CPU. At this range no response is near certain.
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
SHAPE |= {"initializer_range": 0.08}


def moved(policy: Policy, directory: Path, size: float) -> Path:
    """Gives the policy an adapter away from zero, and stores it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    policy.save_adapter(directory)
    policy.adapter = directory
    return directory


def all_responses(length: int) -> list[tuple[int, ...]]:
    ends = (EOS, STOP)
    others = [token for token in range(VOCABULARY) if token not in ends]
    whole = [(*r, end) for n in range(length) for r in product(others, repeat=n) for end in ends]
    return whole + list(product(others, repeat=length))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    path = save_causal_lm(
        tmp_path_factory.mktemp("symbols"),
        tokenizer=symbol_tokenizer("abcd"),
        generation=LEFTOVERS | {"eos_token_id": [EOS, STOP]},
        **SHAPE,
    )
    loaded = Policy.load(ModelConfig(path=str(path), device="cpu"), LoraConfig(rank=4, alpha=8.0))
    moved(loaded, tmp_path_factory.mktemp("adapter"), 0.1)
    return loaded


@pytest.fixture(scope="module")
def engine(policy: Policy) -> Iterator[VLLMEngine]:
    started = VLLMEngine(policy, SampleConfig(max_new_tokens=3))
    with closing(started):
        started.start(max(map(len, PROMPTS)))
        yield started


def counted(drawn, responses) -> np.ndarray:
    counts = Counter(response.token_ids for response in drawn)
    observed = np.array([counts[r] for r in responses])
    assert observed.sum() == len(drawn)
    return observed


def pooled(*counts: np.ndarray, expected: np.ndarray) -> list[np.ndarray]:
    """Cells with an expected count below 5, which Pearson's test wants, become one."""
    rare = expected < 5
    each = [np.append(c[~rare], c[rare].sum()) for c in (*counts, expected)]
    return each if each[-1][-1] >= 5 else [c[:-1] for c in each]


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_frequencies_are_the_scored_probabilities(
    policy: Policy, engine: VLLMEngine, adapter: bool, temperature: float
) -> None:
    engine.settings = SampleConfig(max_new_tokens=3, temperature=temperature)
    where = policy.adapter if adapter else None
    drawn = engine.sample(PROMPTS, DRAWS, adapter=where, key=(7,))
    responses = all_responses(3)
    for prompt, sampled in zip(PROMPTS, drawn, strict=True):
        asked = [PromptResponse(prompt, r) for r in responses]
        how = {"batch_size": 256, "adapter": adapter, "temperature": temperature}
        logp = policy.log_probs(asked, **how).double().numpy()
        expected = DRAWS * np.exp(logp)
        observed, expected = pooled(counted(sampled, responses), expected=expected)
        assert len(observed) > 10
        expected *= observed.sum() / expected.sum()
        # A seeded draw: one in a thousand keys would fail here, this one does not.
        assert stats.chisquare(observed, expected).pvalue > 1e-3
        # The engine's own log-probabilities are of the same distribution, up to float32.
        _, scored = policy.token_log_probs(
            [PromptResponse(prompt, r.token_ids) for r in sampled], **how
        )
        for response, tokens in zip(sampled, scored, strict=True):
            np.testing.assert_allclose(response.token_log_probs, tokens, atol=1e-4)


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize(
    "cut", [{}, {"top_k": 2}, {"top_p": 0.7}, {"top_k": 4, "top_p": 0.8, "temperature": 1.5}]
)
def test_both_engines_sample_one_distribution(
    policy: Policy, engine: VLLMEngine, adapter: bool, cut: dict
) -> None:
    settings = SampleConfig(max_new_tokens=3, batch_size=4096, **cut)
    engine.settings, where = settings, policy.adapter if adapter else None
    ours = TransformersEngine(policy, settings).sample(PROMPTS, DRAWS, adapter=where, key=(3,))
    theirs = engine.sample(PROMPTS, DRAWS, adapter=where, key=(4,))
    responses = all_responses(3)
    for one, other in zip(ours, theirs, strict=True):
        a, b = counted(one, responses), counted(other, responses)
        a, b, total = pooled(a, b, expected=(a + b) / 2)
        table = np.array([a, b])[:, total > 0]
        # Homogeneity of the two samples; seeded, as above.
        assert stats.chi2_contingency(table).pvalue > 1e-3
        if cut:  # tokens that one engine cuts off never appear in the other's responses
            often = {r for r, n in Counter(x.token_ids for x in one).items() if n > 20}
            assert often <= {x.token_ids for x in other}


def test_responses_end_at_stop_tokens_and_have_their_text(
    policy: Policy, engine: VLLMEngine
) -> None:
    engine.settings = SampleConfig(max_new_tokens=3)
    (drawn,) = engine.sample(PROMPTS[:1], 300, adapter=policy.adapter, key=(0,))
    assert {response.finished for response in drawn} == {True, False}
    assert {r.token_ids[-1] for r in drawn if r.finished} == {EOS, STOP}
    for response in drawn:
        assert not {EOS, STOP} & set(response.content_ids)
        assert response.finished or len(response.token_ids) == 3
        assert response.text == policy.tokenizer.decode(
            response.content_ids, skip_special_tokens=True
        )
        assert len(response.token_log_probs or ()) == len(response.token_ids)


def test_keys_name_the_random_numbers(policy: Policy, engine: VLLMEngine) -> None:
    engine.settings = SampleConfig(max_new_tokens=3)
    first, between, again = (
        engine.sample(PROMPTS, 50, adapter=policy.adapter, key=key)
        for key in ((1, 2), (1, 3), (1, 2))
    )
    assert first == again
    assert first != between
    # Fewer responses are the first ones: a response does not depend on those after it. Sums of
    # another batch may differ in the last bit, which changes no token of this model.
    fewer = engine.sample(PROMPTS[:1], 20, adapter=policy.adapter, key=(1, 2))
    assert [r.token_ids for r in fewer[0]] == [r.token_ids for r in first[0][:20]]


def test_adapters_are_told_apart(policy: Policy, engine: VLLMEngine, tmp_path: Path) -> None:
    """A second adapter, the first again, and the base: each is that of its directory."""
    engine.settings = SampleConfig(max_new_tokens=3)
    first = policy.adapter
    assert first is not None
    second = moved(policy, tmp_path / "second", 0.2)
    for adapter in (second, first, None, second):
        (drawn,) = engine.sample(PROMPTS[:1], 20, adapter=adapter, key=(5,))
        with policy.using(adapter):
            _, scored = policy.token_log_probs(
                [PromptResponse(PROMPTS[0], r.token_ids) for r in drawn],
                batch_size=64,
                adapter=adapter is not None,
            )
        for response, tokens in zip(drawn, scored, strict=True):
            np.testing.assert_allclose(response.token_log_probs, tokens, atol=1e-4)  # float32
    policy.load_adapter(first)


# --- a run ----------------------------------------------------------------------------------------


def longer(prompts, responses):
    """A judge: the longer response is preferred with probability 0.9."""
    length = np.array([[len(text) for text in row] for row in responses])
    return 0.5 + 0.4 * np.sign(length[:, :, None] - length[:, None, :])


def train(path: Path, model: Path, *words: str) -> list[dict]:
    """A small run; the lines of its metrics."""
    data = model.parent / "prompts.jsonl"
    texts = ("the sea", "a poem", "three rivers", "why", "the lazy dog", "name one")
    data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    fields = {
        "output_dir": path,
        "iterations": 2,
        "samples_per_prompt": 3,
        "chunk_size": 2,
        "rule": "gmmd",
        "eta": 1,
        "tau": 0.1,
        "regularizer": "reverse_kl",
        "model.path": model,
        "model.device": "cpu",
        "data.path": data,
        "judge.kind": "callable",
        "judge.path": "tests.test_vllm:longer",
        "sample.engine": "vllm",
        "sample.max_new_tokens": 8,
        "train.batch_size": 6,
        "train.micro_batch_size": 6,
        "train.learning_rate": 1e-2,
        "evaluation.prompts": 2,
    }
    config = path.parent / f"{path.name}.yaml"
    config.write_text("threads: 1\n")
    given = [f"{name}={value}" for name, value in fields.items()]
    assert main(["--config", str(config), *given, *words]) == 0
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def responses_of(path: Path) -> dict[Path, bytes]:
    return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("responses/*.jsonl"))}


def test_a_run_samples_with_vllm_and_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    model = save_causal_lm(tmp_path / "model", tokenizer=byte_tokenizer(), **SHAPE)
    rows = train(tmp_path / "whole", model)
    shown = capsys.readouterr().out
    for row in rows:
        # float32 on both sides, but other kernels: a few units of the last place of 8 tokens.
        assert 0 < row["drift_mean"] <= row["drift_99"] <= row["drift_largest"] < 1e-4
    assert shown.count("drift") == 3
    assert rows[-1]["win_rate"] is not None

    genuine = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if Path(target).as_posix().endswith("001/responses/00001.jsonl"):
            raise KeyboardInterrupt
        return genuine(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dying)
        with pytest.raises((Interrupted, AssertionError)):
            train(tmp_path / "killed", model)
    before = responses_of(tmp_path / "killed")
    assert not (tmp_path / "killed" / "final").exists()
    asked: list[int] = []
    plain = VLLMEngine.sample

    def counting(self, prompts, samples, *, adapter, key):
        asked.append(len(prompts))
        return plain(self, prompts, samples, adapter=adapter, key=key)

    monkeypatch.setattr(VLLMEngine, "sample", counting)
    again = train(tmp_path / "killed", model)
    after = responses_of(tmp_path / "killed")
    # Finished chunks are kept: only those of the second iteration that were not stored are sampled.
    assert before.items() <= after.items()
    assert sum(asked) == 2 + 2  # one chunk of two prompts, and the evaluation of two
    assert after == responses_of(tmp_path / "whole")
    names = ("drift_mean", "drift_99", "drift_largest", "win_rate", "loss")
    assert [[row[n] for n in names] for row in again] == [[row[n] for n in names] for row in rows]


# --- a real model ---------------------------------------------------------------------------------

SMOLLM2 = Path(__file__).parents[1] / "models" / "smollm2-135m-instruct"


@pytest.mark.smollm2
@pytest.mark.skipif(not list(SMOLLM2.glob("*.gguf")), reason="make smollm2 fetches the model")
def test_greedy_outputs_agree_token_by_token(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    (file,) = SMOLLM2.glob("*.gguf")
    source = {"pretrained_model_name_or_path": str(SMOLLM2), "gguf_file": file.name}
    config = AutoConfig.from_pretrained(**source)
    settings = ModelConfig(path=str(file), device="cpu", dtype="float32")
    model = load_base_model(settings, config, torch.device("cpu"))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(**source).save_pretrained(tmp_path / "model")
    del model
    policy = Policy.load(
        ModelConfig(path=str(tmp_path / "model"), device="cpu"), LoraConfig(rank=16)
    )
    adapter = moved(policy, tmp_path / "adapter", 0.01)
    asked = (
        "What is the capital of France?",
        "Name three rivers.",
        "Write a poem about the sea.",
        "Explain why the sky is blue to a child.",
        "Give me a recipe for bread.",
        "How do I learn to play chess?",
    )
    prompts = [
        policy.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )["input_ids"]
        for text in asked
    ]
    # The most likely token is the only one left.
    greedy = SampleConfig(max_new_tokens=32, top_k=1)
    engine = VLLMEngine(policy, greedy)
    with closing(engine):
        engine.start(max(map(len, prompts)))
        for where in (None, adapter):
            theirs = engine.sample(prompts, 1, adapter=where, key=(0,))
            ours = sample(policy, prompts, 1, greedy, key=(0,), adapter=where is not None)
            for one, other in zip(ours, theirs, strict=True):
                assert one[0].token_ids == other[0].token_ids
                assert one[0].text == other[0].text
        # At temperature 1, log-probabilities agree up to float32: its epsilon times logits of some
        # tens, through 30 layers, is 1e-4.
        engine.settings = replace(greedy, top_k=0)
        drawn = engine.sample(prompts, 2, adapter=adapter, key=(1,))
    flat = [
        (PromptResponse(prompt, r.token_ids), r)
        for prompt, row in zip(prompts, drawn, strict=True)
        for r in row
    ]
    _, scored = policy.token_log_probs([each for each, _ in flat], batch_size=4)
    for (_, response), tokens in zip(flat, scored, strict=True):
        np.testing.assert_allclose(response.token_log_probs, tokens, atol=1e-3)
