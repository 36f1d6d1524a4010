"""The files that a project has beside its code say the same as the code."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dropblock

ROOT = Path(__file__).resolve().parent.parent


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "dropblock.__version__"
    citation = OmegaConf.load(ROOT / "CITATION.cff")
    assert citation.version == dropblock.__version__
    assert citation.references[0].authors[0]["family-names"] == "Ghiasi"


@pytest.mark.parametrize(
    "path", [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"], ids=lambda p: p.name
)
def test_what_services_read_is_yaml(path: Path) -> None:
    assert OmegaConf.create(path.read_text().replace("${{", "$ {{"))


def test_the_workflow_runs_every_python_that_the_package_supports() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    supported = {version for line in classifiers if (version := line.rpartition(" :: ")[2]).startswith("3.")}
    assert set(re.findall(r'"(3\.\d+)"', text)) == supported == {"3.11", "3.12", "3.13", "3.14"}


def test_a_release_has_its_entry_and_goes_to_pypi_from_the_files_that_were_tested() -> None:
    first = re.search(r"^## (\S+) ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == dropblock.__version__
    jobs = OmegaConf.create((ROOT / ".github/workflows/ci.yml").read_text().replace("${{", "$ {{")).jobs
    assert set(jobs.release.needs) == {"test", "package"}
    assert jobs.release.permissions == {"id-token": "write"}
    assert not any("secrets" in str(step) for step in jobs.release.steps)


def test_what_the_workflow_asks_of_the_library_alone_holds() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    (code,) = re.findall(r'-c "\n(.*?)"\n', text, re.DOTALL)
    exec(compile("\n".join(line.strip() for line in code.splitlines()), "ci.yml", "exec"), {})


def test_contributing_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"`((?:tests|docs|configs|scripts|dropblock|engine|models|data)/[\w./]*)`", text):
        assert (ROOT / name.removesuffix("/NAME")).exists(), name
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", text):
        assert re.search(rf"^{target}:", targets, re.MULTILINE), target


def requirements(name: str) -> dict[str, Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {canonicalize_name(found.name): found for found in map(Requirement, filter(None, lines))}


def test_every_package_that_is_needed_is_pinned() -> None:
    pinned, asked = requirements("requirements.txt"), requirements("requirements.in")
    assert all(str(package.specifier).startswith("==") for package in pinned.values())
    assert {name: package.specifier for name, package in asked.items()} == {
        name: pinned[name].specifier for name in asked
    }
    # What the installed ones need in turn; those of other platforms are not installed.
    for name in pinned:
        try:
            needed = [Requirement(line) for line in distribution(name).requires or []]
        except PackageNotFoundError:
            continue
        here = [package.name for package in needed if not package.marker or package.marker.evaluate({"extra": ""})]
        assert {canonicalize_name(package) for package in here} <= pinned.keys(), name


def test_the_packages_that_are_asked_for_are_those_of_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = {Requirement(line).name: Requirement(line).specifier for line in [*project["dependencies"], *extras]}
    for name, package in requirements("requirements.in").items():
        assert name in {*declared, "antlr4-python3-runtime", "cloudpickle"}, name
        version = str(package.specifier).removeprefix("==")
        assert name not in declared or version in declared[name], package
