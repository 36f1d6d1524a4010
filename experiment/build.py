"""What a plan names, built: the data set, the network with its layers, the training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from configs.plan import Plan
from configs.schema import UserError
from data import Augment, Data, build_data
from dropblock import KeepProbSchedule, LayerControl, install_layers
from engine import cpu
from engine.distributed import Ranks, synchronized, wrap
from engine.loop import Fit
from engine.optim import LearningRate, build_optimizer
from engine.records import RunFolder
from engine.seeding import seed_everything
from engine.signals import StopRequest
from engine.state import TrainState
from engine.tasks import Classification
from models import build_model


def open_data(plan: Plan, device: torch.device, ranks: Ranks) -> Data:
    """The data set of a plan."""
    augment = plan.recipe.augment
    return build_data(
        plan.data.name,
        root=plan.runtime.data_root,
        image_size=plan.data.image_size,
        batch_size=plan.recipe.batch_size,
        eval_batch_size=plan.recipe.eval_batch_size,
        val_fraction=plan.data.val_fraction,
        train_subset=plan.data.train_subset,
        augment=Augment(augment.crop_padding, augment.flip, plan.cutout, plan.autoaugment),
        seed=plan.seed,
        device=device,
        channels_last=True,
        workers=cpu.cores_of_a_rank() if plan.runtime.workers is None else plan.runtime.workers,
        rank=ranks.rank,
        world_size=ranks.world_size,
        download=plan.runtime.download,
        on_bad_image=plan.data.on_bad_image,
        decoder=plan.data.decoder,
        prepared=plan.data.prepared,
    )


def build_network(
    plan: Plan, data: Data, device: torch.device, pretrained: bool = True
) -> tuple[nn.Module, LayerControl]:
    """The network of a plan with its layers installed, on the device.

    pretrained=False: do not read `model.pretrained`; used when a checkpoint supplies the weights.
    """
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
    last_group: Any = model.last_group
    schedules: dict[str, KeepProbSchedule] = {}
    taken: dict[str, str] = {}
    for layer in ([plan.layer] if plan.layer else []) + plan.companions:
        sites = install_layers(
            model,
            layer.name,
            keep_prob=layer.keep_prob,
            block_size=layer.block_size,
            groups=layer.groups,
            skip=bool(layer.skip),
        )
        for path in sites.keys() & taken.keys():
            raise UserError(f"{taken[path]} and {layer.name} both want the site {path}: choose one of them")
        taken |= dict.fromkeys(sites, layer.name)
        schedules[layer.name] = KeepProbSchedule(
            model,
            layer.keep_prob,
            layer.schedule,
            layer.group_divisor,
            last_group,
            layer.group_shares,
            [site.layer for site in sites.values() if site.layer is not None],
        )
    model = model.to(device).to(memory_format=torch.channels_last)
    return model, LayerControl(model, torch.zeros(1, channels, height, width, device=device), schedules)


def build_fit(
    plan: Plan,
    data: Data,
    folder: RunFolder,
    device: torch.device,
    ranks: Ranks,
    stop: StopRequest,
    pretrained: bool = True,
) -> tuple[Fit, LayerControl]:
    """A run at its first step, and its layers; writes nothing. `pretrained`: see `build_network`."""
    recipe = plan.recipe
    seed_everything(plan.seed)
    model, layers = build_network(plan, data, device, pretrained)
    if recipe.sync_batchnorm:
        model = synchronized(model, device)
    optimizer = build_optimizer(
        recipe.optimizer,
        model,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    state = TrainState(model, optimizer, recipe.ema_decay, recipe.precision)
    fit = Fit(
        task=Classification(data.num_classes, plan.label_smoothing, getattr(model, "aux_weight", 0.0)),
        state=state,
        network=wrap(model, ranks, device, plan.runtime.compile),
        data=data,
        layers=layers,
        lr=LearningRate(
            peak=recipe.lr,
            schedule=recipe.lr_schedule,
            total_steps=recipe.epochs * len(data.train),
            steps_per_epoch=len(data.train),
            warmup_epochs=recipe.warmup_epochs,
            milestones=recipe.milestones,
            decay=recipe.lr_decay,
            decay_epochs=recipe.decay_epochs,
        ),
        epochs=recipe.epochs,
        accumulate=recipe.accumulate,
        grad_clip=recipe.grad_clip,
        precision=recipe.precision,
        seed=plan.seed,
        eval_every=recipe.eval_every,
        log_every=plan.runtime.log_every,
        checkpoint_every=plan.runtime.checkpoint_every,
        folder=folder,
        identity={"plan": plan.identity(), "fingerprint": data.fingerprint},
        ranks=ranks,
        device=device,
        stop=stop,
        progress=plan.runtime.progress,
    )
    return fit, layers
