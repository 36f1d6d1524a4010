"""What the loop does in a step, and the benchmarks' smallest forms from measurement to table."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from data import Batch
from engine.guard import all_finite
from models import build_model
from scripts import benchmark
from scripts.bench import harness, loader, loop, program, step

LARGE = 3e38


@pytest.mark.parametrize(
    "name",
    [
        "jobs",
        "kernels",
        "launches",
        "loader_photographs",
        "loader_small",
        "loop",
        "op_benchmark",
        "precision",
        "startup",
    ]
    + [f"step_{kind}" for kind in ("float32", "bfloat16", "detector")],
)
def test_a_committed_table_is_that_of_its_committed_numbers(name: str) -> None:
    path = Path(__file__).parents[2] / "docs" / "results" / f"{name}.json"
    result = json.loads(path.read_text())
    table = benchmark.SUBJECTS["step" if result["kind"] == "detector" else result["kind"]][2]
    assert path.with_suffix(".md").read_text() == table(result) + "\n"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bad_entry_is_seen(bad: float, dtype: torch.dtype) -> None:
    tensors = [torch.randn(7, 5).to(dtype), torch.randn(1000).to(dtype), torch.empty(0), torch.arange(3)]
    assert all_finite(tensors)
    tensors[1][617] = bad
    assert not all_finite(tensors)
    tensors[1][3] = -bad  # whose sum with the other is NaN, not a number that hides it
    assert not all_finite(tensors)


def test_a_sum_that_overflows_is_no_bad_entry() -> None:
    assert all_finite([torch.full((4,), LARGE)])
    assert all_finite([torch.full((4,), 6e4, dtype=torch.float16)])
    assert not all_finite([torch.tensor([LARGE, LARGE, math.nan])])
    assert all_finite([])


@pytest.mark.parametrize(
    "words",
    [
        (*loop.FAKE, "model=resnet18", "model.width=8", "batch_size=16"),
        pytest.param(
            ("data=digit_masks", "data.image_size=33", "data.train_subset=32", "model.width=4", "batch_size=16"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["classification", "segmentation"],
)
def test_the_loop_holds_nearly_the_memory_of_the_barest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setitem(loop.NETWORKS, "small", words)
    arguments = argparse.Namespace(device="cpu", rounds=1, steps=1, precision="float32", clock="processor")
    row = {"name": "small", **loop.one_network("small", tmp_path, arguments)}
    for key in (loop.BARE, loop.OURS):
        assert 0 < row["outside_ms"][key]["median"] < row["step_ms"][key]["median"]
    more = row["outside_ms"][loop.OURS]["median"] - row["outside_ms"][loop.BARE]["median"]
    assert row["cost"]["median"] == pytest.approx(more / row["step_ms"][loop.BARE]["median"])
    # A second copy of the activations or the gradients would be far more.
    assert abs(row["more_memory"]) < 0.05
    table = loop.markdown({"before": {"device": "cpu", "threads": 1}, "rounds": 5, "rows": [row]})
    assert "| small |" in table


def test_time_inside_is_not_counted_twice() -> None:
    clock = loop.Clock(torch.device("cpu"))
    inner = clock.within(lambda: None)

    class Outer(nn.Module):
        def forward(self) -> None:
            inner()

    now = iter(range(100))
    clock.now = lambda: float(next(now))  # type: ignore[method-assign]
    clock.within(Outer().forward)()  # from 0 to 2, and within it from 1 on
    assert clock.inside == 2.0


def test_a_slow_first_call_leaves_the_contestants_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a made-up clock, which a call of either moves by 1 ms and the first one of `compiles` by 300."""
    calls, now = {"compiles": 0, "does not": 0}, [0.0]
    monkeypatch.setitem(harness.CLOCKS, "wall", lambda: now[0])

    def contestant(name: str) -> Callable[[], None]:
        def run() -> None:
            calls[name] += 1
            now[0] += 0.3 if name == "compiles" and calls[name] == 1 else 0.001

        return run

    times, _ = harness.interleaved({name: contestant(name) for name in calls}, 2, 0.02, "cpu")
    assert all(len(values) == 2 for values in times.values())
    # The first call, two that say how many of 1 ms fill 20, and those in three rounds, one of which does not count.
    assert calls["compiles"] == calls["does not"] == 1 + 2 + 3 * 20


def test_loaders_become_a_table(tmp_path: Path) -> None:
    mean = loader.make_photographs(tmp_path / "files", 24)
    assert 50_000 < mean < 150_000  # ImageNet's are 110 KB
    assert len(list(tmp_path.glob("files/train/*/*.JPEG"))) == 24
    arguments = argparse.Namespace(device="cpu", workers=0, batch=4)
    loaders = loader.photograph_loaders(tmp_path, arguments)
    few = {name: loaders[name] for name in (loader.PHOTOS, "this, decoder=pillow", "this, raw shards of 256")}
    rows = loader.compare_loaders("photographs", few, loader.PHOTOS, 1)
    assert rows[0]["faster"]["median"] == 1.0
    assert all(row["images_per_s"]["median"] > 0 for row in rows)
    result = {"rows": rows, "workers": 0, "rounds": 1, "before": {"device": "cpu"}}
    assert "| photographs | this, decoder=pillow |" in loader.markdown(result)


def test_small_images_through_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SMALL_IMAGES", 384)
    for name, epoch in loader.small_loaders(argparse.Namespace(device="cpu", workers=0)).items():
        batch = next(iter(epoch(0)))
        images, labels = (batch.images, batch.labels) if isinstance(batch, Batch) else batch[:2]
        assert images.shape == (128, 3, 32, 32), name
        assert images.dtype == torch.float32
        assert labels.shape == (128,)
        clock, processors = loader.seconds_per_image(iter(epoch(1)), started=False)
        assert 0 < clock < 1
        assert 0 <= processors < 1


@pytest.mark.slow
def test_every_command_of_the_startup_answers() -> None:
    for name, words in program.COMMANDS.items():
        result = program.started(words)()
        expected = 2 if "=" in name else 0
        if "torch" not in name:
            assert result.returncode == expected, name  # type: ignore[attr-defined]


def test_the_detectors_benchmark_from_measurement_to_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small network in all three places: what is measured is one function, what is compared another test's."""
    small = {"body": "resnet18", "width": 4, "fpn_width": 8, "head_width": 8}

    def tiny(batch: step.DetectionBatch, dropblock: bool = False) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
        model = build_model("retinanet", num_classes=step.CLASSES, **small)
        return model, lambda: step.Detection(["object"] * step.CLASSES).loss(model, batch)[0]

    monkeypatch.setattr(step, "our_detector", tiny)
    monkeypatch.setattr(step, "their_detector", tiny)
    options = {
        "device": "cpu",
        "batch": 2,
        "side": 128,
        "dtype": "float32",
        "rounds": 1,
        "patience": 0.0,
        "clock": "processor",
    }
    result = benchmark.measured("step", argparse.Namespace(**options, detector=True, peers=False, regularizers=None))
    assert result["clock"] == "processor"
    assert [row["bytes"] > 0 for row in result["rows"]] == [True] * 3
    assert f"| {step.WITH_DROPBLOCK}, sparse |" in step.markdown(result)


def test_steps_with_other_regularizers_become_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "WIDTH", 4)
    monkeypatch.setattr(step, "IMAGES", 3)
    options = {"device": "cpu", "batch": 4, "rounds": 1, "patience": 0.0, "clock": "processor", "dtype": "float32"}
    more = {"detector": False, "peers": False, "side": None, "regularizers": ["cutmix", "shakedrop"]}
    result = benchmark.measured("step", argparse.Namespace(**options, **more))
    table = step.markdown(result)
    assert all(f"| {name} |" in table for name in (step.NONE, "cutmix", "shakedrop", *step.ON_IMAGES))
    assert {row["name"]: row["to_none"]["median"] for row in result["rows"]}[step.NONE] == 1.0
    assert all(0 < row["share"] < 1 for row in result["policies"])
    assert json.loads(json.dumps(result))["policies"] == result["policies"]


def test_jobs_are_compared_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tables and two single runs a round; the table twice as fast with two jobs, the run no faster."""

    def timed(words: tuple[str, ...]) -> tuple[float, int]:
        table = "+sweep=table1" in words
        return (90.0 if words[-1] == "jobs=1" else 45.0) if table else 10.0, 9 if table else 1

    monkeypatch.setattr(program, "timed_command", timed)
    result = benchmark.measured("jobs", argparse.Namespace(rounds=2, epochs=1, jobs=2))
    lines = program.jobs_markdown(result).splitlines()
    assert "| a table, `jobs=2` | 9 | 45.0 | 2.00 |" in lines
    assert "| one run, `jobs=2` | 1 | 10.0 | 1.00 |" in lines
    assert json.loads(json.dumps(result)) == result


def test_precisions_become_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "SMALL_WIDTH", 4)
    result = benchmark.measured("precision", argparse.Namespace(rounds=1, batch=2, clock="processor"))
    ratios = {row["name"]: row["to_float32"]["median"] for row in result["rows"]}
    assert ratios[step.FLOAT32] == 1.0
    assert min(ratios.values()) > 0
    table = step.precision_markdown(result)
    assert all(f"| {name} |" in table for name in (step.FLOAT32, step.AUTOCAST, step.TORCH_ALONE))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step", "--detector", "--peers"], "--peers"),
        (["step", "--side", "512"], "--side is of the detector"),
        (["step", "--regularizers", "--peers"], "--regularizers"),
        (["loader", "--family", "photographs", "--images", "100"], "--images 100: at least 128"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(words) == 2
    assert message in capsys.readouterr().err
