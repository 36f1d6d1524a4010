"""Places for layers in a network that nobody has described: found by running it once and following the tensors.

The end of a residual branch is what an addition adds to something that the branch was computed from; a stage ends where
the side of the feature maps changes. No name of a module is looked at.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dropblock.layers import check_model
from dropblock.places import Place
from dropblock.sites import inputs_of, run
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


class Graph(TorchFunctionMode):
    """One forward pass, a node for every tensor that a function or a module returns.

    Args:
        image: sides of the image.
    """

    def __init__(self, image: tuple[int, ...]) -> None:
        super().__init__()
        self.image = image
        self.nodes: list[Node] = []
        self.outputs: list[Node] = []
        self.additions: list[tuple[Node, Node]] = []
        self.calls = Counter[str]()
        self.known: dict[int, tuple[Tensor, Node]] = {}  # the tensor keeps its id from being given to another

    def record(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Run the model once in evaluation mode without gradients; it is left as it was."""
        for x in inputs:
            self.enter(x, [])
        handles = [m.register_forward_hook(partial(self.left, path)) for path, m in model.named_modules() if path]
        try:
            with self:
                self.outputs = self.nodes_in(run(model, inputs))
        finally:
            for handle in handles:
                handle.remove()

    def left(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        """Hook: a module has returned."""
        self.calls[path] += 1
        if isinstance(output, Tensor):
            given = self.nodes_in(args)
            node = self.node_of(output) or self.enter(output, given)
            (node.passed_by if node in given else node.modules).append(path)

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

    def stride(self, node: Node) -> float | None:
        """Side of the image by side of the map; None for what is no (N, C, ...) map of the image, as tokens."""
        if len(node.shape) != len(self.image) + 2 or min(node.shape) < 1:
            return None
        ratios = [of / side for of, side in zip(self.image, node.shape[2:], strict=True)]
        return max(ratios) if max(ratios) < 1.5 * min(ratios) else None

    def module_of(self, node: Node) -> str | None:
        """The outermost module, called once, whose output is this map; scaling after it is passed."""
        while True:
            # A module that only passes its input on, as drop path in evaluation, counts where there is no other.
            for paths in (node.modules, node.passed_by):
                if once := [path for path in paths if self.calls[path] == 1]:
                    return once[-1]
            maps = [parent for parent in node.parents if parent.shape == node.shape]
            if len(maps) != 1 or len(node.parents) != 1:
                return None
            node = maps[0]


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
        TypeError: if `model` is no network, or `example` no tensor.
    """
    check_model(model)
    inputs = inputs_of(example)
    if inputs[0].ndim < 3:
        raise ValueError(
            f"example: expected a batch of images (1, channels, height, width), not {tuple(inputs[0].shape)}"
        )
    graph = Graph(tuple(inputs[0].shape[2:]))
    graph.record(model, inputs)

    # A Place for each module, with the map that it returns.
    found, identities = branch_ends(graph)
    empty = empty_shortcuts(model, inputs, graph, found, identities)
    residual = {place.group for place in found}
    found |= empty | stage_ends(graph, residual)

    tokens = any(pair[0].shape == pair[1].shape and not graph.stride(pair[0]) for pair in graph.additions)
    name = type(model).__name__
    if tokens and not residual:
        raise ValueError(f"{name} works on tokens, not on feature maps: it takes DropPath and Dropout, no DropBlock")
    if not found:
        raise ValueError(f"no place found in {name}: no residual branch, and no map whose side changes")

    # Places of one kind and one size of maps are one row of the table, whatever their modules are called.
    sites = Counter[tuple[str, ...]]()
    for place, node in sorted(found.items(), key=lambda item: (item[0].group, graph.stride(item[1]) or 0)):
        kind = "shortcut" if place.branch == "skip" else "residual branch" if place.ends_branch else "stage"
        size = "x".join(map(str, node.shape[1:]))
        sites[str(place.group), f"{graph.stride(node):.3g}", place.branch, size, f"end of a {kind}"] += 1
    rows = [[*row[:3], str(count), *row[3:]] for row, count in sites.items()]
    unreached = len(identities) - len(empty)
    notes = [f"identity shortcuts that are no module, and get no site: {unreached}"] if unreached > 0 else []
    return Suggestion(patterns(model, found), rows, notes)


def branch_ends(graph: Graph) -> tuple[dict[Place, Node], dict[Place, int]]:
    """Ends of residual branches and of shortcuts with a module.

    Returns:
        place -> the map there; and the branches beside a shortcut without a module: place -> index of the addition.
    """
    found: dict[Place, Node] = {}
    unreached: dict[Place, int] = {}
    for index, pair in enumerate(graph.additions):
        if pair[0].shape != pair[1].shape or not graph.stride(pair[0]):
            continue
        # One term was computed from the other, or both from something not far back.
        sets = [node.ancestors() for node in pair]
        common = max(sets[0] & sets[1], key=lambda node: node.number, default=None)
        if common is None or len(common.shape) != len(pair[0].shape):
            continue
        before = common.ancestors()
        inside = [nodes - before for nodes in sets]

        # The top-down path of an FPN or the decoder of a U-Net computes larger maps from smaller ones: no branch.
        areas = {math.prod(node.shape[2:]) for nodes in inside for node in nodes if graph.stride(node)} - {1}
        if min(areas, default=0) < math.prod(pair[0].shape[2:]):
            continue
        branch, skip = (0, 1) if len(inside[0]) >= len(inside[1]) else (1, 0)
        path, group = graph.module_of(pair[branch]), group_of(graph.stride(pair[0]))
        if path is None:
            continue
        end = Place(path, "after", group, "conv", ends_branch=True)
        found[end] = pair[branch]

        # A projection is a module; so may the identity be, inside the unit.
        unit = path.rpartition(".")[0]
        identities = [p for p in pair[skip].passed_by if p.startswith(f"{unit}.") and graph.calls[p] == 1]
        shortcut = graph.module_of(pair[skip]) if inside[skip] else None
        if shortcut or identities:
            found[Place(shortcut or identities[-1], "after", group, "skip", ends_branch=True)] = pair[skip]
        if not inside[skip] and not identities:
            unreached[end] = index
    return found, unreached


def empty_shortcuts(
    model: nn.Module, inputs: tuple[Tensor, ...], graph: Graph, found: dict[Place, Node], identities: dict[Place, int]
) -> dict[Place, Node]:
    """Identity shortcuts that are None where other units of the class have a projection."""
    filled: dict[Place, tuple[int, nn.Module, str, bool]] = {}
    for place in found:
        owner, _, slot = place.modules.rpartition(".")
        for path, unit in model.named_modules() if place.branch == "skip" else ():
            if type(unit) is type(model.get_submodule(owner)) and getattr(unit, slot, 0) is None:
                for end, index in identities.items():
                    if end.modules.startswith(f"{path}."):
                        new = Place(f"{path}.{slot}", "in", end.group, "skip", ends_branch=True)
                        filled[new] = index, unit, slot, slot in vars(unit)

    # A slot may see another map than the one that is added without it, as the activated one in ResNetV2 and NFNet: then
    # an identity there makes another network. The pass is repeated with identities to see which additions stay.
    again = Graph(graph.image)
    try:
        for _, unit, slot, _ in filled.values():
            setattr(unit, slot, nn.Identity())
        if filled:
            again.record(model, inputs)
    except ValueError:  # maps of other sizes
        return {}
    finally:
        for _, unit, slot, plain in filled.values():
            if plain:  # an attribute, not a child that is None
                delattr(unit, slot)
            setattr(unit, slot, None)
    before, after = ([(a.number, b.number) for a, b in of.additions] for of in (graph, again))
    same = {index for index, pair in enumerate(after) if index < len(before) and pair == before[index]}
    return {place: graph.additions[index][0] for place, (index, *_) in filled.items() if index in same}


def stage_ends(graph: Graph, residual: set[int | str]) -> dict[Place, Node]:
    """Last maps of stages, before the side changes and before a classifier, in groups where no branch ends."""
    maps = [node for node in graph.nodes if graph.stride(node) and math.prod(node.shape[2:]) > 1]
    last = [
        of for node in maps for of in node.parents if graph.stride(of) and of.shape[2:] != node.shape[2:] and of.parents
    ]
    computed = [node for node in maps if node.parents]
    if computed and not any(map(graph.stride, graph.outputs)):
        last.append(computed[-1])
    found = {}
    for node in last:
        group = group_of(graph.stride(node))
        if group not in residual and (path := graph.module_of(node)):
            found[Place(path, "after", group)] = node
    return found


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
        alike = {of.modules for of in found if replace(of, modules="") == replace(place, modules="")}
        parts, named = place.modules.split("."), {place.modules}
        # Names that are a number first, then those that end in one, each from the right.
        numbered = sorted((i for i, part in enumerate(parts) if part[-1:].isdigit()), reverse=True)
        for i in sorted(numbered, key=lambda i: not parts[i].isdigit()):
            wider = replace(place, modules=".".join([*parts[:i], re.sub(r"\d+$", "*", parts[i]), *parts[i + 1 :]]))
            matched = {path for path in (slots if place.where == "in" else every) if wider.names(path)}
            if named < matched <= alike:
                parts, named = wider.modules.split("."), matched
        made.append(replace(place, modules=".".join(parts)))
        left = [of for of in left if of.modules not in named or replace(of, modules="") != replace(place, modules="")]
    return made
