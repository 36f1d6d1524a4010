"""Builds what a plan names: the data set, the network with its layers, the task, the training loop."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from configs.checking import UserError
from configs.plan import Plan
from data import Data, Loading, build_data
from data.batch_regularizers import BATCH_REGULARIZERS
from data.card import card_of
from data.image_regularizers import IMAGE_REGULARIZERS
from dropblock import LayerControl, LayerSpec
from engine import cpu
from engine.distributed import Ranks, synchronized, wrap
from engine.loop import Fit
from engine.precision import refuse_precision, set_numerics
from engine.run_directory import RunDirectory
from engine.seeding import seed_everything
from engine.signals import StopRequest
from engine.state import TrainState
from engine.tasks import TASKS, Classification, Detection, Task
from engine.tasks.losses import LOSSES
from models import build_model


def open_data(plan: Plan, device: torch.device, ranks: Ranks) -> Data:
    """The data set of a plan."""
    runtime = plan.runtime
    return build_data(
        replace(plan.data, root=runtime.data_root, download=runtime.download),
        plan.recipe.augment,
        Loading(
            batch_size=plan.recipe.batch_size,
            eval_batch_size=plan.recipe.eval_batch_size,
            seed=plan.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=device,
            channels_last=True,
            workers=cpu.cores_of_a_rank() if runtime.workers is None else runtime.workers,
            regularizers=image_regularizers(plan),
        ),
    )


def image_regularizers(plan: Plan) -> list[Any]:
    """Those of a plan, made.

    Raises:
        UserError: for one that would change nothing.
    """
    made = {name: IMAGE_REGULARIZERS[name](**options) for name, options in plan.options_of("image").items()}
    for name, change in made.items():
        if not (hasattr(change, "on_image") or hasattr(change, "on_batch")):
            raise UserError(f"regularizer={name}: {type(change).__name__} defines neither on_image nor on_batch")
    return list(made.values())


def refuse_unusable(data: Data, ranks: Ranks) -> None:
    """Refuse data that their card says nothing can be learned from. One rank reads the headers of the files.

    Raises:
        ValueError: on all ranks, in one line.
    """
    reasons = ranks.gather(card_of(data)["refused"] if ranks.is_main else [])[0]
    if reasons:
        raise ValueError(reasons[0])


def build_network(
    plan: Plan, data: Data, device: torch.device, pretrained: bool = True
) -> tuple[nn.Module, LayerControl]:
    """The network of a plan with its layers installed, on the device.

    pretrained=False: do not read `model.pretrained`; used when a checkpoint supplies the weights.
    """
    set_numerics(device, plan.recipe.precision, plan.runtime.cudnn_benchmark)

    # Networks of torchvision and timm are one family each, whose `architecture` is the name in the plan.
    channels, height, width = data.image_shape
    asked = plan.model
    foreign: dict[str, Any] = {"architecture": asked.name} if asked.library else {}
    model = build_model(
        asked.library or asked.name,
        num_classes=data.num_classes,
        in_channels=channels,
        width=asked.width or 64,
        stem=asked.stem or "imagenet",
        zero_gamma=asked.zero_gamma,
        pretrained=asked.pretrained if pretrained else None,
        **foreign,
        **asked.options,
    )

    # The layers of the plan in the library's own form, where block_size is an option of those that have one.
    specs = []
    for layer in plan.layers:
        values = asdict(layer)
        block_size, options = values.pop("block_size"), values.pop("options")
        own = {} if block_size is None else {"block_size": block_size}
        specs.append(LayerSpec(**{**values, "skip": bool(layer.skip)}, options={**own, **options}))

    # They go in on the device, where one pass of zeros finds the size of the maps at each site.
    model = model.to(device).to(memory_format=torch.channels_last)
    return model, LayerControl.install(model, specs, torch.zeros(1, channels, height, width, device=device))


def build_task(plan: Plan, data: Data, aux_weight: float = 0.0) -> Task:
    """The task of a data set; `aux_weight` weighs the loss of a network's auxiliary classifier.

    Raises:
        UserError: if the plan says another task.
    """
    if data.task != plan.data.task:
        raise UserError(f"data.task={plan.data.task}: {data.name} is for {data.task}")

    # Classification alone has a loss that a regularizer may replace.
    losses = {name: LOSSES[name](**options) for name, options in plan.options_of("loss").items()}
    if losses and data.task != "classification":
        raise UserError(f"regularizer={','.join(losses)}: the loss of {data.task} is fixed")
    task: Task
    if data.task == "classification":
        task = Classification(data.classes, next(iter(losses.values()), F.cross_entropy), aux_weight)
    elif data.task == "detection":
        task = Detection(data.classes, plan.recipe.score_threshold)
    else:
        task = TASKS[data.task](data.classes)
    task.headline = plan.headline or task.headline
    return task


def build_fit(
    plan: Plan,
    data: Data,
    directory: RunDirectory,
    device: torch.device,
    ranks: Ranks,
    stop: StopRequest,
    pretrained: bool = True,
) -> tuple[Fit, LayerControl]:
    """A run at its first step, and its layers; writes nothing. `pretrained`: see `build_network`."""
    # Found before the network is built, which takes seconds.
    recipe = plan.recipe
    refuse_precision(device, recipe.precision)
    if recipe.batch_size // ranks.world_size < recipe.accumulate:
        raise UserError(
            f"recipe.accumulate={recipe.accumulate}: a rank has {recipe.batch_size // ranks.world_size} of the "
            f"{recipe.batch_size} images of a step; choose no more micro-batches than that"
        )

    # Initial weights are drawn from the run's seed, whatever was drawn before.
    seed_everything(plan.seed)
    model, layers = build_network(plan, data, device, pretrained)
    if recipe.sync_batchnorm:
        model = synchronized(model, device)

    # Hooks are set on the network that is trained, not on the averaged copy of it that the state holds.
    state = TrainState(model, recipe)
    batch_regularizers = [BATCH_REGULARIZERS[name](**options) for name, options in plan.options_of("batch").items()]
    for regularizer in batch_regularizers:
        if hasattr(regularizer, "install"):
            regularizer.install(model)

    # What a checkpoint says of its origin is compared when it is loaded again.
    fit = Fit(
        task=build_task(plan, data, getattr(model, "aux_weight", 0.0)),
        state=state,
        network=wrap(model, ranks, device, plan.runtime.compile),
        data=data,
        layers=layers,
        recipe=recipe,
        options=plan.runtime,
        seed=plan.seed,
        directory=directory,
        identity={"plan": plan.identity(), "fingerprint": data.fingerprint},
        ranks=ranks,
        device=device,
        stop=stop,
        batch_regularizers=batch_regularizers,
    )
    return fit, layers
