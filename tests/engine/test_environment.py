"""What a run records of the code that it came from, and the systems that it runs on."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import environment

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def test_without_posix_the_framework_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows has no fcntl. `engine/__init__.py` runs before any other file of engine, in every program."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "engine" / "__init__.py"))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Linux or macOS" in said


@pytest.mark.parametrize("program", ["train.py", "evaluate.py", "scripts/entry.py"])
def test_a_program_imports_engine_before_what_needs_posix(program: str) -> None:
    lines = [node for node in ast.parse((ROOT / program).read_text()).body if isinstance(node, ast.ImportFrom)]
    packages = [str(node.module).partition(".")[0] for node in lines]
    assert next(name for name in packages if name in ("data", "engine", "experiment", "scripts")) == "engine"
    library = (path.read_text() for path in (ROOT / "dropblock").rglob("*.py"))
    assert not any("import fcntl" in text or "import resource" in text for text in library)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one committed file, which `environment` takes for their own."""
    code = tmp_path / "code.py"
    code.write_text("x = 1\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(environment, "__file__", str(code))
    return code


def test_local_changes_are_kept_as_a_patch(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = environment.environment(CPU)
    assert not found["dirty"]
    assert (found["device"], found["processor"]) == ("cpu", torch.backends.cpu.get_cpu_capability())
    assert environment.code_diff() == ""
    checkout.write_text("x = 2\n")
    assert environment.environment(CPU)["dirty"]
    patch = environment.code_diff()
    assert "-x = 1\n+x = 2\n" in patch
    checkout.write_text("x = 1\n")
    subprocess.run(["git", "apply"], cwd=checkout.parent, input=patch, text=True, check=True)
    assert checkout.read_text() == "x = 2\n"
    monkeypatch.setattr(environment, "LARGEST_DIFF", 10)
    assert "more characters" in environment.code_diff()
