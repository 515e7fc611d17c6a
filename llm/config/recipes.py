"""Recipes: published methods by name, as fields of a configuration (recipes.yaml)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from games.errors import InputError
from games.lookup import suggestion

FILE = Path(__file__).with_name("recipes.yaml")

Values = dict[str, Any]

# Fields that a recipe sets as a whole: where it leaves one out, the default holds.
METHOD_FIELDS = ("rule_options", "fit_options", "selection", "pooled_iterations")

# The options that belong to the value of another field.
OPTIONS = {"rule": "rule_options", "fit": "fit_options"}


@functools.cache
def recipes() -> Mapping[str, Values]:
    """{name: its fields, `source` and optionally `defaults`}."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def describe_recipes() -> str:
    """A line per recipe: its name, and the paper and equation that it implements."""
    width = max(map(len, recipes()))
    return "\n".join(f"{name:{width}}  {fields['source']}" for name, fields in recipes().items())


def with_recipe(values: Values, name: Any) -> Values:
    """`values` overridden by the recipe's fields; its `defaults` give way to `values`.

    Raises InputError for an unknown name, with the nearest.
    """
    if name not in recipes():
        raise InputError(f"recipe: there is no '{name}'; {suggestion(name, recipes())}")
    fields = copy.deepcopy(recipes()[name])  # overrides are written into what is returned
    del fields["source"]
    defaults = fields.pop("defaults", {})
    kept = {key: value for key, value in values.items() if key not in METHOD_FIELDS}
    return merge(merge(defaults, kept), fields)


def merge(under: Values, over: Values) -> Values:
    """Both, section by section; `over` takes precedence.

    The options of a rule or fit are dropped where `over` names another one.
    """
    lost = {o for name, o in OPTIONS.items() if name in over and over[name] != under.get(name)}
    merged = {key: value for key, value in under.items() if key not in lost}
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = merge(old, value)
        merged[key] = value
    return merged
