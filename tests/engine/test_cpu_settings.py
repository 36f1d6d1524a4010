"""The settings of the process: made before torch is there, never against the user's own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("OMP_WAIT_POLICY", "GLIBC_TUNABLES")
GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another one")


def answer(code: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in OURS and not name.startswith("MALLOC_")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


@pytest.mark.parametrize(("ranks", "waiting"), [("2", "PASSIVE"), ("1", "None")])
def test_threads_wait_asleep_beside_other_ranks_unless_the_user_says_otherwise(ranks: str, waiting: str) -> None:
    code = "import os; from engine import cpu; cpu.configure_process(); print(os.environ.get('OMP_WAIT_POLICY'))"
    assert answer(code, LOCAL_WORLD_SIZE=ranks) == waiting
    assert answer(code, LOCAL_WORLD_SIZE=ranks, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"


@GLIBC
def test_the_allocator_is_set_unless_the_user_set_it() -> None:
    code = "from engine import cpu; print(cpu.configure_process())"
    assert answer(code) == "True"
    assert answer(code, MALLOC_TRIM_THRESHOLD_="131072") == "False"
    assert answer(code, GLIBC_TUNABLES="glibc.malloc.top_pad=131072") == "False"


@GLIBC
def test_memory_that_was_freed_is_not_paged_in_again() -> None:
    code = """
import resource
from engine import cpu
cpu.configure_process()
import numpy as np
def round():
    for size in (40_000_000, 90_000_000):
        np.full(size, 1, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
round()
print(round() - round())
"""
    assert abs(int(answer(code))) < 100  # 130 MB are 31,000 pages of 4 KB


@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_both_entry_scripts_make_the_settings_before_torch_is_imported(script: str) -> None:
    code = f"""
import sys
from engine import cpu
cpu.configure_process = lambda: print("settled", "torch" in sys.modules)
import {script}
{script}.main(["typo=1"])
"""
    assert answer(code) == "settled False"


def test_the_ranks_of_a_machine_share_its_cores() -> None:
    code = "from engine import cpu; print(cpu.cores_of_a_rank())"
    alone = int(answer(code))
    assert 1 <= alone <= (os.cpu_count() or 1)
    assert int(answer(code, LOCAL_WORLD_SIZE="2")) == max(1, alone // 2)
    assert int(answer(code, LOCAL_WORLD_SIZE="4096")) == 1
