"""Defaults never change; names that stand in two packages are the same; every key says what it means."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path

import pytest

from configs import schema
from configs.checking import UserError
from configs.compose import plan_of
from configs.plan import Plan, Runtime
from configs.schema import (
    HEADLINES,
    AugmentConfig,
    Config,
    DataConfig,
    LayerConfig,
    ModelConfig,
    RecipeConfig,
    RegularizerConfig,
)

DEFAULTS = Path(__file__).with_name("defaults.json")
DECLARED = (ModelConfig, DataConfig, AugmentConfig, RecipeConfig, LayerConfig, RegularizerConfig, Runtime)


def test_defaults_never_change() -> None:
    """Hashes are over what differs from them: another default would rename run directories. New fields may be added."""
    for name, values in json.loads(DEFAULTS.read_text()).items():
        now = asdict(getattr(schema, name)())
        assert {key: now[key] for key in values} == values, name


def test_the_plan_has_the_defaults_too() -> None:
    plan = Plan(ModelConfig("resnet18"), DataConfig("fake"), RecipeConfig("quick"), ["none"])
    assert (plan.layer, plan.companions, plan.methods, plan.revision) == (None, [], [], 1)
    assert {key: plan.values()[key] for key in ("cutout", "autoaugment", "label_smoothing")} == {
        "cutout": 0,
        "autoaugment": None,
        "label_smoothing": 0.0,
    }


def test_a_field_that_is_new_renames_no_run() -> None:
    plan = plan_of("data=fake")
    written_before = {key: value for key, value in asdict(plan.recipe).items() if key != "warmup_from"}
    assert (
        replace(plan, recipe=RecipeConfig(**{**written_before, "augment": plan.recipe.augment})).hash() == plan.hash()
    )
    assert replace(plan, recipe=replace(plan.recipe, warmup_from=0.1)).hash() != plan.hash()


def test_every_key_says_what_it_means() -> None:
    for part in DECLARED:
        for f in fields(part):
            if not is_dataclass(f.default_factory) and f.name not in ("data_root", "download"):
                assert f.metadata.get("meaning"), (part.__name__, f.name)


def test_names_are_those_of_the_packages_that_mean_them() -> None:
    import dropblock
    from data import decode
    from engine import optim
    from engine.precision import PRECISIONS
    from engine.tasks import TASKS

    assert set(schema.SCHEDULES) == set(dropblock.SCHEDULES)
    reads = {name: {f"schedule_{limit}" for limit in of.reads} for name, of in dropblock.SCHEDULES.items() if of.reads}
    assert {name: {limit} for name, limit in schema.SCHEDULE_LIMITS.items()} == reads
    assert schema.DEPTH_RULES == dropblock.schedule.DEPTH_RULES
    assert schema.LR_SCHEDULES == optim.LR_SCHEDULES
    assert set(schema.OPTIMIZERS) == set(optim.OPTIMIZERS)
    assert set(schema.PRECISIONS) == set(PRECISIONS)
    assert set(schema.TASKS) >= set(TASKS)
    assert schema.DECODERS == decode.DECODERS


@pytest.mark.parametrize("knob", [*schema.LAYER_KNOBS, *schema.RECIPE_KNOBS, "label_smoothing"])
def test_knobs_are_null_unless_given(knob: str) -> None:
    assert getattr(Config(), knob) is None


def test_a_headline_of_one_s_own_is_another_run() -> None:
    """It changes best.pt; the task's own, named, does not."""
    plan = plan_of("data=fake")
    assert plan_of("data=fake", "headline=top1").identity() == plan.identity()
    assert plan_of("data=fake", "headline=macro_accuracy").hash() != plan.hash()
    for data, name in (("fake", "miou"), ("digit_masks", "macro_accuracy"), ("fake", "macro_acuracy")):
        with pytest.raises(UserError, match=f"headline={name}"):
            plan_of(f"data={data}", f"headline={name}")


def test_every_headline_is_a_metric_of_its_task() -> None:
    from engine.tasks import TASKS  # imports torch

    for task, names in HEADLINES.items():
        of = TASKS[task](("a", "b"))
        assert names[0] == of.headline
        assert set(names) <= set(of.metrics)
