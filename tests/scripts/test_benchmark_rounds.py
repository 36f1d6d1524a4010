"""The benchmark's arithmetic, and one small cell of it from measurement to table."""

import argparse
import math
import subprocess
import sys
import time

import pytest

from scripts.bench import op, rounds
from scripts.bench.contestants import FLOOR, OURS, contestants, measured_drop
from scripts.bench.rounds import interleaved, interval_of_median, ratios, spread


def test_the_interval_of_the_median_has_the_binomial_ranks() -> None:
    # 15 values: P(binomial(15, 1/2) <= 3) = .0176 and P(<= 4) = .059, so the 4th and the 12th; 6: the extremes, .0156.
    assert interval_of_median([float(i) for i in range(1, 16)]) == (4.0, 12.0)
    assert interval_of_median([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    assert interval_of_median([2.0, 1.0]) == (1.0, 2.0)


def test_spread_and_ratios() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "quarter": 1.5, "three_quarters": 2.5}
    assert spread([4.0])["median"] == 4.0
    assert ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b") == [2.0, 3.0]
    assert op.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_every_contestant_runs_in_every_round() -> None:
    calls: list[str] = []
    runs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b") or time.sleep(0.002)}
    times, shares = interleaved(runs, rounds=3, least_s=0.0, device="cpu")
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert min(times["b"]) >= 0.002
    assert len(shares) == 3
    assert calls[-8:] == ["a", "b", "b", "a", "a", "b", "b", "a"]  # after two calls each to choose the repeats


def test_the_processors_clock_does_not_count_waiting() -> None:
    runs = {"waits": lambda: time.sleep(0.02)}
    by = {
        name: interleaved(runs, rounds=1, least_s=0.0, device="cpu", by=name)[0]["waits"][0] for name in rounds.CLOCKS
    }
    assert by["processor"] < 0.01 <= by["wall"]


def test_a_disturbed_round_is_done_again_while_patience_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([0.0, 0.0, 0.0, 1e6, 0.0, 0.0])  # before and after: a round ahead, a disturbed one, a quiet one
    monkeypatch.setattr(rounds, "seconds_of_others", lambda: next(readings))
    monkeypatch.setattr(rounds.time, "sleep", lambda _: None)
    times, shares = interleaved({"a": lambda: None}, rounds=1, least_s=0.0, device="cpu", patience_s=60.0)
    assert (len(times["a"]), shares) == (1, [0.0])


def test_other_processes_are_seen() -> None:
    before = rounds.seconds_of_others()
    subprocess.run([sys.executable, "-c", "sum(range(30_000_000))"], check=True)
    assert sys.platform != "linux" or rounds.seconds_of_others() - before > 0.1


def test_a_small_cell_becomes_a_table() -> None:
    arguments = argparse.Namespace(device="cpu", rounds=2, least_ms=0.1, patience=0.0)
    rows = op.cell(arguments, "small", (4, 8, 7, 7), 0.9, "bfloat16", "channels_last")
    assert {OURS, FLOOR, "torchvision", "nn.Dropout"} <= {row["name"] for row in rows}
    table = op.markdown({"rows": rows})
    assert f"| 4x8x7x7, 0.9 | bfloat16, channels_last | {FLOOR} |" in table
    assert all(math.isfinite(row["to_floor"]["median"]) for row in rows)


def test_drop_asked_and_got_tell_a_wrong_law_from_a_right_one() -> None:
    got = {name: measured_drop(layer, (64, 256, 7, 7), "cpu") for name, layer in contestants(0.9, 7, "cpu").items()}
    # 81920 maps: 5 standard deviations of the share of dropped maps are .0052, false alarm 6e-7.
    assert got[OURS] == pytest.approx(0.1, abs=0.0052)
    if "timm, per channel" in got:
        assert got["timm, per channel"] > 0.9
