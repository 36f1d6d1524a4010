"""The words of the command line: what is refused before anything is imported or built."""

from __future__ import annotations

import pytest

from configs.checking import UserError
from configs.command_line import check_arguments, is_sweep, sweep_name

GOOD = [
    ["regularizer=dropblock", "block_size=7"],
    ["data=cifar10", "keep_prob=0.9", "groups=[3,4]", "skip=true", "schedule=linear"],
    ["-m", "regularizer=none,dropblock", "seed=1,2,3"],
    ["regularizer=[dropblock,label_smoothing]"],
    ["data.root=/some/where", "recipe.augment.crop_padding=4", "model.width=8"],
    ["--help"],
    ["--cfg", "job"],
    ["hydra/launcher=slurm", "-m", "hydra.launcher.timeout_min=60"],
]

# (words, a part of the message that names the culprit or the nearest valid name)
BAD = [
    (["regulrizer=none"], "regularizer"),
    (["regularizer=dropblok"], "'dropblock'"),
    (["regularizer=[dropblock,label_smothing]"], "'label_smoothing'"),
    (["-m", "regularizer=none,dropblok", "seed=1,2"], "'dropblock'"),
    (["+sweep=tabel", "seed=1,2,3"], "sweep=tabel"),
    (["data=cifar11"], "'cifar1"),
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
    assert is_sweep(["-m", "seed=1,2"])
    assert is_sweep(["+sweep=table1"])
    assert not is_sweep(["seed=1"])


def test_seeds_and_the_way_of_running_do_not_change_the_folder_of_a_grid() -> None:
    name = sweep_name(["-m", "regularizer=none,dropblock", "seed=1"])
    assert name == sweep_name(["-m", "regularizer=none,dropblock", "seed=1,2", "device=cpu"])
    assert name != sweep_name(["-m", "regularizer=none,dropout", "seed=1"])
    assert sweep_name(["+sweep=table1", "data=fashion_mnist", "seed=1,2"]) == "table1-fashion_mnist"
