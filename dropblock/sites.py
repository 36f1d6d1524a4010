"""Sites: the named places in a network where a layer may sit, and putting layers there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor, nn

from dropblock.layers import DropLayer, Shared, check_model

Group = int | str
# The note of sites in the units of ResNet-18 and -34, for the sites table and the deviations in a report.
BASIC_BLOCK_NOTE = "basic block: its sites are this project's choice; the authors' released code has none there"


class Site(nn.Module):
    """A place that a network declares; the identity until a layer is installed.

    Args:
        group: the stage of the network, 1 ... 4 in a ResNet (the paper's word), or "head".
        branch: `conv` (the residual branch) or `skip` (the shortcut).
        after: the module before the site, for the reader of the sites table.
        ends_branch: the site sees the output of its branch, just before the branches are joined.
        path_only: a place where whole branches may be dropped, and nothing smaller (the operations of AmoebaNet).
        reachable: False for a place of a foreign network that no layer can get at; it is only listed.
        note: how the place departs from the paper's, for the sites table and the reports; "" where it does not.

    A site that meets several maps in one pass, as in the head of a detector, is given their numbers, so that each has a
    mask of its own: `site(x, level)`.
    """

    def __init__(
        self,
        group: Group,
        branch: str,
        after: str,
        ends_branch: bool = False,
        path_only: bool = False,
        reachable: bool = True,
        note: str = "",
    ) -> None:
        super().__init__()
        if branch not in ("conv", "skip"):
            raise ValueError(f"branch must be 'conv' or 'skip', not '{branch}'")
        self.group, self.branch, self.after, self.note = group, branch, after, note
        self.ends_branch, self.path_only, self.reachable = ends_branch, path_only, reachable
        self.missed = False  # a layer was wanted here, and the place is out of reach
        self.layer: DropLayer | None = None

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        layer = self.layer
        if layer is None:
            return x
        return layer(x, level) if level else layer(x)

    def extra_repr(self) -> str:
        return f"group={self.group}, branch={self.branch}, after={self.after}"


def declared_sites(model: nn.Module) -> dict[str, Site]:
    """Every site of the network by its module path, in the order of the network."""
    check_model(model)
    return {name: module for name, module in model.named_modules() if isinstance(module, Site)}


def install(
    model: nn.Module, layer_factory: Callable[[Site], DropLayer], sites: Callable[[Site], bool] = lambda site: True
) -> dict[str, Site]:
    """Put a new layer into every declared site that `sites` accepts, in the place of the one that may be there.

    Args:
        model: a network that declares sites.
        layer_factory: makes the layer of a site, a new one for each.
        sites: site -> True for those that get one.

    Returns:
        the filled sites by module path.

    Warns:
        UserWarning: if layers of an earlier call are replaced; a schedule made for those steers nothing any more.

    Raises:
        ValueError: if no site is accepted: a regularizer that sits nowhere would train the baseline under its name; or
            if two sites are given one layer, whose rate and counts would be those of the second.
        TypeError: if `layer_factory` is a layer, or makes none, or `sites` is no function.
    """
    if isinstance(layer_factory, type | DropLayer) or not callable(layer_factory):
        given = getattr(layer_factory, "__name__", f"a {type(layer_factory).__name__}")
        raise TypeError(f"layer_factory must be a function that makes a layer, `lambda site: ...`, not {given}")
    if not callable(sites):
        raise TypeError(f"sites must be a function, `lambda site: site.group == 4`, not {sites!r}")

    # A place out of reach is marked, so that the sites table can say that a layer was wanted there.
    declared = declared_sites(model)
    wanted = {name: site for name, site in declared.items() if sites(site)}
    for site in wanted.values():
        site.missed = not site.reachable
    chosen = {name: site for name, site in wanted.items() if site.reachable}
    if not chosen:
        groups = groups_text(site.group for site in declared.values())
        raise ValueError(
            f"no site to install into: {type(model).__name__} declares {len(declared)} sites in groups {groups}"
            + (f", and the {len(wanted)} asked for are out of reach" if wanted else "")
        )

    # Make all layers before any is put in: a wrong factory leaves the network as it was.
    layers = {name: layer_factory(site) for name, site in chosen.items()}
    at = {site.layer: name for name, site in declared.items() if site.layer is not None and name not in chosen}
    for name, layer in layers.items():
        if not isinstance(layer, nn.Module):
            raise TypeError(f"layer_factory must return a layer, not {layer!r}")
        if layer in at:
            raise ValueError(f"layer_factory returned one layer for {at[layer]} and {name}: make a new one for each")
        at[layer] = name

    # The cell of a notebook that is run again: a schedule of the first layers would go on without a word.
    replaced = [site.layer for name, site in chosen.items() if site.layer not in (None, layers[name])]
    for layer in replaced:
        layer.replaced = True
    if replaced:
        warnings.warn(
            f"{type(model).__name__} had layers at {len(replaced)} of these sites, which are replaced: make "
            "KeepProbSchedule and LayerControl anew",
            stacklevel=2,
        )

    # A layer learns its group from its site; the schedule divides the drop rate by it.
    for name, site in chosen.items():
        site.layer = layers[name].train(site.training)
        site.layer.replaced = False
        site.layer.group = site.group
    Shared(list(layers.values()))
    return chosen


def groups_text(groups: Iterable[Group]) -> str:
    """Groups as a list for messages, numbers first: [3, 4, head]."""
    ordered = sorted(set(groups), key=lambda group: (isinstance(group, str), group))
    return f"[{', '.join(map(str, ordered))}]"


def depths(model: nn.Module) -> dict[str, float]:
    """l / L for every site of the body: l is the index of its block among the L of the network, from 1.

    A block is a residual unit, known by the site that ends its conv branch; a site belongs to the unit that shares most
    of its module path. In a network without such units every site of a feature map is a block of its own. Sites of a
    head have no depth.

    Returns:
        by module path, each in (0, 1].
    """
    body = {path: site for path, site in declared_sites(model).items() if isinstance(site.group, int)}
    ends = [path for path, site in body.items() if site.ends_branch and site.branch == "conv"]
    if not ends:
        ends = [path for path, site in body.items() if not site.path_only]
    found = {}
    for path in body if ends else ():
        # The unit that shares most parts of the path; a site that ends a branch shares all of its own.
        shared = [len(commonprefix([f"{path}.".split("."), f"{end}.".split(".")])) for end in ends]  # noqa: RUF071
        found[path] = (shared.index(max(shared)) + 1) / len(ends)
    return found


def inputs_of(example: object) -> tuple[Tensor, ...]:
    """The inputs of a network that an example stands for.

    Raises:
        TypeError: if the example is no tensor and no tuple of tensors.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    if not all(isinstance(x, Tensor) for x in inputs):
        raise TypeError(f"example must be a tensor, or a tuple of them for a network of several inputs, not {example}")
    return inputs


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The output of a network in evaluation mode, without gradients; it is left as it was, whatever happens.

    Raises:
        ValueError: if it does not take these inputs.
    """
    was_training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            return model.eval()(*inputs)
    except (RuntimeError, TypeError, IndexError, NotImplementedError) as error:
        shapes = " and ".join(str(tuple(x.shape)) for x in inputs)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{type(model).__name__} does not run on the example of shape {shapes}: {reason}") from error
    finally:
        for part, training in was_training.items():
            part.training = training


def map_sizes(
    model: nn.Module, example: Tensor | tuple[Tensor, ...], sites: Mapping[str, Site | DropLayer]
) -> dict[str, list[tuple[tuple[int, ...], int]]]:
    """((channels, height, width), level) of every feature map that each site sees in one pass in evaluation mode.

    A site of a head, whose group is no number, may see several: one for each level of a detector. So may a layer that
    is a child of a network's own.

    Args:
        model: left as it was.
        example: the input, or a tuple of several.
        sites: sites, and layers that stand at none, by module path.

    Raises:
        ValueError: if a site of the body is not reached exactly once (a shared activation, say), one of a head never,
            or one sees something else than (N, C, H, W) maps (or those of one or three axes).
    """
    calls: dict[str, list[tuple[tuple[int, ...], int]]] = {name: [] for name in sites}

    def remember(name: str) -> Callable[[nn.Module, Any, dict[str, Any]], None]:
        def hook(_: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
            x, level = (*inputs, *named.values(), 0)[:2]
            calls[name].append((tuple(x.shape), level))

        return hook

    # One forward pass with hooks on the sites.
    handles = [site.register_forward_pre_hook(remember(name), with_kwargs=True) for name, site in sites.items()]
    try:
        run(model, inputs_of(example))
    finally:
        for handle in handles:
            handle.remove()

    # A site of the body is met once. Twice would be one mask for two places; never, a layer that drops nothing.
    for name, seen in calls.items():
        if not seen and isinstance(sites[name], DropLayer):
            raise ValueError(
                f"the layer {name} is not called in a pass in evaluation mode: call it in both, it is the "
                "identity there"
            )
        if not seen or (len(seen) > 1 and isinstance(sites[name].group, int)):
            raise ValueError(f"the site {name} is called {len(seen)} times in one pass: choose a neighbour instead")
        for shape, _ in seen:
            if not 3 <= len(shape) <= 5:
                raise ValueError(f"the site {name} sees a tensor of shape {shape}, not (N, C, H, W) maps")
    return {name: [(shape[1:], level) for shape, level in seen] for name, seen in calls.items()}
