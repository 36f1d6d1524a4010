"""The benchmark's arithmetic, and one small cell of it from measurement to table."""

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import pytest

from scripts.bench import harness, op
from scripts.bench.harness import interleaved, interval_of_median, ratios, spread
from scripts.bench.op import FLOOR, OURS, contestants, measured_drop


def test_the_interval_of_the_median_has_the_binomial_ranks() -> None:
    # 15 values: P(binomial(15, 1/2) <= 3) = .0176 and P(<= 4) = .059, so the 4th and the 12th; 6: the extremes, .0156.
    assert interval_of_median([float(i) for i in range(1, 16)]) == (4.0, 12.0)
    assert interval_of_median([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    assert interval_of_median([2.0, 1.0]) == (1.0, 2.0)


def test_spread_and_ratios() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "quarter": 1.5, "three_quarters": 2.5}
    assert spread([4.0])["median"] == 4.0
    assert ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b") == [2.0, 3.0]


def test_every_contestant_runs_in_every_round_in_an_order_that_rotates(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], ""

    def takes(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            nonlocal calls
            calls += name
            now[0] += seconds

        return run

    monkeypatch.setitem(harness.CLOCKS, "wall", lambda: now[0])
    times, shares = interleaved({"a": takes("a", 1.0), "b": takes("b", 2.0)}, rounds=3)
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert len(shares) == 3
    # One call each that compiles, two each to choose the repeats, then the rounds; the first does not count.
    assert calls == "ab" + "aabb" + "ab" + "ba" + "ab" + "ba"


def test_the_chosen_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(harness.CLOCKS, "processor", iter(range(0, 1000, 7)).__next__)
    assert interleaved({"a": lambda: None}, rounds=2, by="processor")[0] == {"a": [7.0, 7.0]}
    assert harness.CLOCKS["wall"] is time.perf_counter


def test_a_disturbed_round_is_done_again_while_patience_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([0.0, 0.0, 0.0, 1e6, 0.0, 0.0])  # before and after: a round ahead, a disturbed one, a quiet one
    monkeypatch.setattr(harness, "seconds_of_others", lambda: next(readings))
    monkeypatch.setattr(harness.time, "sleep", lambda _: None)
    times, shares = interleaved({"a": lambda: None}, rounds=1, patience_s=60.0)
    assert (len(times["a"]), shares) == (1, [0.0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/stat")
def test_other_processes_are_seen_and_this_one_is_not() -> None:
    before = harness.seconds_of_others()
    subprocess.run([sys.executable, "-c", "sum(range(30_000_000))"], check=True)
    assert harness.seconds_of_others() - before > 0.1


def test_rows_have_the_ratio_to_the_contestant_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"floor": [1.0, 2.0], "this": [3.0, 4.0]}
    monkeypatch.setattr(harness, "interleaved", lambda *_: (times, [0.0, 0.0]))
    rows, found, _ = harness.compare({}.fromkeys(times), argparse.Namespace(rounds=2), {"to_floor": "floor"})
    assert found is times
    assert [row["name"] for row in rows] == ["floor", "this"]
    assert rows[1]["milliseconds"]["median"] == 3500.0
    assert rows[1]["to_floor"] == {"median": 2.5, "quarter": 2.25, "three_quarters": 2.75, "interval": (2.0, 3.0)}


def test_a_small_cell_becomes_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "measured_drop", partial(measured_drop, units=1e4))
    arguments = argparse.Namespace(device="cpu", rounds=2, least_ms=0.1, patience=0.0)
    rows = op.cell(arguments, "small", (4, 8, 7, 7), 0.9, "bfloat16", "channels_last")
    assert {OURS, FLOOR, "torchvision", "nn.Dropout"} <= {row["name"] for row in rows}
    table = op.markdown({"rows": rows})
    assert f"| 4x8x7x7, 0.9 | bfloat16, channels_last | {FLOOR} |" in table
    assert all(math.isfinite(row["to_floor"]["median"]) for row in rows)


def test_drop_asked_and_got_tell_a_wrong_distribution_from_a_right_one() -> None:
    got = {name: measured_drop(layer, (64, 256, 7, 7), "cpu") for name, layer in contestants(0.9, 7, "cpu").items()}
    # 81920 maps: 5 standard deviations of the share of dropped maps are .0052, false alarm 6e-7.
    assert got[OURS] == pytest.approx(0.1, abs=0.0052)
    if "timm, per channel" in got:
        assert got["timm, per channel"] > 0.9
