"""Overrides of a test put over those that many tests share: the command line itself takes a key once."""

from __future__ import annotations


def last_of_each(*overrides: str) -> list[str]:
    """The overrides, of each key the last one; another data set drops the options of the one before it; flags stay."""
    last = {override.partition("=")[0]: number for number, override in enumerate(overrides)}
    data = last.get("data", -1)
    return [
        override
        for number, override in enumerate(overrides)
        if override.startswith("-")
        or (last[override.partition("=")[0]] == number and (number > data or not override.startswith("data.")))
    ]
