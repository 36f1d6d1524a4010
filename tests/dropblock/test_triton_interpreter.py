"""The Triton kernels without a GPU: the operator's tests in Triton's interpreter, and compilation for Hopper."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dropblock.operator import DENSE, gpu_backend

pytest.importorskip("triton")
HERE = Path(__file__).parent
ROOT = HERE.parents[1]

COMPILE = """
import triton
from dropblock import triton_kernel as kernels
from scripts.bench.kernels import compiled, counts, draw_constants

ptx = compiled(kernels._draw, 90, **draw_constants(14, 14)).asm["ptx"]
assert "relaxed" in ptx and "acq_rel" not in ptx, "an atomic without a fence expected"
for size in ((14, 14), (56, 56)):
    found = counts(kernels._draw, 86, **draw_constants(*size))
    assert found["stack"] == found["double_loop"] == 0 < found["double"] < 30 and found["loop"] > 100, found
# Triton makes a constant of every size that is 1: a single map, a single channel.
compiled(kernels._draw, 90, **draw_constants(14, 14), maps=1, channels=1)
flat = dict(W=14, PITCH=3, EXACT=triton.language.float32, GROUPS=256)
ptx = compiled(kernels._apply_contiguous, 90, **flat).asm["ptx"]
assert "ld.global.v4.b32" in ptx and "st.global.v4.b32" in ptx, "16-byte accesses expected"
compiled(kernels._apply_contiguous, 90, **flat, units=1)
last = dict(W=14, PITCH=2, EXACT=triton.language.float32, STRIPS=1, CHANNELS=256)
ptx = compiled(kernels._apply_channels_last, 90, **last).asm["ptx"]
assert "ld.global.v4.b32" in ptx and "st.global.v4.b32" in ptx, "16-byte accesses expected"
compiled(kernels._apply_channels_last, 90, **last, units=1)
"""


def in_a_fresh_process(*command: str, **environment: str) -> None:
    """Triton reads TRITON_INTERPRET when it is imported, so neither mode can share this process."""
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


@pytest.mark.parametrize(
    "chosen",
    ["exact or backend", pytest.param("triton", marks=pytest.mark.slow)],
    ids=["exact values and kept masks", "all, the joint distribution too"],
)
def test_the_kernels_in_the_interpreter(chosen: str) -> None:
    tests = [
        HERE / "test_joint_distribution.py",
        HERE / "test_operator_values.py",
        ROOT / "tests/golden/test_library.py",
    ]
    options = ("-k", f"triton and ({chosen})", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning")
    in_a_fresh_process("-m", "pytest", *map(str, tests), *options, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


def test_the_kernels_compile_for_hopper(tmp_path: Path) -> None:
    in_a_fresh_process("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path))


def test_where_triton_cannot_compile_there_is_one_warning_and_the_dense_backend() -> None:
    """On a machine without a GPU Triton imports, and fails at the first kernel: no driver."""
    if torch.cuda.is_available():
        pytest.skip("Triton can compile here")
    gpu_backend.cache_clear()
    with pytest.warns(UserWarning, match="runs without its Triton kernels on cpu") as caught:
        backends = [gpu_backend(torch.device("cpu")) for _ in range(3)]
    assert len(caught) == 1
    assert backends == [DENSE] * 3
    gpu_backend.cache_clear()
