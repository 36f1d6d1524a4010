"""The model card of exported weights: their training and their metrics, with a `model-index` that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from configs.plan import Plan
from scripts.reporting.names import label_of, metric_label

TASKS = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
}
REFERENCE = """```bibtex
@inproceedings{ghiasi2018dropblock,
  title     = {DropBlock: A regularization method for convolutional networks},
  author    = {Ghiasi, Golnaz and Lin, Tsung-Yi and Le, Quoc V.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2018}
}
```"""


def card_text(plan: Plan, summary: Mapping[str, Any], weights: Path, which: str) -> str:
    """The card as Markdown with its YAML head.

    Args:
        plan: the plan of the training.
        summary: the record of the finished run; {} for a checkpoint without one, whose card has no numbers.
        weights: the exported file.
        which: `last` or `best`, the checkpoint it comes from.
    """
    task = TASKS.get(plan.data.task, plan.data.task)
    name = f"{plan.model.name}-{'-'.join(plan.regularizer)}-{plan.data.name}"
    styles, environment = summary.get("styles"), summary.get("environment") or {}
    # (name, label, value) of every metric on test at the exported epoch
    values = {key.removeprefix("test/"): value for key, value in (summary.get(which) or {}).items() if "test/" in key}
    metrics = [(key, metric_label(key, summary), value) for key, value in values.items()]

    # The head, which model hubs read.
    head: dict[str, Any] = {"library_name": "pytorch", "pipeline_tag": task, "tags": ["dropblock", *plan.regularizer]}
    head["datasets"] = [plan.data.name]
    if metrics:
        dataset = {"name": plan.data.name, "type": plan.data.name, "split": "test"}
        listed = [{"type": key, "value": round(value, 4), "name": label} for key, label, value in metrics]
        head["model-index"] = [
            {"name": name, "results": [{"task": {"type": task}, "dataset": dataset, "metrics": listed}]}
        ]

    # One sentence: the training, and the knobs of every layer.
    recipe, subset = plan.recipe, plan.data.train_subset
    images = f"{subset:,} training images of {plan.data.name}" if subset else plan.data.name
    layers = []
    for layer in plan.layers:
        title = f"{label_of([layer.name], styles)} " if len(plan.layers) > 1 else ""
        groups = ", ".join(map(str, layer.groups or []))
        layers.append(f" {title}keep_prob {layer.keep_prob:g}, schedule {layer.schedule}, groups {groups}")
    sentence = (
        f"{plan.model.name} trained on {images} for {recipe.epochs} epochs (recipe `{recipe.name}`, batch "
        f"{recipe.batch_size}, seed {plan.seed}) with {label_of(plan.regularizer, styles)}"
        f"{':' if layers else ''}{';'.join(layers)}."
    )

    parts = [f"# {name}", sentence]
    if metrics:
        lines = "\n".join(f"| {label} | {value:.2f} |" for _, label, value in metrics)
        parts.append(f"| on test, one run | |\n| :-- | --: |\n{lines}")
        parts.append("One seed: a single run does not tell two methods apart.")
    parts.append(
        f"`{weights.name}` holds tensors only, under the keys of the network; the layers that drop have none. Load it "
        f"with `safetensors.torch.load_file`, or start from it by `python train.py model.pretrained={weights.name}`."
    )
    parts.append(f"Input: {plan.data.image_size} pixels, normalised as `data={plan.data.name}` does.")
    if environment:
        changed = " with local changes (`code.diff`)" if environment.get("dirty") else ""
        parts.append(f"Commit `{environment.get('commit')}`{changed}; torch {environment.get('torch')}.")
    parts.append("The licence of the code does not cover the data: the terms of the data set apply to the weights.")
    body = "\n\n".join([*parts, "## Reference", REFERENCE])
    return f"---\n{OmegaConf.to_yaml(OmegaConf.create(head))}---\n\n{body}\n"
