"""Reports of sweeps that are not the paper's: networks of a library, many rows, further layers, interrupted ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from configs.paper import ClaimConfig, StudyConfig
from scripts.report import main
from scripts.reporting.comparison import answers
from scripts.reporting.figures import few_rows
from scripts.reporting.reading import read_sweep
from tests.scripts.made_up_sweep import note, plan_of, write_run


def a_sweep(root: Path, *jobs: tuple[str, ...], seeds: tuple[int, ...] = (1,)) -> Path:
    """A row for each job, each half a point above the one before."""
    folder = root
    for i, words in enumerate(jobs):
        for seed in seeds:
            plan = replace(plan_of(*words), seed=seed)
            folder = note(root, plan, write_run(root, plan, 80.0 + i / 2 + seed / 10, epochs=5))
    return folder


def test_the_seeds_of_a_sweeps_own_file_are_asked_for(tmp_path: Path) -> None:
    rows = ("experiment=schedules_overfit/none",), ("experiment=schedules_overfit/linear",)
    folder = a_sweep(tmp_path, *rows)
    params = {"seed": "1,2", "experiment": "schedules_overfit/none,schedules_overfit/linear"}
    for words, missing in (([], 2), (["seed=1"], 0)):  # a command's own seeds replace them
        hydra = {"sweeper": {"params": params}, "overrides": {"task": words}}
        (folder / "multirun.yaml").write_text(json.dumps({"hydra": hydra}))
        assert [what.rpartition(" ")[2] for what, _, _ in read_sweep(folder).lost] == ["2"] * missing


def test_places_out_of_reach_cover_no_map(tmp_path: Path) -> None:
    library = ("model=torchvision", "model.name=efficientnet_b0", "regularizer=dropblock")
    folder = a_sweep(tmp_path, *((*library, f"block_size={size}") for size in (3, 7)))
    for run in read_sweep(folder).runs:
        lost = {"group": 3, "map_sizes": [], "block": None, "layer": "out of reach"}
        run.folder.write("sites.json", [*(run.folder.read("sites.json") or []), lost])
    assert main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "efficientnet_b0 on " in text
    assert "None" not in text
    assert (folder / "block_size.png").exists()


def test_a_claim_pairs_rows_that_differ_in_nothing_else(tmp_path: Path) -> None:
    layer = "regularizer.dropblock.layer"
    rows = [(f"block_size={block}", f"{layer}.group_divisor={divisor}") for block, divisor in ((3, 4), (1, 4), (1, 2))]
    folder = a_sweep(tmp_path, *rows, ("block_size=3", f"{layer}.group_divisor=4", "label_smoothing=0.1"))
    claim = ClaimConfig("block 3 beats block 1", "block_size", "3", "1")
    (answer,) = answers(replace(read_sweep(folder), study=StudyConfig(claims=[claim])))
    assert len(answer.cells) == 1
    limits = ("schedule=late", "schedule_start=0.5"), ("schedule=linear",)  # a limit goes with its schedule
    folder = a_sweep(tmp_path / "schedules", *limits)
    claim = ClaimConfig("linear beats late", "schedule", "linear", "late")
    (answer,) = answers(replace(read_sweep(folder), study=StudyConfig(claims=[claim])))
    assert len(answer.cells) == 1


def test_many_rows_without_a_figure_have_their_curves(tmp_path: Path) -> None:
    schedules = ("linear", "constant", "cosine", "curriculum")
    groups = ("groups=[4]", "groups=[3]", "groups=[3,4]")
    folder = a_sweep(tmp_path, *((f"schedule={name}", group) for name in schedules for group in groups))
    sweep = read_sweep(folder)
    assert len(sweep.rows) == 12
    assert few_rows(sweep) == sweep.rows[:10]


def test_what_an_earlier_report_said_is_gone(tmp_path: Path) -> None:
    folder = a_sweep(tmp_path, ("regularizer=none",), ("regularizer=dropout",))
    (folder / "claims.csv").write_text("of a claim that the sweep has no more\n")
    assert main([str(folder)]) == 0
    assert not (folder / "claims.csv").exists()
