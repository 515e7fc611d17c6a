"""The reference of all configuration fields that `--help` prints."""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any

from llm.config.recipes import describe_recipes
from llm.config.schema import TrainConfig
from llm.config.section import all_fields, names, type_name


def describe() -> str:
    """Every field with its meaning and default, a line or two each, then the recipes."""
    lines = []
    for name, f, kind in all_fields(TrainConfig):
        meta = f.metadata
        default = (
            "required"
            if f.default is MISSING and f.default_factory is MISSING
            else f"default {_show(f.default if f.default is not MISSING else {})}"
        )
        choices = names(meta["choices"] or meta["listed"])
        # A path has no names to choose from; its meaning says when it is an import path.
        if choices and meta["objects"]:
            choices.append("package.module:object")
        listed = f" ({' | '.join(choices)})" if choices else ""
        lines.append(f"{name}  [{type_name(kind)}, {default}]\n    {meta['meaning']}{listed}")
    about_recipes = "recipe=NAME applies a published method to the configuration, one of"
    return "\n".join([*lines, "", f"{about_recipes}:", describe_recipes()])


def _show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(list(value) if isinstance(value, tuple) else value)
