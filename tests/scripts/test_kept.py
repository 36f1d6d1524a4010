"""What README and docs show of kept results: tables from report.csv and claims.csv, the figure of two sweeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import ttest_1samp

from configs.checking import load_yaml
from configs.plan import CONFIGS
from scripts.measured_values import between, p_after_five
from scripts.report import write_report
from scripts.reporting.kept import (
    NOT_RUN,
    STUDIES,
    difference,
    findings_table,
    number,
    results_table,
    rows_of,
    studies_table,
    tasks_table,
    value_text,
)
from scripts.reporting.reading import read_sweep
from scripts.reporting.regimes import REGIMES, SCHEDULES, difference_of, draw_regimes, name_of
from tests.scripts.made_up_sweep import note, plan_of, write_run


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """docs/results after the schedules were compared where a network overfits, three seeds each."""
    root = tmp_path_factory.mktemp("kept")
    keep(root, "schedules_overfit")
    return root / "results"


def keep(root: Path, name: str) -> None:
    for i, schedule in enumerate(("none", *SCHEDULES)):
        for seed in (1, 2, 3):
            plan = replace(plan_of(f"experiment={name}/{schedule}", "data=digits", "model=resnet18"), seed=seed)
            top1 = 73 + (0.4 + 0.1 * seed) * i
            folder = note(root / name, plan, write_run(root / name, plan, top1, epochs=5))
    write_report(read_sweep(folder), root / "results" / name, with_page=False)


def test_a_row_shows_its_mean_difference_and_verdict(results: Path) -> None:
    lines = results_table(results / "schedules_overfit").splitlines()
    late = next(line for line in lines if "late" in line)  # 73 + 0.6 x 4, less the last of the rise
    assert "| 75.20 ± 0.40 | +2.40 [+1.41, +3.39] |" in late
    assert results_table(results / "nothing") == NOT_RUN


def test_a_study_without_results_says_so(results: Path) -> None:
    of = {line.split("|")[1].strip(): line for line in studies_table(results).splitlines()[2:]}
    assert "3 of 5 seeds, [report]" in of["`+sweep=schedules_overfit`"]
    assert "not run yet" in of["`+sweep=schedules_underfit`"]
    assert tasks_table(results).count("not run yet") == 4
    assert findings_table(results, ["findings_small"]) == NOT_RUN


def test_findings_are_those_of_the_results_that_are_named(tmp_path: Path) -> None:
    head = "claim,cells,positive,n,difference,difference_low,difference_high,holm,verdict\n"
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "claims.csv").write_text(f"{head}the claim of {name},4,3,5,0.5,0.1,0.9,0.04,better\n")
    table = findings_table(tmp_path, ["one"], link="results/")
    assert (
        "| the claim of one | +0.50 [+0.10, +0.90] | 5 | 3 of 4 | 0.040 | better | [one](results/one/report.md) |"
        in table
    )
    assert "other" not in table


def test_the_figure_of_both_regimes_waits_for_both(results: Path) -> None:
    assert draw_regimes(results) is None
    keep(results.parent, "schedules_underfit")
    drawn = draw_regimes(results)
    assert drawn is not None
    with Image.open(drawn) as picture:
        assert picture.size[0] > 2 * picture.size[1] > 600
    for name in REGIMES:
        early = next(row for row in rows_of(results / name) if row["schedule"] == "early")
        assert float(early["difference"]) == pytest.approx(difference_of(early).mean, abs=1e-4)
        kept = load_yaml(CONFIGS / "experiment" / name / "early.yaml")["keep_prob"]
        assert name_of(early) == f"early, keep_prob {kept:g}\n5.8 % of group4 over the run"


def test_a_sentence_has_the_difference_of_a_claim(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    head = "claim,column,difference,difference_low,difference_high"
    lines = [head, "a beats b,groups,0.5,-1,2", "c beats d,schedule,1.25,1,1.5"]
    (tmp_path / "mine" / "claims.csv").write_text("\n".join(lines) + "\n")
    assert value_text("mine/claim/schedule", tmp_path) == "+1.25 [+1.00, +1.50]"


@pytest.mark.parametrize("name", STUDIES)
def test_pages_show_the_numbers_of_the_report(name: str) -> None:
    """They are formatted from report.csv, the report from the runs: rounding twice would give another last digit."""
    result = CONFIGS.parent / "docs" / "results" / name
    for row in rows_of(result):
        text = (result / "report.md").read_text()
        assert number(row["last_test_mean"], row["last_test_std"]) in text
        for column in ("difference", "loss_difference"):
            assert difference(row, column) in text


def test_two_rows_beside_each_other() -> None:
    """Their differences from the baseline, subtracted seed by seed, are the difference between them."""
    rows = [{"experiment": "a", "by_seed": "1:+3.0 2:+5.0"}, {"experiment": "b", "by_seed": "1:+1.0 2:+2.0"}]
    reach = 12.7062 * 0.5  # of Student's t with one degree of freedom, times the standard error
    assert between(rows, "a", "b") == f"+2.50 [{2.5 - reach:.2f}, +{2.5 + reach:.2f}]"
    assert between(rows, "b", "a") == f"-2.50 [{-2.5 - reach:.2f}, +{-2.5 + reach:.2f}]"


def test_a_p_value_as_it_stood_before_seeds_were_added() -> None:
    """Five seeds of two rows, adjusted for both; a sixth that would have changed everything enters nothing."""
    values = {"a": (1.0, 2.2, 0.8, 1.1, 0.3), "b": (0.1, -0.2, 0.3, 0.0, 0.4)}
    rows = [{"name": "baseline", "by_seed": ""}]
    for name, five in values.items():
        by_seed = " ".join(f"{seed}:{value:+.4f}" for seed, value in enumerate((*five, -50.0), start=1))
        rows.append({"name": name, "by_seed": by_seed})
    single = {name: ttest_1samp(five, 0.0).pvalue for name, five in values.items()}
    assert p_after_five(rows, "name", "a") == f"{2 * single['a']:.3f}"
    assert p_after_five(rows, "name", "b") == f"{single['b']:.3f}"
