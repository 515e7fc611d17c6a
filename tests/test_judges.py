"""Judges: each against its genuine code or an unbatched computation, then what all of them owe."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from games.errors import InputError
from llm.config.registries import JUDGES as REGISTERED
from llm.config.schema import JudgeConfig
from llm.embedded.judges import JUDGES
from llm.judges import sentiment
from llm.judges.build import build_judge, check_judge_files
from llm.judges.function import FunctionJudge
from llm.judges.pairrm import pairrm_text
from llm.judges.preferences import JudgeError, check_preferences, exact
from tests.tiny_judges import (
    MARKERS,
    save_pair_preference,
    save_pairrm,
    save_pairrm_hf,
    save_reward_model,
)
from tests.tiny_models import byte_tokenizer, save_causal_lm

PROMPTS = ["Name three rivers of the world.", "Write a poem about the sea, and say why it is blue."]
RESPONSES = [
    [
        "The answer is short.",
        "no",
        "perhaps, with a reason",
        "The quick brown fox jumps, on and on.",
    ],
    ["yes\n\nyes: it is", "A poem about the sky.", "unknown ☃ signs", "The dog sleeps " * 9],
]
CONVERSATION = [
    {"role": "user", "content": "Name a river."},
    {"role": "assistant", "content": "The answer is long."},
    {"role": "user", "content": "Why?"},
]
MODEL_KINDS = ["pairrm", "pairrm_hf", "pair_preference", "reward_model", "reward_deberta"]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("judges")
    pairrm = save_pairrm(root / "pairrm", n_tasks=2)
    return {
        "pairrm": pairrm,
        "pairrm_hf": save_pairrm_hf(root / "pairrm_hf", pairrm),
        "short_pairrm": save_pairrm(
            root / "short_pairrm", source_maxlength=12, candidate_maxlength=9
        ),
        "pair_preference": save_pair_preference(root / "pair_preference"),
        "reward_model": save_reward_model(root / "reward_model"),
        "reward_no_pad": save_reward_model(root / "reward_no_pad", pad=False),
        "reward_deberta": save_reward_model(root / "reward_deberta", "deberta"),
    }


@pytest.fixture
def judge(checkpoints: dict[str, Path]) -> Callable:
    def build(name: str, **options):
        kind = next(kind for kind in ("pairrm", "pair_preference", "reward") if kind in name)
        kind = "reward_model" if kind == "reward" else kind
        return build_judge(kind, str(checkpoints[name]), device="cpu", **options)

    return build


# --- control tokens -------------------------------------------------------------------------------


def encoded_by(found, prompt, row: list[str], monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The sequences that a judge scores."""
    seen: list[list[int]] = []

    def scores(encodings, pad_token_id):
        seen.extend(list(encoding["input_ids"]) for encoding in encodings)
        return np.zeros(len(encodings))

    monkeypatch.setattr(found, "scores", scores)
    found([prompt], [row])
    return seen


@pytest.mark.parametrize("name", MODEL_KINDS)
def test_control_tokens_that_are_spelled_in_a_text_are_text(name, judge, monkeypatch) -> None:
    found = judge(name)
    special = found.tokenizer.all_special_tokens
    controls = set(found.tokenizer.convert_tokens_to_ids([t for t in special if t != "[UNK]"]))
    for prompt, answer in [("Why?", "x{}y"), ("Why{}?", "xy"), ("Why?", "{}")]:
        plain = encoded_by(found, prompt.format("a"), [answer.format("a"), "no"], monkeypatch)
        for token in special:
            texts = prompt.format(token), [answer.format(token), "no"]
            for ids, own in zip(encoded_by(found, *texts, monkeypatch), plain, strict=True):
                assert [i for i in ids if i in controls] == [i for i in own if i in controls]


def test_text_with_spelled_control_tokens_is_encoded_as_it_is(judge) -> None:
    found = judge("reward_model")
    ids = found.encode_messages([{"role": "user", "content": "a</s> b"}])
    assert found.tokenizer.decode(ids) == "<s>[user] a</s> b</s>"
    assert ids.count(found.tokenizer.eos_token_id) == 1
    plain = [{"role": "user", "content": "Is it <b>so</b>?"}]
    ordinary = found.tokenizer(found.render(plain), add_special_tokens=False)["input_ids"]
    assert found.encode_messages(plain) == ordinary


def test_tokens_that_the_template_writes_are_control_tokens_though_not_special(judge) -> None:
    found = judge("reward_model")
    found.tokenizer.add_tokens(["[user]", "<think>"])
    turn, think = found.tokenizer.convert_tokens_to_ids(["[user]", "<think>"])
    ids = found.encode_messages([{"role": "user", "content": "Say [user] <think>."}])
    assert (ids.count(turn), ids.count(think)) == (1, 1)
    assert found.tokenizer.decode(ids) == "<s>[user] Say [user] <think>.</s>"


# --- PairRM ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def llm_blender() -> ModuleType:
    """The package, with the two names of transformers 4 that it needs."""
    pytest.importorskip("dataclasses_json")
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        import huggingface_hub
        import transformers.utils.hub

        cache = huggingface_hub.constants.HF_HUB_CACHE
        patch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", cache, raising=False)
        return pytest.importorskip("llm_blender")


@pytest.fixture
def blender(llm_blender: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Path of a checkpoint in llm-blender's layout -> its Blender, loaded by its own loader."""
    monkeypatch.setattr(
        PreTrainedTokenizerBase,
        "batch_encode_plus",
        PreTrainedTokenizerBase.__call__,
        raising=False,
    )
    warnings.simplefilter("ignore")  # restored by pytest after the test

    def load(path: Path):
        blender = llm_blender.Blender()
        blender.loadranker(str(path), device="cpu")
        return blender

    return load


def blender_logits(blender, prompts: list[str], responses: list[list[str]]) -> np.ndarray:
    """One prompt at a time: in a larger batch the room of a response depends on its companions."""
    rows = []
    for prompt, row in zip(prompts, responses, strict=True):
        batch = blender.ranker_collator([{"source": prompt, "candidates": row}])
        batch = {key: value for key, value in batch.items() if value is not None}
        with torch.no_grad():
            rows.append(blender.ranker._full_predict(**batch)["logits"].numpy())
    return np.concatenate(rows)


@pytest.mark.parametrize("name", ["pairrm", "short_pairrm"])
def test_pairrm_has_the_logits_of_llm_blender(name, checkpoints, judge, blender) -> None:
    expected = blender_logits(blender(checkpoints[name]), PROMPTS, RESPONSES)
    found = judge(name).logits(PROMPTS, RESPONSES)
    # Unlike batches and paddings in float32, on logits of about 1.
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1
    assert np.abs(expected + expected.swapaxes(1, 2)).max() > 0.01, "order must matter here"


def test_pairrm_averages_both_orders_as_logits(judge) -> None:
    pairrm = judge("pairrm")
    logits = pairrm.logits(PROMPTS, RESPONSES)
    expected = expit((logits - logits.swapaxes(1, 2)) / 2)
    np.testing.assert_allclose(pairrm(PROMPTS, RESPONSES), expected, atol=1e-15)


def test_bradley_terry_is_the_published_score_and_sigmoid(checkpoints, judge, blender) -> None:
    scores = blender(checkpoints["pairrm"]).rank(
        PROMPTS, RESPONSES, return_scores=True, batch_size=1, disable_tqdm=True
    )
    found = judge("pairrm", preference="bradley_terry")(PROMPTS, RESPONSES)
    np.testing.assert_allclose(found, expit(scores[:, :, None] - scores[:, None]), atol=1e-5)
    assert np.abs(found - judge("pairrm")(PROMPTS, RESPONSES)).max() > 0.01


def test_both_layouts_of_pairrm_have_the_same_logits(judge) -> None:
    found = judge("pairrm_hf").logits(PROMPTS, RESPONSES)
    np.testing.assert_array_equal(found, judge("pairrm").logits(PROMPTS, RESPONSES))


def test_pairrm_hf_has_the_logits_of_its_own_class(checkpoints, judge, llm_blender) -> None:
    from llm_blender.blender.blender_utils import tokenize_pair
    from llm_blender.pair_ranker.pairrm import DebertaV2PairRM

    directory = checkpoints["pairrm_hf"]
    model = DebertaV2PairRM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    row = RESPONSES[0]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [
            [model(**tokenize_pair(tokenizer, PROMPTS[:1], [a], [b])).logits.item() for b in row]
            for a in row
        ]
    found = judge("pairrm_hf").logits(PROMPTS[:1], [row])[0]
    off_diagonal = ~np.eye(len(row), dtype=bool)
    np.testing.assert_allclose(found[off_diagonal], np.array(expected)[off_diagonal], atol=1e-5)


def test_pairrm_reads_conversations_as_llm_blender_does(llm_blender) -> None:
    from llm_blender.blender.blender_utils import get_pair_from_conv

    turns = [message["content"] for message in CONVERSATION]
    spoken = [
        {"role": ("USER", "ASSISTANT")[i % 2], "content": text}
        for i, text in enumerate([*turns, "Because."])
    ]
    (source,), (candidate,), _ = get_pair_from_conv([spoken], [spoken])
    assert pairrm_text(turns) == (source, candidate.removesuffix("Because."))
    assert pairrm_text(["Why?"]) == ("Why?", "")


@pytest.mark.parametrize("special", [*MARKERS, "[SEP]"])
def test_a_response_cannot_speak_in_pairrms_markers(special, judge) -> None:
    pairrm = judge("pairrm")
    for source, answer in [("Why?", f"{special} yes"), (f"{special}Why?", "yes")]:
        found = pairrm([source], [[answer, "no"]])
        plain = pairrm([source.replace(special, " ")], [[answer.replace(special, " "), "no"]])
        np.testing.assert_array_equal(found, plain)


def test_pairrm_says_what_it_cuts(judge, caplog) -> None:
    short = judge("short_pairrm")
    short(["Why?"], [["yes", "no"]])
    assert not caplog.records
    short(["Why?", "Name three rivers of the world. " * 5], [["yes " * 30, "no"], ["yes", "no"]])
    assert "2 of 6 prompts and responses were cut" in caplog.text


def test_pairrm_needs_no_llm_blender(checkpoints, judge, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "llm_blender", None)
    judge("pairrm")(PROMPTS, RESPONSES)


# --- pair-preference models -----------------------------------------------------------------------

# As published with RLHFlow/pair-preference-model-LLaMA3-8B.
RLHFLOW_CONTEXT = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n "
    "{{ message['content'] }}{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}"
    "{% endfor %}\n\n\n"
)


def rlhflow_preference(directory: Path, messages: list[dict], first: str, second: str) -> float:
    """P(first preferred) by the published recipe: one sequence at a time, both orders averaged."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    context = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=RLHFLOW_CONTEXT)
    probabilities = []
    for a, b, chosen in [(first, second, 0), (second, first, 1)]:
        question = f"[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n"
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False
        ).replace(tokenizer.bos_token, "")
        ids = tokenizer.encode(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        answers = [logits[tokenizer.encode(x, add_special_tokens=False)[0]].item() for x in "AB"]
        probabilities.append(np.exp(answers[chosen]) / np.exp(answers).sum())
    return float(np.mean(probabilities))


@pytest.mark.parametrize("prompt", [PROMPTS[0], CONVERSATION], ids=["string", "conversation"])
def test_pair_preference_follows_the_published_recipe(prompt, checkpoints, judge) -> None:
    row = RESPONSES[1]
    found = judge("pair_preference")([prompt], [row])[0]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    for i, j in [(0, 1), (2, 3), (3, 1)]:
        expected = rlhflow_preference(checkpoints["pair_preference"], messages, row[i], row[j])
        assert found[i, j] == pytest.approx(expected, abs=1e-5)  # float32
        assert abs(expected - 0.5) > 1e-3


def test_a_template_that_waits_to_be_asked_gives_the_same_preference(
    checkpoints, judge, tmp_path
) -> None:
    directory = shutil.copytree(checkpoints["pair_preference"], tmp_path / "asked")
    template = directory / "chat_template.jinja"
    unasked = "{{ '<|start|>assistant<|end|>\n\n' }}"
    assert unasked in template.read_text()
    asked = "{% if add_generation_prompt %}" + unasked + "{% endif %}"
    template.write_text(template.read_text().replace(unasked, asked))
    found = build_judge("pair_preference", directory, device="cpu")(PROMPTS, RESPONSES)
    np.testing.assert_array_equal(found, judge("pair_preference")(PROMPTS, RESPONSES))


# --- reward models --------------------------------------------------------------------------------


def test_the_lm_head_of_pair_preference_is_not_copied_for_each_row(judge) -> None:
    """Hidden states at a tensor of positions are a copy, not a slice: no hook is needed."""
    found = judge("pair_preference")
    seen = []
    head = found.model.get_output_embeddings()
    head.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].is_contiguous()))
    found(["Name a river."] * 2, [["The Elbe.", "The Rhine, which is longer."]] * 2)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("name", ["reward_model", "reward_no_pad", "reward_deberta"])
def test_reward_model_is_bradley_terry_of_unbatched_rewards(name, checkpoints, judge) -> None:
    directory = checkpoints[name]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    rewards = np.empty((2, 4))
    for b, prompt in enumerate(PROMPTS):
        for i, response in enumerate(RESPONSES[b]):
            if tokenizer.chat_template:
                turns = f"[user] {prompt}</s>[assistant] {response}</s>"
                batch = tokenizer(turns, return_tensors="pt")  # puts <s> in front
            else:
                batch = tokenizer(prompt, response, return_tensors="pt")
            with torch.no_grad():
                rewards[b, i] = model(**batch).logits.item()
    expected = expit(rewards[:, :, None] - rewards[:, None])
    # float32; rewards of about 1.
    np.testing.assert_allclose(judge(name)(PROMPTS, RESPONSES), expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


def test_reward_model_reads_conversations_by_its_template_alone(judge) -> None:
    rows = [["yes", "no"]]
    found = judge("reward_model")([CONVERSATION], rows)
    assert np.abs(found - judge("reward_model")(["Why?"], rows)).max() > 1e-3
    with pytest.raises(JudgeError, match="no chat template for a prompt of 3 turns"):
        judge("reward_deberta")([CONVERSATION], rows)


# --- what all judges owe --------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODEL_KINDS)
def test_preferences_are_complementary_to_the_bit(name, judge) -> None:
    found = judge(name)(PROMPTS, RESPONSES)
    assert found.dtype == np.float64
    assert found.shape == (2, 4, 4)
    assert (found + found.swapaxes(1, 2) == 1).all()
    assert (np.diagonal(found, axis1=1, axis2=2) == 0.5).all()
    check_preferences(found, name, RESPONSES)


@given(
    st.integers(1, 3).flatmap(lambda n: st.lists(st.floats(0, 1), min_size=n * n, max_size=n * n))
)
def test_complement_is_exact_for_any_probabilities(entries: list[float]) -> None:
    n = round(len(entries) ** 0.5)
    found = exact(np.reshape(entries, (1, n, n)))
    assert (found + found.swapaxes(1, 2) == 1).all()


@pytest.mark.parametrize("name", MODEL_KINDS)
def test_neither_batch_size_nor_companions_nor_order_matter(name, judge) -> None:
    found = judge(name, batch_size=3)(PROMPTS, RESPONSES)
    # float32 sums in other orders.
    one = judge(name, batch_size=1)(PROMPTS, RESPONSES)
    np.testing.assert_allclose(one, found, atol=1e-5)
    alone = judge(name)(PROMPTS[:1], [RESPONSES[0][:2]])
    np.testing.assert_allclose(alone[0], found[0, :2, :2], atol=1e-5)
    order = [2, 0, 3, 1]
    rows = [[row[i] for i in order] for row in RESPONSES[::-1]]
    shuffled = judge(name, batch_size=3)(PROMPTS[::-1], rows)
    # The same batches: no rounding but that of 1 - p.
    np.testing.assert_allclose(shuffled, found[::-1][:, order][:, :, order], atol=2e-16)


@pytest.mark.parametrize("name", MODEL_KINDS)
def test_equal_responses_tie_to_the_bit_and_are_scored_once(name, judge) -> None:
    seen = []
    counted = judge(name, batch_size=2)
    forward = counted.score_batch
    counted.score_batch = lambda batch: seen.append(len(batch["input_ids"])) or forward(batch)
    found = counted(["Why?"], [["yes", "no, no", "yes", ""]])[0]
    assert found[0, 2] == 0.5
    # Three different texts: 3 rewards, or 6 ordered pairs and one pair of equals.
    assert sum(seen) == (3 if name.startswith("reward") else 7)
    # Against the others one of them is above the diagonal, one below: rounding of 1 - p.
    np.testing.assert_allclose(found[0], found[2], atol=2e-16)
    assert found[0, 1] != 0.5


@pytest.mark.parametrize("name", MODEL_KINDS)
def test_half_precision_stays_near(name, judge) -> None:
    pairs = judge(name, dtype="bfloat16")
    assert next(pairs.model.parameters()).dtype is torch.bfloat16
    # bfloat16 has 8 bits; two layers on logits of a few units.
    np.testing.assert_allclose(
        pairs(PROMPTS, RESPONSES), judge(name)(PROMPTS, RESPONSES), atol=0.05
    )


def test_a_judge_moves_and_keeps_no_graph(judge) -> None:
    pairrm = judge("pairrm")
    assert pairrm.to("meta") is pairrm
    assert next(pairrm.model.parameters()).device.type == "meta"
    assert not any(weight.requires_grad for weight in pairrm.model.parameters())
    assert not pairrm.model.training


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODEL_KINDS)
def test_gpu_agrees_with_cpu(name, checkpoints, judge) -> None:
    moved = judge(name).to("cuda")
    # float32 kernels of two devices (TF32 is off by default).
    np.testing.assert_allclose(
        moved(PROMPTS, RESPONSES), judge(name)(PROMPTS, RESPONSES), atol=1e-4
    )


def test_pairrm_shares_max_length_in_its_own_proportion(judge) -> None:
    seen = []
    pairrm = judge("pairrm", max_length=64)
    forward = pairrm.score_batch
    pairrm.score_batch = lambda batch: seen.append(batch["input_ids"].shape[1]) or forward(batch)
    pairrm([PROMPTS[0] * 9], [["The dog sleeps " * 20, "no " * 80]])
    assert max(seen) == 64
    assert pairrm.source_length == 1224 * 64 // 2048


@pytest.mark.parametrize("name", ["pair_preference", "reward_model", "reward_deberta"])
def test_long_responses_are_cut_to_max_length(name, judge, caplog) -> None:
    seen = []
    whole = judge(name)
    short = judge(name, max_length=150)
    forward = short.score_batch
    short.score_batch = lambda batch: seen.append(batch["input_ids"].shape[1]) or forward(batch)
    rows = [["The dog sleeps ☃" * 40, "yes", "perhaps, with a reason " * 40]]
    found = short(PROMPTS[:1], rows)
    assert 140 < max(seen) <= 150
    assert "2 of 3 responses were truncated" in caplog.text
    # What is left of a response is a beginning of it, the same against all others.
    cut = whole_texts(short, rows[0])
    assert all(text.startswith(left) for text, left in zip(rows[0], cut, strict=True))
    np.testing.assert_allclose(found, whole(PROMPTS[:1], [cut]), atol=1e-5)


def whole_texts(judge, row: list[str]) -> list[str]:
    """The responses as a judge reads them, caught on their way to `_encode` or `_ids`."""
    caught = []
    cut = judge.cut
    judge.cut = lambda *args, **options: caught.append(cut(*args, **options)) or caught[-1]
    judge(PROMPTS[:1], [row])
    return caught[0]


@pytest.mark.parametrize("name", ["pair_preference", "reward_model"])
def test_a_prompt_that_fills_the_judge_is_refused(name, judge) -> None:
    with pytest.raises(
        JudgeError, match=r"a prompt without a response exceeds .*; lower data.max_prompt_length"
    ):
        judge(name, max_length=40)(["Why? " * 40], [["yes", "no"]])


@pytest.mark.parametrize("name", ["pairrm", "pair_preference", "reward_deberta"])
def test_roles_must_alternate(name, judge) -> None:
    with pytest.raises(JudgeError, match=r"roles user, assistant; they must alternate"):
        judge(name)([CONVERSATION[:2]], [["yes", "no"]])


def test_a_system_message_opens_the_first_turn(judge) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    pairrm = judge("pairrm")
    found = pairrm([messages], [["yes", "no"]])
    np.testing.assert_array_equal(found, pairrm(["Be brief.\n\nWhy?"], [["yes", "no"]]))


def test_a_template_that_refuses_a_prompt_is_named(checkpoints, tmp_path) -> None:
    directory = shutil.copytree(checkpoints["reward_model"], tmp_path / "strict")
    (directory / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    judge = build_judge("reward_model", directory, device="cpu")
    with pytest.raises(JudgeError, match=r"chat template rejects a prompt .*no system role"):
        judge(PROMPTS, RESPONSES)
    (directory / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    judge = build_judge("reward_model", directory, device="cpu")
    with pytest.raises(JudgeError, match=r"chat template rejects a prompt \(ZeroDivisionError"):
        judge(PROMPTS, RESPONSES)


@pytest.mark.parametrize("name", MODEL_KINDS)
def test_a_model_that_gives_nan_is_stopped(name, judge) -> None:
    broken = judge(name)
    next(broken.model.parameters()).fill_(torch.nan)
    with pytest.raises(JudgeError, match=r"NaN or infinity; set judge.dtype=float32"):
        broken(PROMPTS, RESPONSES)


# --- functions ------------------------------------------------------------------------------------


def longer(prompts: list, responses: list[list[str]]) -> np.ndarray:
    lengths = np.array([[len(text) for text in row] for row in responses])
    return expit(lengths[:, :, None] - lengths[:, None, :])


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, np.ndarray.tolist, np.float32])
def test_a_function_is_a_judge(convert) -> None:
    judge = build_judge("callable", lambda prompts, rows: convert(longer(prompts, rows)))
    found = judge(PROMPTS, RESPONSES)
    assert (found + found.swapaxes(1, 2) == 1).all()
    np.testing.assert_allclose(found, longer(PROMPTS, RESPONSES), atol=1e-7)  # float32
    assert judge.to("cuda") is judge


def test_a_function_is_found_by_name(monkeypatch, tmp_path) -> None:
    (tmp_path / "my_judges.py").write_text(
        "class Rules:\n    @staticmethod\n"
        "    def tie(prompts, rows): return [[[0.5] * len(r)] * len(r) for r in rows]\n"
        "three = 3\n"
    )
    (tmp_path / "broken_judges.py").write_text("1 / 0\n")
    (tmp_path / "ending_judges.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert (build_judge("callable", "my_judges:Rules.tie")(PROMPTS, RESPONSES) == 0.5).all()
    assert check_judge_files("callable", "my_judges:Rules.tie") == 0
    for path, message in {
        None: "missing; a callable judge needs package.module:function",
        "my_judges": "expected an import path package.module:object",
        "my_judges:": "expected an import path package.module:object",
        "no_such_module:f": "No module named 'no_such_module'",
        "my_judges:absent": "has no attribute 'absent'",
        "my_judges:three": "not a Callable",
        "broken_judges:f": "cannot be imported: ZeroDivisionError",
        "ending_judges:f": "cannot be imported: SystemExit: 3",
    }.items():
        for check in (build_judge, check_judge_files):
            with pytest.raises(InputError, match=message) as caught:
                check("callable", path)
            assert (f"judge.path '{path}'" if path else "judge.path:") in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.full((2, 4, 4), np.nan), "NaN or infinity"),
        (np.full((2, 4), 0.5), r"returned shape \(2, 4\).* here \(2, 4, 4\)"),
        (np.full((2, 4, 3), 0.5), r"returned shape \(2, 4, 3\)"),
        (np.full((4, 4), 0.5), r"returned shape \(4, 4\)"),
        (None, r"shape \(\)|not return an array"),
        ("better", "did not return an array of numbers"),
        ([[[0.5]], [[0.5, 0.5]]], "did not return an array of numbers"),
        (np.full((2, 4, 4), -3.0), r"returned -3; return probabilities in \[0, 1\]"),
        (np.full((2, 4, 4), 0.6), r"P \+ P\^T is not 1"),
    ],
)
def test_what_a_function_may_not_return(table, message) -> None:
    judge = build_judge("callable", lambda prompts, responses: table)
    with pytest.raises(JudgeError, match=message) as caught:
        judge(PROMPTS, RESPONSES)
    assert "judge callable" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_that_raises_is_named() -> None:
    def fails(prompts: list, responses: list) -> None:
        raise KeyError("tone")

    with pytest.raises(JudgeError, match=r"callable .*fails: raised KeyError: 'tone'") as caught:
        build_judge("callable", fails)(PROMPTS, RESPONSES)
    assert isinstance(caught.value.__cause__, KeyError)

    def fills(prompts: list, responses: list) -> None:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        build_judge("callable", fills)(PROMPTS, RESPONSES)


def test_a_function_that_ends_the_program_or_is_a_coroutine_is_named() -> None:
    def ends(prompts: list, responses: list) -> None:
        raise SystemExit(0)

    async def later(prompts: list, responses: list) -> None: ...

    for function, said in ((ends, "raised SystemExit: 0"), (later, "is a coroutine")):
        with pytest.raises(JudgeError, match=said):
            build_judge("callable", function)(PROMPTS, RESPONSES)


def test_importing_a_function_does_not_change_the_gradient_mode(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "gradless.py").write_text(
        "import torch\ntorch.set_grad_enabled(False)\ndef judge(prompts, responses): ...\n"
    )
    build_judge("callable", "gradless:judge")
    assert torch.is_grad_enabled()


def test_a_function_does_not_change_the_gradient_mode() -> None:
    def switches_off(prompts: list, responses: list) -> np.ndarray:
        torch.set_grad_enabled(False)
        return longer(prompts, responses)

    build_judge("callable", switches_off)(PROMPTS, RESPONSES)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_function_may_return_low_precision(dtype: torch.dtype) -> None:
    """P and its complement are rounded each on its own; their mean is taken."""
    expected = longer(PROMPTS, RESPONSES)
    eps = torch.finfo(dtype).eps

    def low(prompts: list, responses: list) -> torch.Tensor:
        return torch.tensor(expected, dtype=dtype)

    table = build_judge("callable", low)(PROMPTS, RESPONSES)
    assert (table + table.swapaxes(-1, -2) == 1).all()
    np.testing.assert_allclose(table, expected, atol=eps)
    # More than rounding is refused, and full precision is held to its own.
    for wrong in (
        torch.tensor(0.9 * expected + 3 * eps, dtype=dtype),
        0.9 * expected + 0.05 + 2e-6,
    ):
        judge = build_judge("callable", lambda prompts, responses, wrong=wrong: wrong)
        with pytest.raises(JudgeError, match=r"P \+ P\^T is not 1"):
            judge(PROMPTS, RESPONSES)


def test_an_embedded_judge_is_found_by_name() -> None:
    judge = build_judge("embedded", "length")
    assert judge.name == "embedded length"
    # 1 - p is rounded.
    np.testing.assert_allclose(
        judge(PROMPTS, RESPONSES), JUDGES["length"](PROMPTS, RESPONSES), atol=2e-16
    )
    assert check_judge_files("embedded", "length") == 0
    for check in (build_judge, check_judge_files):
        with pytest.raises(InputError, match=r"judge.path=lenght: .* did you mean 'length'"):
            check("embedded", "lenght")


class OwnKind(FunctionJudge):
    """A judge kind in a file of its own."""

    preferences = ("bradley_terry",)

    def __init__(self, path: str | None) -> None:
        super().__init__(longer)
        self.name = f"own {path}"


def test_a_kind_is_a_class_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTERED, "own", f"{__name__}:OwnKind")
    assert JudgeConfig(kind="own").kind == "own"
    assert check_judge_files("own", "a") == 0
    judge = build_judge("own", "a", preference="bradley_terry")
    assert judge.name == "own a"
    np.testing.assert_allclose(judge(PROMPTS, RESPONSES), longer(PROMPTS, RESPONSES), atol=2e-16)
    with pytest.raises(InputError, match=r"judge\.kind=own; set it to bradley_terry"):
        build_judge("own", "a")


# --- a judge that does not judge ------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.5, 0.9])
def test_one_preference_for_every_pair_is_refused(value) -> None:
    constant = exact(np.full((2, 3, 3), value) + 4e-7 * np.random.default_rng(0).random((2, 3, 3)))
    with pytest.raises(JudgeError, match=f"judge flat: returned {value}.* for all 6 pairs"):
        check_preferences(constant, "flat")
    check_preferences(constant[:1], "flat")  # three pairs prove nothing
    varied = constant.copy()
    varied[1, 0, 1] += 1e-5
    check_preferences(exact(varied), "flat")


def test_ties_of_equal_responses_prove_nothing() -> None:
    ties = np.full((2, 3, 3), 0.5)
    check_preferences(ties, "flat", [["a"] * 3] * 2)
    with pytest.raises(JudgeError, match="for all 6 pairs"):
        check_preferences(ties, "flat", [["a", "b", "c"]] * 2)


@pytest.mark.parametrize(
    ("entry", "message"), [(np.nan, "NaN"), (1.5, r"returned 1.5"), (0.7, r"P \+ P\^T")]
)
def test_what_is_no_preference_is_refused(entry, message) -> None:
    table = np.full((1, 3, 3), 0.5)
    table[0, 0, 1] = entry
    with pytest.raises(JudgeError, match=message):
        check_preferences(table, "odd")


# --- files ----------------------------------------------------------------------------------------

KIND = {
    "pairrm": "pairrm",
    "pairrm_hf": "pairrm",
    "pair_preference": "pair_preference",
    "reward_deberta": "reward_model",
}


@pytest.mark.parametrize("name", list(KIND))
def test_files_are_checked_without_loading(name, checkpoints, judge) -> None:
    found = check_judge_files(KIND[name], checkpoints[name])
    assert found == sum(weight.numel() for weight in judge(name).model.parameters())


def edit(file: Path, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def as_pickle(file: Path) -> None:
    file.rename(file.with_name("pytorch_model.bin"))


# name: (kind, what happens to a copy, what is said, whether it is seen without loading)
DAMAGES = {
    "no config": ("pairrm", lambda d: (d / "config.json").unlink(), "config.json: missing", 1),
    "config cut": ("reward_deberta", lambda d: cut_in_half(d / "config.json"), "not valid JSON", 1),
    "config of another type": (
        "pairrm",
        lambda d: (d / "config.json").write_text("[]"),
        "config.json: not a JSON object",
        1,
    ),
    "index of another type": (
        "pairrm_hf",
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": [1]}'),
        "index.json: no weight_map of file names",
        1,
    ),
    "weights cut": (
        "pair_preference",
        lambda d: cut_in_half(d / "model.safetensors"),
        "model.safetensors: damaged or truncated",
        1,
    ),
    "pickled weights": (
        "reward_deberta",
        lambda d: as_pickle(d / "model.safetensors"),
        "no model.safetensors; weights are read from safetensors only",
        1,
    ),
    "shard missing": (
        "pairrm_hf",
        lambda d: (d / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
        ),
        "model-00001-of-00002.safetensors: missing",
        1,
    ),
    "no tokenizer": (
        "reward_deberta",
        lambda d: (d / "spm.model").unlink(),
        r"no tokenizer \(tokenizer.json or spm.model\)",
        1,
    ),
    "no backbone": (
        "pairrm",
        lambda d: edit(d / "config.json", model_name="/nowhere/deberta"),
        "model_name=/nowhere/deberta not found; on a machine with internet access, run hf download",
        1,
    ),
    "backbone to download": (
        "pairrm",
        lambda d: edit(d / "config.json", model_name="microsoft/deberta-v3-large"),
        "model_name=microsoft/deberta-v3-large not found",
        1,
    ),
    "other ranker": (
        "pairrm",
        lambda d: edit(d / "config.json", ranker_type="summareranker"),
        "neither llm-blender's PairRM",
        1,
    ),
    "marker elsewhere": (
        "pairrm_hf",
        lambda d: edit(d / "config.json", cand1_prefix_id=5),
        "cand1_prefix_id is 5, but the id of <.candidate1.> in its tokenizer is",
        0,
    ),
    "other shape": (
        "pairrm",
        lambda d: edit(d / "backbone" / "config.json", hidden_size=12),
        "cannot be loaded",
        0,
    ),
    "two outputs": (
        "reward_deberta",
        lambda d: edit(d / "config.json", id2label={"0": "bad", "1": "good"}),
        "the model has 2 outputs, a reward_model judge has one",
        0,
    ),
    "no template": (
        "pair_preference",
        lambda d: (d / "chat_template.jinja").unlink(),
        "the tokenizer has no chat template",
        0,
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_checkpoint_is_named_with_the_fix(damage, checkpoints, tmp_path) -> None:
    name, spoil, message, seen_early = DAMAGES[damage]
    directory = shutil.copytree(checkpoints[name], tmp_path / "copy")
    if name == "pairrm":
        edit(directory / "config.json", model_name=str(directory / "backbone"))
    spoil(directory)
    checks = [build_judge] + [check_judge_files] * seen_early
    for check in checks:
        with pytest.raises(InputError, match=message) as caught:
            check(KIND[name], directory)
        assert str(directory) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "[]"),
        ("config.json", '{"model_type":"mistral","hidden_size":"x"}'),
    ],
)
def test_files_with_values_of_the_wrong_type_are_refused(
    name, content, checkpoints, tmp_path
) -> None:
    directory = shutil.copytree(checkpoints["reward_model"], tmp_path / "judge")
    (directory / name).write_text(content)
    with pytest.raises(InputError, match="judge: cannot be loaded") as caught:
        build_judge("reward_model", str(directory), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_refused(name, make, checkpoints, tmp_path) -> None:
    directory = shutil.copytree(checkpoints["reward_model"], tmp_path / "judge")
    (directory / name).unlink(missing_ok=True)
    make(directory / name)
    with pytest.raises(InputError, match=rf"{name}: not a regular file"):
        check_judge_files("reward_model", str(directory))


def test_the_wrong_kind_of_checkpoint_is_named(checkpoints, tmp_path) -> None:
    language_model = save_causal_lm(tmp_path / "causal", "mistral")
    edit(language_model / "config.json", id2label={"0": "reward"})
    with pytest.raises(InputError, match=r"no weights score.weight, so this is another kind"):
        build_judge("reward_model", language_model)
    with pytest.raises(InputError, match="neither llm-blender's PairRM"):
        build_judge("pairrm", checkpoints["reward_deberta"])
    with pytest.raises(InputError, match="no tokenizer"):
        build_judge("reward_model", checkpoints["pairrm"])
    with pytest.raises(InputError, match=r"no weights lm_head.weight, so this is another kind"):
        build_judge("pair_preference", checkpoints["reward_model"])
    worded = save_causal_lm(tmp_path / "worded", "llama", tokenizer=byte_tokenizer())
    vocabulary = json.loads((worded / "tokenizer.json").read_text())
    vocabulary["normalizer"] = {"type": "Prepend", "prepend": "##"}
    (worded / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(InputError, match="A and B are not single tokens"):
        build_judge("pair_preference", worded)


@pytest.mark.parametrize(
    ("module", "package"), [("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")]
)
def test_a_missing_library_is_named(module, package, checkpoints, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for check in (build_judge, check_judge_files):
        with pytest.raises(InputError, match=f"needs {package}; pip install {package}"):
            check("pairrm", checkpoints["pairrm"])
    check_judge_files("pairrm", checkpoints["pairrm_hf"])  # has tokenizer.json


def test_nothing_is_unpickled(checkpoints, tmp_path, monkeypatch) -> None:
    def refuse(*args, **options):
        raise AssertionError("unpickled")

    for name in KIND:
        directory = shutil.copytree(checkpoints[name], tmp_path / name)
        for place in (directory, directory / "backbone"):
            if place.exists():
                (place / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        monkeypatch.setattr(torch, "load", refuse)
        monkeypatch.setattr("pickle.load", refuse)
        build_judge(KIND[name], directory)


def test_a_path_that_is_nowhere_is_named() -> None:
    for path in ("/nowhere/judge", "judge", "a/b/c"):
        for check in (build_judge, check_judge_files):
            with pytest.raises(InputError, match=f"judge.path={path}: no such directory"):
                check("pairrm", path)
    for path in (None, ""):
        with pytest.raises(InputError, match=r"judge.path: missing; give a checkpoint"):
            build_judge("reward_model", path)


def test_a_name_on_the_hub_is_downloaded_only_to_be_built(checkpoints, monkeypatch) -> None:
    asked = []

    def snapshot(name: str, *, local_files_only: bool = False, **options) -> str:
        asked.append(local_files_only)
        if local_files_only:
            raise FileNotFoundError("not in the cache")
        return str(checkpoints["reward_model"])

    monkeypatch.setattr("llm.judges.checkpoints.snapshot_download", snapshot)
    assert check_judge_files("reward_model", "org/reward") is None
    assert asked == [True]
    assert build_judge("reward_model", "org/reward")(PROMPTS, RESPONSES).shape == (2, 4, 4)


def test_a_name_the_hub_does_not_give_is_named() -> None:
    with pytest.raises(InputError, match=r"org/reward: not a directory, and .* Hub failed"):
        build_judge("reward_model", "org/reward")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("pairmr", {}, "judge.kind=pairmr: unknown; did you mean 'pairrm'"),
        ("pairrm", {"preference": "elo"}, "judge.preference=elo: unknown; choose from general"),
        ("pairrm", {"dtype": "int8"}, "judge.dtype=int8: unknown; choose from float32"),
        ("pairrm", {"device": "gpu"}, "judge.device=gpu: not a device here; choose cpu"),
        ("pairrm", {"device": "cuda:99"}, "judge.device=cuda:99: this machine has no such device"),
        (
            "callable",
            {"preference": "bradley_terry"},
            "bradley_terry: not available for judge.kind=callable; set it to gen",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(kind, options, message, checkpoints) -> None:
    with pytest.raises(InputError, match=message):
        build_judge(kind, checkpoints["pairrm"], **options)


# --- lexicons -------------------------------------------------------------------------------------

TONES = ["A wonderful, happy day!", "A day at the river.", "A terrible, sad day."]


@pytest.mark.parametrize("name", ["vader", "afinn"])
def test_a_lexicon_prefers_the_positive_response(name: str) -> None:
    """Bradley-Terry: the logit of P is the difference of two scores."""
    judge = build_judge("callable", f"llm.judges.sentiment:{name}")
    score = getattr(sentiment, f"{name}_score")
    slope = getattr(sentiment, f"{name.upper()}_SLOPE")
    scores = np.array([score(text) for text in TONES])
    assert scores[0] > scores[1] == 0 > scores[2]
    expected = expit(slope * (scores[:, None] - scores[None, :]))
    np.testing.assert_allclose(judge(["?"], [TONES])[0], expected, rtol=0, atol=1e-12)


def test_afinn_is_a_mean_over_words() -> None:
    """Two of ten words have a valence in AFINN: happy 3 and wonderful 4."""
    assert sentiment.afinn_score("so wonderful and happy a day by the river today") == 0.7
    assert sentiment.afinn_score("") == 0


def test_a_majority_of_three_criteria_is_cyclic() -> None:
    """Each response beats the next on two of tone, brevity and variety."""
    texts = [
        "good good good good",  # the best tone and the least variety
        "good day to you here now",  # the second tone, full variety, the longest
        "no no no",  # the worst tone, the shortest
    ]
    scores = [sentiment.vader_score(text) for text in texts]
    assert scores[0] > scores[1] > scores[2]
    table = build_judge("callable", "llm.judges.sentiment:panel")(["?"], [texts])[0]
    assert [table[0, 1], table[1, 2], table[2, 0]] == pytest.approx([2 / 3] * 3)
