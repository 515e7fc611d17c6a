"""Prompts and responses as tokens, formatted by the chat template."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from games.errors import InputError
from llm.config.schema import DataConfig
from llm.data.examples import Message, Prompt
from llm.data.templates import RAW, template_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def encode(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> list[Prompt]:
    """The prompts with their tokens, without those longer than `data.max_prompt_length`.

    The length includes the chat template. With `data.chat_template=none` the text is encoded as it
    is, with the special tokens that the tokenizer adds by itself. Raises InputError if there is no
    template, if it fails, and if no prompt is left.
    """
    render = _renderer(tokenizer, data)
    encoded = _token_ids(tokenizer, data, [render(prompt) for prompt in prompts])
    kept = []
    for prompt, token_ids in zip(prompts, encoded, strict=True):
        if not token_ids:
            raise InputError(
                f"{prompt.where}: the prompt is empty after tokenization; fix or remove the row, "
                "or set data.chat_template"
            )
        if len(token_ids) <= data.max_prompt_length:
            kept.append(replace(prompt, token_ids=tuple(token_ids)))
    if not kept:
        shortest = min(map(len, encoded))
        raise InputError(
            f"data.max_prompt_length={data.max_prompt_length}: all prompts of {data.path} are "
            f"longer, the shortest has {shortest} tokens; raise data.max_prompt_length"
        )
    return kept


def encode_answers(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    stop_ids: Collection[int],
) -> list[Prompt]:
    """Encoded prompts with the tokens of their responses, up to and including the first stop token.

    Prompt and response are formatted by the template and tokenized as one text; the response is
    what follows the tokens of the prompt, so it includes spaces and tokens that the template
    writes. If the tokens of this text do not begin with those of the prompt, what follows the text
    of the prompt is tokenized instead, or the response's own text if the template leaves out or
    rewrites it. If there is no stop token, that of the template or the tokenizer is appended.

    A prompt that ends with an opened block of reasoning, such as `<think>`, is continued: a
    response that opens the block again loses this second opening. Raises InputError for a response
    that contains a stop token before its end.
    """
    render = _renderer(tokenizer, data)
    asked = [prompt for prompt in prompts for _ in prompt.answer_texts]
    texts = [text for prompt in prompts for text in prompt.answer_texts]
    begun = [render(prompt) for prompt in asked]
    whole = [render(prompt, text) for prompt, text in zip(asked, texts, strict=True)]
    whole_ids = _token_ids(tokenizer, data, whole)
    default = [id for id in stop_ids if id == tokenizer.eos_token_id] or [*stop_ids]
    own_texts, reasons = zip(*map(_continued, begun, texts), strict=True)
    each_own = tokenizer(list(own_texts), add_special_tokens=False)["input_ids"]
    answers, unreasoned = [], 0
    for i, prompt in enumerate(asked):
        length, own, own_ids = len(prompt.token_ids), own_texts[i], each_own[i]
        _check_no_stop(own_ids, tokenizer, stop_ids, prompt.where)
        rest = whole[i].removeprefix(begun[i]) if whole[i].startswith(begun[i]) else None
        # Some templates leave out or rewrite the assistant's text.
        written = _without_stops(own_ids, own, tokenizer, stop_ids)
        if rest is None or _spaceless(written) not in _spaceless(rest):
            ids = own_ids
        elif tuple(whole_ids[i][:length]) == prompt.token_ids:
            ids = whole_ids[i][length:]
        elif data.chat_template == RAW:
            ids = own_ids
        else:  # a token spans the end of the prompt
            ids = tokenizer(rest, add_special_tokens=False)["input_ids"]
        unreasoned += ids is own_ids and not reasons[i]
        end = next((place for place, token in enumerate(ids) if token in stop_ids), None)
        if end is not None:
            ids = ids[: end + 1]
        else:
            ends = [token for token in whole_ids[i] if token in stop_ids]
            ids = [*ids, *(ends or default)[-1:]]
        if not ids:
            raise InputError(
                f"{prompt.where}: the response is empty after tokenization; fix or remove the row"
            )
        answers.append(tuple(ids))
    if unreasoned:
        logger.warning(
            "%d of %d responses contain no reasoning although their prompt ends with an opened "
            "block of reasoning: they are trained on as reasoning; set data.chat_template to a "
            "template that does not open one",
            unreasoned,
            len(answers),
        )
    each = iter(answers)
    return [replace(p, answers=tuple(next(each) for _ in p.answer_texts)) for p in prompts]


# The end of a prompt in which the template has opened a block of reasoning.
_OPENED = re.compile(
    r"(?P<open>[<\[]) (?P<name>think|thinking|thought|reasoning) (?P<close>[>\]]) \s* \Z",
    re.VERBOSE | re.IGNORECASE,
)


def _continued(prompt: str, answer: str) -> tuple[str, bool]:
    """The answer without the opening of a block of reasoning that the prompt has opened.

    The second value is False if such a block is open and the answer does not close it.
    """
    opened = _OPENED.search(prompt)
    if opened is None or not answer.strip():
        return answer, True
    name = opened["name"]
    begun = answer.lstrip()
    opening = f"{opened['open']}{name}{opened['close']}"
    closes = f"{opened['open']}/{name}{opened['close']}" in answer
    if not begun.startswith(opening):
        return answer, closes
    rest = begun.removeprefix(opening)
    # White space that ends the prompt, such as a line end, is not written again.
    space = opened[0].removeprefix(opening)
    return (rest.removeprefix(space) if space else rest), closes


def _check_no_stop(
    ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Collection[int],
    where: str,
) -> None:
    """Raises InputError for a response with a stop token before its end: it would be truncated."""
    if not any(token in stop_ids for token in ids):
        return
    kept = list(ids)
    while kept and (kept[-1] in stop_ids or not str(tokenizer.decode(kept[-1:])).strip()):
        kept.pop()
    if found := [token for token in kept if token in stop_ids]:
        token = str(tokenizer.decode(found[:1]))
        raise InputError(
            f"{where}: the response contains the end token {token!r}, after which nothing would be "
            "generated; fix or remove the row"
        )


def _without_stops(
    ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase, stop_ids: Collection[int]
) -> str:
    """The text of a response without the stop tokens at its end."""
    for token in {token for token in ids if token in stop_ids}:
        text = text.split(str(tokenizer.decode([token])))[0]
    return text


def _spaceless(text: str) -> str:
    return "".join(text.split())


def truncate_answers(
    groups: list[list[Prompt]],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Collection[int],
    limit: int,
) -> list[list[Prompt]]:
    """The responses truncated like sampled ones; a warning says how many were truncated."""

    def loses(answer: tuple[int, ...]) -> bool:
        return len(answer) - (answer[-1] in stop_ids) > limit

    def cut(prompt: Prompt) -> Prompt:
        texts = (
            str(tokenizer.decode(list(answer[:limit]), skip_special_tokens=True))
            if loses(answer)
            else text
            for answer, text in zip(prompt.answers, prompt.answer_texts, strict=True)
        )
        answers = tuple(answer[:limit] for answer in prompt.answers)
        return replace(prompt, answers=answers, answer_texts=tuple(texts))

    answers = [answer for group in groups for prompt in group for answer in prompt.answers]
    long = sum(map(loses, answers))
    if long:
        logger.warning(
            "%d of %d responses of the dataset are longer than sample.max_new_tokens=%d tokens and "
            "were truncated",
            long,
            len(answers),
            limit,
        )
    return [[cut(prompt) for prompt in group] for group in groups]


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, data: DataConfig, texts: list[str]
) -> list[list[int]]:
    """The tokens of rendered texts.

    A chat template contains the special tokens already. Without one the tokenizer adds those that
    precede a text; those that it adds after it, such as EOS, would end the prompt.
    """
    plain = tokenizer(texts, add_special_tokens=False)["input_ids"]
    if data.chat_template != RAW:
        return plain
    added = tokenizer(texts)["input_ids"]
    return [_without_suffix(ids, own) for ids, own in zip(added, plain, strict=True)]


def _without_suffix(ids: list[int], own: list[int]) -> list[int]:
    """`ids` up to the end of `own` in it."""
    for start in range(len(ids) - len(own), -1, -1):
        if ids[start : start + len(own)] == own:
            return ids[: start + len(own)]
    return ids


def _renderer(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> Callable[..., str]:
    """A function (prompt) -> the text of the prompt, (prompt, answer) -> the text of both."""
    if data.chat_template == RAW:
        above = f"{data.system_prompt}\n" if data.system_prompt else ""
        return lambda prompt, answer="": above + prompt.text + answer
    template = template_text(data)
    if template is None and tokenizer.chat_template is None:
        raise InputError(
            f"data.chat_template: the tokenizer of {tokenizer.name_or_path} has no chat template; "
            "give a Jinja file, or none for prompts without a template"
        )
    system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []

    def text_of(messages: Sequence[Message], generate: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                chat_template=template,
                tokenize=False,
                add_generation_prompt=generate,
            )
        )

    def render(prompt: Prompt, answer: str | None = None) -> str:
        answered = [] if answer is None else [{"role": "assistant", "content": answer}]
        messages = [*prompt.messages, *answered]
        try:
            text = text_of([*system, *messages], answer is None)
        except Exception as error:  # a template may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            without = [turn for turn in messages if turn["role"] != "system"]
            if (system or len(without) < len(messages)) and _succeeds(
                text_of, without, answer is None
            ):
                fault = "the chat template refuses a system message"
                raise InputError(
                    f"data.system_prompt: {fault} ({reason}); leave it out, or set "
                    "data.chat_template"
                    if system
                    else f"{prompt.where}: {fault} ({reason}); remove it from the row, or set "
                    "data.chat_template"
                ) from error
            raise InputError(
                f"{prompt.where}: the chat template fails ({reason}); fix the prompt, "
                f"or set data.chat_template{' or data.system_prompt' * bool(system)}"
            ) from error
        if system and _spaceless(data.system_prompt or "") not in _spaceless(text):
            raise InputError(
                "data.system_prompt: the chat template leaves system messages out; leave out "
                "data.system_prompt, or set data.chat_template"
            )
        return text

    return render


def _succeeds(
    text_of: Callable[[Sequence[Message], bool], str], messages: Sequence[Message], generate: bool
) -> bool:
    try:
        text_of(messages, generate)
    except Exception:  # a template may raise anything
        return False
    return True
