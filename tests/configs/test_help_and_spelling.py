"""Answers to the command line in the user's terms: help, one line for each slip, names that say what differs."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from omegaconf import OmegaConf

from configs.checking import UserError
from configs.command_line import check_arguments
from configs.compose import config_of, plan_of
from configs.groups import CONFIGS
from configs.help import help_text
from configs.schema import Config, DataConfig, RecipeConfig, RunOptions

SLIPS = [
    (["seed=2", "seed=3"], "seed"),
    (["hydra/launcher=slurm"], "hydra/launcher.*-m"),
    (["+experiment=table1/dropblock"], "experiment=NAME"),
    (["lr=\u22120.1"], "lr=-0.1"),
    (["output_root=out-\u00fc"], "\"output_root='out-\u00fc'\""),
    (["groups=(3,4)"], r"groups=\[3,4\]"),
    (["-m", "regularizer=choice(none,dropblok)"], "dropblok.*'dropblock'"),
    (["-m", "experiment=glob(tabel1/*)"], r"glob\(tabel1"),
    (["--hydra-help"], "--hydra-help"),
    (["data.root=my_images"], "data.root=my_images.*data=digits.*data=folder"),
    (["+sweep=table1", "data.root=my_images"], "data=digits reads no files"),
    (["-m", "data=digits,digit_masks", "data.root=my_images"], "data=digits,digit_masks reads no files"),
]


@pytest.mark.parametrize(("arguments", "message"), SLIPS, ids=[" ".join(a) for a, _ in SLIPS])
def test_a_slip_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_arguments(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("unread", "advised"),
    [
        (
            "evaluations=[temperature,corruption=all severity=3]",
            "evaluations=[temperature,'corruption=all severity=3']",
        ),
        ("data.root=my images (1)", "data.root='my images (1)'"),
        ("data.root=it is [new]", "data.root='it is [new]'"),
        ("keep_prob=[0.9", None),
        ("output_root='out", None),
    ],
)
def test_what_hydras_grammar_cannot_read_is_named_with_the_spelling_that_it_can(
    unread: str, advised: str | None
) -> None:
    with pytest.raises(UserError) as caught:
        plan_of("data=folder", unread)
    assert str(caught.value).startswith(f"{unread}: ")
    assert (f': "{advised}"' in str(caught.value)) == (advised is not None)
    if advised is not None:
        key, _, value = advised.partition("=")
        config = config_of("data=folder", advised)
        assert OmegaConf.select(config, key) == (
            ["temperature", "corruption=all severity=3"] if "severity" in value else value.strip("'")
        )


def test_functions_of_names_are_understood() -> None:
    check_arguments(["-m", "experiment=glob(table1/*)", "regularizer=choice(none,dropblock)", "seed=range(1,4)"])
    check_arguments(["-m", "hydra/launcher=slurm", "seed=1,2"])
    check_arguments(["\"output_root='out \u00fc'\"".strip('"')])


def test_numbers_and_names_as_a_user_writes_them() -> None:
    meant = plan_of("groups=[3]", "epochs=10", "recipe.precision=bfloat16", "device=cuda:1")
    assert plan_of("groups=3", "epochs=1e1", "recipe.precision=bf16", "device=cuda:1") == meant
    with pytest.raises(UserError, match="seed=99999999999999999999"):
        plan_of("seed=99999999999999999999")
    with pytest.raises(UserError, match=r"device=gpu.*cuda:N"):
        plan_of("device=gpu")
    with pytest.raises(UserError, match=r"haed.*'head'"):
        plan_of("groups=[3,haed]")


def test_help_lists_every_key_with_its_choices() -> None:
    text = help_text()
    lines = [line.split() for line in text.splitlines() if line.startswith("  ")]
    keys = {line[0] for line in lines if line}
    for schema in (RunOptions, DataConfig, RecipeConfig):
        assert {f.name for f in fields(schema) if f.metadata} <= keys
    assert {f.name for f in fields(Config) if f.metadata} <= keys
    assert "[cosine | step | exponential | halving | constant]" in text
    assert max(len(line) for line in text.splitlines()) < 200


@pytest.mark.parametrize(
    ("overrides", "variant"),
    [
        ((), "dropblock-b7-kp0.9-e8"),
        (("groups=[4]", "skip=false", "schedule=constant", "epochs=3"), "dropblock-b7-kp0.9-g4-conv-constant-e3"),
        (("regularizer=none",), "none-e8"),
        (("groups=[3,4,head]",), "dropblock-b7-kp0.9-g34head-e8"),
    ],
)
def test_a_name_says_what_differs(overrides: tuple[str, ...], variant: str) -> None:
    assert plan_of(*overrides).variant == variant


NESTED = {
    "regularizer.spatial_dropout.keep_prob=0.5": "table1/spatial_dropout",
    "regularizer.label_smoothing.label_smoothing=0.3": "table1/label_smoothing",
}


@pytest.mark.parametrize("override", NESTED)
def test_a_nested_value_that_an_experiment_would_hide_is_refused(override: str) -> None:
    with pytest.raises(UserError, match=override.partition("=")[0]):
        plan_of(f"experiment={NESTED[override]}", override)


@pytest.mark.parametrize(
    ("experiment", "overrides", "changed"),
    [
        ("table1/dropblock", ("regularizer.dropblock.layer.groups=[4]",), True),
        ("table1/dropblock", ("regularizer.dropblock.layer.group_divisor=1",), True),
        ("table1/cutout", ("regularizer.cutout.input.cutout=0.1",), True),
        ("table1/autoaugment", ("regularizer.autoaugment.input.autoaugment=svhn",), True),
        ("fig3/dropblock", ("regularizer.dropblock.layer.groups=[1,2]",), True),
        ("fig3/dropblock", ("keep_prob=0.7",), False),
        ("table1/dropblock", ("seed=2", "epochs=3"), False),
    ],
)
def test_the_papers_number_stands_only_beside_its_own_experiment(
    experiment: str, overrides: tuple[str, ...], changed: bool
) -> None:
    paper = plan_of(f"experiment={experiment}", *overrides).paper
    assert (not paper.metrics and not paper.curve) == changed
    assert paper.place


def test_the_directory_in_the_readme_is_that_of_the_main_job() -> None:
    text = (CONFIGS.parent / "README.md").read_text()
    named = set(re.findall(r"outputs/digits-resnet50/[^/\s]+/seed-1", text))
    assert named == {str(plan_of().run_dir())}
