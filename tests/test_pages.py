"""README and docs: code runs, commands are valid, links lead somewhere, marked places are filled."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from configs.command_line import check_arguments
from evaluate import read_request
from scripts import pages
from scripts.bench import op, step

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]


def text(page: str) -> str:
    return (ROOT / page).read_text()


def command_lines(program: str) -> list[tuple[str, str]]:
    pattern = rf"^\s*(?:\.venv/bin/)?python {re.escape(program)} +(.*)$"
    found = [(page, line) for page in PAGES for line in re.findall(pattern, text(page), re.MULTILINE)]
    inline = [
        (page, line) for page in PAGES for line in re.findall(rf"`python {re.escape(program)} +([^`\n]*)`", text(page))
    ]
    return [(page, line) for page, line in found + inline if not re.search(r"\.\.\.|GROUP|KEY=|NAME|RUN\b", line)]


@pytest.mark.parametrize(("page", "line"), command_lines("train.py"))
def test_training_commands_are_valid(page: str, line: str) -> None:
    if page != "docs/EXTEND.md":  # which adds what its commands name; tests/examples carries it out
        check_arguments(shlex.split(line, comments=True))


@pytest.mark.parametrize(("page", "line"), command_lines("evaluate.py"))
def test_evaluation_commands_are_valid(page: str, line: str) -> None:
    read_request(shlex.split(line, comments=True))


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text(page)):
        assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.name)
def test_marked_places_are_filled(page: Path) -> None:
    before = page.read_text()
    assert pages.filled(before, page) == before, "python scripts/pages.py fills them"


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.name)
def test_a_changed_digit_in_a_place_is_found(page: Path) -> None:
    """In every place of every page at once, its last digit; what comes back is what stood there."""
    before = page.read_text()

    def changed(place: re.Match[str]) -> str:
        head, digit, tail = re.fullmatch(r"(.*?)(\d?)(\D*)", place["text"], re.DOTALL).groups()  # type: ignore[union-attr]
        return place[0].replace(place["text"], f"{head}{(int(digit) + 1) % 10 if digit else digit}{tail}")

    wrong = pages.PLACE.sub(changed, before)
    assert (wrong != before) == any(re.search(r"\d", place["text"]) for place in pages.PLACE.finditer(before))
    assert pages.filled(wrong, page) == before


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.name)
def test_no_line_of_prose_starts_with_a_comment(page: Path) -> None:
    """CommonMark takes such a line for HTML and shows what is behind the comment as it is."""
    assert not re.findall(r"^<!-- (?!end).*?-->[^\n]+$", page.read_text(), re.MULTILINE)


def test_a_place_that_nothing_fills_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing fills the place 'nonsense'"):
        pages.filled("a <!-- nonsense -->b<!-- end -->", ROOT / "README.md")
    assert pages.filled("<!-- results:none_such -->\n<!-- end -->", ROOT / "README.md").splitlines()[1] == pages.NOT_RUN


def test_the_example_runs_and_prints_what_it_says() -> None:
    (code, shown) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text("README.md"), re.DOTALL)[0]
    printed, names = StringIO(), dict[str, object]()
    with redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), names)
    import torchvision

    keys = torchvision.models.resnet18(num_classes=10).state_dict().keys()
    assert names["model"].state_dict().keys() == keys  # type: ignore[attr-defined]
    # Masks differ between machines of another number of threads or kind; the closed form and the counts do not.
    assert [line.split()[:3] for line in printed.getvalue().splitlines()] == [
        line.split()[:3] for line in shown.splitlines()
    ]


def test_the_table_of_every_benchmark_is_the_measured_one() -> None:
    results = ROOT / "docs" / "results"
    measured = json.loads((results / "op_benchmark.json").read_text())
    assert op.markdown(measured) == text("docs/results/op_benchmark.md").strip()
    for name in ("float32", "bfloat16", "detector"):
        measured = json.loads((results / f"step_{name}.json").read_text())
        assert step.markdown(measured) == text(f"docs/results/step_{name}.md").strip()


def test_every_promise_names_a_test_that_exists() -> None:
    rows = [line for line in text("docs/RELIABILITY.md").splitlines() if line.startswith("| ")][1:]
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)\(", sources, re.MULTILINE))
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= defined, set(named) - defined
