"""docs/results/values.json, and the figure of two sweeps, from the CSV files of kept reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import ttest_1samp

from scripts.pages import RESULTS
from scripts.reporting.regimes import REGIMES, SCHEDULES, draw_regimes, name_of
from scripts.values import VALUES, benchmark_values, differences_by_seed, rows_of, values_of, values_of_sweep

COLUMNS = (
    "experiment,n,last_test_mean,last_test_std,difference,difference_low,difference_high,holm,verdict,smallest,"
    "by_seed,loss_difference,loss_difference_low,loss_difference_high,loss_difference_p,gap_mean,gap_std"
)


def keep(results: Path, name: str, *rows: str) -> Path:
    """A kept report.csv of these rows."""
    (results / name).mkdir()
    (results / name / "report.csv").write_text("\n".join((COLUMNS, *rows)) + "\n")
    return results / name


def test_the_values_are_those_of_the_committed_results() -> None:
    assert json.loads((RESULTS / VALUES).read_text()) == values_of(RESULTS), "python -m scripts.pages computes them"


def test_a_changed_digit_of_a_result_changes_a_value(tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "table1_small", tmp_path / "table1_small")
    report = tmp_path / "table1_small" / "report.csv"
    before = values_of_sweep(report.parent)
    report.write_text(report.read_text().replace("75.56", "75.57", 1))
    after = values_of_sweep(report.parent)
    assert [name for name in before if before[name] != after[name]] == ["autoaugment"]
    assert (before["autoaugment"]["last"], after["autoaugment"]["last"]) == ("75.56 ± 0.16", "75.57 ± 0.16")


def test_the_values_of_a_row(tmp_path: Path) -> None:
    result = keep(
        tmp_path,
        "mine",
        "a/none,3,73,0.5,,,,,,,,,,,,,",
        "a/late,3,75.2,0.4,2.2,1.41,2.99,0.0004,better,0.9,1:+2.0 2:+2.2 3:+2.4,-0.1,-0.15,-0.05,0.02,11.5,0.25",
        "a/early,1,73,,-0.001,,,,not resolved,,1:-0.0010,,,,,,",
    )
    assert values_of_sweep(result) == {
        "none": {"n": "3", "last": "73.00 ± 0.50"},
        "late": {
            "n": "3",
            "last": "75.20 ± 0.40",
            "difference": "+2.20 [+1.41, +2.99]",
            "p": "< .001",
            "verdict": "better",
            "smallest": "0.90",
            "gap": "11.50 ± 0.25",
            "loss_difference": "-0.100 [-0.150, -0.050]",
            "loss_p": "0.020",
        },
        "early": {"n": "1", "last": "73.00", "difference": "+0.00", "verdict": "not resolved"},
        "largest_loss_p": "0.020",
    }


def test_rows_of_a_grid_have_no_values_of_their_own(tmp_path: Path) -> None:
    rows = [f"a/{name},3,70,0.5,,,,,,,,,,,,," for name in ("none", "grid", "grid")]
    assert values_of_sweep(keep(tmp_path, "mine", *rows)).keys() == {"none"}


def test_two_rows_beside_each_other(tmp_path: Path) -> None:
    """Their differences from the baseline, subtracted seed by seed, are the difference between them."""
    result = keep(
        tmp_path,
        "schedules_overfit",
        "a/linear,2,,,4,,,,,,1:+3.0 2:+5.0,,,,,,",
        "a/constant,2,,,1.5,,,,,,1:+1.0 2:+2.0,,,,,,",
    )
    reach = 12.7062 * 0.5  # of Student's t with one degree of freedom, times the standard error
    shown = values_of_sweep(result)["linear"]["less_constant"]
    assert shown == f"+2.50 [{2.5 - reach:.2f}, +{2.5 + reach:.2f}]"


def test_a_value_as_it_stood_before_seeds_were_added(tmp_path: Path) -> None:
    """Five seeds of two rows, adjusted for both; a sixth that would have changed everything enters nothing."""
    values = {"a": (1.0, 2.2, 0.8, 1.1, 0.3), "b": (0.1, -0.2, 0.3, 0.0, 0.4)}
    rows = ["x/baseline,6,,,,,,,,,,,,,,,"]
    for name, five in values.items():
        by_seed = " ".join(f"{seed}:{value:+.4f}" for seed, value in enumerate((*five, -50.0), start=1))
        rows.append(f"x/{name},6,,,1,,,,,,{by_seed},,,,,,")
    found = values_of_sweep(keep(tmp_path, "findings_small", *rows))
    single = {name: ttest_1samp(five, 0.0).pvalue for name, five in values.items()}
    assert found["a"]["first_p"] == f"{2 * single['a']:.3f}"
    assert found["b"]["first_p"] == f"{single['b']:.3f}"
    assert found["a"]["first_difference"].startswith("+1.08 [")
    assert "first_p" not in found["baseline"]


def test_claims_and_drop_at_inference(tmp_path: Path) -> None:
    result = keep(tmp_path, "mine", "a/none,2,,,,,,,,,,,,,,,")
    head = "column,better,difference,difference_low,difference_high,holm"
    (result / "claims.csv").write_text(f"{head}\nschedule,linear,1.25,1,1.5,0.04\nexperiment,a/late,0.5,-1,2,\n")
    assert values_of_sweep(result)["claims"] == {
        "schedule:linear": {"difference": "+1.25 [+1.00, +1.50]", "p": "0.040"},
        "experiment:late": {"difference": "+0.50 [-1.00, +2.00]"},
    }
    lines = [f"a/{name},{seed},7,{keep_prob},{top1 + seed}" for name, top1 in (("none", 40), ("b7", 60))
             for seed in (1, 2) for keep_prob in (1.0, 0.7)]  # fmt: skip
    (result / "under_drop.csv").write_text("experiment,seed,block_size,keep_prob,top1\n" + "\n".join(lines) + "\n")
    found = values_of_sweep(result)["under_drop"]
    assert found["b7"]["block7"] == {"mean": "61.50 %", "less_none": "+20.00"}
    assert found["none"]["block7"]["less_b7"] == "-20.00"


def test_the_cores_that_a_gpu_needs(tmp_path: Path) -> None:
    for file in RESULTS.glob("*.json"):
        shutil.copy(file, tmp_path)
    loader = json.loads((tmp_path / "loader_photographs.json").read_text())
    for row in loader["rows"]:
        row["processor_ms"]["median"] = 1.0  # 2.6 cores for 2,600 images a second
    (tmp_path / "loader_photographs.json").write_text(json.dumps(loader))
    row = benchmark_values(tmp_path)["loader_photographs"]["decoder_pillow"]
    assert (row["cores_for_1"], row["cores_for_8"]) == ("3", "21")


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/report.csv")))
def test_the_report_shows_the_numbers_of_its_csv(name: str) -> None:
    """Pages show tables of report.md and values from report.csv: both round alike."""
    text = (RESULTS / name / "report.md").read_text()
    for row in values_of_sweep(RESULTS / name).values():
        assert all(row[key] in text for key in ("last", "difference", "loss_difference") if key in row)


def test_the_figure_of_both_regimes_waits_for_both(tmp_path: Path) -> None:
    head = "experiment,schedule,keep_prob,n,by_seed,dropped,difference"
    for name in REGIMES:
        assert draw_regimes(tmp_path) is None
        (tmp_path / name).mkdir()
        rows = [f"{name}/{schedule},{schedule},0.97,3,1:+1.0 2:+2.0 3:+3.0,group3:0.014 group4:0.058,2.0"
                for schedule in SCHEDULES]  # fmt: skip
        (tmp_path / name / "report.csv").write_text("\n".join([head, f"{name}/none,,,3,,,", *rows]) + "\n")
    drawn = draw_regimes(tmp_path)
    assert drawn is not None
    with Image.open(drawn) as picture:
        assert picture.size[0] > 2 * picture.size[1] > 600
    early = next(row for row in rows_of(tmp_path / "schedules_overfit" / "report.csv") if row["schedule"] == "early")
    assert differences_by_seed(early) == {1: 1.0, 2: 2.0, 3: 3.0}
    assert name_of(early) == "early, keep_prob 0.97\n5.8 % of group4 over the run"
