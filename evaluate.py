"""Evaluate a trained network: python evaluate.py run=outputs/digits-resnet50/.../seed-1

    run=FOLDER          the last checkpoint of a run; which=best takes the one chosen on val
    checkpoint=FILE     a checkpoint that train.py wrote
    split=test          test or val
    keep_prob=0.9       put DropBlock on while evaluating, whatever the network was trained with (paper, Figure 5): at
                        all sites of the last two groups, in the first of them a quarter of the rate, with
                        block_size=7 or another; both take lists: keep_prob=[1,0.9,0.8] block_size=[1,7]
    column=[1,2,3]      columns of a FractalNet alone, beside the whole network; 1 is the shallowest
    json=FILE           write the result as JSON
    device, workers, data_root, download: as in train.py

Loss, top-1, top-5 and the accuracy of every class. Exit codes as in train.py.
"""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.plan import LayerPlan, Plan, plan_from
from configs.schema import UserError, check, load_yaml, one_of
from engine import cpu

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from data import Data
    from dropblock import LayerControl


@dataclass
class Request:
    """The words of this command."""

    run: str | None = None
    checkpoint: str | None = None
    which: str = "last"
    split: str = "test"
    keep_prob: list[float] = field(default_factory=list)
    block_size: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    seed: int = 0
    json: str | None = None
    device: str = "auto"
    workers: int | None = None
    data_root: str | None = None
    download: bool = True


def read_request(words: list[str]) -> Request:
    """The command line as a checked request; a single value stands for a list of one."""
    for word in words:
        if "=" not in word:
            raise UserError(f"{word}: expected KEY=VALUE; see --help")
    try:
        config = OmegaConf.from_dotlist(words)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error
    for key in ("keep_prob", "block_size", "column"):
        if key in config and not OmegaConf.is_list(config[key]):
            config[key] = [config[key]]
    request = check(config, Request)
    if (request.run is None) == (request.checkpoint is None):
        raise UserError("give either run=FOLDER or checkpoint=FILE; see --help")
    one_of("which", request.which, ("last", "best"))
    one_of("split", request.split, ("test", "val"))
    for keep_prob in request.keep_prob:
        if not 0.0 <= keep_prob <= 1.0:
            raise UserError(f"keep_prob={keep_prob}: must lie between 0 and 1")
    for block_size in request.block_size:
        if block_size < 1:
            raise UserError(f"block_size={block_size}: must be at least 1")
    return request


def load(request: Request) -> tuple[Plan, dict[str, Any]]:
    """The plan that a network was trained to, and its checkpoint."""
    from engine import checkpoint

    if request.run is not None:
        folder = Path(request.run)
        plan = plan_from(load_yaml(folder / "plan.yaml"))
        if request.which == "best":
            payload = checkpoint.load(folder / "checkpoints" / "best.pt")
        else:
            found = checkpoint.load_latest(folder / "checkpoints")
            if found is None:
                raise UserError(f"{folder}/checkpoints: no checkpoint to evaluate")
            payload = found[0]
    else:
        assert request.checkpoint is not None
        payload = checkpoint.load(Path(request.checkpoint))
        if not isinstance(payload.get("plan"), dict):
            raise UserError(f"{request.checkpoint}: holds no plan; give a checkpoint that train.py wrote")
        plan = plan_from(payload["plan"])
    data_root = request.data_root or plan.runtime.data_root
    runtime = replace(plan.runtime, data_root=data_root, download=request.download, workers=request.workers)
    return replace(plan, runtime=runtime), payload


def weights_of(payload: dict[str, Any]) -> dict[str, Tensor]:
    """What training evaluated: the averaged weights where there are any."""
    ema = payload.get("ema")
    return payload["model"] if ema is None else ema["module"]


def opened(request: Request, device: torch.device) -> tuple[Plan, dict[str, Any], Data]:
    """The plan that a network was trained to, without what drops in it; its checkpoint; the data it was trained on.

    Raises:
        UserError: if the data are others.
    """
    from engine.distributed import Ranks
    from train import open_data

    plan, payload = load(request)
    plan = replace(plan, layer=None, companions=[])
    data = open_data(plan, device, Ranks())
    if data.fingerprint != payload["fingerprint"]:
        raise UserError(f"{plan.data.name}: not the data this network was trained on; set data_root")
    return plan, payload, data


def trained(plan: Plan, payload: dict[str, Any], data: Data, device: torch.device) -> tuple[nn.Module, LayerControl]:
    """The network of a checkpoint in evaluation mode, and the layers that the plan puts in it."""
    from train import build_network

    model, layers = build_network(plan, data, device, pretrained=False)
    model.load_state_dict(weights_of(payload))
    return model.eval(), layers


def evaluate(request: Request) -> dict[str, Any]:
    """Metrics of the split, per class, and under drop at every keep_prob and block size asked for."""
    import torch

    from dropblock import installed_layers
    from engine.distributed import Ranks, find_device
    from engine.evaluation import evaluate as pass_over
    from engine.tasks import Classification

    device, ranks = find_device(request.device), Ranks()
    plan, payload, data = opened(request, device)
    loader = getattr(data, request.split)
    if loader is None:
        raise UserError(f"split={request.split}: {plan.data.name} was used without one")
    task = Classification(data.classes)

    def measure(layer: LayerPlan | None, column: int | None = None) -> dict[str, Any]:
        model, layers = trained(replace(plan, layer=layer), payload, data, device)
        layers.set_progress(1.0)
        for installed in installed_layers(model):
            installed.train()
        torch.manual_seed(request.seed)
        network = model if column is None else column_of(model, column)
        done = pass_over(task, network, loader, ranks, device, plan.recipe.precision)
        return {**done.metrics, "tables": [asdict(table) for table in done.tables]}

    under_drop = []
    if request.keep_prob or request.block_size:
        last: Any = trained(plan, payload, data, device)[0].last_group
        for block_size, keep_prob in product(request.block_size or [7], request.keep_prob or [0.9]):
            layer = LayerPlan("dropblock", keep_prob, block_size, [last - 1, last], True, "constant", 4.0)
            metrics = without_tables(measure(layer))
            under_drop.append({"keep_prob": keep_prob, "block_size": block_size, **metrics})
    columns = [{"column": k, **without_tables(measure(None, k))} for k in request.column]
    result = {"split": request.split, "samples": loader.num_samples, **measure(None)}
    named = {"task": task.name, "headline": task.headline, "metric_labels": task.labels}
    return {**result, **named, "under_drop": under_drop, "columns": columns}


def without_tables(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a whole split."""
    return {name: value for name, value in metrics.items() if name != "tables"}


def column_of(model: Any, column: int) -> nn.Module:
    """One column of a fractal network, on the same weights."""
    if not hasattr(model, "column"):
        raise UserError(f"column={column}: only a FractalNet has columns")
    if not 1 <= column <= model.depth:
        raise UserError(f"column={column}: this network has the columns 1 to {model.depth}")
    return model.column(column).eval()


def result_text(result: dict[str, Any]) -> str:
    """The result as tables."""
    from engine.console import metric_text, table, table_rows

    split, headline = result["split"], result["headline"]
    names = [name for name in result["metric_labels"] if name in result]
    rows = [(f"{split}/{name}", metric_text(name, result[name], places=4)) for name in names]
    parts = [table(("metric", f"of {result['samples']:,} images"), rows)]
    parts += [table(finer["header"], table_rows(finer["rows"])) for finer in result["tables"]]
    if result["under_drop"]:
        drops = [
            (row["block_size"], f"{row['keep_prob']:g}", metric_text(headline, row[headline]), f"{row['loss']:.4f}")
            for row in result["under_drop"]
        ]
        parts.append(table(("block_size", "keep_prob", f"{headline} under drop", "loss"), drops))
    if result["columns"]:
        alone = [
            (row["column"], metric_text(headline, row[headline]), f"{row['loss']:.4f}") for row in result["columns"]
        ]
        parts.append(table(("column alone", headline, "loss"), alone))
    return "\n\n".join(parts)


def main(words: list[str]) -> int:
    """The process: words in, exit code out."""
    from engine.outcome import told

    cpu.settle()
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        request = read_request(words)
        result = evaluate(request)
        print(result_text(result))
        if request.json is not None:
            Path(request.json).write_text(json_format.dumps(result, indent=2) + "\n")
    except BaseException as error:
        return told(error)[0]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
