"""What must not move when the code is reshaped: losses, sites tables, parameter counts, and where a plan runs.

    python -m tests.golden.measure              # writes tests/golden/*.json anew

Run it only for a change that is meant to move them, and say in CHANGELOG.md which moved and why.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from tests.last_of_each import last_of_each

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
STEPS = 6

# Six steps of each on made-up images: (networks and their sizes) x (regularizers), one thread, deterministic. In
# float64, since six steps of a deep network in float32 turn the rounding of another processor into several percent.
RUNS: dict[str, Sequence[str]] = {
    "resnet18-none": ("model=resnet18", "regularizer=none"),
    "resnet18-dropblock": ("model=resnet18", "regularizer=dropblock", "block_size=3", "keep_prob=0.7"),
    "resnet18-dropblock-constant": ("model=resnet18", "regularizer=dropblock", "schedule=constant", "groups=[2,3,4]"),
    "resnet18-dropblock-bfloat16": (
        *("model=resnet18", "regularizer=dropblock", "recipe.precision=bfloat16", "lr=0.001"),
    ),
    "resnet18-dropout": ("model=resnet18", "regularizer=dropout", "schedule=constant", "keep_prob=0.5"),
    "resnet18-spatial_dropout": ("model=resnet18", "regularizer=spatial_dropout", "schedule=constant", "keep_prob=0.5"),
    "resnet18-drop_connect": ("model=resnet18", "regularizer=drop_connect", "keep_prob=0.5"),
    "resnet50-dropblock": ("model=resnet50", "regularizer=[dropblock,label_smoothing]", "keep_prob=0.8", "lr=0.001"),
    "resnet50-drop_path": ("model=resnet50", "regularizer=drop_path", "keep_prob=0.5", "lr=0.001"),
    "resnet50-stochastic_depth": ("model=resnet50", "regularizer=stochastic_depth", "schedule=constant", "lr=0.001"),
    "resnet18-augmented": (
        "model=resnet18",
        "regularizer=[cutout,autoaugment]",
        "recipe.augment.flip=true",
        "recipe.ema_decay=0.9",
        "recipe.accumulate=2",
    ),
    "fractalnet20-drop_path": ("model=fractalnet20", "regularizer=fractal_drop_path"),
    "amoebanet-dropblock": (
        *("model=amoebanet_b", "model.options.cells=1", "regularizer=dropblock", "recipe.optimizer=rmsprop"),
        *("model.options.auxiliary=false", "lr=0.01", "recipe.grad_clip=10"),
    ),
    # Scenes of digits, with layers in the body and in the head, which runs on every level of a detector's pyramid.
    "segmentation_fpn_tiny-dropblock": (
        *("data=digit_masks", "data.image_size=33", "data.train_subset=96", "batch_size=16", "groups=[3,4,head]"),
        *("model.options.fpn_width=8", "model.options.head_width=8", "keep_prob=0.7", "block_size=3"),
        *("recipe.augment.scale_min=0.8", "recipe.augment.flip=true"),
    ),
    "retinanet_small-dropblock": (
        *("data=digit_boxes", "data.image_size=32", "data.train_subset=96", "batch_size=16", "groups=[3,4,head]"),
        *("model.options.fpn_width=8", "model.options.head_width=8", "keep_prob=0.7", "block_size=3"),
        *("recipe.augment.scale_min=0.8", "recipe.augment.flip=true"),
    ),
}
SMALL = ("data=fake", "model.width=4", "epochs=1", "log_every=1", "seed=3", "device=cpu", "progress=false")

# The sites tables and parameter counts of networks of the paper's size, which are built but not trained.
NETWORKS: dict[str, Sequence[str]] = {
    name: (
        f"model={name}",
        *(more if more and more[0].startswith("data=") else ("data=imagenet", "data.root=/data", *more)),
    )
    for name, more in {
        "resnet18": (),
        "resnet34": (),
        "resnet50": (),
        "resnet101": (),
        "resnet152": (),
        "amoebanet_b": ("data.image_size=331",),
        "fractalnet20": ("data=cifar10", "recipe=fractalnet"),
        "fractalnet40": ("data=cifar10", "recipe=fractalnet"),
        "fractalnet34": (),
        "segmentation_fpn": ("data=voc_segmentation", "data.root=/data", "groups=[3,4,head]"),
        "segmentation_fpn_tiny": ("data=digit_masks", "groups=[3,4,head]"),
        "retinanet": ("data=coco", "data.root=/data", "groups=[3,4,head]"),
        "retinanet_small": ("data=digit_boxes", "groups=[3,4,head]"),
        "torchvision": ("model.name=resnet50",),
        "timm": ("model.name=resnet50",),
    }.items()
}

NUM_CLASSES = {"voc_segmentation": 21, "coco": 80, "digit_masks": 11, "digit_boxes": 10}

# Where runs of these commands lie: a change moves every finished run away from its command.
PLANS: Sequence[Sequence[str]] = (
    (),
    ("recipe=quick",),
    ("recipe=quick", "regularizer=none"),
    ("recipe=quick", "block_size=3", "keep_prob=0.8", "seed=2"),
    ("recipe=quick", "groups=[4]", "skip=false", "schedule=constant"),
    ("data=fashion_mnist", "model=resnet18", "model.width=8", "data.train_subset=2000", "epochs=40"),
    ("data=cifar10", "regularizer=[dropblock,cutout]", "model=resnet18"),
    ("data=imagenet", "recipe=imagenet_270", "data.root=/data"),
    ("experiment=table1/dropblock_label_smoothing", "data=imagenet", "data.root=/data"),
    ("experiment=fig4/group4_conv", "block_size=4", "data=imagenet", "data.root=/data"),
    ("model=torchvision", "model.name=resnet18", "data=cifar100", "regularizer=dropblock"),
)


def train(words: Sequence[str], root: Path) -> Path:
    """Run train.py in this process; returns the run directory."""
    from train import main

    # The last BatchNorm of a residual unit starts at 1 here: at 0 nothing that is dropped would move the first losses.
    plain = ["model.zero_gamma=false"] if words[0].startswith("model=resnet") else []
    with redirect_stdout(StringIO()) as shown:
        code = main([*last_of_each(*SMALL, *plain, *words), f"output_root={root}"])
    if code:
        raise RuntimeError(f"train.py {' '.join(words)}: exit code {code}\n{shown.getvalue()}")
    (summary,) = root.rglob("summary.json")
    return summary.parent


def losses(words: Sequence[str]) -> list[float]:
    """The training losses of the first steps."""
    # Boxes and anchors are float32 throughout, and the networks of scenes are shallow.
    single = {"recipe.precision=bfloat16", "data=digit_masks", "data=digit_boxes"} & set(words)
    computed = nullcontext() if single else in_float64()
    with tempfile.TemporaryDirectory() as root, computed:
        lines = (train(words, Path(root)) / "metrics.jsonl").read_text().splitlines()
    found = [entry["train/loss"] for entry in map(json.loads, lines) if "train/loss" in entry]
    return found[:STEPS]


@contextmanager
def in_float64() -> Iterator[None]:
    """Networks are built and run in float64, whatever the images come in."""
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    def cast(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.double() if getattr(x, "dtype", None) == torch.float32 else x for x in inputs)

    hook = register_module_forward_pre_hook(cast)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        hook.remove()


def network(words: Sequence[str]) -> dict[str, Any]:
    """Number of parameters, and the rows of the sites table with DropBlock installed."""
    import torch

    from dropblock import LayerControl
    from experiment.build import build_network

    class Shape:
        num_classes: int
        image_shape: tuple[int, int, int]

    plan = plan_of([*words, "regularizer=dropblock"])
    Shape.num_classes = NUM_CLASSES.get(plan.data.name, 1000)
    Shape.image_shape = (3, plan.data.image_size, plan.data.image_size)
    with torch.device("meta"):
        model, layers = build_network(plan, Shape, torch.device("meta"))  # type: ignore[arg-type]
    assert isinstance(layers, LayerControl)
    rows = []
    for row in layers.table:
        # A site in the head of a detector meets every level of the pyramid: all sizes; else the one.
        sizes = [list(size) for size in row.map_sizes]
        where = [row.site, row.group, row.branch, sizes[0] if len(sizes) == 1 else sizes, list(row.block)]
        rows.append([*where, row.keep_prob, row.expected_drop])
    return {"parameters": sum(p.numel() for p in model.parameters()), "sites": rows}


def plan_of(words: Sequence[str]) -> Any:
    from configs import compose

    return compose.plan_of(*words)


def measured() -> dict[str, Any]:
    """File name -> what it holds."""
    return {
        "losses": {name: losses(words) for name, words in RUNS.items()},
        "networks": {name: network(words) for name, words in NETWORKS.items()},
        "plans": {" ".join(words): str(plan_of(words).run_dir()) for words in PLANS},
    }


if __name__ == "__main__":
    import torch

    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    for file, values in measured().items():
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
        (HERE / f"{file}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
