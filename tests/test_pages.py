"""README and docs: code runs, commands are valid, links lead somewhere, marked places are filled."""

from __future__ import annotations

import re
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from configs.command_line import check_arguments
from configs.groups import choices
from evaluate import read_request
from scripts import pages

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]


def text(page: str) -> str:
    return (ROOT / page).read_text()


def command_lines(program: str) -> dict[str, list[str]]:
    """Page -> its command lines of a program without placeholders; each line once, on the first page that has it."""
    seen: set[str] = set()
    found: dict[str, list[str]] = {}
    for page in PAGES:
        # EXTEND adds what its commands name; tests/examples carries it out.
        if (page, program) == ("docs/EXTEND.md", "train.py"):
            continue
        # In a diff the line to write begins with a plus.
        lines = re.findall(rf"^\s*\+?(?:\.venv/bin/)?python {re.escape(program)} +(.*)$", text(page), re.MULTILINE)
        lines += re.findall(rf"`python {re.escape(program)} +([^`\n]*)`", text(page))
        lines = [line for line in lines if line not in seen and not re.search(r"\.\.\.|GROUP|KEY=|NAME|RUN\b", line)]
        if lines:
            found[page] = lines
            seen.update(lines)
    return found


TRAINING, EVALUATION = command_lines("train.py"), command_lines("evaluate.py")


@pytest.mark.parametrize("page", TRAINING)
def test_training_commands_are_valid(page: str) -> None:
    for line in TRAINING[page]:
        check_arguments(shlex.split(line, comments=True))


@pytest.mark.parametrize("page", EVALUATION)
def test_evaluation_commands_are_valid(page: str) -> None:
    for line in EVALUATION[page]:
        read_request(shlex.split(line, comments=True))


@pytest.mark.parametrize("page", PAGES)
def test_no_shell_sees_brackets_or_braces(page: str) -> None:
    """A bracket outside quotes is a pattern to zsh, which refuses the line where no file fits; braces are lists."""
    program = r"(?:torchrun [^\n`]*|(?:\.venv/bin/)?python )(?:train|evaluate)\.py "
    lines = re.findall(rf"^\+?({program}.*)$", text(page), re.MULTILINE)
    lines += re.findall(rf"`((?:{program}|[\w.+]+=[\[{{])[^`\n]*)`", text(page))
    for line in lines:
        assert not re.search(r"[\[\]{}]", re.sub(r"'[^']*'|\"[^\"]*\"", "", line.partition(" #")[0])), line


def test_scripts_are_run_as_modules_that_exist() -> None:
    """`python -m scripts.NAME`; README's `python scripts/report.py` works as well."""
    named = {name for page in PAGES for name in re.findall(r"python -m scripts\.([\w.]+\w)", text(page))}
    assert {"pages", "keep_results", "benchmark"} <= named
    for name in named:
        assert (ROOT / "scripts" / f"{name.replace('.', '/')}.py").exists(), name
    by_path = {name for page in PAGES for name in re.findall(r"python scripts/(\w+)\.py", text(page))}
    assert by_path <= {"report"}


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text(page)):
        assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.name)
def test_marked_places_are_filled(page: Path) -> None:
    before = page.read_text()
    assert pages.filled(before) == before, "python -m scripts.pages fills them"
    assert len(pages.PLACE.findall(before)) == before.count("<!-- end -->")

    # The last digit of every place, changed, is found, and what comes back is what stood there.
    def changed(place: re.Match[str]) -> str:
        head, digit, tail = re.fullmatch(r"(.*?)(\d?)(\D*)", place["text"], re.DOTALL).groups()  # type: ignore[union-attr]
        return place[0].replace(place["text"], f"{head}{(int(digit) + 1) % 10 if digit else digit}{tail}")

    wrong = pages.PLACE.sub(changed, before)
    assert (wrong != before) == any(re.search(r"\d", place["text"]) for place in pages.PLACE.finditer(before))
    assert pages.filled(wrong) == before


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.name)
def test_no_line_of_prose_starts_with_a_comment(page: Path) -> None:
    """CommonMark takes such a line for HTML and shows what is behind the comment as it is."""
    assert not re.findall(r"^<!-- (?!end).*?-->[^\n]+$", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "name",
    ["nonsense:x", "value:table1/none/x", "table:none_such/report.md", "table:op_benchmark.md#No_such_heading"],
)
def test_a_place_that_nothing_fills_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(name)):
        pages.filled(f"a <!-- {name} -->b<!-- end -->")


def test_the_table_of_a_section_is_its_own() -> None:
    first, claims = (pages.table(f"findings_small/report.md{part}") for part in ("", "#What_was_asked"))
    assert first.splitlines()[2].startswith("| no regularizer | 6 |")
    assert claims.splitlines()[2].startswith("| block 4 beats block 1 | -0.39 ")
    assert len(claims.splitlines()) == 2 + 4


def test_readme_fits_a_screen_or_two() -> None:
    readme = text("README.md")
    assert len(readme.splitlines()) <= 110
    assert len(readme.split()) <= 900
    for block in re.findall(r"^```(?!text)[^\n]*\n(.*?)^```", readme, re.DOTALL | re.MULTILINE):
        assert len([line for line in block.splitlines() if line]) <= 8, block


def test_the_documentation_stays_short() -> None:
    """Words with a letter or digit on the pages of docs/, without code blocks, generated places and names of tests."""
    words = 0
    for page in (ROOT / "docs").glob("*.md"):
        own = re.sub(r"^```.*?^```", "", pages.PLACE.sub("", page.read_text()), flags=re.DOTALL | re.MULTILINE)
        words += len(re.findall(r"\S*\w\S*", re.sub(r"`test_\w+`", "", own)))
    assert words <= 14_000, f"{words} words: say it once, or shorter"


def test_the_example_runs_and_prints_what_it_says() -> None:
    example = r"```python\n(.*?)```\n\n`(print\(.*?\)\)\))`[^\n]*\n\n```text\n(.*?)```"
    (code, look, shown) = re.findall(example, text("README.md"), re.DOTALL)[0]
    printed, names = StringIO(), dict[str, object]()
    with redirect_stdout(printed):
        exec(compile(code + look, "README.md", "exec"), names)
    import torchvision

    keys = torchvision.models.resnet18().state_dict().keys()
    assert names["model"].state_dict().keys() == keys  # type: ignore[attr-defined]
    # Masks differ between machines of another number of threads or kind; the closed form and the counts do not.
    assert [line.split()[:3] for line in printed.getvalue().splitlines()] == [
        line.split()[:3] for line in shown.splitlines()
    ]


def test_every_regularizer_has_a_page_and_can_be_called_alone() -> None:
    names = set(choices("regularizer")) - {"none"}
    listed = text("docs/regularizers/README.md")
    for name in names:
        assert f"({name}.md)" in listed, name
        page = text(f"docs/regularizers/{name}.md")
        assert f"<!-- regularizer:{name} -->" in page, name
        for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(compile(code, f"{name}.md", "exec"), {})


def test_every_promise_names_a_test_that_exists() -> None:
    rows = [line for line in text("docs/RELIABILITY.md").splitlines() if line.startswith("| ")][1:]
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)\(", sources, re.MULTILINE))
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= defined, set(named) - defined


def test_the_places_of_the_architecture_exist() -> None:
    path, checked = "", 0
    for file, names in re.findall(r"`([\w/]+\.(?:py|yaml))?(?::([\w.]+))?`", text("docs/ARCHITECTURE.md")):
        path = file or path
        assert not file or (ROOT / path).exists(), path
        for name in names.split(".") if names else ():
            defined = re.search(rf"^ *(?:def|class) {name}\b|^{name}\b.* = ", text(path), re.MULTILINE)
            assert defined, f"{path}: {name}"
            checked += 1
    assert checked > 30
