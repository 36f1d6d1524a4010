"""One starter for all tests of this folder, and the run that nothing happened to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.records import RunFolder
from tests.reliability.trainer import WORDS, Starter, only_run


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    server = Starter(tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def uninterrupted(starter: Starter, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """The run of WORDS (or another `base`) and these, left alone; made once for each."""
    done: dict[tuple[object, ...], RunFolder] = {}

    def get(*more: str, world_size: int = 1, base: tuple[str, ...] = WORDS) -> RunFolder:
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
