"""`pip install .` gives the library alone: it imports torch and nothing else of what the framework needs."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
OF_THE_FRAMEWORK = ("torchvision", "timm", "hydra", "omegaconf", "sklearn", "matplotlib", "tensorboard", "tqdm", "PIL")

SMOKE = f"""
import importlib.resources, pathlib, sys
for name in {OF_THE_FRAMEWORK}:
    sys.modules[name] = None  # importing it raises
import dropblock, dropblock.compat.torchvision, dropblock.compat.timm, torch
assert pathlib.Path(dropblock.__file__).is_relative_to(sys.prefix), dropblock.__file__
assert (importlib.resources.files("dropblock") / "py.typed").is_file()
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), dropblock.DropBlock2d(block_size=3, keep_prob=0.5))
schedule = dropblock.KeepProbSchedule(net, 0.5)
schedule.set(1.0)
net(torch.randn(2, 3, 9, 9)).sum().backward()
assert 0 < int(net[1].kept_units) < int(net[1].seen_units) == 2 * 4 * 7 * 7
print("smoke passed")
"""


def command(*words: str, cwd: Path) -> str:
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(words, cwd=cwd, env=inherited, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_in_a_clean_environment_with_torch_alone(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    copy = tmp_path / "source"  # setuptools leaves a build folder beside the sources
    shutil.copytree(ROOT / "dropblock", copy / "dropblock", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command(*pip, "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), str(copy), cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    packed = sorted(name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name)
    assert packed == list(json.loads((ROOT / "tests" / "golden" / "library.json").read_text())["wheel"])
    venv.create(tmp_path / "clean", with_pip=False, symlinks=True)
    python = tmp_path / "clean" / "bin" / "python"
    command(*pip, "--python", str(python), "install", "--no-deps", "--no-index", "-q", str(wheel), cwd=tmp_path)
    (packages,) = (tmp_path / "clean").glob("lib/python*/site-packages")
    (packages / "torch.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")  # the torch that is here
    assert command(str(python), "-c", SMOKE, cwd=tmp_path).strip() == "smoke passed"
