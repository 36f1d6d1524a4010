"""The words of the command line: what is refused before anything is imported or built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from configs.checking import UserError
from configs.command_line import check_arguments, quoted, read_arguments, unquoted, values_given
from configs.command_line import sweep_name as name_of_values
from configs.compose import compose_jobs, plan_of
from configs.groups import NODES, declared
from configs.ranges import TASK_OF, check_values
from evaluate import read_request
from models import MODELS

GOOD = [
    ["regularizer=dropblock", "block_size=7"],
    ["data=cifar10", "keep_prob=0.9", "groups=[3,4]", "skip=true", "schedule=linear"],
    ["-m", "regularizer=none,dropblock", "seed=1,2,3"],
    ["regularizer=[dropblock,label_smoothing]"],
    ["data=cifar10", "data.root=/some/where", "recipe.augment.crop_padding=4", "model.width=8"],
    ["--help"],
    ["--cfg", "job"],
    ["hydra/launcher=slurm", "-m", "hydra.launcher.timeout_min=60"],
    ["regularizer.dropblock.layer.schedule_start=0.5", "regularizer.dropblock.layer.group_divisor=1"],
]

# (words, a part of the message that names the culprit or the nearest valid name)
BAD = [
    (["regulrizer=none"], "regularizer"),
    (["regularizer=dropblok"], "'dropblock'"),
    (["regularizer=[dropblock,label_smothing]"], "'label_smoothing'"),
    (["-m", "regularizer=none,dropblok", "seed=1,2"], "'dropblock'"),
    (["+sweep=tabel", "seed=1,2,3"], "sweep=tabel"),
    (["data=cifar11"], "'cifar1"),
    (["data=/tmp"], "data=folder data.root=/tmp"),
    (["-m", "seed=1-3"], "seed=1,2,3"),
    (["data.root=~/photos"], "\"data.root='~/photos'\""),
    (["model=resnet51"], "'resnet5"),
    (["blok_size=7"], "'block_size'"),
    (["+typo=1"], "typo"),
    (["++typo.a=1"], "typo.a"),
    (["recipe.lrr=1"], "'recipe.lr'"),
    (["batchsize=7"], "'batch_size'"),
    (["block_size"], "KEY=VALUE"),
    (["--multrun"], "'--multirun'"),
    (["--config-dir=/tmp"], "--config-dir"),
    (["--experimental-rerun=job.pickle"], "--experimental-rerun"),
    (["hydra.callbacks.x._target_=os.system"], "hydra.callbacks"),
    (["+hydra.callbacks.x._target_=os.system"], "hydra.callbacks"),
    (["hydra.launcher._target_=os.system"], "hydra.launcher._target_"),
    (["-m", "hydra/launcher=slrum"], "'slurm'"),
    (["-m", "hydra/launcher=submitit_local"], "hydra/launcher=submitit_local"),
    (["hydra/job_logging=default"], "hydra/job_logging"),
    (["hydra.sweep.dir=/tmp"], "hydra.sweep.dir"),
    (["+model._target_=torch.load"], "_target_"),
    (["+model.options._target_=torch.hub.load"], "_target_"),
    (["regularizer.dropblock._target_=subprocess.call"], "_target_"),
    (["model={_target_:os.system}"], "_target_"),
    (["+epochs=3"], "without +"),
    (["regularizer.dropblok.layer.keep_prob=0.8"], "'dropblock'"),
    (["+regularizer.foo.label=x"], "regularizer=foo"),
    (["regularizer.dropblock.lyer.keep_prob=0.8"], "'layer'"),
    (["regularizer.dropblock.layer.keep_probe=0.8"], "'keep_prob'"),
    (["regularizer.drop_path.layer.skip=true"], "drop_path has no skip"),
    (["+regularizer.none.input.cutout=0.5"], "none.input.cutout"),
    (["+regularizer.label_smoothing.loss.label_smothing=0.2"], "'label_smoothing'"),
]


@pytest.mark.parametrize("words", GOOD, ids=" ".join)
def test_accepts(words: list[str]) -> None:
    check_arguments(words)


@pytest.mark.parametrize(("words", "culprit"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_refuses_in_one_line_that_names_the_culprit(words: list[str], culprit: str) -> None:
    with pytest.raises(UserError) as caught:
        check_arguments(words)
    assert culprit in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sweep_is_known_by_its_words() -> None:
    assert read_arguments(["seed=1,2", "-m"]).is_grid
    assert read_arguments(["+sweep=table1"]).is_grid
    assert not read_arguments(["seed=1"]).is_grid


def test_a_flag_and_its_value_are_one_wherever_they_stand() -> None:
    for words in (["--cfg", "job", "seed=1"], ["seed=1", "-c", "job"], ["--cfg=job", "seed=1"]):
        arguments = check_arguments(words)
        assert (arguments.shows, arguments.overrides, arguments.given) == ("--cfg=job", ["seed=1"], {"seed": "1"})
    assert check_arguments(["--info"]).shows == "--info=all"


def sweep_name(words: list[str]) -> str:
    return name_of_values(values_given(words))


def test_seeds_and_the_way_of_running_do_not_change_the_folder_of_a_grid() -> None:
    name = sweep_name(["-m", "regularizer=none,dropblock", "seed=1"])
    assert name == sweep_name(["-m", "regularizer=none,dropblock", "seed=1,2", "device=cpu"])
    assert name != sweep_name(["-m", "regularizer=none,dropout", "seed=1"])
    assert sweep_name(["+sweep=table1", "data=fashion_mnist", "seed=1,2"]) == "table1-fashion_mnist"


def test_two_folders_of_ones_own_data_have_sweeps_of_their_own() -> None:
    words = ["-m", "data=folder", "regularizer=none,dropblock"]
    assert sweep_name([*words, "data.root=/data/cats"]) == sweep_name([*words, "data.root='/other/cats/'"])
    assert "-folder-cats-" in sweep_name([*words, "data.root=/data/cats"])
    assert sweep_name([*words, "data.root=/data/cats"]) != sweep_name([*words, "data.root=/data/dogs"])
    small = ["+sweep=table1_small", "data.root=/my/photos"]
    assert sweep_name([*small, "data.title=old"]) == "table1_small-folder-old"
    assert sweep_name([*small, "data.title=null"]) == sweep_name(small) == "table1_small-folder-photos"
    assert sweep_name(["+sweep=table1", "data=digits", "data.title=x"]) == "table1-digits-x"
    many = ",".join(f"/data/写真_of_site_{i}" for i in range(20))
    names = {sweep_name([*words, f"data.root={roots}"]) for roots in (many, f"{many},/data/more")}
    assert len(names) == 2
    assert max(len(name.encode()) for name in names) < 130


@pytest.mark.parametrize(
    "text", ["a b", "o'x", "a\\b", "a\\\\b", "end\\", "o\\'x", "a\\\\'b\\\\", 'x"y', "a, b", "~/x #2"]
)
def test_a_value_in_quotes_is_what_hydra_reads(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert unquoted(quoted(text)) == text
    assert OverridesParser.create().parse_override(f"k={quoted(text)}").value() == text


def test_what_is_not_one_value_in_quotes_stays() -> None:
    for text in ("'a','b'", "[3,4]", "a", "'", "a'b'"):
        assert unquoted(text) == text
    assert sweep_name(["-m", "data='digits'", "seed=1,2"]) == sweep_name(["-m", "data=digits", "seed=1"])


@pytest.mark.parametrize("name", ["my data #2", "a: b", "[v1]", "x=y", "{a}"])
def test_a_run_may_lie_in_any_folder(tmp_path: Path, name: str) -> None:
    run = tmp_path / name / "seed-1"
    run.mkdir(parents=True)
    for words in ([str(run)], [f"run={run}"], [f"run='{run}'"]):
        assert read_request([*words, "keep_prob=0.9"]).run == str(run)
    with pytest.raises(UserError, match="json="):
        read_request([str(run), "json="])
    many = ",".join(f"{i / 1000}" for i in range(100))
    assert len(read_request([str(run), f"keep_prob=[{many}]"]).keep_prob) == 100  # no name of a directory


def test_a_title_is_the_name_of_one_directory() -> None:
    for title in ("../../elsewhere", "a/b", ".hidden"):
        with pytest.raises(UserError, match=r"data\.title"):
            plan_of("data=digits", f"data.title='{title}'")


def test_the_home_directory_is_meant_in_every_place() -> None:
    assert plan_of("data=digits", "output_root='~/out'").run_dir().parents[2] == Path("~/out").expanduser()
    sweep = read_arguments(["-m", "data=digits", "output_root='~nobody-here/out'"]).sweep_folder
    assert sweep is not None
    assert sweep.parents[1] == Path("~nobody-here/out")


def test_a_schedule_has_the_limit_that_it_needs_and_no_other() -> None:
    with pytest.raises(UserError, match=r"schedule=late.*schedule_start"):
        plan_of("data=digits", "schedule=late")
    with pytest.raises(UserError, match=r"schedule_end=0\.5.*schedule=linear"):
        plan_of("data=digits", "schedule_end=0.5")
    limits = ("schedule_start=0.4", "schedule_end=0.5")
    for schedule, expected in (("linear", (None, None)), ("early", (None, 0.5)), ("late", (0.4, None))):
        layer = plan_of("data=digits", f"schedule={schedule}", *limits, grid=True).layer
        assert layer is not None
        assert (layer.schedule_start, layer.schedule_end) == expected


def test_a_value_of_one_regularizer_needs_no_plus() -> None:
    of_dropblock = "regularizer.dropblock.layer"
    plan = plan_of(f"{of_dropblock}.schedule=late", f"{of_dropblock}.schedule_start=0.5")
    assert plan.layer is not None
    assert (plan.layer.schedule, plan.layer.schedule_start) == ("late", 0.5)
    for word in ("regularizer.dropout.layer.keep_prob=0.8", "regularizer.dropout.layer.schedule_end=0.5"):
        with pytest.raises(UserError, match=r"regularizer\.dropout"):
            plan_of(word)


def test_what_a_regularizers_own_file_leaves_idle_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = {"name": "dropblock", "keep_prob": 0.9, "block_size": 7, "groups": [3, 4], "skip": True}
    values = {"kind": "layer", "layer": {**layer, "schedule": "late", "schedule_start": 0.5}, "label": "mine"}
    monkeypatch.setitem(NODES["regularizer"], "mine", values)
    declared.cache_clear()
    plan = plan_of("regularizer=mine", "schedule=linear")
    assert plan.layer is not None
    assert plan.layer.schedule_start is None
    assert "regularizer.mine.schedule_start=0.5 does not apply to schedule=linear" in plan.notes
    asked = ("regularizer.dropblock.layer.head_share=0.5", "regularizer.dropblock.layer.schedule_end=0.5")
    assert len(plan_of(*asked, grid=True).notes) >= 2  # which a single run refuses
    assert plan_of(*asked, grid=True).hash() == plan_of().hash()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["regularizer.dropblock.layer.schedule_start=0.5"], "schedule_start=0.5.*schedule=linear"),
        (["regularizer.dropblock.layer=null"], "regularizer.dropblock.layer"),
        (
            ["data=digit_masks", "label_smoothing=0.1"],
            "label_smoothing.*segmentation",
        ),
        (
            ["data=digit_masks", "model=resnet18"],
            "model.name=resnet18.*data=digit_masks.*segmentation_fpn",
        ),
        (["data=digits", "model=retinanet_small"], "model.name=retinanet is for detection, .* timm, torchvision"),
        (
            ["data=digit_boxes", "model=timm"],
            "model=timm.*retinanet, retinanet_s",
        ),
        (["data=digit_masks", "regularizer=cutout"], "^regularizer=cutout.*segmentation"),
        (["data=digit_boxes", "regularizer=[dropblock,autoaugment]"], "^regularizer=autoaugment"),
        (
            ["data=digit_boxes", "regularizer=fractal_drop_path"],
            "^regularizer=fractal_drop_path.*model=fractalnet20",
        ),
        # The file's own value is null, and has no type.
        (
            ["regularizer=fractal_drop_path", "model=fractalnet20", "regularizer.fractal_drop_path.global_share=half"],
            "^regularizer.fractal_drop_path.global_share=half: must be a number",
        ),
        (["regularizer=fractal_dropout"], "^regularizer=fractal_dropout.*fractalnet20.*fractalnet40"),
        (["keep_prob=[0.9,0.8]"], r"^keep_prob=\[0.9,0.8\].*-m keep_prob=0.9,0.8$"),
        (["schedule=[linear,cosine]"], r"^schedule=\[linear,cosine\].*-m schedule=linear,cosine$"),
        (["epochs='2 3'"], "^epochs=2 3"),
        (["head_share=0.5"], r"head_share=0.5.*groups=\[3, 4\]"),
        (
            ["experiment=schedules_overfit/early", "schedule=linear"],
            r"schedule_end=0.5.*experiment=schedules_overfit/early.*schedule_end=null",
        ),
        (["groups=[3,4]", "data.title='a,b'", "seed=1,2"], "^seed=1,2.*-m"),
        ([f"data.title={'x' * 201}"], r"data\.title=xxx"),
        (["regularizer.dropblock=null"], r"regularizer\.dropblock"),
    ],
    ids=str,
)
def test_what_would_do_nothing_or_fail_later_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(*words)


def test_a_network_or_a_task_of_ones_own_goes_with_any(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TASK_OF.keys() <= MODELS.keys()
    monkeypatch.setitem(NODES["model"], "my_net", {"name": "my_net", "zero_gamma": False})
    assert plan_of("data=digit_masks", "model=my_net", "regularizer=fractal_drop_path").model.name == "my_net"
    monkeypatch.setattr("configs.ranges.further_choices", lambda key: ("ordinal",) if key == "data.task" else ())
    plan = plan_of("data=digits", "model=resnet18")
    check_values(replace(plan, data=replace(plan.data, task="ordinal"), methods=plan_of("regularizer=cutout").methods))


def test_what_is_set_and_does_nothing_is_noted() -> None:
    assert any("never reaches" in note for note in plan_of("recipe.warmup_epochs=8").notes)
    words = ("recipe.lr_decay=0.5", "recipe.ema_warmup=true", "recipe.warmup_epochs=0", "recipe.warmup_from=0.5")
    notes = plan_of(*words).notes
    for name, why in (
        ("lr_decay", "lr_schedule=cosine"),
        ("ema_warmup", "ema_decay=null"),
        ("warmup_from", "epochs=0"),
    ):
        assert any(note.startswith(f"recipe.{name}=") and note.endswith(why) for note in notes), name
    used = ("recipe.lr_decay=0.5", "lr_schedule=halving", "recipe.ema_warmup=true", "recipe.ema_decay=0.9")
    assert not any("does nothing" in note for note in plan_of(*used).notes)


def test_names_of_folders_are_as_long_as_file_systems_take() -> None:
    own = plan_of("data=folder", f"data.root=/photos/{'x' * 250}")
    assert len(own.run_dir().parts[1]) < 250
    assert own.run_dir() != plan_of("data=folder", f"data.root=/photos/{'x' * 249}").run_dir()
    words = [
        "+sweep=fig3_keep_prob",
        *(f"recipe.{name}=0.1234567891234" for name in ("lr", "momentum", "weight_decay")),
    ]
    short = sweep_name([*words, "keep_prob=0.1,0.2"])
    assert short.endswith("momentum-0.1234567891234-weight_decay-0.1234567891234")
    values = ",".join(f"0.{number}" for number in range(100, 140))
    assert len(sweep_name([*words, f"keep_prob={values}"])) < 210
    assert sweep_name([*words, f"keep_prob={values}"]) != sweep_name([*words, f"keep_prob={values},0.2"])


def test_a_flag_is_no_part_of_a_sweeps_name() -> None:
    assert sweep_name(["+sweep=table1", "--cfg=job"]) == sweep_name(["+sweep=table1"])


def test_composing_needs_no_argument_parser_of_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14 refuses the parser of Hydra 1.3; only shell completion makes one."""

    def refused() -> None:
        raise ValueError("badly formed help string")

    monkeypatch.setattr("hydra._internal.utils.get_args_parser", refused)
    assert plan_of("data=fake").data.name == "fake"
    assert len(compose_jobs(check_arguments(["-m", "data=fake", "seed=1,2"]))) == 2
