"""The layers that DropBlock is compared with: dropout, SpatialDropout, drop path, stochastic depth, DropConnect.

They differ in what is kept or dropped together, and are one function otherwise: `drop_together`. Kept units are divided
by keep_prob during training and evaluation changes nothing ("inverted"), for all of them; where the source has it the
other way round the class says so.

Why not torch's and torchvision's own (`F.dropout`, `F.dropout2d`, `torchvision.ops.stochastic_depth`): they have the
same distribution in float32, but scale in the type of the input (in bfloat16 1 / 0.9 becomes 1.1094), multiply dropped
units by 0, which leaves a NaN a NaN, and draw from a generator whose state a resumed run would have to carry.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dropblock import sparse_cpu
from dropblock.draws import random_mask
from dropblock.functional import Rate, check_maps, refuse_positional, refuse_unknown, scalar, seed_on, share_to_keep
from dropblock.layers import DropLayer, with_own_init
from dropblock.operator import as_stored
from dropblock.sites import Site, declared_sites, depths
from dropblock.sparse_cpu import channels_last

# What shares one draw: how many leading axes of (N, C, ...) the mask has as its own.
TOGETHER: dict[str, int | None] = {"unit": None, "channel": 2, "sample": 1, "batch": 0}


def drop_together(
    x: Tensor,
    *positional: object,
    together: str,
    keep_prob: Rate = None,
    p: Rate = None,
    training: bool = True,
    seed: Tensor | int | None = None,
) -> Tensor:
    """Drop units, channels, samples or the whole batch, each with probability 1 - keep_prob; divide what is kept by it.

    Args:
        x: (N, C, L), (N, C, H, W) or (N, C, D, H, W), floating point.
        keep_prob: share to keep, in [0, 1], a number or a 0-dimensional tensor; 0.9 if no rate is given. At 0 the
            output is zeros.
        p: the same rate as a share to drop, 1 - keep_prob.
        together: `unit` (dropout), `channel` (SpatialDropout), `sample` (drop path) or `batch` (stochastic depth).
        training: if False, `x` is returned as it is.
        seed: whole number or 0-dimensional int64 tensor that fixes the mask; None: from torch's default generator.

    Returns:
        a tensor like `x`; dropped units are 0 even where `x` is NaN.

    Raises:
        ValueError: for another number of dimensions, an unknown `together`, or a number outside [0, 1] as keep_prob; a
            tensor is clamped.
        TypeError: if `x` is not floating point, or keep_prob no number.
    """
    refuse_positional("drop_together", positional)
    kept = share_to_keep("drop_together", keep_prob, p, None)
    if together not in TOGETHER:
        raise ValueError(f"unknown together '{together}', choose one of {', '.join(TOGETHER)}")
    check_maps("drop_together", x, 1, 2, 3)
    if not training:
        return x
    seed = seed_on(x.device, seed)
    return drop_together_counted(x, scalar(kept, x.device), together, seed)[0]


def drop_together_counted(x: Tensor, keep_prob: Tensor, together: str, seed: Tensor) -> tuple[Tensor, Tensor]:
    """`drop_together` in training, with the number of kept units (0-dimensional int64 tensor); `x` is not checked.

    A function of its arguments alone, the same on every device; `keep_prob` and `seed` are tensors on the device of
    `x` and are not read by the host.
    """
    own = x.shape[: TOGETHER[together]]
    kept = random_mask((*own, *[1] * (x.ndim - len(own))), keep_prob, seed)
    exact = torch.promote_types(x.dtype, torch.float32)
    rate = keep_prob.to(exact).clamp(0, 1)  # as the mask has it: the host does not read a tensor to refuse it
    # Where nothing is kept the factor is 0 and not infinite, as 0 * inf in the backward pass would be NaN.
    scale = torch.where(rate > 0, 1.0 / rate, torch.zeros_like(rate))
    y = (x.to(exact) * scale).to(x.dtype).masked_fill(~kept, 0)
    return y, kept.sum() * (x.numel() // max(kept.numel(), 1))


@with_own_init
class Dropout(DropLayer):
    """Dropout on feature maps (Hinton et al. 2012, arXiv 1207.0580; Srivastava et al. 2014, JMLR 15): single units.

    The papers leave kept units alone in training and multiply by keep_prob at test time. Here, as in every framework
    today, kept units are divided by keep_prob in training ("inverted dropout") and the test is the plain network. With
    ReLU and convolutions the two train the same function up to a factor in the weights; with a learning rate and weight
    decay tuned to one of them they are not the same training.
    """

    together = "unit"

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        check_maps(type(self).__name__, x, 1, 2, 3)
        return drop_together_counted(x, self.keep_prob, self.together, seed)

    def drop_each(self, x: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        if type(self).drop is not Dropout.drop or self.together != "unit" or x.device.type != "cpu":
            return super().drop_each(x, seeds)
        # On a CPU the dropped units alone are drawn, as blocks of one unit.
        check_maps(type(self).__name__, x, 1, 2, 3)
        kept = float(self.keep_prob)
        x = as_stored(x, channels_last(x))
        return sparse_cpu.drop_each(x, self.keep_prob, 1, seeds, scale=1.0 / kept if kept > 0 else 0.0)

    def block(self, *size: int) -> tuple[int, ...]:
        return (1,) * len(size)


@with_own_init
class SpatialDropout(Dropout):
    """SpatialDropout (Tompson et al. 2015, arXiv 1411.4280): whole channels, drawn for every sample and channel."""

    together = "channel"

    def block(self, *size: int) -> tuple[int, ...]:
        return size


@with_own_init
class DropPath(SpatialDropout):
    """Drop path on a residual branch: the whole branch of a sample, all channels at once.

    As in the released NASNet and AmoebaNet code (Zoph et al. 2018, arXiv 1707.07012), where keep_prob falls over the
    training ("ScheduledDropPath"), and as timm's `DropPath`. EfficientNet's code calls this `drop_connect`, which is
    the name of something else (see `DropConnect`). FractalNet's drop-path is `FractalDropPath`.
    """

    together = "sample"


class StochasticDepth(SpatialDropout):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): a residual branch, for the whole mini-batch.

    The survival probability falls linearly with depth, p_l = 1 - l/L (1 - keep_prob): keep_prob is that of the last
    unit. The paper keeps a branch as it is in training and multiplies it by p_l at test time; here it is divided by p_l
    in training. A dropped branch is still computed, so the paper's shorter training time is not reproduced.

    Args:
        keep_prob (or p): survival probability of the last unit, in [0, 1].
        depth: l/L of this unit, in [0, 1].
    """

    together = "batch"

    def __init__(self, *positional: object, depth: float = 1.0, **rate: Rate) -> None:
        refuse_unknown("StochasticDepth", rate)
        super().__init__(*positional, **rate)
        self.depth = depth

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        check_maps(type(self).__name__, x, 1, 2, 3)
        return drop_together_counted(x, 1.0 - self.depth * (1.0 - self.keep_prob), self.together, seed)

    def seed_rate(self, keep_prob: float, *size: int) -> float:
        return self.depth * (1.0 - keep_prob)

    def expected_drop(self, keep_prob: float, *size: int) -> float:
        return self.depth * (1.0 - keep_prob)

    def extra_repr(self) -> str:
        return f"depth={self.depth:.3g}, {super().extra_repr()}"


@with_own_init
class DropConnect(Dropout):
    """DropConnect (Wan et al. 2013, ICML): single weights, not units and not paths.

    The name is in use for something else: `drop_connect` in the EfficientNet and AmoebaNet code drops the residual
    branch of a sample, which is `DropPath` here. DropConnect proper was made for fully connected layers, with a mask of
    its own for every sample, and a test time that samples from a Gaussian with the moments of the masked sum. For a
    convolution a mask per sample would be another convolution per sample, so one mask serves the mini-batch; kept
    weights are divided by keep_prob; the test is the plain network. Sits at a `WeightSite`.
    """

    batchwise = True


class WeightSite(Site):
    """A place that the weight of a convolution passes through, (out, in, kernel height, kernel width)."""


class SiteConv2d(nn.Conv2d):
    """A convolution whose weight passes through a site. The site adds no key to a `state_dict`."""

    weight_site: WeightSite

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight_site(self.weight), self.bias)


def declare_weight_sites(model: nn.Module) -> None:
    """Give every convolution that stands beside a site of a conv branch a site for its weight, in the same group.

    Keys, outputs and the identity of the modules stay as they are; a second call changes nothing.
    """
    sites = declared_sites(model)
    for path, site in sites.items():
        if site.branch != "conv" or isinstance(site, WeightSite):
            continue
        for name, module in model.get_submodule(path.rpartition(".")[0]).named_children():
            if type(module) is nn.Conv2d:  # a subclass may have a forward of its own
                module.__class__ = SiteConv2d
                module.weight_site = WeightSite(site.group, "conv", f"weight of {name}")


def set_depths(model: nn.Module) -> None:
    """Set the depth of every StochasticDepth layer: l/L, its place among the residual units of the network."""
    sites = declared_sites(model)
    for path, depth in depths(model).items():
        layer = sites[path].layer
        if isinstance(layer, StochasticDepth):
            layer.depth = depth
