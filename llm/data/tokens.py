"""Prompts and responses as tokens, formatted by the chat template."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from games.errors import InputError
from llm.config.schema import DataConfig
from llm.data.examples import Prompt
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
    writes. If the tokens of this text do not begin with those of the prompt, the response's own
    text is tokenized instead. If there is no stop token, that of the template or the tokenizer is
    appended.
    """
    render = _renderer(tokenizer, data)
    asked = [prompt for prompt in prompts for _ in prompt.answer_texts]
    texts = [text for prompt in prompts for text in prompt.answer_texts]
    whole = [render(prompt, text) for prompt, text in zip(asked, texts, strict=True)]
    whole_ids = _token_ids(tokenizer, data, whole)
    default = [id for id in stop_ids if id == tokenizer.eos_token_id] or [*stop_ids]
    answers = []
    for i, prompt in enumerate(asked):
        length = len(prompt.token_ids)
        continues = (
            tuple(whole_ids[i][:length]) == prompt.token_ids
            # Some templates leave out or rewrite the assistant's text.
            and texts[i].strip() in whole[i][len(render(prompt)) :]
        )
        if continues:
            ids = whole_ids[i][length:]
        else:
            ids = tokenizer(texts[i], add_special_tokens=False)["input_ids"]
        end = next((place for place, token in enumerate(ids) if token in stop_ids), None)
        if end is not None:
            ids = ids[: end + 1]
        else:
            written = [token for token in whole_ids[i] if token in stop_ids]
            ids = [*ids, *(written or default)[-1:]]
        if not ids:
            raise InputError(
                f"{prompt.where}: the response is empty after tokenization; fix or remove the row"
            )
        answers.append(tuple(ids))
    each = iter(answers)
    return [replace(p, answers=tuple(next(each) for _ in p.answer_texts)) for p in prompts]


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
    # A chat template contains the special tokens already.
    return tokenizer(texts, add_special_tokens=data.chat_template == RAW)["input_ids"]


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

    def render(prompt: Prompt, answer: str | None = None) -> str:
        answered = [] if answer is None else [{"role": "assistant", "content": answer}]
        try:
            text = tokenizer.apply_chat_template(
                [*system, *prompt.messages, *answered],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=answer is None,
            )
        except Exception as error:  # a template may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"{prompt.where}: the chat template fails ({reason}); fix the prompt, "
                f"or set data.chat_template{' or data.system_prompt' * bool(system)}"
            ) from error
        return str(text)

    return render
