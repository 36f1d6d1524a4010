"""requirements.txt from requirements.in, every package that those need in turn pinned as well: make pins

Takes the versions that are installed beside the Python that runs it, so the target first makes a clean environment.
What a package needs on some platforms only keeps that condition: a machine without Linux gets no NVIDIA libraries.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = ("platform_system", "sys_platform", "platform_machine")


def asked_for(path: Path) -> list[Requirement]:
    """The requirements that a file lists."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def closure(asked: list[Requirement]) -> dict[str, tuple[str, str]]:
    """Package -> (installed version, condition on the platform or ""), of those asked for and all that they need.

    Raises:
        ValueError: if one that is needed here is not installed.
    """
    found: dict[str, tuple[str, str]] = {}
    seen: set[tuple[str, frozenset[str], str]] = set()
    waiting = [(requirement, "") for requirement in asked]
    while waiting:
        requirement, condition = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras), condition)
        if key in seen:
            continue
        seen.add(key)
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            raise ValueError(f"{name} is not installed beside {sys.executable}") from None
        known = found.get(name, ("", condition))[1]
        found[name] = (installed.version, condition if known == condition else "")
        for line in installed.requires or []:
            needed = Requirement(line)
            extras = [{"extra": extra} for extra in ("", *requirement.extras)]
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
                waiting.append((needed, condition or platform_condition(needed)))
    return found


def platform_condition(requirement: Requirement) -> str:
    """The condition under which a package is needed, where it is one on the platform alone."""
    marker = str(requirement.marker or "")
    parts = [part.strip("() ") for part in marker.split(" and ")]
    if not any(variable in marker for variable in PLATFORM) or " or " in marker:
        return ""
    return " and ".join(part for part in parts if part.startswith(PLATFORM) and " == " in part)


def text(packages: dict[str, tuple[str, str]]) -> str:
    """The contents of requirements.txt."""
    head = "# Every package of the environment, exactly: made from requirements.in by `make pins`.\n"
    lines = [
        f"{name}=={version.partition('+')[0]}{'; ' + condition if condition else ''}"
        for name, (version, condition) in sorted(packages.items())
    ]
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "requirements.txt").write_text(text(closure(asked_for(ROOT / "requirements.in"))))
