"""Places for layers in a network that nobody has described: found by running it once and following the tensors.

The end of a residual branch is what an addition adds to something that the branch was computed from; a stage ends where
the side of the feature maps changes. No name of a module is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dropblock.places import Place
from dropblock.table import aligned

ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}


@dataclass(eq=False)
class Node:
    """A tensor of the forward pass: what it was computed from, and the modules that gave it, innermost first."""

    number: int
    shape: tuple[int, ...]
    parents: list[Node]
    modules: list[str] = field(default_factory=list)
    passed_by: list[str] = field(default_factory=list)  # modules that returned it as they were given it

    def ancestors(self) -> set[Node]:
        """Everything that this was computed from, itself included."""
        found, waiting = set[Node](), [self]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += node.parents
        return found


class Recorder(TorchFunctionMode):
    """Records the graph of one forward pass, one node for every tensor that a function returns."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.additions: list[tuple[Node, Node]] = []
        self.known: dict[int, tuple[Tensor, Node]] = {}  # the tensor keeps its id from being given to another
        for x in inputs:
            self.enter(x, [])

    def enter(self, x: Tensor, parents: list[Node]) -> Node:
        node = Node(len(self.nodes), tuple(x.shape), parents)
        self.nodes.append(node)
        self.known[id(x)] = x, node
        return node

    def node_of(self, x: object) -> Node | None:
        return self.known[id(x)][1] if isinstance(x, Tensor) and id(x) in self.known else None

    def nodes_in(self, values: object) -> list[Node]:
        return [node for x in tensors_in(values) if (node := self.node_of(x)) is not None]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        parents = self.nodes_in([args, kwargs or {}])
        name = getattr(func, "__name__", "")
        result = func(*args, **(kwargs or {}))
        if parents and name != "__get__":
            if name in ADDITIONS and len(parents) == 2:
                self.additions.append((parents[0], parents[1]))
            in_place = name.endswith("_") or (kwargs or {}).get("inplace", False)
            for x in tensors_in(result):  # a function that returned its argument unchanged made no new tensor
                if self.node_of(x) is None or in_place or name == "__iadd__":
                    self.enter(x, parents)
        return result


def tensors_in(values: object) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple | dict):
        for value in values.values() if isinstance(values, dict) else values:
            yield from tensors_in(value)


class Suggestion(list[Place]):
    """Places as a list for `install_into`; printed, a table of them and the lines to paste."""

    def __init__(self, places: Iterable[Place], rows: list[list[str]], notes: list[str]) -> None:
        super().__init__(places)
        self.rows, self.notes = rows, notes

    def __str__(self) -> str:
        table = aligned([["group", "stride", "branch", "sites", "map", "of"], *self.rows], str.ljust)
        shown = [f"    {line(place)}," for place in self]
        return "\n".join([*table, "places = [", *shown, "]", *(f"note: {note}" for note in self.notes)])


def line(place: Place) -> str:
    """A place as one writes it."""
    words = [f'"{place.modules}"', f'"{place.where}"', f"group={place.group}"]
    words += ['branch="skip"'] if place.branch == "skip" else []
    words += ["ends_branch=True"] if place.ends_branch else []
    return f"Place({', '.join(words)})"


def suggest(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Suggestion:
    """Propose places for layers: `print(suggest(model, x))`, `install_into(model, make, suggest(model, x))`.

    The ends of residual branches and their shortcuts; in groups that have none, the last map before the side of the
    maps changes. Groups follow the stride: 1 up to stride 4, then 2 for 8, 3 for 16, and 4 for 32 and above.

    Args:
        model: run once in evaluation mode without gradients, and left as it was; may be on the meta device.
        example: (1, channels, height, width), an input like those of training, the larger the clearer; a tuple for a
            network of several inputs, whose first is the image.

    Raises:
        ValueError: if no place is found, as in a transformer, whose layers see tokens and no maps; for another example.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    if inputs[0].ndim < 3:
        raise ValueError(
            f"example: expected a batch of images (1, channels, height, width), not {tuple(inputs[0].shape)}"
        )
    graph, image = Recorder(inputs), inputs[0].shape[2:]
    calls: dict[str, int] = {}

    def remember(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[path] = calls.get(path, 0) + 1
            if isinstance(output, Tensor):
                given = graph.nodes_in(args)
                node = graph.node_of(output) or graph.enter(output, given)
                (node.passed_by if node in given else node.modules).append(path)

        return hook

    # One forward pass with a hook on every module; modes are put back whatever happens.
    handles = [m.register_forward_hook(remember(path)) for path, m in model.named_modules() if path]
    was_training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), graph:
            outputs = graph.nodes_in(model.eval()(*inputs))
    finally:
        for handle in handles:
            handle.remove()
        for part, training in was_training.items():
            part.training = training

    def stride(node: Node) -> float | None:
        """Side of the image by side of the map; None for what is no (N, C, ...) map of the image, as tokens."""
        if len(node.shape) != len(image) + 2 or min(node.shape) < 1:
            return None
        ratios = [of / side for of, side in zip(image, node.shape[2:], strict=True)]
        return max(ratios) if max(ratios) < 1.5 * min(ratios) else None

    def end(node: Node) -> str | None:
        """The outermost module, called once, whose output is this map; scaling after it is passed."""
        while True:
            # A module that only passes its input on, as drop path in evaluation, counts where there is no other.
            for paths in (node.modules, node.passed_by):
                if once := [path for path in paths if calls[path] == 1]:
                    return once[-1]
            maps = [parent for parent in node.parents if parent.shape == node.shape]
            if len(maps) != 1 or len(node.parents) != 1:
                return None
            node = maps[0]

    found: dict[Place, Node] = {}  # a Place for each module
    unreached = 0

    # Residual branches: one term of an addition was computed from the other, or both from something not far back.
    for pair in graph.additions:
        if pair[0].shape != pair[1].shape or not stride(pair[0]):
            continue
        sets = [node.ancestors() for node in pair]
        common = max(sets[0] & sets[1], key=lambda node: node.number, default=None)
        if common is None or len(common.shape) != len(pair[0].shape):
            continue
        before = common.ancestors()
        inside = [nodes - before for nodes in sets]
        # The top-down path of an FPN or the decoder of a U-Net computes larger maps from smaller ones: no branch.
        sides = {
            math.prod(node.shape[2:]) for nodes in inside for node in nodes if stride(node) and node.shape[2:] > (1,)
        }
        if min(sides - {1}, default=0) < math.prod(pair[0].shape[2:]) or len(inside[0]) == len(inside[1]) == 0:
            continue
        branch, skip = (0, 1) if len(inside[0]) >= len(inside[1]) else (1, 0)
        group = group_of(stride(pair[0]))
        if path := end(pair[branch]):
            found[Place(path, "after", group, "conv", ends_branch=True)] = pair[branch]
            # A projection is a module; so may the identity be, inside the unit.
            unit = path.rpartition(".")[0]
            shortcut = end(pair[skip]) if inside[skip] else None
            within = [p for p in pair[skip].passed_by if p.startswith(f"{unit}.") and calls[p] == 1]
            if inside[skip] or within:
                if shortcut := (within[-1] if within else shortcut):
                    found[Place(shortcut, "after", group, "skip", ends_branch=True)] = pair[skip]
            else:
                unreached += 1

    # An identity shortcut that is None where other units of the class have a projection.
    for place in [place for place in found if place.branch == "skip"]:
        owner, _, slot = place.modules.rpartition(".")
        for path, module in model.named_modules():
            inner = f"{path}.{slot}"
            if type(module) is type(model.get_submodule(owner)) and getattr(module, slot, 0) is None:
                for other, node in list(found.items()):
                    if other.branch == "conv" and other.modules.startswith(f"{path}."):
                        filled = Place(inner, "in", other.group, "skip", ends_branch=True)
                        unreached -= filled not in found
                        found[filled] = node

    # Where no branch ends: the last map of a stage, before the side changes, and before a classifier.
    residual = {place.group for place in found}
    for node in graph.nodes:
        of = [p for p in node.parents if stride(p) and stride(node) and p.shape[2:] != node.shape[2:]]
        for last in of if math.prod(node.shape[2:]) > 1 else ():
            if last.parents and group_of(stride(last)) not in residual and (path := end(last)):
                found[Place(path, "after", group_of(stride(last)))] = last
    maps = [node for node in graph.nodes if stride(node) and math.prod(node.shape[2:]) > 1 and node.parents]
    if (
        maps
        and not any(map(stride, outputs))
        and group_of(stride(maps[-1])) not in residual
        and (path := end(maps[-1]))
    ):
        found[Place(path, "after", group_of(stride(maps[-1])))] = maps[-1]

    tokens = any(pair[0].shape == pair[1].shape and not stride(pair[0]) for pair in graph.additions)
    if not found or (tokens and not residual):
        name = type(model).__name__
        if tokens:
            raise ValueError(
                f"{name} works on tokens, not on feature maps: it takes DropPath and Dropout, no DropBlock"
            )
        raise ValueError(f"no place found in {name}: no residual branch, and no map whose side changes")
    # Places of one kind and one size of maps are one row of the table, whatever their modules are called.
    sites: dict[tuple[str, ...], int] = {}
    for place, node in sorted(found.items(), key=lambda item: (item[0].group, stride(item[1]) or 0)):
        kind = "shortcut" if place.branch == "skip" else "residual branch" if place.ends_branch else "stage"
        row = (
            str(place.group),
            f"{stride(node):.3g}",
            place.branch,
            "x".join(map(str, node.shape[1:])),
            f"end of a {kind}",
        )
        sites[row] = sites.get(row, 0) + 1
    rows = [[*row[:3], str(count), *row[3:]] for row, count in sites.items()]
    notes = [f"{unreached} identity shortcuts are no module and get no site"] if unreached > 0 else []
    return Suggestion(patterns(model, found), rows, notes)


def group_of(stride: float | None) -> int:
    """1 for maps of a quarter of the image and larger, up to 4 for a thirty-second and smaller."""
    return min(4, max(1, round(math.log2(stride or 1)) - 1))


def patterns(model: nn.Module, found: Iterable[Place]) -> list[Place]:
    """Places of single modules as few places with `*` for numbers, which name these modules and no others."""
    every = [path for path, _ in model.named_modules()]
    slots = [
        f"{path}.{slot}".lstrip(".")
        for path, m in model.named_modules()
        for slot, v in [*vars(m).items(), *m._modules.items()]
        if v is None
    ]
    left = sorted(found, key=lambda place: (place.group, place.branch))
    made: list[Place] = []
    while left:
        place = left[0]
        alike = {of.modules for of in left if replace(of, modules="") == replace(place, modules="")}
        parts = place.modules.split(".")
        digits = [i for i, part in enumerate(parts) if part.isdigit()]
        for first in range(len(digits) + 1):  # the most numbers first, those to the right longest
            starred = ".".join("*" if i in digits[first:] else part for i, part in enumerate(parts))
            pattern = replace(place, modules=starred)
            matched = {path for path in (slots if place.where == "in" else every) if pattern.names(path)}
            if matched <= alike or first == len(digits):
                break
        made.append(pattern)
        matched.add(place.modules)
        left = [of for of in left if of.modules not in matched or replace(of, modules="") != replace(place, modules="")]
    return made
