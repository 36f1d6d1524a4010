"""What tests of several packages need: the repository on the path, a small run, one thread (so that numbers repeat)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine.run_directory import RunDirectory  # noqa: E402 - the path comes first
from tests.trainer import WORDS, Starter, only_run  # noqa: E402

# The smallest training through the entry script: a tenth of a second of steps.
SMALL_RUN = (
    *("data=fake", "data.image_size=16", "model=resnet18", "model.width=4", "epochs=2"),
    *("progress=false", "log_every=3", "device=cpu"),
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def small_run() -> tuple[str, ...]:
    return SMALL_RUN


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., int]:
    """train.py in this process, on the smallest run, outputs under tmp_path; returns the exit code."""
    from tests.last_of_each import last_of_each
    from train import main

    def run(*words: str) -> int:
        return main(last_of_each(*SMALL_RUN, f"output_root={tmp_path}", *words))

    return run


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`python SCRIPT WORDS...` as a user types it."""

    def run(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, script, *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    server = Starter(tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def uninterrupted(starter: Starter, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunDirectory]:
    """The run of WORDS (or another `base`) and these, left alone; made once for each."""
    done: dict[tuple[object, ...], RunDirectory] = {}

    def get(*more: str, world_size: int = 1, base: tuple[str, ...] = WORDS) -> RunDirectory:
        words = (*base, *more)
        if (words, world_size) not in done:
            root: Path = tmp_path_factory.mktemp("uninterrupted")
            if world_size == 1:
                processes = [starter.start(*words, f"output_root={root}")]
            else:
                processes = starter.ranks(*words, f"output_root={root}", world_size=world_size)
            for process in processes:
                assert process.wait() == 0, process.output()
            done[words, world_size] = only_run(root)
        return done[words, world_size]

    return get


@pytest.fixture(scope="session")
def stopped_at_step_4(starter: Starter, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Puts a run of WORDS that a signal stopped at its fourth step into an output root; trained once."""
    root = tmp_path_factory.mktemp("stopped")
    code, output = starter.run(*WORDS, "checkpoint_every=2", f"output_root={root}", stop_after=4)
    assert code == 143, output

    def put(place: Path) -> None:
        shutil.copytree(root, place, dirs_exist_ok=True)

    return put
