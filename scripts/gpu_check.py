"""Check what only a GPU can show, in at most nine minutes and without a network: python -m scripts.gpu_check [FOLDER]

Runs the tests marked gpu, the benchmarks and a short table on handwritten digits. FOLDER (default outputs/gpu_check) is
emptied first; it takes logs, JSON and Markdown, and in README.md one table: what ran, on what, against which bound. The
exit code is 0 only if every line of it holds, else 1; 3 without a CUDA device.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from glob import glob
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from xml.etree import ElementTree

from configs.checking import UserError
from scripts.entry import guarded, parser_of
from scripts.values import rows_of

ROOT = Path(__file__).resolve().parents[1]
TITLE = "# Checks on a GPU"
BACKEND = "triton"  # whose figures these must be
# Packages that a step leaves something out without.
WANTED = ("triton", "timm", "simplejpeg", "pycocotools")
PROBE = f"""
import importlib.util, json, torch
from engine.environment import environment
found = environment(torch.device("cuda")) if torch.cuda.is_available() else {{}}
print(json.dumps(found | {{"missing": [name for name in {WANTED} if not importlib.util.find_spec(name)]}}))
"""
ROWS = ("baseline", "dropout", "spatial_dropout", "dropblock")
SEEDS = (1, 2, 3)
# Bounds that no working installation comes near: each is what a fallback, a wait or a wrong mask would exceed.
FLOOR_UNITS, TO_FLOOR, TO_TORCHVISION = 20e6, 3.0, 1.0
STEP_OVERHEAD, LOOP_MS, LOADER, TOP1, DROP = 0.5, 10.0, 1.0, 60.0, 0.02


class Line(NamedTuple):
    """One line of the table: what was looked at, where it ran, what was found, what it is compared with."""

    what: str
    on: str
    found: str
    bound: str
    holds: bool


class Step(NamedTuple):
    """One command, its time limit in seconds, and what the files that it leaves must show."""

    name: str
    limit: int
    arguments: list[str]
    check: Callable[[Path, str], list[Line]]


def steps(out: Path) -> list[Step]:
    """The steps in their order; their limits add up to less than nine minutes."""

    def bench(name: str, limit: int, check: Callable[[Path, str], list[Line]], *options: str) -> Step:
        files = ("--json", str(out / f"{name}.json"), "--markdown", str(out / f"{name}.md"))
        return Step(name, limit, ["-m", "scripts.benchmark", name, "--device", "cuda", *options, *files], check)

    tests = ["-m", "pytest", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider", "--junitxml", str(out / "tests.xml")]
    table = ["train.py", "-m", "experiment=" + ",".join(f"table1/{row}" for row in ROWS), "data=digits"]
    table += ["model=resnet18", "model.width=8", "epochs=5", "seed=" + ",".join(map(str, SEEDS))]
    table += ["recipe.precision=bfloat16", "device=cuda", "progress=false", f"output_root={out / 'runs'}"]
    report = ["scripts/report.py", str(out / "runs" / "sweeps" / "*"), "--out", str(out / "table")]
    return [
        Step("tests", 170, [*tests, "tests"], check_tests),
        bench("op", 80, check_op, "--rounds", "5", "--least-ms", "5"),
        bench("step", 45, check_step, "--dtype", "bfloat16", "--batch", "64", "--rounds", "9"),
        bench("loop", 45, check_loop, "--precision", "bfloat16", "--rounds", "3"),
        bench("loader", 45, check_loader, "--rounds", "2", "--images", "600", "--workers", "2"),
        Step("table", 130, table, check_table),
        Step("report", 15, report, check_report),
    ]


# The checks: each reads what its step has left, and raises where it left nothing that can be read.


def check_tests(out: Path, gpu: str) -> list[Line]:
    """No test failed or was skipped, and one of them has seen that Triton's kernels ran."""
    cases = list(ElementTree.parse(out / "tests.xml").getroot().iter("testcase"))
    outcomes = {f"{case.get('name')}": {child.tag for child in case} for case in cases}
    left_out = [name for name, found in outcomes.items() if found & {"skipped", "failure", "error"}]
    passed = len(outcomes) - len(left_out)
    kernels = f"test_the_backend_is_the_one_that_it_is_called[{BACKEND}]"
    ran = kernels in outcomes and kernels not in left_out
    found = f"{passed} passed" + (f", not: {', '.join(left_out[:3])}" if left_out else "")
    return [
        Line("tests marked gpu", gpu, found, "at least one, none skipped or failed", passed > 0 and not left_out),
        Line("Triton's kernels", gpu, "ran" if ran else "did not run", "their own test passed", ran),
    ]


def check_op(out: Path, gpu: str) -> list[Line]:
    """The operator against the memory-bandwidth bound and torchvision's, and what it has dropped."""
    rows = [row for row in measured(out, "op", gpu) if "torchvision_to_this" in row]
    units = {row["shape"]: math.prod(map(int, row["shape"].split("x"))) for row in rows}
    large = [row["to_floor"]["median"] for row in rows if units[row["shape"]] >= FLOOR_UNITS]
    slowest = min(row["torchvision_to_this"]["median"] for row in rows)
    off = max(abs(row["measured_drop"] - row["expected_drop"]) for row in rows)
    return [
        backend_line("op", rows, gpu),
        at_most("op, 20 M units or more / x * scalar", gpu, max(large), TO_FLOOR),
        at_least("torchvision / op, every shape", gpu, slowest, TO_TORCHVISION),
        at_most("op, share dropped, off the closed form", gpu, off, DROP),
    ]


def check_step(out: Path, gpu: str) -> list[Line]:
    """ResNet-50 with DropBlock against the plain step."""
    rows = [row for row in measured(out, "step", gpu) if "backend" in row]
    overhead = rows[0]["overhead"]["median"] if rows else float("inf")
    return [backend_line("step", rows, gpu), at_most("step of ResNet-50, overhead", gpu, overhead, STEP_OVERHEAD)]


def check_loop(out: Path, gpu: str) -> list[Line]:
    """The time of a step outside the network."""
    slowest = max(row["outside_ms"]["this"]["median"] for row in measured(out, "loop", gpu))
    return [at_most("loop, ms a step outside the network", gpu, slowest, LOOP_MS)]


def check_loader(out: Path, gpu: str) -> list[Line]:
    """The loaders against torchvision's."""
    rows = [row for row in measured(out, "loader", gpu) if row["name"].startswith("this")]
    slowest = min(row["faster"]["median"] for row in rows if row["name"] != "this, decoder=pil")
    return [at_least("loaders / torchvision's", gpu, slowest, LOADER)]


def check_table(out: Path, gpu: str) -> list[Line]:
    """All runs of the table were trained on this GPU, learned, and dropped what the closed form says."""
    summaries = [json.loads(path.read_text()) for path in (out / "runs").glob("*/*/seed-*/summary.json")]
    on = {run["environment"]["processor"] for run in summaries}
    top1: dict[str, list[float]] = {}
    for run in summaries:
        top1.setdefault("+".join(run["plan"]["regularizer"]), []).append(run["last"]["test/top1"])
    worst = min(map(fmean, top1.values()), default=0.0)
    drops = [group for run in summaries for group in run["drop_last_epoch"].values()]
    off = max((abs(group["measured"] - group["expected"]) for group in drops), default=1.0)
    runs, trained = len(ROWS) * len(SEEDS), len(summaries)
    return [
        Line(
            "runs of the table",
            ", ".join(sorted(on)),
            f"{trained}",
            f"{runs}, on {gpu}",
            trained == runs and on == {gpu},
        ),
        at_least("top-1 of its worst row, %", gpu, worst, TOP1),
        at_most("share dropped in its runs, off the closed form", gpu, off, DROP),
    ]


def check_report(out: Path, gpu: str) -> list[Line]:
    """The report of the table has every row."""
    found = {row["experiment"].rpartition("/")[2] for row in rows_of(out / "table" / "report.csv")}
    missing = [row for row in ROWS if row not in found]
    return [Line("report", "", f"lacks {', '.join(missing)}" if missing else "all rows", "all rows", not missing)]


def measured(out: Path, name: str, gpu: str) -> list[dict[str, Any]]:
    """The rows of a benchmark.

    Raises:
        ValueError: if it was measured elsewhere.
    """
    result = json.loads((out / f"{name}.json").read_text())
    if result["before"]["device"] != gpu:
        raise ValueError(f"measured on {result['before']['device']}")
    return result["rows"]


def backend_line(name: str, rows: list[dict[str, Any]], gpu: str) -> Line:
    found = sorted({row["backend"] for row in rows})
    return Line(f"{name}, backend", gpu, ", ".join(found) or "none", BACKEND, found == [BACKEND])


def row_of(step: str, line: Line) -> str:
    return f"| {step} | {line.what} | {line.on} | {line.found} | {line.bound} | {'yes' if line.holds else '**no**'} |"


def at_most(what: str, gpu: str, value: float, bound: float) -> Line:
    return Line(what, gpu, f"{value:.3g}", f"at most {bound:g}", value <= bound)


def at_least(what: str, gpu: str, value: float, bound: float) -> Line:
    return Line(what, gpu, f"{value:.3g}", f"at least {bound:g}", value >= bound)


def emptied(out: Path) -> None:
    """Remove what an earlier check has left: no figure of another day shall pass for one of today.

    Raises:
        UserError: for a folder with other files.
    """
    if out.exists() and any(out.iterdir()):
        text = out / "README.md"
        if not text.exists() or not text.read_text().startswith(TITLE):
            raise UserError(f"{out}: has other files than those of a check; name an empty folder")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def run_within(command: list[str], limit: float, log: Path) -> str:
    """Run a command, its output in a file; '' if it succeeded, else the reason. It ends with all that it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"out of time after {limit:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return f"exit code {code}" if code else ""


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out."""
    parser = parser_of(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs/gpu_check"))
    out: Path = parser.parse_args(arguments).folder.absolute()
    python = os.environ.get("PYTHON", sys.executable)

    # What is here. Nothing is touched where there is no GPU.
    probe = subprocess.run([python, "-c", PROBE], cwd=ROOT, capture_output=True, text=True)
    here = json.loads(probe.stdout.splitlines()[-1]) if probe.returncode == 0 else {}
    if "processor" not in here:
        print(probe.stderr.strip() or "no CUDA device on this machine: nothing was checked", file=sys.stderr)
        return 3
    gpu, missing = here["processor"], ", ".join(here["missing"])
    emptied(out)
    dirty = ", with local changes" if here["dirty"] else ""
    head = f"{TITLE}\n\n{gpu}, torch {here['torch']}, commit {here['commit']}{dirty}\n"
    (out / "README.md").write_text(head)

    # Every step runs, whatever became of those before it.
    table = ["| step | what | ran on | found | bound | holds |", "|---|---|---|---|---|---|"]
    lines = [Line("packages", "", f"without {missing}" if missing else "all there", ", ".join(WANTED), not missing)]
    table.append(row_of("", lines[0]))
    for step in steps(out):
        print(f"== {step.name} (at most {step.limit} s)", flush=True)
        begin, log = time.monotonic(), out / f"{step.name}.log"
        # The folder of a sweep has a name that its command chooses.
        words = [path for word in step.arguments for path in (sorted(glob(word)) if "*" in word else [word])]
        failure = run_within([python, *words], step.limit, log)
        seconds = time.monotonic() - begin
        try:
            found = step.check(out, gpu)
        except (OSError, LookupError, TypeError, ValueError, ElementTree.ParseError) as error:
            found = []
            failure = failure or f"no result that can be read: {type(error).__name__}: {error}"
        if failure:
            print(log.read_text(errors="replace")[-2000:])
        outcome = Line(step.name, gpu, f"{failure or 'done'}, {seconds:.0f} s", f"{step.limit} s", not failure)
        for line in (outcome, *found):
            lines.append(line)
            table.append(row_of(f"[{step.name}]({log.name})", line))
        (out / "README.md").write_text("\n".join([head, *table, ""]))

    print((out / "README.md").read_text())
    return 0 if all(line.holds for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
