"""The names and signatures of other DropBlock implementations, over the operator of this library.

`torchvision` and `timm` hold what the packages of these names call DropBlock. To migrate is to change the import. What
changes with it: blocks of the size asked for lie inside the map, even blocks work, the drop rate is the one asked for
(timm's is not), and a non-finite value in a block comes out as 0.

Every module is a layer of this library: it counts what it kept, and a KeepProbSchedule may set its rate.
"""

from __future__ import annotations

from torch import Tensor

from dropblock.functional import share_to_keep
from dropblock.layers import DropLayer


def in_place(x: Tensor, y: Tensor, wanted: bool) -> Tensor:
    """`y`, or `x` with its values."""
    return x.copy_(y) if wanted and y is not x else y


def _rate(layer: DropLayer) -> float:
    return round(1.0 - float(layer.keep_prob), 6)  # 1 - float32 has six digits


def _set_rate(layer: DropLayer, rate: float) -> None:
    layer.keep_prob.fill_(float(share_to_keep(type(layer).__name__, None, None, rate)))


# 1 - keep_prob as an attribute that may be set between steps: `p` and `drop_prob` of the other libraries.
drop_rate = property(_rate, _set_rate)
