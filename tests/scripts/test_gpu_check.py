"""The check for GPUs on a machine that has none: its commands are read by the programs that they name.

A Python that pretends to have a GPU shows what it makes of their results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from configs.command_line import read_arguments
from experiment.command import jobs_of
from scripts import benchmark, gpu_check
from scripts.reporting.compare import compare
from scripts.reporting.csv_files import rows_csv
from scripts.reporting.runs import read_sweep
from tests.scripts.made_up_sweep import grid

# Answers every command of the check by files, as the programs write them; WRONG lists what goes wrong.
PRETENDED = """#!{python} -SE
import json, os, sys, time
from pathlib import Path
wrong, words = os.environ["WRONG"].split(","), sys.argv[1:]
after = lambda option: Path(words[words.index(option) + 1])
gpu = "AMD EPYC" if "device" in wrong else "NVIDIA H200"
middle = lambda value: {{"median": value}}
def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
if words[0] == "-c":
    here = {{"processor": "NVIDIA H200", "torch": "2.11.0", "commit": "abc", "dirty": False}}
    print(json.dumps({{**({{}} if "no gpu" in wrong else here), "missing": ["timm"] if "package" in wrong else []}}))
    sys.exit()
step = "tests" if "pytest" in words else words[2] if words[0] == "-m" else Path(words[0]).stem
if step + " fails" in wrong:
    sys.exit(1)
if step + " hangs" in wrong:
    time.sleep(60)
if step + " leaves nothing" in wrong:
    sys.exit()
backend = "dense" if "backend" in wrong else "triton"
if step == "tests":
    names = ["test_the_backend_is_the_one_that_it_is_called[triton]", "test_another"]
    inside = {{"skipped": ["<skipped/>"] * 2, "one skipped": ["", "<skipped/>"], "no kernels": ["<failure/>", ""]}}
    results = next((inside[kind] for kind in wrong if kind in inside), ["", ""])
    cases = [] if "no tests" in wrong else zip(names, results)
    text = "".join(f'<testcase name="{{name}}">{{result}}</testcase>' for name, result in cases)
    write(after("--junitxml"), f"<testsuites><testsuite>{{text}}</testsuite></testsuites>")
elif step == "train":
    root = Path(next(word for word in words if word.startswith("output_root="))[12:])
    write(root / "sweeps/table1-digits/jobs.json", "[]")
    for row in ("none", "dropout", "spatial_dropout", "dropblock"):
        for seed in (1, 2, 3):
            drops = {{"group4": {{"measured": 0.2 if "drops" in wrong else 0.1, "expected": 0.1}}}}
            write(root / "digits-resnet18" / row / f"seed-{{seed}}" / "summary.json", {{
                "environment": {{"processor": gpu}}, "plan": {{"regularizer": [row]}},
                "last": {{"test/top1": 10.0 if "chance" in wrong else 90.0}}, "drop_last_epoch": drops}})
elif step == "report":
    rows = ["baseline", "dropout", "spatial_dropout", *([] if "row" in wrong else ["dropblock"])]
    write(after("--out") / "report.csv", "\\n".join(["experiment", *("table1/" + row for row in rows)]))
else:
    rows = {{
        "op": [{{"shape": "256x1024x14x14", "to_floor": middle(9 if "slow" in wrong else 1.5), "backend": backend,
                "torchvision_to_this": middle(5), "measured_drop": 0.1, "expected_drop": 0.1}}],
        "step": [{{"backend": backend, "overhead": middle(0.1)}}],
        "loop": [{{"outside_ms": {{"this": middle(2)}}}}],
        "loader": [{{"name": "this, decoder=simplejpeg", "faster": middle(2)}}],
    }}
    write(after("--json"), {{"before": {{"device": gpu}}, "rows": rows[step]}})
"""


@pytest.fixture
def check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str]]:
    """The check under a Python that pretends; returns the exit code and README.md."""
    python = tmp_path / "python"
    python.write_text(PRETENDED.format(python=sys.executable))
    python.chmod(0o755)
    monkeypatch.setenv("PYTHON", str(python))

    def run(wrong: str = "") -> tuple[int, str]:
        monkeypatch.setenv("WRONG", wrong)
        code, readme = gpu_check.main([str(tmp_path / "out")]), tmp_path / "out" / "README.md"
        return code, readme.read_text() if readme.exists() else ""

    return run


def test_where_everything_ran_it_passes(check: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    code, table = check()
    assert code == 0
    assert table.count("| yes |") == 22
    assert "no**" not in table
    assert "| op, backend | NVIDIA H200 | triton | triton | yes |" in table

    # What it has left is no result of the next check.
    code, table = check("op leaves nothing")
    assert code == 1
    assert "FileNotFoundError" in table


WRONG = {
    # What goes wrong -> the lines that say so. Every step but the named ones holds.
    "one skipped,backend,drops,row,package,loop fails,loader leaves nothing": {
        "packages", "tests marked gpu", "op, backend", "step, backend", "loop", "loader", "report",
        "share dropped in its runs, off the closed form",
    },
    "no tests,slow,chance": {
        "tests marked gpu", "Triton's kernels", "op, 20 M units or more / x * scalar", "top-1 of its worst row, %",
    },
    "no kernels,train fails,report fails": {
        "tests marked gpu", "Triton's kernels", "table", "runs of the table", "top-1 of its worst row, %",
        "share dropped in its runs, off the closed form", "report",
    },
    "skipped,device": {
        "tests marked gpu", "Triton's kernels", "op", "step", "loop", "loader", "runs of the table",
    },
}  # fmt: skip


def test_the_report_of_such_a_table_holds(tmp_path: Path) -> None:
    rows = {(f"experiment=table1/{row}", "data=digits"): [80.0] for row in gpu_check.ROWS}
    report = tmp_path / "table" / "report.csv"
    report.parent.mkdir()
    report.write_text(rows_csv(compare(read_sweep(grid(tmp_path, rows)))))
    (line,) = gpu_check.check_report(tmp_path, "")
    assert line.holds


@pytest.mark.parametrize("wrong", WRONG)
def test_it_fails_where_something_did_not_run(wrong: str, check: Callable[..., tuple[int, str]]) -> None:
    code, table = check(wrong)
    assert code == 1
    bad = [line.split(" | ") for line in table.splitlines() if line.endswith("| **no** |")]
    assert {cells[1] for cells in bad} == WRONG[wrong]


def test_a_step_that_hangs_is_ended(check: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    some = gpu_check.steps
    monkeypatch.setattr(gpu_check, "steps", lambda out: [step._replace(limit=1) for step in some(out)[3:4]])
    code, table = check("loop hangs")
    assert code == 1
    assert "out of time after 1 s" in table


def test_without_a_gpu_nothing_is_touched(
    check: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check("no gpu") == (3, "")
    assert capsys.readouterr().err.strip() == "no CUDA device on this machine: nothing was checked"


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would run")
def test_this_python_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHON", raising=False)
    assert gpu_check.main([str(tmp_path / "out")]) == 3


def test_a_folder_with_other_files_is_refused(check: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("all of it")
    assert check() == (2, "")
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_the_commands_are_ones_that_exist(tmp_path: Path) -> None:
    found = {step.name: step.arguments for step in gpu_check.steps(tmp_path)}
    for name in ("op", "step", "loop", "loader"):
        parser = argparse.ArgumentParser()
        benchmark.SUBJECTS[name][0](parser)
        given = found[name][3:]
        files = given.index("--json")
        assert given[files::2] == ["--json", "--markdown"]
        assert parser.parse_args(given[:files]).device == "cuda"
    jobs = jobs_of(read_arguments(found["table"][1:]))
    assert len(jobs) == len(gpu_check.ROWS) * len(gpu_check.SEEDS)
    assert sum(step.limit for step in gpu_check.steps(tmp_path)) < 540
