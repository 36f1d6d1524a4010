"""What command lines come to: the run directory and the overrides of every job, and the exit code.

    python -m tests.golden.measure_commands     # writes tests/golden/commands.json anew

The commands go through `train.main` up to where the training would begin.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SMALL = ("data=fake", "model=resnet18", "model.width=4", "epochs=1")
OWN = ("data=folder", "data.root=/some/photos")

# Single runs, then grids: lists, nested lists, quotes, functions of Hydra's grammar, ++, ~, seeds.
GRIDS: Sequence[Sequence[str]] = (
    (),
    ("regularizer=dropblock", "block_size=7", "seed=2"),
    ("experiment=table1/dropblock", "data=fashion_mnist"),
    ("regularizer=[dropblock,label_smoothing]", "keep_prob=0.8", "groups=3"),
    (r"output_root='out of here/it\'s'",),
    ("output_root='out ü'", "data.title='x.y'"),
    ("regularizer.dropblock.layer.schedule=late", "regularizer.dropblock.layer.schedule_start=0.5"),
    ("++regularizer.dropblock.layer.options.new=1", "seed=3"),
    ("regularizer.dropblock.layer.group_divisor=1", "epochs=1e1", "recipe.precision=bf16"),
    ("+model.options.freeze_stem=true", "lr=1e-2"),
    ("run_dir=/some/where", "seed=7"),
    ("epochs=0x10",),
    ("groups=[4]", "skip=false", "schedule=constant", "--multirun"),
    ("-m", "seed=1,2,3"),
    ("-m", "seed=range(1,4)"),
    ("-m", "seed=range(4,0,-2)", "data=fake"),
    ("-m", "keep_prob=range(0.7,1.0,0.1)"),
    ("-m", "regularizer=none,dropblock", "seed=1,2"),
    ("-m", "regularizer=choice(none,dropblock,dropout)"),
    ("-m", "keep_prob=choice(0.8,0.9)", "block_size=3,7"),
    ("-m", "keep_prob=sort(0.9,0.8)", "seed=5"),
    ("-m", "experiment=glob(fig5/*)"),
    ("-m", "regularizer=glob(drop*)"),
    ("-m", "groups=[3,4],[4]", "skip=true,false"),
    ("-m", "regularizer=[dropblock,label_smoothing],none,[cutout]"),
    ("-m", "regularizer=none,dropblock", "block_size=3,7", "seed=1,2"),
    ("seed=1,2", "-m", *SMALL),
    ("-m", *OWN, "data.title=a,b"),
    ("-m", "data=folder", "data.root=/my/cats,'/my/brown dogs'"),
    ("-m", "output_root='a, b'", "seed=1,2"),
    ("-m", "lr=0.1,1e-3,.5", "lr_schedule=cosine,constant"),
    ("-m", "schedule=linear,early", "schedule_end=0.5"),
    ("-m", "++regularizer.dropblock.layer.group_divisor=1,2,4"),
    ("-m", "regularizer.dropblock.layer.keep_prob=0.7,0.8", "seed=9"),
    ("-m", "recipe.milestones=[1,2],[2,3]", "lr_schedule=step", "epochs=4"),
    ("-m", "recipe.augment.flip=true,false", "recipe.optimizer=sgd,adamw", "recipe.accumulate=1,2"),
    ("-m", "data=digits,fake", "model=resnet18,resnet50"),
    ("-m", "data.train_subset=null,100", "model.width=8"),
    ("-m", "keep_prob=0.9,2", "seed=1"),  # a job that is refused beside one that is not
    ("-m", "seed=1"),
    ("+sweep=fig5_inference", *SMALL),
    ("+sweep=fig3_keep_prob", "keep_prob=0.8", *SMALL),
    ("+sweep=table1", "seed=3", "data=imagenet", "data.root=/data", "recipe=imagenet_270", "device=cpu"),
    ("++sweep=table1", "seed=3"),
    ("+sweep=camvid_where", "data.root=/data", "seed=1"),
    ("+sweep=schedules_overfit", "data.root=/data", "seed=1", "data.title=cifar"),
)

# Commands that train nothing, and what a process would end with.
CODES: Sequence[Sequence[str]] = (
    ("--help",),
    ("-h", "nonsense"),
    ("--cfg", "job"),
    ("--cfg=all", "data=fake", "--resolve"),
    ("--cfg", "nothing"),
    ("--cfg", "job", "-m", "seed=1,2"),
    ("+sweep=table1", "--cfg=hydra"),
    ("--resolve",),
    ("--multirn",),
    ("blok_size=7",),
    ("block_size",),
    ("regularizer=dropblok",),
    ("model=resnet51",),
    ("keep_prob=2",),
    ("keep_prob=[0.8,0.9]",),
    ("lr=abc",),
    ("seed=1,2",),
    ("seed=1", "seed=2"),
    ("data=folder",),
    ("nogroup=1",),
    ("hydra/sweeper=basic", "-m", "seed=1,2"),
    ("hydra.callbacks.x._target_=os.system",),
    ("+sweep=tabel1",),
    ("+sweep=table1", "keep_prob=0.8"),
    ("jobs=2",),
    ("-m", "seed=1,2", "jobs=0"),
    ("-m", "seed=1,2", "hydra/launcher=slrum"),
    ("-m", "seed=1,2", "num_gpus=1"),
    ("-m", "seed=interval(1,4)"),
    ("-m", "seed=1,2", "groups=[3"),
    ("-m", "keep_prob=2,3"),
    ("-m", "keep_prob=2,3", "jobs=2"),
    ("-m", "seed=1,2", "run_dir=/some/where"),
    ("plan=true", *SMALL),
    ("-m", "plan=true", *SMALL, "seed=1,2"),
    ("-m", "plan=true", *SMALL, "keep_prob=0.9,2"),
    ("plan=true", "keep_prob=2"),
    ("plan=maybe", *SMALL),
    ("estimate=true", "keep_prob=2"),
    ("estimate=true", *OWN),
    ("-m", "estimate=true", "keep_prob=2,3"),
    ("-m", "estimate=true", "seed=1,2", "jobs=many"),
)


def command(words: Sequence[str], root: Path, trained: Callable[..., None] = lambda *_: None) -> tuple[int, str, str]:
    """`python train.py WORDS`, run in this process without its training: exit code, output, errors."""
    from train import main

    def run_plan(*arguments: Any, **_: Any) -> dict[str, Any]:
        trained(*arguments)
        return {"last": {}, "headline": "top1"}

    given = any(word.startswith(("output_root=", "run_dir=")) for word in words)
    with (
        patch("experiment.run.run_plan", run_plan),
        redirect_stdout(StringIO()) as out,
        redirect_stderr(StringIO()) as err,
    ):
        code = main([*words, *([] if given or words[:1] == ("--help",) else [f"output_root={root}"])])
    return code, out.getvalue(), err.getvalue()


def jobs(words: Sequence[str], root: Path) -> dict[str, Any]:
    """The exit code of a command, and of every run the directory and the overrides, `root` left out."""
    runs: list[Any] = []

    def trained(plan: Any, overrides: Sequence[str] = (), *_: Any) -> None:
        if plan.run_dir().is_relative_to(root):
            plan.run_dir().mkdir(parents=True, exist_ok=True)  # or the folder of the sweep is removed again
        runs.append([str(plan.run_dir()), [word for word in overrides if not word.startswith("output_root=")]])

    code, _, _ = command(words, root, trained)
    sweeps = sorted(path.name for path in (root / "sweeps").glob("*")) if root.exists() else []
    return {"code": code, "runs": json.loads(json.dumps(runs).replace(f"{root}/", "")), "sweeps": sweeps}


def main() -> int:
    values: dict[str, Any] = {"jobs": {}, "codes": {}}
    for words in GRIDS:
        with tempfile.TemporaryDirectory() as root, chdir(root):  # a command may name a place of its own
            values["jobs"][" ".join(words)] = jobs(words, Path(root, "out"))
    for words in CODES:
        with tempfile.TemporaryDirectory() as root:
            values["codes"][" ".join(words)] = command(words, Path(root))[0]
    (HERE / "commands.json").write_text(json.dumps(values, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
