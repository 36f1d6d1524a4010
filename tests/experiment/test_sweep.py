"""The closing table of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiment.sweep import last_test, summary_text


@pytest.mark.parametrize(
    ("headline", "units", "value", "shown"),
    [("top1", {}, 81.5, "81.50%"), ("top1", {"top1": "%"}, 81.5, "81.50%"), ("loss", {"loss": ""}, 0.7123, "0.7123")],
)
def test_the_headline_has_its_own_unit(headline: str, units: dict[str, str], value: float, shown: str) -> None:
    summary = {"headline": headline, "last": {f"test/{headline}": value}, **({"metric_units": units} if units else {})}
    entry = {"status": "DONE", "run": "outputs/a/b/seed-1", "reason": "", **last_test(summary)}
    assert shown in summary_text([entry], None).split()
    # What one wants next.
    assert summary_text([entry], Path("sweeps/a")).endswith("\nreport: python scripts/report.py sweeps/a")
    assert "report" not in summary_text([{**entry, "status": "FAILED"}], Path("sweeps/a"))


def test_pilots_and_runs_are_counted_apart() -> None:
    pilots = [{"status": status, "run": status, "reason": "", "pilot": True} for status in ("DONE", "NOT RUN")]
    assert summary_text(pilots, Path("sweeps/a")).endswith("\n1 pilot done, 1 not; listed in sweeps/a")
    runs = [{"status": "DONE", "run": str(seed), "reason": "", "last test": 90.0} for seed in (1, 2)]
    lines = summary_text([*pilots, *runs], Path("sweeps/a"), ["refused"]).splitlines()
    assert lines[-2:] == [
        "1 pilot and 2 runs done, 2 not; listed in sweeps/a",
        "report: python scripts/report.py sweeps/a",
    ]
