"""ShakeDrop (Yamada, Iwamura, Akiba, Kise 2018, arXiv 1802.02375): a residual branch F times a random number.

    forward       x + (b + alpha - b alpha) F(x)       b ~ Bernoulli(p_l), alpha uniform on [-1, 1]
    backward      (b + beta - b beta) dF               the same b, beta uniform on [0, 1]: not the factor of the forward
    evaluation    x + E[b + alpha - b alpha] F(x)      which is p_l + (1 - p_l) E[alpha]

Where b is 1 the block is an ordinary one. Where it is 0 the branch is shaken: its output is scaled by alpha, which may
be negative, and its gradient by beta, which is drawn independently. p_l = 1 - l / L (1 - p_L) falls with the depth l of
the block, the rule of stochastic depth (depth_rule=linear), with p_L = 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dropblock.draws import random_mask, random_uniform
from dropblock.functional import Rate, check_maps, refuse_unknown
from dropblock.layers import DropLayer
from dropblock.sites import Site, declared_sites

TOGETHER = ("image", "batch")


class ShakeDrop(DropLayer):
    """ShakeDrop at the end of a residual branch.

    Unlike the other layers it is not the identity in evaluation: the branch is scaled by the expectation of its factor,
    which follows the `keep_prob` buffer (p_l) at that moment. So a network that was trained with it is evaluated with
    it, or on weights that hold the scale (`folded`), and its keep_prob is constant over a run, as in the paper.

    A unit counts as kept where b is 1, so the measured drop is the share of (image, branch) pairs that were shaken, and
    1 - p_l is what it should be.

    Args:
        keep_prob (or p): p_l, the probability of b = 1, in [0, 1].
        alpha, beta: (least, most) of the uniform factors of a shaken branch, forward and backward; one draw an image.
        together: what shares a draw of b: `image`, or `batch` (as in public copies of the code, whose b is one number).

    Raises:
        ValueError: for a range that is none, or an unknown `together`.
    """

    def __init__(
        self,
        *positional: object,
        alpha: Sequence[float] = (-1.0, 1.0),
        beta: Sequence[float] = (0.0, 1.0),
        together: str = "image",
        **rate: Rate,
    ) -> None:
        refuse_unknown("ShakeDrop", rate)
        super().__init__(*positional, **rate)
        for name, limits in (("alpha", alpha), ("beta", beta)):
            if not isinstance(limits, Sequence):
                raise TypeError(f"{name} must be a range such as [-1, 1], not {limits!r}")
            if len(limits) != 2 or not -math.inf < limits[0] <= limits[1] < math.inf:
                raise ValueError(f"{name} must be a range such as [-1, 1], not {list(limits)}")
        if together not in TOGETHER:
            raise ValueError(f"unknown together '{together}', choose one of {', '.join(TOGETHER)}")
        self.alpha, self.beta, self.together = tuple(alpha), tuple(beta), together

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        if self.training or isinstance(x, fx.Proxy):
            return super().forward(x, level)
        return times(x, self.expected_factor())

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        check_maps(type(self).__name__, x, 1, 2, 3)

        # One number an image; b may be one for the whole batch.
        image = (len(x), *[1] * (x.ndim - 1))
        b = random_mask(image if self.together == "image" else (1,) * x.ndim, self.keep_prob, seed)

        # b + alpha - b alpha is 1 where b is 1, and alpha where it is 0; backward the same with beta.
        forward = torch.where(b, 1.0, uniform(self.alpha, image, seed + 1))
        backward = torch.where(b, 1.0, uniform(self.beta, image, seed + 2))
        return _Shake.apply(x, forward, backward), b.sum() * (x.numel() // max(b.numel(), 1))

    def expected_factor(self) -> Tensor:
        """E[b + alpha - b alpha], the scale of the branch in evaluation: a 0-dimensional float32 tensor."""
        keep_prob = self.keep_prob.clamp(0, 1)
        return keep_prob + (1.0 - keep_prob) * (sum(self.alpha) / 2)

    def block(self, *size: int) -> tuple[int, ...]:
        return size

    def extra_repr(self) -> str:
        return f"alpha={list(self.alpha)}, beta={list(self.beta)}, together={self.together}, {super().extra_repr()}"


class _Shake(torch.autograd.Function):
    """x times one factor, the gradient times another; both broadcast to x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        return times(x, forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return times(gradient, ctx.saved_tensors[0]), None, None


def times(x: Tensor, factor: Tensor) -> Tensor:
    """x times a float32 factor, rounded once to the type of x."""
    exact = torch.promote_types(x.dtype, torch.float32)
    return (x.to(exact) * factor).to(x.dtype)


def uniform(limits: tuple[float, ...], shape: tuple[int, ...], seed: Tensor) -> Tensor:
    """Independent float32 draws between two limits, a function of the seed."""
    return limits[0] + (limits[1] - limits[0]) * random_uniform(shape, seed)


def check_ends(model: nn.Module) -> None:
    """Note at the sites of ShakeDrop layers where the branch does not end in BatchNorm.

    Raises:
        ValueError: where it ends in something that has no weights, and so is no residual branch that could be scaled.
    """
    for path, site in declared_sites(model).items():
        if isinstance(site.layer, ShakeDrop):
            end = model.get_submodule(branch_end(model, path))
            if not isinstance(getattr(end, "weight", None), Tensor):
                raise ValueError(f"shakedrop needs residual branches; at {path} there ends a {type(end).__name__}")
            note = f"ShakeDrop: this branch ends in {site.after}, not in BatchNorm"
            if not isinstance(end, _BatchNorm) and note not in site.note:
                site.note = "; ".join(filter(None, (site.note, note)))


def branch_end(model: nn.Module, path: str) -> str:
    """Module path of what comes before a site: what its `after` names beside it, or else what it was hooked to."""
    site, (owner, _, _) = model.get_submodule(path), path.rpartition(".")
    named = f"{owner}.{site.after}".lstrip(".")
    start = named if named in dict(model.named_modules()) else owner
    inside = model.get_submodule(start).named_modules(prefix=start)
    return [name for name, module in inside if not isinstance(module, Site | DropLayer | nn.Identity)][-1]


def folded(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with which a network without layers computes what this one computes in evaluation.

    Args:
        model: has ShakeDrop layers; its own weights do not count.
        weights: the state_dict of a trained one. What ends each branch, a BatchNorm or a convolution, is scaled.
    """
    scaled = dict(weights)
    for path, site in declared_sites(model).items():
        if isinstance(site.layer, ShakeDrop):
            for key in (f"{branch_end(model, path)}.{name}" for name in ("weight", "bias")):
                if key in scaled:
                    scaled[key] = scaled[key] * site.layer.expected_factor().to(scaled[key].device)
    return scaled
