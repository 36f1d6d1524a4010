"""What a run records of the code that it came from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from engine import environment

CPU = torch.device("cpu")


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
