"""Numbers and truth values as the programs that write annotations have them: one rule for JSON and XML.

What can mean one thing only is accepted, such as the text "12" for 12 or "Unspecified" for "nobody marked it"; anything
else is a ValueError, to which the reader adds the file and the entry.
"""

from __future__ import annotations

import math
from typing import Any

TRUE, FALSE = ("1", "true", "yes"), ("", "0", "false", "no", "unspecified", "none", "null")


def a_finite_number(value: Any) -> float:
    """A number, or the text of one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def a_whole_number(value: Any) -> int:
    """An id, of 64 bits: 12, 12.0, or the text of one; 12.5 is none."""
    if isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
        value = int(value)  # a float would round a long one
    number = value if type(value) is int else a_finite_number(value)
    if number != int(number) or not -(2**63) <= number < 2**63:
        raise ValueError(value)
    return int(number)


def a_positive_whole_number(value: Any) -> int:
    """The height or width of an image."""
    number = a_whole_number(value)
    if number < 1:
        raise ValueError(value)
    return number


def four_finite_numbers(value: Any) -> list[float]:
    """A box."""
    if isinstance(value, str) or len(value) != 4:
        raise ValueError(value)
    return [a_finite_number(side) for side in value]


def a_truth_value(value: Any) -> bool:
    """0, 1, false, true, no, yes, or a word for "not said", which is false: nothing, null, Unspecified."""
    text = "" if value is None else str(value).strip().lower()
    text = text.removesuffix(".0")
    if text not in (*TRUE, *FALSE):
        raise ValueError(value)
    return text in TRUE
