"""House rules that no linter knows: who imports whom, and what never stands in the code."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("configs", "dropblock", "models", "data", "engine", "experiment", "scripts")
ENTRY_SCRIPTS = ("train.py", "evaluate.py")

# DESIGN, "Packages": a package may import these packages, or of a package this module alone.
MAY_IMPORT = {
    "configs": set[str](),
    "dropblock": set[str](),
    "models": {"dropblock"},
    "data": {"configs.schema"},
    "engine": {"configs.schema"},
    "experiment": {"configs", "engine", "models", "data", "dropblock"},
    "scripts": {"experiment", "engine", "models", "data", "dropblock", "configs"},
    "train.py": {"configs", "experiment", "engine"},
    "evaluate.py": {"configs", "experiment", "engine"},
}
OURS = {*PACKAGES, "train", "evaluate"}


def sources(place: str) -> list[Path]:
    path = ROOT / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for place in (*PACKAGES, *ENTRY_SCRIPTS)
    for path in sources(place)
}


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Everything in a file, parsed once."""
    return list(ast.walk(ast.parse(path.read_text())))


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports: at its top, inside a function, or for type checking only."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


@pytest.mark.parametrize("place", [*PACKAGES, *ENTRY_SCRIPTS])
def test_imports_go_one_way(place: str) -> None:
    for path in sources(place):
        for name in imported(path):
            package = name.partition(".")[0]
            allowed = package not in OURS - {place} or {package, name} & MAY_IMPORT[place]
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = {name: set(imported(path)) & MODULES.keys() - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_models_know_of_the_layers_only_their_sites() -> None:
    for path in sources("models"):
        for name in imported(path):
            assert not name.startswith("dropblock") or name in (
                "dropblock.sites",
                "dropblock.foreign",
                "dropblock.fractal",
            ), path


def test_the_library_imports_torch_and_nothing_else() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "dropblock", "triton"}
    of_trainers = {"lightning.py": {"lightning", "pytorch_lightning"}, "transformers.py": {"transformers"}}
    for path in sources("dropblock"):
        inside = path.parent.name == "integrations"
        foreign = {name.split(".")[0] for name in imported(path)} - allowed
        assert foreign <= (of_trainers.get(path.name, set()) if inside else set()), f"{path.name} imports {foreign}"
        # So `import dropblock` imports neither.
        assert inside or not any(name.startswith("dropblock.integrations") for name in imported(path)), path


def test_one_file_imports_hydra() -> None:
    found = {
        str(path.relative_to(ROOT))
        for place in (*PACKAGES, *ENTRY_SCRIPTS)
        for path in sources(place)
        if "hydra" in {name.split(".")[0] for name in imported(path)}
    }
    assert found == {"configs/compose.py"}


def test_the_entry_scripts_use_of_the_engine_only_what_needs_no_torch() -> None:
    for path in map(ROOT.joinpath, ENTRY_SCRIPTS):
        assert {name for name in imported(path) if name.startswith("engine")} <= {
            "engine.console",
            "engine.cpu",
            "engine.signals",
        }
        names = (alias.name for node in nodes(path) for alias in getattr(node, "names", []))
        assert not {"loop", "state", "tasks"} & set(names)


def test_the_engine_knows_no_plan() -> None:
    for path in sources("engine"):
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                assert "plan" not in {argument.arg for argument in arguments}, f"{path.name}:{node.lineno}"


FORBIDDEN = {
    r"weights_only\s*=\s*False": "unsafe loading",
    r"\bpickle\.loads?\(": "unsafe loading",
    r"\bdrop_prob\b": "the word is keep_prob",
    r"\b(TODO|FIXME|XXX)\b": "unfinished work",
}

# Calls that other libraries taught people are accepted there: p= and drop_prob= beside keep_prob=.
MAY_SAY_DROP_PROB = ("dropblock/arguments.py", "dropblock/functional.py", "dropblock/layers.py", "dropblock/compat/")


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_what_never_stands_in_the_code(pattern: str) -> None:
    for place in (*PACKAGES, *ENTRY_SCRIPTS):
        for path in sources(place):
            if "drop_prob" in pattern and str(path.relative_to(ROOT)).startswith(MAY_SAY_DROP_PROB):
                continue
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                assert not re.search(pattern, line), f"{path}:{number}: {FORBIDDEN[pattern]}"


# A docstring opens with an imperative or a noun phrase, as PyTorch's own, not with a clause that lacks its verb.
CLAUSE = re.compile(r"(What|Whether|Which|How|Where|That)\b")
# Nor is an argument described by a fragment: "seed: of the masks".
FRAGMENT = re.compile(r"^ +[\w, ]+: (of|as|in)\b", re.MULTILINE)


@pytest.mark.parametrize("place", [*PACKAGES, "examples", *ENTRY_SCRIPTS])
def test_no_docstring_opens_with_a_clause(place: str) -> None:
    for path in sources(place):
        for node in nodes(path):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node) or ""
                assert not CLAUSE.match(docstring), f"{path.relative_to(ROOT)}: {docstring.splitlines()[0]}"
                assert not (found := FRAGMENT.search(docstring)), f"{path.relative_to(ROOT)}: {found}"


def test_files_are_named_after_what_is_inside() -> None:
    for place in PACKAGES:
        for path in sources(place):
            assert path.stem not in ("util", "utils", "misc", "common", "helpers", "helper"), path
