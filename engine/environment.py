"""The code and the machine that a number came from."""

from __future__ import annotations

import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LARGEST_DIFF = 2_000_000  # characters of code.diff


def environment(device: torch.device) -> dict[str, Any]:
    """Record the commit, the versions and the machine of a run.

    Args:
        device: a GPU is recorded by its name, a CPU by the instruction set that torch uses.
    """
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": version("torchvision"),  # importing it for its number would take seconds
        "device": str(device),
        "processor": gpu or torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }


def code_diff() -> str:
    """Local changes to the commit that `environment` names, as a patch; '' where there are none or git is missing."""
    difference = _git("diff", "HEAD") or ""
    if len(difference) > LARGEST_DIFF:
        return f"{difference[:LARGEST_DIFF]}\n... {len(difference) - LARGEST_DIFF} more characters\n"
    return f"{difference}\n" if difference else ""


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        result = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.rstrip("\n")  # not the blanks that a patch may end with
