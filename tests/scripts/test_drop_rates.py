"""What the libraries drop: the closed forms, their simulation, and the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageColor

from scripts.bench.drop_rules import RULES, Rule
from scripts.drop_rates import ASKED, CHUNK, SIZES, draw, main, markdown, page, share_dropped

RESULTS = Path(__file__).parent.parent.parent / "docs" / "results"
# Percent, computed once more by another program.
EXPECTED = {
    "the paper's": (10.0, 9.3, 9.4, 9.5, 9.5, 10.0),
    "p / b², blocks may cross the border": (5.5, 7.4, 8.6, 9.0, 8.9, 5.6),
    "p / b⁴, blocks may cross the border": (0.1, 0.2, 0.2, 0.2, 1.0, 0.2),
    "corrected gamma, blocks may cross the border": (93.0, 20.9, 12.7, 10.9, 11.0, 76.3),
    "one block a channel": (9.5, 8.2, 4.2, 1.2, 2.4, 9.5),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_closed_forms_and_their_simulation(rule: Rule) -> None:
    closed = [100 * rule.closed_form(ASKED, block, side) for side, block in SIZES]
    assert closed == pytest.approx(EXPECTED[rule.name], abs=0.051)
    torch.manual_seed(1)
    for (side, block), share in zip(SIZES, closed, strict=True):
        if side < 32:  # 4.5 standard errors: false alarm 7e-6 a cell
            mean, error = share_dropped(lambda x, b=block: rule.simulate(ASKED, b, x), side, CHUNK // 8)  # type: ignore[misc]
            assert abs(mean - share) < 4.5 * max(error, 0.01)


def test_the_committed_results_are_of_these_rules() -> None:
    result = json.loads((RESULTS / "drop_rates.json").read_text())
    assert (RESULTS / "drop_rates.md").read_text() == page(result)
    for row, rule in zip(result["rows"], RULES, strict=True):
        assert (row["name"], row["libraries"], row["sources"]) == (rule.name, rule.libraries, list(rule.sources))
        assert row["closed_form"] == pytest.approx([100 * rule.closed_form(ASKED, b, side) for side, b in SIZES])
        for (mean, error), closed in zip(row["simulated"], row["closed_form"], strict=True):
            assert abs(mean - closed) < 4.5 * error
        for values in row["measured"].values():  # a library that runs here drops what its rule says
            for (mean, error), closed in zip(values, row["closed_form"], strict=True):
                assert abs(mean - closed) < 4.5 * error
    assert set(result["rows"][0]["measured"]) >= {"this project", "torchvision"}
    assert "93.0 %" in markdown(result)


def test_drawing_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--draw"]) == 2
    assert capsys.readouterr().err == "error: --draw draws what --out holds: name it\n"


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(json.loads((RESULTS / "drop_rates.json").read_text()), tmp_path / "rates.png")
    with Image.open(tmp_path / "rates.png") as picture:
        pixels = {colour: number for number, colour in picture.convert("RGB").getcolors(1 << 24)}
    most = pixels[ImageColor.getrgb("#1f5fb4")]  # the paper's rule: about 10 % in each of six panels
    least = pixels[ImageColor.getrgb("#a0703c")]  # a tenth of a percent, the shortest bar
    assert most > 2 * least > 0
