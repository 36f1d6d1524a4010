"""The example scripts and the notebook run, and show what they say."""

from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import dropblock
from configs.checking import UserError, load_yaml
from experiment import plan_of, register_layer, register_model, register_schedule, run_plan, run_sweep

ROOT = Path(__file__).resolve().parents[2]


SITES_OF_OWN_LOOP = (
    "3 conv before conv2 2 DropBlock2d 256x2x2 2x2 = whole map 0.975 0.025 2.50%",
    "3 conv bn2 2 DropBlock2d 256x2x2 2x2 = whole map 0.975 0.025 2.50%",
    "4 skip downsample 1 DropBlock2d 512x1x1 1x1 = whole map 0.9 0.1 10.00%",
    "4 skip identity 1 DropBlock2d 512x1x1 1x1 = whole map 0.9 0.1 10.00%",
)
DROPS_OF_OWN_LOOP = [["group3", "1.00%", "1.00%"], ["group4", "4.00%", "4.00%"]]

# One epoch of each row: the names of the run directories stay.
RUNS_OF_OWN_PARTS = {
    "none-e1-fccf65",
    "dropblock-b3-kp0.9-conv-e1-282d00",
    "shared_dropblock-b3-kp0.9-e1-931b07",
    "shared_dropblock-b3-kp0.9-slow_start-e1-deb982",
}

RUN_READ = """\
top-1 accuracy (%) after the last epoch: 73.91
701,466 parameters, commit 17c663bede58eecd65a7034653710a8054e033ab
12 sites, the first layer3.0.site1
epoch 15: 44.63
epoch 30: 66.46
epoch 45: 71.69
epoch 60: 73.91
group3: dropped 7.09%, expected 7.10% in the last epoch
group4: dropped 29.72%, expected 29.75% in the last epoch
"""


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / name))


def test_the_layer_in_a_loop_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = example("own_loop.py")["main"](epochs=1, batch=50, images=300)
    shown = capsys.readouterr().out
    assert 0 <= accuracy <= 100
    table, drops = shown.split(" group  asked")
    for line in SITES_OF_OWN_LOOP:
        assert line in [" ".join(row.split()) for row in table.splitlines()]
    # Asked and expected at the mean of five steps; measured and the number of images in between follow no formula.
    assert [row.split()[:3] for row in drops.splitlines()[1:3]] == DROPS_OF_OWN_LOOP


def test_the_layer_in_a_unet_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 <= example("own_unet.py")["main"](steps=4, batch=4) <= 100
    shown = capsys.readouterr().out
    assert 'Place("encoder.3", "after", group=2)' in shown
    # Groups 1 and 2 at the mean of four steps, 0 to 7.5 %.
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("group") and "%" in line] == ["3.75%"] * 2


@pytest.mark.parametrize("name", ["own_unet.py", "lightning_module.py"])
def test_at_most_ten_lines_are_added(name: str) -> None:
    """`make test-integrations` runs the second."""
    lines = (ROOT / "examples" / name).read_text().splitlines()
    added = [line for line in lines if line.endswith("  # +")]
    assert 0 < len(added) <= 10
    for line in lines:
        if "dropblock" in line.lower() and line.startswith(("import", "from", " ")) and "=" in line:
            assert line in added


def test_own_parts_in_a_sweep_and_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scripts.report import main as report

    words = ("data=fake", "device=cpu", "model.width=4", f"output_root={tmp_path}")
    sweep = example("own_parts.py")["main"](*words, epochs=1, seeds=1)
    assert report([str(sweep)]) == 0
    rows = (sweep / "report.csv").read_text().splitlines()
    assert len(rows) == 1 + 4
    assert sum("shared mask" in row for row in rows) == 2
    assert {path.name for path in (tmp_path / "fake-small_net").iterdir()} == RUNS_OF_OWN_PARTS
    run = next(tmp_path.glob("fake-small_net/shared_dropblock-*slow_start*/seed-1"))
    capsys.readouterr()
    metrics = example("read_a_run.py")["main"](run)
    assert f"{metrics['test/top1']:.2f}" in capsys.readouterr().out
    # Again: everything is there.
    again = example("own_parts.py")["main"](*words, epochs=1, seeds=1)
    assert again == sweep
    assert capsys.readouterr().out.count("already done") == 4


def test_a_kept_run_is_read_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    member = "outputs/folder-cifar10_jpeg-resnet18/dropblock-b4-kp0.7-e60-726f45/seed-1"
    with tarfile.open(ROOT / "docs" / "results" / "table1_small" / "finished_runs.tar.xz") as archive:
        archive.extractall(tmp_path, [m for m in archive if m.name.startswith(member)], filter="data")
    metrics = example("read_a_run.py")["main"](tmp_path / member)
    assert capsys.readouterr().out == RUN_READ
    assert round(metrics["test/top1"], 2) == 73.91


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((ROOT / "examples" / "dropblock.ipynb").read_text())
    monkeypatch.chdir(ROOT / "examples")
    names: dict[str, Any] = {"OUTPUTS": str(tmp_path)}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace('OUTPUTS = "outputs"', f"OUTPUTS = {str(tmp_path)!r}")
            source = source.replace('"device=cpu"', '"device=cpu", "data.train_subset=64"')
            exec(compile(source, "dropblock.ipynb", "exec"), names)
    assert names["summary"]["last"]["test/top1"] > 0
    assert list(tmp_path.glob("sweeps/*/report.md"))


def test_a_network_for_one_run(tmp_path: Path) -> None:
    def thin_net(num_classes: int, in_channels: int) -> Any:
        return example("own_parts.py")["SmallNet"](num_classes, in_channels, width=4)

    plan = plan_of("data=fake", "epochs=1", "progress=false", "device=cpu", "groups=[4]", "skip=false", "block_size=3")
    plan = replace(plan, runtime=replace(plan.runtime, output_root=str(tmp_path)))
    summary = run_plan(plan, model=thin_net)
    assert summary["plan"]["model"]["name"] == "thin_net"
    assert summary["parameters"] < 5000
    assert list(tmp_path.glob("fake-thin_net/dropblock-*/seed-1/summary.json"))
    with pytest.raises(ValueError, match="a class or a function with a name"):
        run_plan(plan, model=partial(thin_net))
    with pytest.raises(ValueError, match=r"model\.options are for the network that it names"):
        run_plan(replace(plan, model=replace(plan.model, options={"depth": 3})), model=thin_net)


def test_a_run_on_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    plan = plan_of("data=fake", "model=resnet18", "model.width=4", "epochs=1", "progress=false", "device=cpu")
    plan = replace(plan, runtime=replace(plan.runtime, output_root=str(tmp_path)))
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run_plan, plan).result()["last"]["test/top1"] > 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_cannot_be_registered() -> None:
    with pytest.raises(UserError, match="resnet50: there is one of this name"):
        register_model("resnet50", example("own_parts.py")["SmallNet"])
    with pytest.raises(ValueError, match="num_classes"):
        register_model("mine", lambda: None)
    with pytest.raises(UserError, match="dropblock: there is one of this name"):
        register_layer("dropblock", dropblock.Dropout, keep_prob=0.9)
    with pytest.raises(UserError, match="letters, digits"):
        register_layer("my-layer", dropblock.Dropout, keep_prob=0.9)
    with pytest.raises(UserError, match="linear: there is one"):
        register_schedule("linear", lambda progress: progress)
    with pytest.raises(ValueError, match="share must lie in"):
        register_schedule("mine", lambda progress: 2 * progress)
    with pytest.raises(UserError, match="schedule=mine: unknown"):
        plan_of("data=fake", "schedule=mine")


def test_a_sweep_from_a_script_records_and_prints_what_train_py_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("data=digits", "data.train_subset=64", "epochs=1", "progress=false", "device=cpu", "model.width=4")
    plan = plan_of(*words, "model=resnet18", "regularizer=none", f"output_root={tmp_path}")
    sweep = run_sweep([plan], "one")
    assert "note: epochs=1: warmup_epochs of the recipe scaled" in capsys.readouterr().out
    (run,) = tmp_path.glob("digits-resnet18/*/seed-1")
    recorded = load_yaml(run / "config_min.yaml")["overrides"]
    assert recorded == [*words, "model=resnet18", "regularizer=none", f"output_root={tmp_path}"]
    assert json.loads(next(sweep.glob("runs/*.json")).read_text())["overrides"] == recorded
    assert plan_of(*recorded) == plan
    assert replace(plan, seed=2).overrides == ()  # which these overrides do not make
    again = replace(plan, runtime=replace(plan.runtime, fresh=True))
    run_sweep([again, again], "one")  # both are one run, which starts over once
    assert [path.name for path in sorted(run.parent.iterdir())] == ["seed-1", "seed-1-old-1"]


def test_a_report_in_another_process_has_label_and_colour_of_a_layer(tmp_path: Path) -> None:
    from dropblock import DropBlock2d

    register_layer("mine", DropBlock2d, keep_prob=0.9, block_size=3, label="my own layer", colour="#12ab34")
    words = ("data=fake", "data.train_subset=64", "epochs=1", "progress=false", "device=cpu", "model=resnet18")
    words += ("model.width=4", f"output_root={tmp_path}")
    sweep = run_sweep([plan_of(*words, "regularizer=mine")], "one")
    report = [sys.executable, str(ROOT / "scripts" / "report.py"), str(sweep)]
    subprocess.run(report, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert "| my own layer, keep_prob 0.9, block 3 | 1 |" in (sweep / "report.md").read_text()
    assert "#12ab34" in (sweep / "report.html").read_text()
    with pytest.raises(ValueError, match="a colour is written #rrggbb"):
        register_layer("other", DropBlock2d, keep_prob=0.9, colour="green")


def test_a_sweep_goes_on_past_a_run_that_fails(tmp_path: Path) -> None:
    def broken(num_classes: int) -> Any:
        raise ValueError("no such network")

    register_model("broken", broken)
    words = ("data=fake", "epochs=1", "progress=false", "device=cpu", "regularizer=none", f"output_root={tmp_path}")
    plans = [plan_of(*words, "model=broken"), plan_of(*words, "model=resnet18", "model.width=4")]
    with pytest.raises(RuntimeError, match=r"1 of 2 runs failed, first .*broken.*: no such network"):
        run_sweep(plans, "two")
    assert list(tmp_path.glob("fake-resnet18/*/seed-1/summary.json"))
