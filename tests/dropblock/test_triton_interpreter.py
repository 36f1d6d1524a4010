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
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dropblock import triton_kernel as kernels

def compiled(kernel, types, **constants):
    names = kernel.arg_names
    signature = dict(zip(names, types)) | {name: "constexpr" for name in constants}
    attributes = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind[0] in "*i"}
    source = ASTSource(kernel, signature, {(names.index(k),): v for k, v in constants.items()}, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

shape = dict(H=14, W=14, BH=7, BW=7, CHANNELS_LAST=True, PITCH=2, MAPS=32, LINES=16, BYTES=2)
ptx = compiled(kernels._draw, ["*u8", "*i64", "*fp32", "*i64", "i32", "i32"], **shape)
assert "relaxed" in ptx and "acq_rel" not in ptx, "an atomic without a fence expected"
flat = dict(W=14, PITCH=3, EXACT=triton.language.float32, GROUPS=256)
ptx = compiled(kernels._apply_contiguous, ["*bf16", "*bf16", "*u8", "*i64", "i32"], **flat)
assert "ld.global.v4.b32" in ptx and "st.global.v4.b32" in ptx, "16-byte accesses expected"
last = dict(W=14, PITCH=2, EXACT=triton.language.float32, STRIPS=1, CHANNELS=256)
ptx = compiled(kernels._apply_channels_last, ["*bf16", "*bf16", "*u8", "*i64", "i32", "i32", "i32"], **last)
assert "ld.global.v4.b32" in ptx and "st.global.v4.b32" in ptx, "16-byte accesses expected"
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
