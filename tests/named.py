"""A mistake of the user: the type of the error and what its line names. Wording is for tests/faults/test_words.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def refused(*names: str | Path, as_a: type[Exception] | tuple[type[Exception], ...] = ValueError) -> Iterator[None]:
    """Expect this error, in one line that holds each of the names: a key, a path, a value."""
    with pytest.raises(as_a) as error:
        yield
    line = str(error.value)
    assert "\n" not in line
    assert [str(name) for name in names if str(name) not in line] == [], line
