"""The closed forms against plain enumeration."""

import itertools

import pytest

from dropblock import effective_block, expected_drop, seed_rate
from tests.dropblock.dropblock_backends import covered_by


@pytest.mark.parametrize(
    ("size", "block"),
    [((7, 7), 7), ((14, 14), 7), ((5, 20), 7), ((6, 4), 4), ((3, 3), 1), ((1, 1), 7), ((9,), 4), ((4, 3, 6), 3)],
)
@pytest.mark.parametrize("keep_prob", [0.0, 0.5, 0.9, 1.0])
def test_expected_drop_equals_enumeration(size: tuple[int, ...], block: int, keep_prob: float) -> None:
    gamma = seed_rate(keep_prob, block, *size)
    seeds_over = covered_by(size, block).sum(1).tolist()
    kept = sum((1 - gamma) ** seeds for seeds in seeds_over) / len(seeds_over)
    assert expected_drop(keep_prob, block, *size) == pytest.approx(1 - kept, abs=1e-12)


def test_the_overlap_rule_of_two_small_cases_by_hand() -> None:
    # 3x3 map, 2x2 blocks: gamma = .1/4 * 9/4; corners have 1 covering seed, edges 2, the middle 4.
    gamma = 0.1 / 4 * 9 / 4
    kept = (4 * (1 - gamma) + 4 * (1 - gamma) ** 2 + (1 - gamma) ** 4) / 9
    assert seed_rate(0.9, 2, 3, 3) == pytest.approx(gamma)
    assert expected_drop(0.9, 2, 3, 3) == pytest.approx(1 - kept)
    # A block as large as the map: whole channels go, with probability 1 - keep_prob.
    assert seed_rate(0.9, 7, 7, 7) == pytest.approx(0.1)
    assert expected_drop(0.9, 9, 7, 7) == pytest.approx(0.1)


def test_figures_quoted_in_the_documentation() -> None:
    assert expected_drop(0.9, 7, 14, 14) == pytest.approx(0.0929, abs=5e-5)
    assert expected_drop(0.975, 7, 14, 14) == pytest.approx(0.0245, abs=5e-5)


def test_each_axis_is_clamped_on_its_own() -> None:
    assert effective_block(7, 5, 20) == (5, 7)
    assert seed_rate(0.9, 7, 5, 20) == pytest.approx(0.1 / 35 * 100 / (1 * 14))
    assert effective_block(3, 2, 5, 9) == (2, 3, 3)
    assert seed_rate(0.9, 3, 2, 5, 9) == pytest.approx(0.1 / 18 * 90 / (1 * 3 * 7))
    assert seed_rate(0.9, 7, 20) == pytest.approx(seed_rate(0.9, 7, 1, 20))


def test_gamma_never_exceeds_the_drop_asked_for() -> None:
    for height, width, block in itertools.product((1, 4, 7, 20), (1, 5, 14), (1, 2, 7)):
        assert 0 <= seed_rate(0.3, block, height, width) <= 0.7 + 1e-12


@pytest.mark.parametrize(
    "arguments", [(1.1, 7, 14, 14), (-0.1, 7, 14, 14), (float("nan"), 7, 14, 14), (0.9, 0, 14, 14), (0.9, 7, 0, 14)]
)
def test_impossible_values_are_refused(arguments: tuple[float, int, int, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        seed_rate(*arguments)
