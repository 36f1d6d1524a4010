"""A configuration becomes one complete plan, or one line that says why not."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any

import pytest
from omegaconf import OmegaConf

from configs import groups
from configs.checking import UserError, check, nearest
from configs.groups import CONFIGS, choices, declared
from configs.plan import Plan, changed_since, plan_from
from configs.resolve import resolve
from configs.schema import Config, LayerConfig, MethodConfig


def compose(*regularizers: str, data: str = "digits", recipe: str = "quick", **knobs: Any) -> Config:
    """What Hydra would compose, without Hydra."""
    config: dict[str, Any] = {"regularizer": {}, **knobs}
    for name in regularizers:
        config["regularizer"][name] = OmegaConf.load(CONFIGS / "regularizer" / f"{name}.yaml")
    for group, name in (("model", "resnet50"), ("data", data), ("recipe", recipe)):
        loaded = OmegaConf.load(CONFIGS / group / f"{name}.yaml")
        config[group] = {key: value for key, value in loaded.items() if key != "defaults"}
    return check(OmegaConf.create(config), Config)


def plan_of(*regularizers: str, **more: Any) -> Plan:
    return resolve(compose(*regularizers, **more))[0]


def test_null_means_as_the_regularizer_the_data_and_the_recipe_say() -> None:
    plan = plan_of("dropblock")
    assert plan.layer is not None
    assert (plan.layer.block_size, plan.layer.keep_prob, plan.layer.groups) == (7, 0.9, [3, 4])
    assert (plan.model.width, plan.model.stem) == (16, "small")
    assert plan_of("dropblock", data="imagenet", recipe="imagenet_270").model.stem == "imagenet"


def test_a_knob_wins() -> None:
    plan = plan_of("dropblock", block_size=3, keep_prob=0.8, groups=[4], skip=False, schedule="constant", lr=0.2)
    assert plan.layer is not None
    changed = {key: value for key, value in asdict(plan.layer).items() if value != getattr(LayerConfig(), key)}
    assert changed == {
        "name": "dropblock",
        "keep_prob": 0.8,
        "block_size": 3,
        "groups": [4],
        "skip": False,
        "schedule": "constant",
        "group_divisor": 4.0,
    }
    assert plan.recipe.lr == 0.2


@pytest.mark.parametrize("value", [0.85, 0.9])  # also its own default, which was written all the same
def test_two_values_of_one_knob_are_refused(value: float) -> None:
    given = {"dropblock": {"kind": "layer", "given": {"keep_prob": value}}}
    with pytest.raises(UserError, match=rf"regularizer\.dropblock\.keep_prob={value}: keep_prob=0\.8"):
        resolve(replace(compose("dropblock", keep_prob=0.8), regularizer=given))


@pytest.mark.parametrize(
    ("name", "option"), [("mixup", "alpha"), ("cutout", "cutout"), ("label_smoothing", "label_smoothing")]
)
def test_null_given_to_an_option_is_what_its_file_says(name: str, option: str) -> None:
    plain = compose(name)
    given = resolve(replace(plain, regularizer={name: {"kind": "", "given": {option: None}}}))[0]
    assert given.methods[0].options[option] == declared(name).options[option]["default"]


def test_a_knob_that_does_nothing_is_refused_alone_and_reported_in_a_grid() -> None:
    with pytest.raises(UserError, match="block_size=3 does not apply to regularizer=none"):
        plan_of("none", block_size=3)
    plan, notes = resolve(compose("none", block_size=3), grid=True)
    assert notes == ["block_size=3 does not apply to regularizer=none"]
    assert plan.run_dir() == plan_of("none").run_dir()


def test_regularizers_compose_unless_they_fill_the_same_slot() -> None:
    plan = plan_of("dropblock", "label_smoothing")
    assert plan.layer is not None
    assert plan.values()["label_smoothing"] == 0.1
    with pytest.raises(UserError, match="stands alone"):
        plan_of("none", "dropblock")


def test_a_second_layer_comes_along_as_it_is() -> None:
    plan = plan_of("dropblock", "drop_path", block_size=3)
    assert plan.layer is not None
    assert (plan.layer.name, plan.layer.block_size) == ("dropblock", 3)
    assert [(layer.name, layer.keep_prob) for layer in plan.companions] == [("drop_path", 0.9)]
    assert plan_from(plan.values()) == plan


def test_the_order_typed_decides_nothing() -> None:
    plan = plan_of("label_smoothing", "cutout", "dropblock", "autoaugment")
    assert plan == plan_of("autoaugment", "dropblock", "label_smoothing", "cutout")
    assert plan.regularizer == ["dropblock", "autoaugment", "cutout", "label_smoothing"]
    assert [method.kind for method in plan.methods] == ["image", "image", "loss"]
    kept = {**plan.values(), "regularizer": ["label_smoothing", "cutout", "dropblock", "autoaugment"]}
    assert plan_from(kept).run_dir() == plan.run_dir()


def test_regularizers_that_exclude_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(groups.NODES["regularizer"], "other_loss", {"kind": "loss"})
    monkeypatch.setitem(groups.NODES["regularizer"], "other_image", {"kind": "image", "excludes": ["cutout"]})
    for pair in (("label_smoothing", "other_loss"), ("cutout", "other_image")):
        chosen = {name: {"kind": "image"} for name in pair}
        for order in (chosen, dict(reversed(chosen.items()))):
            with pytest.raises(UserError, match=r"regularizer=\[.*exclude"):
                resolve(replace(compose("none"), regularizer=order))


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("cutout", {"cutout": 3}, "regularizer.cutout.cutout=3"),
        ("cutout", {"cutout": "wide"}, "regularizer.cutout.cutout=wide"),
        ("autoaugment", {"autoaugment": "mnist"}, "regularizer.autoaugment.autoaugment=mnist"),
        ("label_smoothing", {"label_smoothing": float("nan")}, "label_smoothing=nan"),
        ("dropblock", {"keep_prob": "half"}, "regularizer.dropblock.keep_prob=half"),
    ],
)
def test_a_value_that_a_regularizer_does_not_take(name: str, options: dict[str, Any], key: str) -> None:
    config = compose(name)
    with pytest.raises(UserError, match=re.escape(key)):
        resolve(replace(config, regularizer={name: {"kind": "", "given": options}}))


def test_a_change_that_moves_the_numbers_of_some_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    before, other = plan_of("dropblock"), plan_of("none")
    change = (2, "masks of blocks with an even side", lambda plan: plan.layer is not None)
    monkeypatch.setattr("configs.plan.REVISIONS", [change])
    after = plan_of("dropblock")
    assert (after.revision, plan_of("none")) == (2, other)
    assert after.run_dir() != before.run_dir()
    assert plan_from(after.values()) == after
    # What was trained before keeps its directory, and is known to be of another revision.
    kept = {key: value for key, value in before.values().items() if key != "revision"}
    assert plan_from(kept).run_dir() == before.run_dir()
    assert changed_since(plan_from(kept)) == ["masks of blocks with an even side"]
    assert changed_since(after) == changed_since(other) == []


def test_a_shorter_run_keeps_the_shape_of_the_learning_rate() -> None:
    recipe = plan_of("none", data="imagenet", recipe="imagenet_270", epochs=27).recipe
    assert recipe.milestones == pytest.approx([12.5, 20.0, 25.0])
    assert recipe.warmup_epochs == pytest.approx(0.5)
    config = compose("none", data="imagenet", recipe="imagenet_270")
    assert resolve(replace(config, recipe=replace(config.recipe, epochs=27)))[0].recipe == recipe  # recipe.epochs=27


def test_epochs_that_the_user_wrote_are_meant_as_written() -> None:
    config = compose("none", data="imagenet", recipe="imagenet_270", epochs=90)
    config = replace(config, recipe=replace(config.recipe, milestones=[30, 60]))
    recipe = resolve(config)[0].recipe
    assert recipe.milestones == [30, 60]
    assert recipe.warmup_epochs == pytest.approx(5 / 3)
    with pytest.raises(UserError, match=r"milestones=\[30, 60\]: must lie before the end of the run, epochs=50"):
        resolve(replace(config, epochs=50))


def test_the_imagenet_recipe_is_the_papers() -> None:
    recipe = plan_of("dropblock", data="imagenet", recipe="imagenet_270").recipe
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (270, 1024, 0.4)
    assert recipe.milestones == [125, 200, 250]
    assert (recipe.nesterov, recipe.momentum, recipe.weight_decay) == (True, 0.9, 1e-4)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"keep_prob": 1.5}, "keep_prob=1.5"),
    ({"keep_prob": -0.1}, "keep_prob=-0.1"),
    ({"block_size": 0}, "block_size=0"),
    ({"groups": []}, r"groups=\[\]"),
    ({"groups": [-1, 4]}, "groups="),
    ({"schedule": "linaer"}, "did you mean 'linear'"),
    ({"lr": 0.0}, "lr=0.0"),
    ({"lr": float("nan")}, "lr=nan"),
    ({"lr_schedule": "cosin"}, "did you mean 'cosine'"),
    ({"epochs": 0}, "epochs=0"),
    ({"batch_size": 1}, "batch_size=1"),
    ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
    ({"seed": -1}, "seed=-1"),
    ({"device": "gpu"}, "device=gpu"),
    ({"log_every": 0}, "log_every=0"),
]


@pytest.mark.parametrize(("knobs", "culprit"), BAD, ids=[str(knobs) for knobs, _ in BAD])
def test_values_out_of_range_are_named(knobs: dict[str, Any], culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        plan_of("dropblock", **knobs)


WRONG = [
    ({"typo": 1}, "unknown key 'typo'"),
    ({"lr": "abc"}, "lr=abc: expected a number"),
    ({"seed": 1.5}, "seed=1.5: expected a whole number"),
    ({"groups": "all"}, r"groups.*expected a list such as \[3,4\]"),
    ({"skip": "maybe"}, "skip.*expected true or false"),
    ({"block_size": [3, 5]}, "block_size"),
]


@pytest.mark.parametrize(("knobs", "message"), WRONG, ids=[str(knobs) for knobs, _ in WRONG])
def test_keys_and_types_are_checked_once(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compose("dropblock", **knobs)
    assert "\n" not in str(caught.value)


def test_the_folder_follows_from_the_plan() -> None:
    plan = plan_of("dropblock")
    assert plan.run_dir() == plan_of("dropblock", block_size=7, device="cpu", workers=3, log_every=5).run_dir()
    assert plan.run_dir().parent == plan_of("dropblock", seed=2).run_dir().parent
    assert plan.run_dir() != plan_of("dropblock", block_size=5).run_dir()
    assert "=" not in str(plan.run_dir())
    experiment = replace(plan, experiment="table1/dropblock")
    assert plan.run_dir() == experiment.run_dir()


def test_what_to_do_about_a_bad_image_may_change_on_resume() -> None:
    plan = plan_of("dropblock")
    skipping = replace(plan, data=replace(plan.data, on_bad_image="skip"))
    assert skipping.run_dir() == plan.run_dir()
    assert skipping.identity() == plan.identity()


def test_a_plan_survives_being_written() -> None:
    plan = plan_of("dropblock", "label_smoothing", run_dir="somewhere")
    assert plan_from(OmegaConf.to_container(OmegaConf.create(plan.values()))) == plan
    assert plan_from(plan.identity()).identity() == plan.identity()
    with pytest.raises(UserError, match="not a plan"):
        plan_from({**plan.identity(), "colour": "red"})


@pytest.mark.parametrize("group", ["model", "data", "recipe", "regularizer"])
def test_every_yaml_is_valid_and_named_after_its_file(group: str) -> None:
    for name in choices(group):
        if group == "regularizer":
            compose(name)
        else:
            values = OmegaConf.load(CONFIGS / group / f"{name}.yaml")
            assert name in (values.name, values.get("library"), f"{values.name}_small", f"{values.name}_tiny")
            compose("none", **({group: name} if group != "model" else {}))


def test_nearest_names_nothing_where_nothing_is_near() -> None:
    assert nearest("zzzz", ["linear"]) == ""
    assert "linear" in nearest("linaer", ["linear", "constant"])


def test_a_knob_goes_to_the_one_layer_that_has_it() -> None:
    for names in (("drop_path", "dropblock"), ("dropblock", "drop_path")):
        plan = plan_of(*names, block_size=5)
        layers = {layer.name: layer for layer in [plan.layer, *plan.companions] if layer is not None}
        assert layers["dropblock"].block_size == 5
        with pytest.raises(UserError, match=r"keep_prob=0\.8: .*regularizer\.NAME\.keep_prob"):
            plan_of(*names, keep_prob=0.8)


def test_a_learning_rate_that_would_be_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match=r"recipe\.milestones=\["):
        plan_of("none", data="cifar10", recipe="cifar", lr_schedule="step")
    with pytest.raises(UserError, match=r"recipe\.decay_epochs="):
        plan_of("none", data="imagenet", recipe="imagenet_270", lr_schedule="exponential")
    with pytest.raises(UserError, match=r"recipe\.decay_epochs="):  # a shorter run keeps the shape of the curve
        plan_of("none", data="imagenet", recipe="imagenet_270", lr_schedule="exponential", epochs=90)
    assert plan_of("none", data="imagenet", recipe="amoebanet").recipe.lr_schedule == "exponential"
    _, notes = resolve(compose("none", data="imagenet", recipe="imagenet_270", lr_schedule="cosine"))
    assert any("recipe.milestones" in note and "does nothing" in note for note in notes)


def test_a_library_network_has_no_width_or_stem() -> None:
    config = compose("none")
    for key, value in (("width", 32), ("stem", "small")):
        model = replace(config.model, library="torchvision", name="resnet18", **{key: value})
        with pytest.raises(UserError, match=f"model.{key}"):
            resolve(replace(config, model=model))


def test_a_plan_from_before_the_papers_numbers_were_keyed_by_metric_still_loads() -> None:
    plan = plan_of("drop_path")
    old = {"place": "Table 1, row 3", "top1": 77.10, "top1_std": 0.08, "top5": 93.50, "top5_std": None, "curve": {}}
    again = plan_from({**plan.values(), "paper": {**old, "certainty": ""}})
    assert again.paper.metrics == {"top1": [77.10, 0.08], "top5": [93.50]}
    assert again.hash() == plan.hash()
    figure = {"place": "Figure 3, line 2", "top1": None, "top5": None, "curve": {0.9: 76.62}, "certainty": ""}
    assert plan_from({**plan.values(), "paper": figure}).paper.curve == {"top1": {0.9: 76.62}}


def test_every_method_of_a_plan_is_in_its_identity() -> None:
    plan = plan_of("dropblock", "drop_path", "cutout", "autoaugment")
    for name, other in (
        ("regularizer", ["none"]),
        ("methods", []),
        ("methods", [*plan.methods, MethodConfig("mine", "batch", {"alpha": 0.2})]),
        ("methods", [MethodConfig("cutout", "image", {"cutout": 0.25}), *plan.methods[1:]]),
        ("companions", []),
        ("layer", None),
    ):
        changed = replace(plan, **{name: other})
        assert changed.hash() != plan.hash(), name
        assert changed.identity() != plan.identity(), name


def test_a_knob_wins_over_the_smoothing_of_a_regularizer() -> None:
    assert plan_of("label_smoothing", label_smoothing=0.2).values()["label_smoothing"] == 0.2


def test_a_shorter_run_decays_as_often() -> None:
    recipe = plan_of("none", data="imagenet", recipe="amoebanet", epochs=170).recipe
    assert (recipe.decay_epochs, recipe.warmup_epochs) == pytest.approx((1.2, 1.5))
