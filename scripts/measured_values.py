"""Measured numbers for the pages, out of docs/results: tables, and single values within a sentence."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dropblock import declared_sites
from dropblock.sites import map_sizes
from models import build_model
from scripts.bench import op, step
from scripts.reporting import kept
from scripts.reporting.statistics import Difference, Spread, holm, paired
from scripts.reporting.tables import markdown_table, p_text

GPU_IMAGES_PER_S = 2600  # ResNet-50 at 224 px in mixed precision on one A100 (timm issue 1491)


def text_of(name: str, results: Path) -> str:
    """The table or value of this name.

    Raises:
        ValueError: for an unknown name.
    """
    if name in TABLES:
        return TABLES[name](results)
    if name in VALUES:
        return VALUES[name](results)
    raise ValueError(f"no measured value '{name}'")


def read(results: Path, benchmark: str) -> dict[str, Any]:
    return json.loads((results / f"{benchmark}.json").read_text())


def rows_of(results: Path, benchmark: str) -> dict[str, Any]:
    """The rows of a benchmark by their names."""
    return {row["name"]: row for row in read(results, benchmark)["rows"]}


def step_table(results: Path) -> str:
    lines = [
        [dtype, *step.overhead_text(rows_of(results, f"step_{dtype}")[op.OURS])] for dtype in ("float32", "bfloat16")
    ]
    heads = ["type", "the step with DropBlock, against the plain step", "the 36 calls alone, of the plain step"]
    return markdown_table(heads, lines)


def decoder_table(results: Path) -> str:
    """Processor time for one photograph, and the cores that one GPU and eight need of it."""
    shown = {
        "torchvision, PIL, bicubic": "torchvision's recipe with PIL",
        "this, decoder=pillow": "`data.decoder=pillow`",
        "this, decoder=simplejpeg": "`data.decoder=simplejpeg`",
        "this, JPEG shards of 256": "prepared shards, JPEG of short side 256",
        "this, raw shards of 256": "prepared shards, raw pixels of short side 256",
    }
    measured, lines = rows_of(results, "loader_photographs"), []
    for name, label in shown.items():
        own = measured[name]["processor_ms"]["median"]
        cores = [str(math.ceil(gpus * own / 1000 * GPU_IMAGES_PER_S)) for gpus in (1, 8)]
        lines.append([label, f"{own:.2f}", f"{measured[name]['faster']['median']:.2f}", *cores])
    return markdown_table(["input", "ms on one core", "times as fast", "cores for one GPU", "for eight"], lines)


def times_to_floor(results: Path, shape: str) -> str:
    rows = read(results, "op_benchmark")["rows"]
    ours = [row for row in rows if row["name"] == op.OURS and row["shape"] == shape and row["dtype"] == "float32"]
    times = [row["to_floor"]["median"] for row in ours]
    return f"{min(times):.1f} to {max(times):.1f}"


def overhead(results: Path, dtype: str) -> str:
    """What DropBlock adds to a training step of ResNet-50, with its 95 % interval."""
    of = rows_of(results, f"step_{dtype}")[op.OURS]["overhead"]
    low, high = of["interval"]
    return f"{100 * of['median']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def precision_ratio(results: Path, name: str) -> str:
    """A training step in bfloat16, as a multiple of one in float32, on a CPU without AVX-512."""
    of = rows_of(results, "precision")[name]["to_float32"]
    low, high = of["interval"]
    return f"{of['median']:.2f} [{low:.2f}, {high:.2f}]"


def loop(results: Path) -> dict[str, Any]:
    return read(results, "loop")["rows"][0]


def outside_ms(results: Path) -> str:
    outside = loop(results)["outside_ms"]
    return f"{outside['this']['median'] - outside['barest loop']['median']:.1f} ms"


def small_images(results: Path) -> dict[str, Any]:
    return rows_of(results, "loader_small")["this"]


def small_faster(results: Path, workers: str) -> str:
    """Images a second from memory, as a multiple of the DataLoader with PIL."""
    rows = rows_of(results, "loader_small")
    own, other = (rows[name]["images_per_s"]["median"] for name in ("this", f"torchvision, PIL{workers}"))
    return f"{own / other:.1f}" if workers else f"{rows['this']['faster']['median']:.1f}"


def jobs_ratio(results: Path) -> str:
    """How many times as fast a small table is with two runs at a time."""
    rows = read(results, "jobs")["rows"]
    (row,) = (row for row in rows if (row["what"], row["jobs"]) == ("a table", "jobs=2"))
    return f"{row['times_as_fast']['median']:.2f}"


@cache
def units() -> dict[int, int]:
    """Units of one image at the sites of ResNet-50 in groups 3 and 4, at 224 pixels; their number under 0."""
    with torch.device("meta"):
        model = build_model("resnet50", num_classes=1000)
        sites = {name: site for name, site in declared_sites(model).items() if site.group in (3, 4)}
        sizes = map_sizes(model, torch.empty(1, 3, 224, 224), sites)
    counted = {
        group: sum(math.prod(sizes[name][0]) for name, site in sites.items() if site.group == group) for group in (3, 4)
    }
    return {0: len(sites), **counted}


def blocks(side: int) -> str:
    """Expected number of blocks drawn for one image at keep_prob 0.9, to two or three digits."""
    number = sum(units()[group] * (1 - kept) / side**2 for group, kept in ((3, 0.975), (4, 0.9)))
    return f"{round(number, 2 - len(str(int(number)))) if number < 10_000 else round(number, -3):,.0f}"


def under_drop(result: Path, experiment: str, block_size: int) -> dict[int, float]:
    """Accuracy of the networks of an experiment with this block and keep_prob 0.7 at inference, by seed."""
    with open(result / "under_drop.csv") as file:
        return {
            int(point["seed"]): float(point["top1"])
            for point in csv.DictReader(file)
            if (point["experiment"], point["block_size"], point["keep_prob"]) == (experiment, str(block_size), "0.7")
        }


def figure_5(results: Path, experiment: str, less: str = "") -> str:
    """Accuracy with block 7 at inference: a mean over seeds, or a difference, paired by seed, with its interval."""
    found, *other = (under_drop(results / "fig5_inference", f"fig5/{name}", 7) for name in (experiment, less) if name)
    return str(paired(found, *other)) if other else f"{Spread(tuple(found.values())).mean:.2f} %"


def photographs(results: Path, block_size: int) -> str:
    """The network trained with DropBlock less that without, both with DropBlock on at inference."""
    result = results / "photographs_small"
    with_dropblock = under_drop(result, "table1_small/dropblock", block_size)
    return str(paired(with_dropblock, under_drop(result, "table1_small/baseline", block_size)))


def between(rows: Sequence[Mapping[str, str]], better: str, worse: str) -> str:
    """One row less another, neither of them the baseline, paired by seed; rows of a kept report.csv."""
    found = {row["experiment"]: by_seed(row) for row in rows}
    return str(paired(found[better], found[worse]))


def by_seed(row: Mapping[str, str]) -> dict[int, float]:
    """The single differences of a line of a kept CSV file."""
    pairs = (pair.split(":") for pair in row["by_seed"].split())
    return {int(seed): float(value) for seed, value in pairs}


def after_seeds(row: Mapping[str, str], count: int) -> Difference:
    """A difference as it stood after seeds 1 to `count`, before further seeds were added; a line of a kept CSV file."""
    differences = by_seed(row)
    return Difference(tuple(differences[seed] for seed in range(1, count + 1)))


def after_three_seeds(result: Path, experiment: str) -> str:
    """The difference from no regularizer after seeds 1 to 3."""
    (row,) = (row for row in kept.rows_of(result) if row["experiment"] == experiment)
    return str(after_seeds(row, 3))


def p_after_five(rows: Sequence[Mapping[str, str]], column: str, value: str) -> str:
    """The p-value of a line after seeds 1 to 5, adjusted by Holm over the lines of its table."""
    compared = [row for row in rows if row["by_seed"]]
    adjusted = holm([after_seeds(row, 5).p_value for row in compared])
    (found,) = (p for row, p in zip(compared, adjusted, strict=True) if row[column] == value)
    return p_text(found)


def loss_p_value(result: Path) -> str:
    """The largest of the p-values of a table's losses, adjusted by Holm over its rows."""
    found = [float(row["loss_difference_p"]) for row in kept.rows_of(result) if row["loss_difference_p"]]
    return p_text(max(p for p in holm(found) if p is not None))


def p_value(rows: Sequence[Mapping[str, str]], column: str, value: str) -> str:
    """The p-value of a line of a kept CSV file, adjusted over its table."""
    (row,) = (row for row in rows if row[column] == value)
    return p_text(float(row["holm"]))


TABLES: dict[str, Callable[[Path], str]] = {
    "op": lambda results: op.short(read(results, "op_benchmark")),
    "step": step_table,
    "decoders": decoder_table,
}
VALUES: dict[str, Callable[[Path], str]] = {
    "op_7x7": lambda results: times_to_floor(results, "32x512x7x7"),
    "op_14x14": lambda results: times_to_floor(results, "32x1024x14x14"),
    "step_float32": lambda results: overhead(results, "float32"),
    "step_bfloat16": lambda results: overhead(results, "bfloat16"),
    "precision": lambda results: precision_ratio(results, step.AUTOCAST),
    "precision_torch": lambda results: precision_ratio(results, step.TORCH_ALONE),
    "jobs": jobs_ratio,
    "loop_outside": outside_ms,
    "loop_step": lambda results: f"{loop(results)['step_ms']['barest loop']['median']:.0f} ms",
    "loop_cost": lambda results: f"{100 * loop(results)['cost']['median']:+.1f} %",
    "small_images_per_s": lambda results: f"{small_images(results)['images_per_s']['median']:,.0f}",
    "small_faster": lambda results: small_faster(results, ""),
    "small_faster_workers": lambda results: small_faster(results, ", 2 workers"),
    "sites": lambda results: str(units()[0]),
    "units": lambda results: f"{(units()[3] + units()[4]) / 1e6:.2f}",
    "units_3": lambda results: f"{units()[3] / 1e6:.2f}",
    "units_4": lambda results: f"{units()[4] / 1e6:.2f}",
    "blocks_7": lambda results: blocks(7),
    "blocks_1": lambda results: blocks(1),
    "under_drop_b7": lambda results: figure_5(results, "dropblock_b7"),
    "under_drop_b1": lambda results: figure_5(results, "dropblock_b1"),
    "under_drop_none": lambda results: figure_5(results, "baseline"),
    "under_drop_b7_less_b1": lambda results: figure_5(results, "dropblock_b7", "dropblock_b1"),
    "under_drop_b7_less_none": lambda results: figure_5(results, "dropblock_b7", "baseline"),
    "photographs_after_three": lambda results: after_three_seeds(
        results / "photographs_small", "table1_small/dropblock"
    ),
    "camvid_after_three": lambda results: after_three_seeds(results / "camvid_where", "camvid/head"),
    "table1_loss_p": lambda results: loss_p_value(results / "table1_small"),
    "block8_p": lambda results: p_value(
        kept.rows_of(results / "findings_small"), "experiment", "findings_small/block8"
    ),
    "linear_less_fixed": lambda results: between(
        kept.rows_of(results / "schedules_overfit"), "schedules_overfit/linear", "schedules_overfit/constant"
    ),
    "late_p": lambda results: p_value(
        kept.rows_of(results / "schedules_overfit"), "experiment", "schedules_overfit/late"
    ),
    "late_claim_p": lambda results: p_value(
        kept.rows_of(results / "schedules_overfit", "claims.csv"), "better", "schedules_overfit/late"
    ),
    "skip_claim_p": lambda results: p_value(kept.rows_of(results / "findings_small", "claims.csv"), "column", "skip"),
    "block1_p_after_five": lambda results: p_after_five(
        kept.rows_of(results / "findings_small"), "experiment", "findings_small/block1"
    ),
    "block1_claim_p_after_five": lambda results: p_after_five(
        kept.rows_of(results / "findings_small", "claims.csv"), "column", "block_size"
    ),
    "photographs_under_drop_b1": lambda results: photographs(results, 1),
    "photographs_under_drop_b4": lambda results: photographs(results, 4),
}
