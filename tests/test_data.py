from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from games.errors import InputError
from llm.config.loading import split_override
from llm.config.schema import DataConfig
from llm.data import prompts as data_module
from llm.data.examples import Examples, Prompt, read_examples
from llm.data.prompts import PromptSet, load_prompts
from llm.data.tokens import encode, encode_answers
from tests.tiny_models import byte_tokenizer, symbol_tokenizer

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


def read(path: Path | str, field: str = "prompt", **settings) -> tuple[Prompt, ...]:
    (prompts,) = read_examples(config(path, field=field, **settings)).groups
    return prompts


def test_of_turns_without_roles_the_first_is_the_prompt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"turns": ["Name a river.", "And a lake."]}, {"turns": ["Name a hill."]}]  # MT-Bench
    path = write_jsonl(tmp_path / "question.jsonl", rows)
    prompts = read(path, field="turns")
    assert [prompt.messages for prompt in prompts] == [
        ({"role": "user", "content": "Name a river."},),
        ({"role": "user", "content": "Name a hill."},),
    ]
    assert "data.field=turns: 1 of 2 rows are lists of several turns" in caplog.text
    write_jsonl(path, [{"turns": ["", "And a lake."]}])
    with pytest.raises(InputError, match="the prompt in 'turns' is empty"):
        read(path, field="turns")
    write_jsonl(path, [{"turns": ["Name a river.", {"role": "user", "content": "a"}]}])
    with pytest.raises(InputError, match="each message in 'turns' must be"):
        read(path, field="turns")


# --- formats --------------------------------------------------------------------------------------


def test_every_format_reads_alike(tmp_path: Path) -> None:
    import csv

    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"prompt": text, "id": i, "best": text[::-1]} for i, text in enumerate(TEXTS)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    (tmp_path / "p.json").write_text(json.dumps(rows))
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, ["prompt", "id", "best"])
        writer.writeheader()
        writer.writerows(rows)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"test": table, "train": table}).save_to_disk(str(tmp_path / "splits"))
    for name in ("p.jsonl", "p.json", "p.csv", "p.parquet", "saved", "splits"):
        prompts = read(tmp_path / name)
        assert [prompt.text for prompt in prompts] == TEXTS
        assert all(name in prompt.where for prompt in prompts)
        answered = read(tmp_path / name, answer="best")
        assert [prompt.answer_texts for prompt in answered] == [(text[::-1],) for text in TEXTS]
        assert [prompt.messages for prompt in answered] == [prompt.messages for prompt in prompts]
    with pytest.raises(InputError, match=r"data\.split=dev: .*choose from test, train"):
        read(tmp_path / "splits", split="dev")


def test_directory_of_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", TEXTS)
    assert [p.text for p in read(tmp_path / "data")] == TEXTS


def test_a_line_is_named_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('\n{"prompt": "a\u2028b"}\n\n{"prompt": "c"}\n')
    assert [prompt.where for prompt in read(path)] == [f"{path}:2", f"{path}:4"]


def test_conversations_end_with_the_users_turn(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    answered = [*turns, {"role": "assistant", "content": "So long"}]
    rows = [{"messages": turns}, {"messages": answered}, {"messages": turns[:1]}]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    prompts = read(path, "messages")
    assert [list(prompt.messages) for prompt in prompts] == [turns, turns, turns[:1]]
    assert prompts[0].text == "USER: Hi\nASSISTANT: Hello\nUSER: Bye"
    assert prompts[2].text == "Hi"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", "", "contains no prompts"),
        ("p.jsonl", "\n \n", "contains no prompts"),
        ("p.json", "", "contains no prompts"),
        ("p.csv", "prompt\n", "contains no prompts"),
        ("p.csv", "", "contains no prompts"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n', r"p\.jsonl:2: not valid JSON"),
        ("p.jsonl", '"a"\n', r"p\.jsonl:1: must be an object"),
        (
            "p.jsonl",
            '{"promt": "a"}\n',
            r"p\.jsonl:1: there is no column data\.field=prompt; did you mean 'promt'",
        ),
        ("p.jsonl", '{"prompt": 3}\n', r"p\.jsonl:1: 'prompt' is a int"),
        ("p.jsonl", '{"prompt": null}\n', r"p\.jsonl:1: 'prompt' is a NoneType"),
        ("p.jsonl", '{"prompt": []}\n', r"p\.jsonl:1: 'prompt' has no user message"),
        ("p.jsonl", '{"prompt": [{"role": "user"}]}', r"p\.jsonl:1: each message"),
        ("p.jsonl", '{"prompt": [1]}', r"p\.jsonl:1: each message"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', r"p\.jsonl:2: not UTF-8"),
        ("p.json", '[\n{"prompt": "a"},\n', r"p\.json:3: not valid JSON.*\.jsonl"),
        ("p.json", '{"prompt": "a"}', r"p\.json: must be a list"),
        ("p.json", '[{"prompt": "a"}, 4]', r"p\.json, item 2: must be an object"),
        (
            "p.csv",
            "id,promt\n1,a\n",
            r"p\.csv:1: there is no column data\.field=prompt; did you mean 'promt'",
        ),
        ("p.csv", "id,prompt\n1,a\n2,b,c\n", r"p\.csv:3: has a different number of fields"),
        ("p.csv", "id,prompt\n1\n", r"p\.csv:2: has a different number of fields"),
        ("p.csv", 'id,prompt\n1,"a\n', r"p\.csv:2: not valid CSV.*quotes"),
        ("p.csv", b"prompt\na\n\xe9\n", r"p\.csv:3: not UTF-8"),
        ("p.parquet", b"PAR1 nothing", "not a readable Parquet file"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=said) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_files_datasets_and_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "nothing.jsonl")
    with pytest.raises(InputError, match=r"cannot be read as a dataset .*Hub name"):
        read(tmp_path / "nothing")
    parquet.write_table(pa.table({"instruction": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"no column data\.field=prompt; choose from instruction"):
        read(tmp_path / "p.parquet")
    path = write(tmp_path / "p.jsonl", TEXTS)
    with pytest.raises(InputError, match=r"data\.split=test: .*without splits"):
        read(path, split="test")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "p.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="pip install pyarrow"):
        read(tmp_path / "p.parquet")
    with pytest.raises(InputError, match="pip install datasets"):
        read("some/dataset")
    assert len(read(write(tmp_path / "p.jsonl", TEXTS))) == len(TEXTS)


def test_nothing_heavy_is_imported() -> None:
    names = "{'torch', 'transformers', 'datasets', 'pyarrow', 'pandas'}"
    modules = "llm.data.prompts, llm.evaluation.report, llm.evaluation.curves"
    code = f"import sys, {modules}; print({names} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


MESSAGES = [
    {"role": "user", "content": 'it\'s "Hi"'},
    {"role": "assistant", "content": "a\nb"},
    {"role": "user", "content": "é"},
    {"role": "assistant", "content": "So long"},
]


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
@pytest.mark.parametrize("stored", [repr, json.dumps, lambda value: f" {value!r} \n"])
def test_messages_that_were_stored_as_text_are_parsed(tmp_path: Path, name: str, stored) -> None:
    import csv

    rows = [{"m": stored(MESSAGES), "bad": stored([*MESSAGES[:3], MESSAGES[1]])}]
    if name == "p.csv":
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ["m", "bad"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        write_jsonl(tmp_path / name, rows)
    (prompt,) = read(tmp_path / name, "m", answer="m", rejected="bad")
    assert list(prompt.messages) == MESSAGES[:3]
    assert prompt.answer_texts == ("So long", "a\nb")


@pytest.mark.parametrize(
    "text",
    [
        # As str writes numpy arrays, of which pandas makes CSV files.
        "[{'content': 'a', 'role': 'user'}\n {'content': 'b', 'role': 'assistant'}]",
        "array([{'role': 'user', 'content': 'a'}], dtype=object)",
        "[{'role': 'user', 'content': 'aaaaaaa",  # cut off by a spreadsheet
        "[{'content': 'aaaaaaa",
        '[{"from": "human", "value": "a"},]x',
        "[{'role': 'user', 'content': nan}]",
    ],
)
@pytest.mark.parametrize("column", ["prompt", "answer", "rejected"])
def test_messages_as_text_that_cannot_be_parsed_are_refused(
    tmp_path: Path, text: str, column: str
) -> None:
    row = {"prompt": "a", "answer": "b", "rejected": "c"} | {column: text}
    path = write_jsonl(tmp_path / "p.jsonl", [row])
    with pytest.raises(
        InputError, match=rf"p\.jsonl:1: '{column}' seems to contain chat"
    ) as caught:
        read(path, answer="answer", rejected="rejected")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[{'role': 'user'}]", '[{"role": 1, "content": "x"}]'])
def test_incomplete_messages_as_text_are_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "p.jsonl", [text])
    with pytest.raises(InputError, match=r"p\.jsonl:1: each message in 'prompt'"):
        read(path)


def test_other_text_in_brackets_is_text(tmp_path: Path) -> None:
    texts = ["[1, 2]", "[]", '{"value": 3}', '[{"content": 1}]', '{"content": "x" fix this', "[{'"]
    assert [prompt.text for prompt in read(write(tmp_path / "p.jsonl", texts))] == texts


def test_a_message_alone_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", ["{'role': 'assistant', 'content': 'Hi'}"])
    with pytest.raises(InputError, match="'prompt' has no user message"):
        read(path)


def test_long_csv_fields_are_read(tmp_path: Path) -> None:
    import csv

    text = "word " * 50_000
    (tmp_path / "p.csv").write_text(f"prompt,answer\n{text},b\n")
    assert read(tmp_path / "p.csv")[0].text == text
    assert csv.field_size_limit() == 131_072  # the default


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", '{"prompt": " \\n"}', ":1: the prompt in 'prompt' is empty"),
        (
            "p.jsonl",
            '{"prompt": [{"role": "user", "content": ""}]}',
            ":1: the prompt in 'prompt' is",
        ),
        ("p.csv", 'prompt,id\n"",1\n', ":2: the prompt in 'prompt' is empty"),
        ("p.csv", "prompt,id,prompt\na,1,b\n", ":1: data.field=prompt: there are several"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', ":1: data.field=prompt: there are several"),
        ("p.csv", "prompt;id\na;1\n", ":1: the delimiter seems to be ';'"),
        (
            "p.jsonl",
            '\n{"prompt": "a\\ud83d"}',
            r":2: 'prompt' contains the lone surrogate '\\ud83d'",
        ),
        (
            "p.jsonl",
            '{"prompt": [{"role": "user", "content": "\\udc00"}]}',
            ":1: 'prompt' contains the",
        ),
        ("p.jsonl", '{"prompt": "a", "n": ' + "9" * 5000 + "}", ":1: a number has too many digits"),
        ("p.json", '[{"prompt": "a", "n": ' + "9" * 5000 + "}]", ": a number has too many digits"),
        ("p.jsonl", '\n{"prompt": ' + "[" * 100_000, ":2: JSON is nested too deeply"),
        ("p.json", "[" * 100_000, ": JSON is nested too deeply"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(name) + said) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_repeated_key_in_another_column_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": 1, "prompt": "a", "id": 2}\n')
    assert read(path)[0].text == "a"
    (tmp_path / "p.csv").write_text("id,prompt,id\n1,a,2\n")
    assert read(tmp_path / "p.csv")[0].text == "a"


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(InputError, match=r"p\.jsonl: not a regular file"):
        read(tmp_path / "p.jsonl")


def test_damaged_parquet_pages_are_refused(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "p.parquet", [{"prompt": text * 99} for text in TEXTS])
    whole = path.read_bytes()
    refused = 0
    for place in range(4, 200, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            read(path)
        except InputError:
            refused += 1
    assert refused > 5


def test_splits_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"prompt": ["a", "b"]})
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"a": table, "b": table}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(
        InputError, match=r"data\.split=test: .*has no splits; leave out data\.split"
    ):
        read(tmp_path / "one", split="test")
    assert len(read(tmp_path / "one")) == 2
    assert len(read_examples(config(tmp_path / "two", split="a, b")).groups) == 2
    for split, said in {
        "a,": "data.split=: ",
        "a,a": "contains 'a' twice",
        "c": "no such split",
    }.items():
        with pytest.raises(InputError, match=re.escape(said)):
            read_examples(config(tmp_path / "two", split=split))


# --- answers --------------------------------------------------------------------------------------


def said(*contents: str) -> list[dict[str, str]]:
    """A conversation of user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def parquet_of(path: Path, rows: list[dict]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("write_rows", "name"), [(write_jsonl, "p.jsonl"), (parquet_of, "p.parquet")]
)
def test_a_conversation_is_prompt_and_answer(tmp_path: Path, write_rows, name: str) -> None:
    # As in UltraChat: one column of messages, the last of them the assistant's.
    turns = said("Hi", "Hello", "Bye", "So long")
    rows = [{"messages": turns}, {"messages": turns[:2]}]
    long, short = read(write_rows(tmp_path / name, rows), "messages", answer="messages")
    assert list(long.messages) == turns[:3]
    assert long.answer_texts == ("So long",)
    assert list(short.messages) == turns[:1]
    assert short.answer_texts == ("Hello",)


def test_chosen_and_rejected_are_texts_or_conversations(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be short."}
    whole = {"chosen": said("Hi", "Hello"), "rejected": said("Hi", "Go away")}
    rows = [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
        {"prompt": "Hi ", **whole},  # UltraFeedback, but for a space
        {"prompt": said("Hi"), **whole},
        {"prompt": "Hi", **{k: [turns[-1]] for k, turns in whole.items()}},  # the answers alone
        {"prompt": [system, *said("Hi")], **whole},
        {"prompt": "Hi", "chosen": "Hello", "rejected": ""},  # said nothing, and lost
    ]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    prompts = read(path, answer="chosen", rejected="rejected")
    assert [p.answer_texts for p in prompts] == [("Hello", "Go away")] * 5 + [("Hello", "")]
    assert [len(p.messages) for p in prompts] == [1, 1, 1, 1, 2, 1]
    only = write_jsonl(tmp_path / "whole.jsonl", [whole])
    (prompt,) = read(only, "chosen", answer="chosen", rejected="rejected")
    assert list(prompt.messages) == said("Hi")
    assert prompt.answer_texts == ("Hello", "Go away")


ONE = {"field": "prompt", "answer": "answer"}
CHATS = {"field": "messages", "answer": "messages"}
PAIR = {"field": "prompt", "answer": "chosen", "rejected": "rejected"}


@pytest.mark.parametrize(
    ("settings", "line", "expected"),
    [
        (
            ONE,
            {"prompt": "a", "anwser": "b"},
            r":1: there is no column data\.answer=answer; did you mean 'anwser'",
        ),
        (
            ONE,
            {"prompt": "a", "reply": "b"},
            r":1: there is no column data\.answer=answer; choose from prompt, reply",
        ),
        (ONE, {"prompt": "a", "answer": ""}, ":1: the response in 'answer' is empty"),
        (ONE, {"prompt": "a", "answer": " \n"}, ":1: the response in 'answer' is empty"),
        (ONE, {"prompt": "a", "answer": None}, ":1: 'answer' is a NoneType"),
        (ONE, {"prompt": "a", "answer": 4}, ":1: 'answer' is a int"),
        (ONE, {"prompt": "a", "answer": []}, "one assistant turn .*it has none"),
        (ONE, {"prompt": "a", "answer": said("a")}, "one assistant turn .*it has none"),
        (
            ONE,
            {"prompt": "a", "answer": [*said("a", "b"), {"role": "tool", "content": "c"}]},
            "it has assistant, tool; fix",
        ),
        (ONE, {"prompt": "a", "answer": said("a", "b", "c", "d")}, r"set data\.field=answer"),
        (ONE, {"prompt": "a", "answer": said("A", "b")}, "responds to another conversation"),
        (CHATS, {"messages": said("a", "b", "c")}, "one assistant turn .*it has none"),
        (
            {**ONE, "rejected": "prompt"},
            {"prompt": "a", "answer": "b"},
            "'prompt' is a string; .*set data.rejected to another column",
        ),
        (CHATS, {"messages": said("a", "")}, "the response in 'messages' is empty"),
        (CHATS, {"messages": "a"}, "'messages' is a string; .*data.answer to another column"),
        (CHATS, {"messages": [{"role": "assistant", "content": "b"}]}, "no user message"),
        (PAIR, {"prompt": "a", "chosen": "b"}, r"no column data\.rejected=rejected; choose from"),
        (PAIR, {"prompt": "a", "chosen": "b", "rejected": None}, "'rejected' is a NoneType"),
        (PAIR, {"prompt": "a", "chosen": "", "rejected": "c"}, "in 'chosen' is empty"),
        (PAIR, {"prompt": "a", "chosen": "b", "rejected": said("c", "d")}, "another conversation"),
    ],
)
def test_rows_without_a_usable_answer_are_refused_in_one_line(
    tmp_path: Path, settings: dict, line: dict, expected: str
) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [line])
    with pytest.raises(InputError, match=expected) as caught:
        read_examples(config(path, **settings))
    assert "\n" not in str(caught.value)
    assert "p.jsonl:1" in str(caught.value)


def test_the_header_names_the_missing_answer(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,awnser\na,b\n")
    with pytest.raises(InputError, match=r"p\.csv:1: .*data\.answer=answer; did you mean 'awnser'"):
        read(tmp_path / "p.csv", answer="answer")
    parquet_of(tmp_path / "p.parquet", [{"prompt": "a", "awnser": "b"}])
    with pytest.raises(
        InputError, match=r"p\.parquet: .*data\.answer=answer; did you mean 'awnser'"
    ):
        read(tmp_path / "p.parquet", answer="answer")


def test_settings_that_cannot_be_meant_are_refused_before_anything_is_read() -> None:
    with pytest.raises(InputError, match=r"data\.answer: missing; data\.rejected needs"):
        read("nowhere.jsonl", rejected="rejected")
    with pytest.raises(InputError, match=r"data\.rejected=chosen: is data\.answer too"):
        read("nowhere.jsonl", answer="chosen", rejected="chosen")
    with pytest.raises(InputError, match=r"data\.chat_template=nowhere\.jinja: no such file"):
        read("nowhere.jsonl", chat_template="nowhere.jinja")
    with pytest.raises(InputError, match=r"data\.folds=3: data\.split names 2"):
        read("nowhere", split="a,b", folds=3)


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
    for template, reason in {
        "{{ 1 / 0 }}": "ZeroDivisionError",
        "{{ 1 + '' }}": "TypeError",
    }.items():
        file.write_text(template)
        with pytest.raises(InputError, match=rf"p\.jsonl:1: .*\({reason}: .*data\.system_prompt"):
            encode(one("why?"), tokenizer, config("p", chat_template=str(file), system_prompt="s"))
    file.write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match=r"p\.jsonl:1: .*: roles must alternate\)"):
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
    with pytest.raises(InputError, match=r"p\.jsonl:1: the prompt is empty after tokenization"):
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
    with pytest.raises(InputError, match=r"all prompts.*shortest has 3 tokens"):
        load_prompts(config(path, chat_template="none", max_prompt_length=2), tokenizer, seed=0)


def test_the_examples_of_the_manual_are_read(tmp_path: Path) -> None:
    manual = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    examples = re.findall(r"`(data\.path=[^`]*)`\n\n```\w+\n(.*?)```", manual, re.DOTALL)
    assert len(examples) == 6
    for words, content in examples:
        settings = dict(split_override(word) for word in words.split())
        settings = {key.removeprefix("data."): value for key, value in settings.items()}
        path = tmp_path / settings.pop("path")
        path.write_text(content, encoding="utf-8")
        read = [*read_examples(config(path, **settings)).groups[0]]
        assert len(read) == content.count("\n") - (path.suffix == ".csv")
        assert all("river" in prompt.text or "lake" in prompt.text for prompt in read)
        answers = {len(prompt.answer_texts) for prompt in read}
        assert answers == {("answer" in settings) + ("rejected" in settings)}


# --- tokens of answers ----------------------------------------------------------------------------

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]{% else %} {{ message['content'] | trim }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """As sentencepiece does: a space is a letter, and stands before the first word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.train_from_iterator(
        ["Name a river. The Rhine, say. Hello there you"] * 9,
        trainers.BpeTrainer(
            vocab_size=120, special_tokens=["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=MISTRAL,
    )


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """As Qwen's: <|im_end|> ends a turn and a response, <|endoftext|> pads and ends it too."""
    tokenizer = byte_tokenizer(chat_template=CHATML)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    return tokenizer


def answered(
    tokenizer: PreTrainedTokenizerBase,
    texts: tuple[str, ...],
    messages: list | None = None,
    stop_ids: tuple[int, ...] | None = None,
    **settings,
) -> Prompt:
    stop_ids = (tokenizer.eos_token_id,) if stop_ids is None else stop_ids
    prompt = Prompt(tuple(messages or said("Name a river.")), "p.jsonl:1", answer_texts=texts)
    data = config("p", answer="answer", **settings)
    (encoded,) = encode_answers(encode([prompt], tokenizer, data), tokenizer, data, stop_ids)
    return encoded


def pieces(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[str]:
    """The tokens of each answer as they stand in the vocabulary, put together."""
    return ["".join(tokenizer.convert_ids_to_tokens(list(ids))) for ids in prompt.answers]


def whole_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: int = 0) -> str:
    """Prompt and answer as the model reads and writes them."""
    return tokenizer.decode([*prompt.token_ids, *prompt.answers[answer]])


def test_answers_in_the_manner_of_mistral() -> None:
    tokenizer = mistral_tokenizer()
    prompt = answered(tokenizer, ("The Rhine",))
    # The template's space is the first thing that the model would write.
    assert pieces(tokenizer, prompt) == ["▁The▁Rhine</s>"]
    assert whole_text(tokenizer, prompt) == "<s>[INST] Name a river. [/INST] The Rhine</s>"
    both = answered(tokenizer, ("Hello", ""), said("Hello", "Hello there", "you"))
    assert pieces(tokenizer, both) == ["▁Hello</s>", "▁</s>"]
    # The end of the turn before is in the prompt.
    assert tokenizer.eos_token_id in both.token_ids


def test_answers_in_chatml_end_where_generation_ends() -> None:
    tokenizer = chatml_tokenizer()
    stop_ids = tuple(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    prompt = answered(tokenizer, ("The Rhine", "No."), stop_ids=stop_ids)
    # The line end that the template puts after <|im_end|> is never generated.
    assert prompt.answers[0] == (
        *tokenizer("The Rhine", add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    )
    assert whole_text(tokenizer, prompt, 1).endswith("<|im_start|>assistant\nNo.<|im_end|>")
    assert prompt.answers[1].count(tokenizer.eos_token_id) == 1


def test_raw_answers_go_on_where_the_prompt_ends() -> None:
    for tokenizer in (byte_tokenizer(chat_template=None), mistral_tokenizer()):
        prompt = answered(tokenizer, ("river", " Rhine"), said("Name a"), chat_template="none")
        # On its own, "river" would get a space in front from sentencepiece.
        assert whole_text(tokenizer, prompt, 0).endswith("Name ariver</s>")
        assert whole_text(tokenizer, prompt, 1).endswith("Name a Rhine</s>")
        # The prompt is what it is without an answer.
        assert list(prompt.token_ids) == tokenizer("Name a")["input_ids"]


def test_tokens_that_span_prompt_and_answer_are_not_used() -> None:
    tokenizer = byte_tokenizer()
    assert len(tokenizer("The", add_special_tokens=False)["input_ids"]) == 1
    prompt = answered(tokenizer, ("he",), said("T"), chat_template="none")
    alone = tokenizer("he", add_special_tokens=False)["input_ids"]
    assert prompt.answers == ((*alone, tokenizer.eos_token_id),)


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("Q: {{ messages[0]['content'] }}\nA:", "Rhine</s>"),  # leaves answers out
        ("{{ messages | map(attribute='content') | join('|') }}", "|Rhine</s>"),  # ends nowhere
        (
            "{{ messages[0]['content'] }}{{ '<think>' if add_generation_prompt else "
            "messages[1]['content'] + eos_token }}",
            "Rhine</s>",  # does not go on from the prompt
        ),
        (
            "{{ messages[0]['content'] }}{{ '' if add_generation_prompt else ':' + "
            "(messages[1]['content'] | upper) + '<pad>' }}",
            "Rhine<pad>",  # rewrites it
        ),
    ],
)
def test_a_template_that_does_not_go_on_from_the_prompt(
    tmp_path: Path, template: str, written: str
) -> None:
    tokenizer = byte_tokenizer()
    (tmp_path / "t.jinja").write_text(template)
    stop_ids = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    template_file = str(tmp_path / "t.jinja")
    prompt = answered(tokenizer, ("Rhine",), stop_ids=stop_ids, chat_template=template_file)
    assert tokenizer.decode(list(prompt.answers[0])) == written


THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
# As Qwen3's: the reasoning of an answer is left out.
FORGETTING = THINKING.replace(
    "message['content']", "message['content'].split('</think>')[-1].lstrip('\n')"
)
# As Qwen3's: an answer without reasoning gets an empty block of it.
FILLING = THINKING.replace(
    "message['content']",
    "('<think>\n\n</think>\n\n' if message['role'] == 'assistant' else '') + message['content']",
)
REASONED = "<think>\nA river in Saxony.\n</think>\n\nThe Elbe."


@pytest.mark.parametrize(
    ("template", "answer", "expected"),
    [
        (CHATML, REASONED, f"{REASONED}<|im_end|>"),
        (THINKING, REASONED, "A river in Saxony.\n</think>\n\nThe Elbe.<|im_end|>"),
        (FORGETTING, REASONED, "A river in Saxony.\n</think>\n\nThe Elbe.<|im_end|>"),
        # Generated after such a prompt, and so without the opening.
        (THINKING, "So.\n</think>\n\nThe Elbe.", "So.\n</think>\n\nThe Elbe.<|im_end|>"),
        (FORGETTING, "So.\n</think>\n\nThe Elbe.", "So.\n</think>\n\nThe Elbe.<|im_end|>"),
        (FILLING, "The Elbe.", "\n</think>\n\nThe Elbe.<|im_end|>"),
    ],
)
def test_answers_continue_the_reasoning_that_the_template_opens(
    template: str, answer: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = template
    prompt = answered(tokenizer, (answer,))
    assert tokenizer.decode(list(prompt.answers[0])) == expected
    assert whole_text(tokenizer, prompt).count("<think>") == 1
    assert not caplog.records


def test_answers_without_the_reasoning_that_the_template_opens_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = THINKING
    prompt = answered(tokenizer, (REASONED, "Garda."))
    assert tokenizer.decode(list(prompt.answers[1])) == "Garda.<|im_end|>"
    assert "1 of 2 responses contain no reasoning" in caplog.text


@pytest.mark.parametrize(
    "texts",
    [
        ("It writes <|im_end|> there.",),
        ("<|im_end|> ends a turn.",),
        ("The token.", "It is <|im_end|> that does it."),
        ("It is <|endoftext|>, too.",),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"chat_template": "none"}])
def test_end_tokens_within_an_answer_are_refused(texts: tuple[str, ...], settings: dict) -> None:
    tokenizer = chatml_tokenizer()
    stop_ids = tuple(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    with pytest.raises(InputError, match=r"p\.jsonl:1: .* contains the end token '<\|(im_)?end"):
        answered(tokenizer, texts, stop_ids=stop_ids, **settings)


@pytest.mark.parametrize("settings", [{}, {"chat_template": "none"}])
@pytest.mark.parametrize("text", ["The Elbe.", "The Elbe.<|im_end|>", "The Elbe.<|im_end|>\n"])
def test_end_tokens_at_the_end_of_an_answer_count_once(text: str, settings: dict) -> None:
    tokenizer = chatml_tokenizer()
    prompt = answered(tokenizer, (text,), **settings)
    assert tokenizer.decode(list(prompt.answers[0])) == "The Elbe.<|im_end|>"


def test_eos_that_the_tokenizer_appends_does_not_end_the_prompt() -> None:
    tokenizer = byte_tokenizer(chat_template=None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert tokenizer("Hi")["input_ids"][-1] == tokenizer.eos_token_id
    prompt = answered(tokenizer, ("The Elbe.",), chat_template="none")
    assert tokenizer.decode(prompt.token_ids) == "<s>Name a river."
    assert tokenizer.decode(prompt.answers[0]) == "The Elbe.</s>"


NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ m['content'] }}{% endfor %}"
)


def test_system_messages_that_the_template_refuses(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(chat_template=NO_SYSTEM)
    expected = r"^data\.system_prompt: .* refuses .*System role not supported.*; leave it out"
    with pytest.raises(InputError, match=expected):
        encode(one("Hi"), tokenizer, config("p", system_prompt="Be short."))
    messages = ({"role": "system", "content": "Be short."}, *user("Hi"))
    with pytest.raises(InputError, match=r"^p\.jsonl:7: .*refuses a system message .*the row"):
        encode([Prompt(messages, "p.jsonl:7")], tokenizer, config("p"))
    # One that leaves it out without a word.
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(InputError, match=r"^data\.system_prompt: .* leaves system messages out"):
        encode(one("Hi"), tokenizer, config("p", system_prompt="Be short."))


def test_without_a_stop_token_answers_get_none() -> None:
    tokenizer = symbol_tokenizer()
    raw = {"messages": said("ab"), "chat_template": "none"}
    assert answered(tokenizer, ("ca",), stop_ids=(), **raw).answers == ((4, 2),)
    assert answered(tokenizer, ("ca",), **raw).answers == ((4, 2, 1),)
    # The tokenizer's EOS is not among the model's: another is taken.
    assert answered(tokenizer, ("aa",), stop_ids=(4,), **raw).answers == ((2, 2, 4),)
    with pytest.raises(InputError, match=r"p\.jsonl:1: the response is empty after tokenization"):
        answered(tokenizer, ("",), stop_ids=(), **raw)


def test_long_answers_are_cut_as_samples_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = symbol_tokenizer()
    texts = ["ab", "abc", "abca"]
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "answer": text} for text in texts])
    data = config(path, answer="answer", chat_template="none", shuffle=False)

    def loaded(limit: int | None) -> list[Prompt]:
        prompts = load_prompts(data, tokenizer, seed=0, stop_ids=(1,), max_answer_tokens=limit)
        return list(prompts.folds[0])

    assert [p.answers[0][-1] for p in loaded(None)] == [1, 1, 1]
    assert not caplog.records
    prompts = loaded(3)
    assert [p.answers for p in prompts] == [((2, 3, 1),), ((2, 3, 4),), ((2, 3, 4),)]
    assert [p.answer_texts for p in prompts] == [("ab",), ("abc",), ("abc",)]
    assert "1 of 3 responses of the dataset are longer than sample.max_new_tokens=3" in caplog.text


def test_answers_stay_with_their_prompts(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [{"prompt": "z" * i, "good": f"{i}", "bad": f"-{i}"} for i in range(1, 13)]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    data = config(path, answer="good", rejected="bad", folds=2, max_prompt_length=30)
    examples = read_examples(data)
    assert len(examples) == 12
    stop_ids = (tokenizer.eos_token_id,)
    prompts = load_prompts(
        data, tokenizer, seed=0, held_out=2, stop_ids=stop_ids, examples=examples
    )
    assert prompts.dropped > 0
    assert prompts == load_prompts(data, tokenizer, seed=0, held_out=2, stop_ids=stop_ids)
    every = [*prompts.held_out, *prompts.folds[0], *prompts.folds[1]]
    assert len(every) + prompts.dropped == 12
    for prompt in every:
        number = len(prompt.text)
        assert prompt.answer_texts == (f"{number}", f"-{number}")
        assert [tokenizer.decode(a) for a in prompt.answers] == [f"{number}</s>", f"-{number}</s>"]


def test_rejected_answers_that_equal_the_chosen_ones(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = {"prompt": "Name a river.", "chosen": "One.", "rejected": "One."}
    other = {"prompt": "Name a lake.", "chosen": "One.", "rejected": "None."}
    settings = {"answer": "chosen", "rejected": "rejected"}
    stop_ids = (tokenizer.eos_token_id,)
    path = write_jsonl(tmp_path / "same.jsonl", [same, same])
    with pytest.raises(
        InputError, match=r"data\.rejected=rejected: all 2 rejected responses equal"
    ):
        load_prompts(config(path, **settings), tokenizer, seed=0, stop_ids=stop_ids)
    # What is left of them is equal.
    path = write_jsonl(
        tmp_path / "long.jsonl", [{**same, "chosen": "One, two.", "rejected": "One, six."}]
    )
    with pytest.raises(InputError, match="all 1 rejected"):
        load_prompts(
            config(path, **settings), tokenizer, seed=0, stop_ids=stop_ids, max_answer_tokens=2
        )
    assert "equal" not in caplog.text
    path = write_jsonl(tmp_path / "some.jsonl", [same, other, other])
    load_prompts(config(path, **settings), tokenizer, seed=0, stop_ids=stop_ids)
    assert "1 of 3 rejected responses equal the chosen one" in caplog.text


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
    prompts = tuple(Prompt(user(str(i)), f"p:{i}", (0, i)) for i in range(size))
    read = Examples((prompts,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "encode", lambda group, *_: list(group))
        data = config("p", folds=folds, shuffle=shuffle)
        if size < folds + held_out:
            with pytest.raises(InputError, match="too few"):
                load_prompts(data, None, seed=seed, held_out=held_out, examples=read)
            return
        parts = load_prompts(data, None, seed=seed, held_out=held_out, examples=read)
        again = load_prompts(data, None, seed=seed, held_out=held_out, examples=read)
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


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_prompt_that_is_held_out_is_in_no_row_that_is_trained_on(shuffle: bool) -> None:
    """Data with several answers to a prompt: 4 rows each of 6 prompts."""
    prompts = tuple(Prompt(user(str(i % 6)), f"p:{i}", (0, i % 6)) for i in range(24))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "encode", lambda group, *_: list(group))
        parts = load_prompts(
            config("p", shuffle=shuffle), None, seed=1, held_out=2, examples=Examples((prompts,))
        )
        with pytest.raises(InputError, match="too few"):
            load_prompts(config("p"), None, seed=1, held_out=6, examples=Examples((prompts,)))
    held, trained = ([p.text for p in group] for group in (parts.held_out, parts.folds[0]))
    assert len(set(held)) == len(held) == 2
    assert len(trained) == 16
    assert not set(held) & set(trained)


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


def test_more_folds_than_prompts_are_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = write(tmp_path / "p.jsonl", ["a", "b", "c"])
    for folds in (3, 10**15):
        with pytest.raises(InputError, match=f"3 prompts are too few for {folds} folds"):
            load_prompts(config(path, folds=folds), tokenizer, seed=0, held_out=1)


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
    sizes = [prompts.size_of_iteration(t, count) for t in range(2) for count in (None, 6, 10**12)]
    assert sizes == [4, 6, 10**12, 3, 6, 10**12]
