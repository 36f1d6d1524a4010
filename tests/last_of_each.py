"""Overrides of a test put over those that many tests share: the command line itself takes a key once."""

from __future__ import annotations


def last_of_each(*overrides: str) -> list[str]:
    """The overrides, of each key the last one; flags stay."""
    last = {override.partition("=")[0]: number for number, override in enumerate(overrides)}
    return [o for n, o in enumerate(overrides) if last[o.partition("=")[0]] == n or o.startswith("-")]
