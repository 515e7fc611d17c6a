"""The chat template that the configuration names."""

from __future__ import annotations

from pathlib import Path

from games.errors import InputError
from llm.config.schema import DataConfig
from llm.data.formats import read_text

RAW = "none"  # the value of data.chat_template for prompts without a template


def template_text(data: DataConfig) -> str | None:
    """The text of the template file; None for the tokenizer's template and for no template."""
    if data.chat_template in (None, RAW):
        return None
    file = Path(data.chat_template)
    if not file.is_file():
        raise InputError(
            f"data.chat_template={file}: no such file; give a Jinja file, null or none"
        )
    return read_text(file)
