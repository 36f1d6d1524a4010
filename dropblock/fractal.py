"""Drop-path of FractalNet (Larsson, Maire, Shakhnarovich 2017, arXiv 1605.07648, section 3).

A fractal network averages columns of different depth at its joins. Drop-path takes inputs away from joins, for a whole
mini-batch at a time, in one of two ways that take turns at random:

    local    every input of every join is dropped on its own, but a join that lost all gets one back at random
    global   one column for the entire network: a join that has it as an input takes it alone
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dropblock.draws import STEP, mixed, shifted
from dropblock.layers import DropLayer
from dropblock.sites import Site


class JoinSite(Site):
    """The one place where a fractal network asks how much each input of each of its joins counts.

    Its input is ones of shape (1, inputs of all joins, 1, 1); join j then averages its inputs with the weights that
    come out. One site for the whole network, because a global draw has to be the same at every join. Its group is 0.

    Args:
        joins: for every join the columns it averages, numbered from 1, the shallowest.
    """

    def __init__(self, joins: Sequence[Sequence[int]]) -> None:
        super().__init__(0, "conv", "inputs of all joins", path_only=True)
        self.joins = tuple(tuple(columns) for columns in joins)


class FractalDropPath(DropLayer):
    """Weights of the inputs of joins: 0 for a dropped input, else inputs / kept inputs of its join.

    Args:
        joins: see `JoinSite`.
        keep_prob: share of inputs to keep under local drop-path, in [0, 1]; the paper has 0.85. At 1 nothing is
            dropped, global draws included.
        global_share: share of mini-batches with a global draw, in [0, 1].
    """

    batchwise = True
    columns: Tensor
    member: Tensor
    place: Tensor

    def __init__(self, joins: Sequence[Sequence[int]], *, keep_prob: float = 0.85, global_share: float = 0.5) -> None:
        super().__init__(keep_prob=keep_prob)
        if not 0.0 <= global_share <= 1.0:
            raise ValueError(f"global_share must lie in [0, 1], not {global_share}")
        self.joins, self.global_share = tuple(tuple(columns) for columns in joins), global_share
        self.depth = max(max(columns) for columns in self.joins)
        for name in ("member", "columns", "place"):
            self.register_buffer(name, self.fresh_buffers()[name], persistent=False)

    def fresh_buffers(self) -> dict[str, Tensor]:
        inputs = [(j, i, column) for j, columns in enumerate(self.joins) for i, column in enumerate(columns)]
        member = torch.zeros(len(self.joins), len(inputs), dtype=torch.float32)
        for m, (j, _, _) in enumerate(inputs):
            member[j, m] = 1.0
        return {
            **super().fresh_buffers(),
            "member": member,  # (joins, inputs): which input belongs where
            "columns": torch.tensor([column for _, _, column in inputs]),
            "place": torch.tensor([i for _, i, _ in inputs]),
        }

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        # Both kinds of draw are computed, and the first number chooses: nothing waits for the host.
        inputs, joins = len(self.place), len(self.joins)
        u = uniforms(seed, 2 + inputs + joins)
        whole_net, column = u[0] < self.global_share, (u[1] * self.depth).long() + 1
        local = self.or_restored(u[2 : 2 + inputs] < self.keep_prob, u[2 + inputs :])
        kept = torch.where(whole_net, self.or_all(self.columns == column), local) | (self.keep_prob >= 1.0)
        # Kept inputs share the weight of the join: inputs / kept inputs.
        number = self.member @ kept.float()
        weights = kept * ((self.member.sum(1) / number) @ self.member)
        return x * weights.to(x.dtype).view(1, -1, 1, 1), kept.sum()

    def or_restored(self, kept: Tensor, u: Tensor) -> Tensor:
        """`kept`, with one input back in every join that lost all; `u` (joins,) says which."""
        lost = (self.member @ kept.float()) == 0
        back = (u * self.member.sum(1)).floor() @ self.member  # its place among the inputs of the join
        return kept | ((lost.float() @ self.member > 0) & (self.place == back))

    def or_all(self, kept: Tensor) -> Tensor:
        """`kept`, and every input of the joins that do not have the drawn column: what they give is not used."""
        lost = (self.member @ kept.float()) == 0
        return kept | (lost.float() @ self.member > 0)

    def block(self, *size: int) -> tuple[int, ...]:
        return size

    def expected_drop(self, keep_prob: float, *size: int) -> float:
        """The exact expected share of dropped inputs, over all joins."""
        if keep_prob >= 1.0:
            return 0.0
        p, share = 1.0 - keep_prob, self.global_share
        sizes = [len(columns) for columns in self.joins]
        local = sum(k * p - p**k for k in sizes)  # all k lost: one comes back
        one_column = sum(k * (k - 1) for k in sizes) / self.depth  # k of the columns, drawn uniformly, are inputs here
        return ((1.0 - share) * local + share * one_column) / sum(sizes)

    def extra_repr(self) -> str:
        return f"joins={len(self.joins)}, global_share={self.global_share}, {super().extra_repr()}"


def uniforms(seed: Tensor, number: int) -> Tensor:
    """`number` float32 draws from [0, 1), a function of the 0-dimensional int64 `seed` alone, made on its device."""
    z = mixed(seed + STEP * torch.arange(1, number + 1, device=seed.device))
    return shifted(z, 40).float() / 2**24
