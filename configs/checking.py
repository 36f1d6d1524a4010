"""Merging values into dataclasses, strictly: no unknown key, every value of its type, each error in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class UserError(ValueError):
    """A mistake of the user: its message is one line and the process ends with status 2."""

    exit_code = 2


T = TypeVar("T")


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean 'x'?)' for the most similar known word, or ''."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def one_of(key: str, value: str, known: Iterable[str]) -> None:
    """Raise UserError unless `value` is one of the known names."""
    known = list(known)
    if value not in known:
        raise UserError(f"{key}={value}: unknown{nearest(value, known)}; choose one of {', '.join(known)}")


def check(config: Any, schema: type[T], takes_grid: bool = False) -> T:
    """Merge a composed configuration into its dataclass: no other key, every value of its type.

    A plain structured config lets `+typo=1` through; merging into a fresh one does not.

    Args:
        takes_grid: True where several values of a key make a grid, for the message about a list in place of one.

    Raises:
        UserError: one line that names the key, and the nearest valid one.
    """
    try:
        merged = OmegaConf.merge(_target(schema), config)  # type: ignore[arg-type] # mypy takes type[T] for unhashable
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{missing[0]} has no value")
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(explain(error, schema, takes_grid)) from error
    assert isinstance(result, schema)
    return result


@cache
def _target(schema: type) -> DictConfig:
    """An empty configuration of a schema to merge into; cached, as making it takes half of the time of a check."""
    target = OmegaConf.structured(schema)
    _make_writable(target)
    return target


def _make_writable(node: Any) -> None:
    """Let a merge fill the nodes of frozen dataclasses, which come read-only."""
    if isinstance(node, DictConfig) and not node._is_none():
        OmegaConf.set_readonly(node, False)
        for key in node:
            _make_writable(node._get_node(key))


_EXPECTED = {  # a part of OmegaConf's message -> the kind of value that the key takes
    "to Float": "a number",
    "to Integer": "a whole number",
    "to string": "a single value",
    "valid bool": "true or false",
    "is not a ListConfig": "a list such as [3,4]",
    "not a primitive": "a single value",
}


def explain(error: OmegaConfBaseException, schema: type, takes_grid: bool = False) -> str:
    """OmegaConf's message as one line that names the key and, for an unknown one, the nearest valid key."""
    # An unknown key, with the nearest one of the same level.
    key = getattr(error, "full_key", None) or ""
    first = str(error).splitlines()[0]
    if "not in" in first and re.match(r"Key '", first):
        parent, _, name = key.rpartition(".")
        return f"unknown key '{key}'{nearest(name, keys_under(schema, parent))}"

    # A value of another type: as the user wrote it, and the type that is expected.
    found = re.search(r"(?:Value|to string:) '(.*)'(?: of type| is not|$)", first)
    value, hint = found and found[1], ""
    if value and "ListConfig" in first:  # a list as a user writes it
        value = re.sub(r"'(.*?)'", r"\1", value.replace(", ", ","))
        hint = f"; several values make a grid: -m {key}={value[1:-1]}" if takes_grid and "[" not in key else ""
    for sign, wanted in _EXPECTED.items():
        if sign in first and key:
            return f"{key}={value}: expected {wanted}{hint}" if value else f"{key}: expected {wanted}"
    return f"{key}: {first}" if key else first


def keys_under(schema: type, parent: str = "") -> list[str]:
    """The names valid one level below a dotted path of the schema ('' for the top level)."""
    node: Any = schema()
    for part in filter(None, parent.split(".")):
        node = getattr(node, part, None)
    return [f.name for f in fields(node)] if is_dataclass(node) else []


def all_keys(schema: type, parent: str = "") -> list[str]:
    """Every dotted key of the schema, or of its part below `parent`."""
    keys = []
    for name in keys_under(schema, parent):
        key = f"{parent}.{name}".lstrip(".")
        keys += [key, *all_keys(schema, key)]
    return keys


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as OmegaConf reads it, in a tenth of the time: 1e-3 is a number, 2024-01-01 a text, no key stands twice."""

    # A timestamp is the only value of YAML 1.1 that begins with four digits and a dash.
    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base class declares it
        first: [entry for entry in resolvers if entry[0] != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: duplicate key {key}")
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read the plain values of a YAML file.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        values = _Loader(path.read_text()).get_single_data()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:
        raise UserError(f"{path}: not a readable YAML file ({str(error).splitlines()[0]})") from error
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{path}: not a configuration")
    return {str(key): value for key, value in (values or {}).items()}
