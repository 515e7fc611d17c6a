"""Recipes: the published methods by name, as fields of a configuration (recipes.yaml)."""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from games.errors import InputError

FILE = Path(__file__).with_name("recipes.yaml")


Values = dict[str, Any]


# What belongs to a method as a whole: a recipe that leaves one of these out means its default.
OF_A_METHOD = ("rule_options", "fit_options", "selection", "pooled_iterations")


OPTIONS = {"rule": "rule_options", "fit": "fit_options"}


@functools.cache
def recipes() -> Mapping[str, Values]:
    """{name: its fields, with `source` and maybe `defaults`}."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def describe_recipes() -> str:
    """A line per recipe: its name, and the paper and equation it is from."""
    width = max(map(len, recipes()))
    return "\n".join(f"{name:{width}}  {fields['source']}" for name, fields in recipes().items())


def with_recipe(values: Values, name: Any) -> Values:
    """`values` with the recipe's fields over them, and its `defaults` under them.

    Raises InputError for an unknown name, with the nearest.
    """
    if name not in recipes():
        near = difflib.get_close_matches(str(name), recipes(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(recipes())}"
        raise InputError(f"recipe: there is no '{name}'; {hint}")
    fields = copy.deepcopy(recipes()[name])  # overrides are written into what is returned
    del fields["source"]
    defaults = fields.pop("defaults", {})
    kept = {key: value for key, value in values.items() if key not in OF_A_METHOD}
    return merge(merge(defaults, kept), fields)


def merge(under: Values, over: Values) -> Values:
    """Both, section by section; `over` wins. Another rule or fit does not inherit options."""
    lost = {o for name, o in OPTIONS.items() if name in over and over[name] != under.get(name)}
    merged = {key: value for key, value in under.items() if key not in lost}
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = merge(old, value)
        merged[key] = value
    return merged
