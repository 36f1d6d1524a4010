"""The differences of a row as dots with their interval, drawn as SVG inside a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scripts.reporting.statistics import Difference

WIDTH, HEIGHT = 190, 26


@dataclass(frozen=True)
class Scale:
    """One horizontal axis for all rows of a table, with 0 and the margin of equivalence on it."""

    low: float
    high: float
    margin: float

    @classmethod
    def of(cls, differences: Sequence[Difference | None], margin: float) -> Scale:
        """Wide enough for every dot, and for the intervals as far as they are not much wider than the dots."""
        values = [value for of in differences if of is not None for value in of.values] or [0.0]
        ends = [end for of in differences if of is not None and of.interval for end in of.interval]
        widest = 1.6 * max(margin, *(abs(value) for value in values))
        reach = [-margin, margin, *values, *(min(max(end, -widest), widest) for end in ends)]
        room = 0.06 * (max(reach) - min(reach))
        return cls(min(reach) - room, max(reach) + room, margin)

    def x(self, value: float) -> float:
        """Pixels from the left, at most at the edge."""
        share = (value - self.low) / (self.high - self.low)
        return round(WIDTH * min(1.0, max(0.0, share)), 1)


def dots(difference: Difference, scale: Scale, colour: str) -> str:
    """A dot a seed, a bar for the interval, a tick for the mean; behind them 0 and the margin."""
    middle = HEIGHT / 2
    left, right = scale.x(-scale.margin), scale.x(scale.margin)
    parts = [f'<rect x="{left}" y="1" width="{right - left:.1f}" height="{HEIGHT - 2}" fill="#f0f0f0"/>']
    parts.append(f'<line x1="{scale.x(0)}" x2="{scale.x(0)}" y1="0" y2="{HEIGHT}" stroke="#999"/>')
    if difference.interval is not None:
        low, high = map(scale.x, difference.interval)
        parts.append(f'<line x1="{low}" x2="{high}" y1="{middle}" y2="{middle}" stroke="{colour}" stroke-width="2"/>')
    mean = scale.x(difference.mean)
    parts.append(f'<line x1="{mean}" x2="{mean}" y1="4" y2="{HEIGHT - 4}" stroke="{colour}" stroke-width="2"/>')
    dot = f'fill="{colour}" stroke="#fff" stroke-width="1"'
    for seed, value in zip(difference.seeds, difference.values, strict=True):
        title = f"<title>seed {seed}: {value:+z.2f}</title>"
        x = scale.x(value)
        parts.append(f'<circle cx="{x}" cy="{middle}" r="3.6" {dot}>{title}</circle>')
    label = f"{difference} over {len(difference.values)} seeds"
    return (
        f'<svg role="img" aria-label="{label}" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f"{''.join(parts)}</svg>"
    )
