from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from games.errors import InputError
from llm import data as data_module
from llm.config import DataConfig
from llm.data import Prompt, PromptSet, encode, load_prompts, read_prompts
from tests.tiny_models import byte_tokenizer

# Commas, quotes, line ends inside, a separator that ends no line, characters beyond 16 bits.
TEXTS = ['Name "three", please', "one\u2028line", "two\nlines", "two\r\nmore", "Ünï 🎲", "plain"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


def user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def write(path: Path, texts: list[str]) -> Path:
    return write_jsonl(path, [{"prompt": text} for text in texts])


def config(path: Path | str, **settings) -> DataConfig:
    return DataConfig(path=str(path), **settings)


# --- formats --------------------------------------------------------------------------------------


def test_every_format_reads_alike(tmp_path: Path) -> None:
    import csv

    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"prompt": text, "id": i} for i, text in enumerate(TEXTS)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    (tmp_path / "p.json").write_text(json.dumps(rows))
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, ["prompt", "id"])
        writer.writeheader()
        writer.writerows(rows)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"test": table, "train": table}).save_to_disk(str(tmp_path / "splits"))
    for name in ("p.jsonl", "p.json", "p.csv", "p.parquet", "saved", "splits"):
        prompts = read_prompts(str(tmp_path / name))
        assert [prompt.text for prompt in prompts] == TEXTS
        assert all(name in prompt.where for prompt in prompts)
    with pytest.raises(InputError, match=r"data\.split=dev: .*only test, train"):
        read_prompts(str(tmp_path / "splits"), split="dev")


def test_directory_of_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", TEXTS)
    assert [p.text for p in read_prompts(str(tmp_path / "data"))] == TEXTS


def test_a_line_is_named_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('\n{"prompt": "a\u2028b"}\n\n{"prompt": "c"}\n')
    assert [prompt.where for prompt in read_prompts(str(path))] == [f"{path}:2", f"{path}:4"]


def test_conversations_end_with_the_users_turn(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    answered = [*turns, {"role": "assistant", "content": "So long"}]
    rows = [{"messages": turns}, {"messages": answered}, {"messages": turns[:1]}]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    prompts = read_prompts(str(path), "messages")
    assert [list(prompt.messages) for prompt in prompts] == [turns, turns, turns[:1]]
    assert prompts[0].text == "USER: Hi\nASSISTANT: Hello\nUSER: Bye"
    assert prompts[2].text == "Hi"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", "", "no prompts in it"),
        ("p.jsonl", "\n \n", "no prompts in it"),
        ("p.json", "", "no prompts in it"),
        ("p.csv", "prompt\n", "no prompts in it"),
        ("p.csv", "", "no prompts in it"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n', r"p\.jsonl:2: not valid JSON"),
        ("p.jsonl", '"a"\n', r"p\.jsonl:1: must be an object"),
        ("p.jsonl", '{"promt": "a"}\n', r"p\.jsonl:1: no column .*data\.field=promt\?"),
        ("p.jsonl", '{"prompt": 3}\n', r"p\.jsonl:1: 'prompt' holds int"),
        ("p.jsonl", '{"prompt": null}\n', r"p\.jsonl:1: 'prompt' holds NoneType"),
        ("p.jsonl", '{"prompt": []}\n', r"p\.jsonl:1: 'prompt' has no message of the user"),
        ("p.jsonl", '{"prompt": [{"role": "user"}]}', r"p\.jsonl:1: each message"),
        ("p.jsonl", '{"prompt": ["hi"]}', r"p\.jsonl:1: each message"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', r"p\.jsonl:2: not UTF-8"),
        ("p.json", '[\n{"prompt": "a"},\n', r"p\.json:3: not valid JSON.*\.jsonl"),
        ("p.json", '{"prompt": "a"}', r"p\.json: must be a list"),
        ("p.json", '[{"prompt": "a"}, 4]', r"p\.json, item 2: must be an object"),
        ("p.csv", "id,promt\n1,a\n", r"p\.csv:1: no column .*data\.field=promt\?"),
        ("p.csv", "id,prompt\n1,a\n2,b,c\n", r"p\.csv:3: has not as many fields"),
        ("p.csv", "id,prompt\n1\n", r"p\.csv:2: has not as many fields"),
        ("p.csv", 'id,prompt\n1,"a\n', r"p\.csv:2: not valid CSV.*quotes"),
        ("p.csv", b"prompt\na\n\xe9\n", r"p\.csv:3: not UTF-8"),
        ("p.parquet", b"PAR1 nothing", "not a readable parquet file"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=said) as caught:
        read_prompts(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_missing_files_datasets_and_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with pytest.raises(InputError, match="there is no such file"):
        read_prompts(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(InputError, match=r"cannot be read as a dataset .*hub name"):
        read_prompts(str(tmp_path / "nothing"))
    parquet.write_table(pa.table({"instruction": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match="no column 'prompt' among instruction"):
        read_prompts(str(tmp_path / "p.parquet"))
    path = write(tmp_path / "p.jsonl", TEXTS)
    with pytest.raises(InputError, match=r"data\.split=test: .*without splits"):
        read_prompts(str(path), split="test")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "p.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="pip install pyarrow"):
        read_prompts(str(tmp_path / "p.parquet"))
    with pytest.raises(InputError, match="pip install datasets"):
        read_prompts("some/dataset")
    assert len(read_prompts(str(write(tmp_path / "p.jsonl", TEXTS)))) == len(TEXTS)


def test_nothing_heavy_is_imported() -> None:
    names = "{'torch', 'transformers', 'datasets', 'pyarrow', 'pandas'}"
    code = f"import sys, llm.data, llm.metrics; print({names} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- templates and tokens -------------------------------------------------------------------------


def one(text: str) -> list[Prompt]:
    return [Prompt(user(text), "p.jsonl:1")]


def test_the_tokenizers_template(tokenizer: PreTrainedTokenizerBase) -> None:
    (prompt,) = encode(one("Name three rivers."), tokenizer, config("p"))
    expected = tokenizer.apply_chat_template(
        list(prompt.messages), add_generation_prompt=True, return_dict=False
    )
    assert list(prompt.token_ids) == expected
    assert prompt.token_ids.count(tokenizer.bos_token_id) == 1
    # Decoded, it is what the template says.
    assert tokenizer.decode(prompt.token_ids) == "<s><|user|>Name three rivers.<|assistant|>"


def test_a_template_from_a_file(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ bos_token }}Q: {{ messages[0]['content'] }}\nA:")
    (prompt,) = encode(one("why?"), tokenizer, config("p", chat_template=str(file)))
    assert tokenizer.decode(prompt.token_ids) == "<s>Q: why?\nA:"
    with pytest.raises(InputError, match=r"data\.chat_template=.*no such file"):
        encode(one("why?"), tokenizer, config("p", chat_template="nowhere.jinja"))
    file.write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match=r"p\.jsonl:1: .*\(roles must alternate\)"):
        encode(one("why?"), tokenizer, config("p", chat_template=str(file)))


def test_raw_prompts_and_a_tokenizer_without_template() -> None:
    bare = byte_tokenizer(chat_template=None)
    with pytest.raises(InputError, match=r"data\.chat_template: .*no chat template.*none"):
        encode(one("why?"), bare, config("p"))
    (prompt,) = encode(one("why?"), bare, config("p", chat_template="none"))
    assert list(prompt.token_ids) == bare("why?")["input_ids"]
    assert prompt.token_ids[0] == bare.bos_token_id


def test_the_system_prompt_is_for_the_model_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    (prompt,) = encode(one("Hi"), tokenizer, config("p", system_prompt="Be short."))
    assert tokenizer.decode(prompt.token_ids) == "<s><|system|>Be short.<|user|>Hi<|assistant|>"
    assert prompt.text == "Hi"
    (raw,) = encode(
        one("Hi"), tokenizer, config("p", system_prompt="Be short.", chat_template="none")
    )
    assert tokenizer.decode(raw.token_ids) == "<s>Be short.\nHi"


def test_prompts_without_tokens_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(InputError, match=r"p\.jsonl:1: gives no tokens"):
        encode(one(""), tokenizer, config("p", chat_template="none"))


def test_long_prompts_are_left_out_and_counted(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["zzzz", "z" * 50, "zz"]
    length = len(tokenizer("zzzz")["input_ids"])
    path = write(tmp_path / "p.jsonl", texts)
    data = config(path, chat_template="none", max_prompt_length=length)
    kept = load_prompts(data, tokenizer, seed=0)
    assert {prompt.text for prompt in kept.folds[0]} == {"zzzz", "zz"}
    assert kept.dropped == 1
    assert "1 of 3 prompts are longer than data.max_prompt_length" in caplog.text
    with pytest.raises(InputError, match=r"every prompt.*shortest has 3 tokens"):
        load_prompts(config(path, chat_template="none", max_prompt_length=2), tokenizer, seed=0)


# --- order and folds ------------------------------------------------------------------------------


@given(
    size=st.integers(1, 40),
    folds=st.integers(1, 5),
    held_out=st.integers(0, 5),
    seed=st.integers(0, 100),
    shuffle=st.booleans(),
)
def test_folds_part_the_prompts(
    size: int, folds: int, held_out: int, seed: int, shuffle: bool
) -> None:
    prompts = [Prompt(user(str(i)), f"p:{i}", (0, i)) for i in range(size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "read_prompts", lambda *_: prompts)
        patch.setattr(data_module, "encode", lambda group, *_: list(group))
        data = config("p", folds=folds, shuffle=shuffle)
        if size < folds + held_out:
            with pytest.raises(InputError, match="too few"):
                load_prompts(data, None, seed=seed, held_out=held_out)
            return
        parts = load_prompts(data, None, seed=seed, held_out=held_out)
        again = load_prompts(data, None, seed=seed, held_out=held_out)
    assert parts == again
    assert len(parts.held_out) == held_out
    sizes = [len(fold) for fold in parts.folds]
    assert len(sizes) == folds
    assert max(sizes) - min(sizes) <= 1
    everything = [*parts.held_out, *(prompt for fold in parts.folds for prompt in fold)]
    assert sorted(prompt.where for prompt in everything) == sorted(p.where for p in prompts)
    if not shuffle:
        assert parts.held_out == tuple(prompts[::-1][:held_out])
        assert parts.folds[0][0] == prompts[0]


def test_the_seed_orders_the_prompts(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [str(i) for i in range(20)])
    orders = [
        [p.text for p in load_prompts(config(path), tokenizer, seed=seed).folds[0]]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_splits_are_the_folds(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    import datasets

    parts = {
        name: datasets.Dataset.from_dict({"prompt": [f"{name}{i}" for i in range(4)]})
        for name in ("a", "b")
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    data = config(tmp_path / "d", split="b,a", shuffle=False)
    prompts = load_prompts(data, tokenizer, seed=0, held_out=3)
    texts = [[prompt.text for prompt in fold] for fold in prompts.folds]
    assert texts == [["b0", "b1"], ["a0", "a1", "a2"]]
    assert [prompt.text for prompt in prompts.held_out] == ["b3", "a3", "b2"]
    with pytest.raises(InputError, match=r"data\.folds=3: data\.split names 2"):
        load_prompts(config(tmp_path / "d", split="b,a", folds=3), tokenizer, seed=0)


def test_iterations_take_their_fold_in_turn() -> None:
    letters = {c: Prompt(user(c), c, (0,)) for c in "abcdefg"}
    prompts = PromptSet(
        folds=(tuple(letters[c] for c in "abcd"), tuple(letters[c] for c in "efg")),
        held_out=(),
        dropped=0,
    )

    def taken(iteration: int, count: int | None) -> str:
        return "".join(prompt.text for prompt in prompts.of_iteration(iteration, count))

    assert [taken(t, None) for t in range(3)] == ["abcd", "efg", "abcd"]
    assert [taken(t, 3) for t in range(6)] == ["abc", "efg", "dab", "efg", "cda", "efg"]
    assert taken(0, 6) == "abcdab"
