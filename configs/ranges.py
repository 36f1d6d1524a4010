"""Checks of a plan's values: against the declarations of the schema and of regularizers, and against each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from configs.checking import UserError, load_yaml, one_of
from configs.evaluation import evaluation_of
from configs.groups import CONFIGS, choices, declared, further_choices
from configs.plan import Plan
from configs.schema import RECIPE_KNOBS, TASKS

SHORT = {f"recipe.{knob}": knob for knob in RECIPE_KNOBS}
# The task of each network of this repository; one of another name, of a user's own, may be for any.
TASK_OF = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), "classification"),
    **dict.fromkeys(("fractalnet20", "fractalnet34", "fractalnet40", "amoebanet_b"), "classification"),
    **dict.fromkeys(("resnet12", "resnet20", "resnet56", "resnet110", "wide_resnet28_10"), "classification"),
    **dict.fromkeys(("pyramidnet110", "pyramidnet110_small", "pyramidnet200"), "classification"),
    "segmentation_fpn": "segmentation",
    "retinanet": "detection",
}


def check_values(plan: Plan) -> None:
    """Refuse what cannot be meant, before any data is touched or any network is built.

    Raises:
        UserError: one line that names the key.
    """
    # Every value by itself.
    recipe = plan.recipe
    for part, prefix in ((plan.model, "model."), (plan.data, "data."), (recipe, "recipe."), (plan.runtime, "")):
        check_fields(part, prefix)
    for layer in plan.layers:
        check_fields(layer)
    if plan.model.library is None:
        one_of("model.name", plan.model.name, choices("model"))
    one_of("data.name", plan.data.name, choices("data"))
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", plan.runtime.device):
        raise UserError(f"device={plan.runtime.device}: choose auto, cpu, cuda or cuda:N")
    for text in plan.runtime.evaluations:
        evaluation_of(text, plan.data.task)
    if not 0 <= plan.seed < 2**63:
        raise UserError(f"seed={plan.seed}: must lie between 0 and 2^63 - 1")
    for layer in plan.layers:
        if not layer.groups or min((group for group in layer.groups if isinstance(group, int)), default=0) < 0:
            raise UserError(f"groups={layer.groups}: name at least one group of the network")
        for group in layer.groups:
            if isinstance(group, str):
                one_of("groups", group, ("head",))

    # Network, data and regularizers go together.
    _check_network(plan)
    _check_regularizers(plan)

    # The learning rate falls within the run, and not to nothing; micro-batches have one size.
    if recipe.lr_schedule == "step" and not recipe.milestones:
        raise UserError("lr_schedule=step: name the epochs at which the rate falls: recipe.milestones=[60,120,160]")
    if recipe.lr_schedule == "step" and max(recipe.milestones) >= recipe.epochs:
        epochs = ", ".join(f"{milestone:g}" for milestone in recipe.milestones)
        raise UserError(f"recipe.milestones=[{epochs}]: must lie before the end of the run, epochs={recipe.epochs}")
    if recipe.lr_schedule == "exponential" and recipe.lr_decay ** (recipe.epochs / recipe.decay_epochs) < 1e-6:
        raise UserError(
            f"lr_schedule=exponential: times {recipe.lr_decay:g} every {recipe.decay_epochs:g} epochs leaves nothing; "
            "say how fast it falls, such as recipe.lr_decay=0.97 recipe.decay_epochs=2.4"
        )
    if recipe.batch_size % recipe.accumulate:
        raise UserError(f"recipe.accumulate={recipe.accumulate}: must divide batch_size={recipe.batch_size}")


def check_fields(part: Any, prefix: str = "") -> None:
    """Check every field of a dataclass against its own choices and range.

    Raises:
        UserError: one line that names the key.
    """
    for key, value, limits in declared_fields(part, prefix):
        key = SHORT.get(key, key)
        if value is not None:
            check_value(key, value, {**limits, "choices": (*limits["choices"], *further_choices(key))})


def check_value(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    """Check a value against its `choices` or its range: `least` and `most`, or `above`.

    Raises:
        UserError: one line that names the key.
    """
    if limits.get("choices"):
        one_of(key, value, limits["choices"])
    least, most, above = limits.get("least"), limits.get("most"), limits.get("above")
    if {least, most, above} != {None} and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{key}={value}: must be a number")
    if above is not None and not (value > above and value < float("inf")):
        raise UserError(f"{key}={value}: must be above {above:g}")
    if most is not None and not ((least if least is not None else above) <= value <= most):
        bounds = f"between {least:g}" if least is not None else f"above {above:g}"
        raise UserError(f"{key}={value}: must lie {bounds} and {most:g}")
    if least is not None and not value >= least:
        raise UserError(f"{key}={value}: must be at least {least:g}")


def declared_fields(part: Any, prefix: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Dotted key, value and declaration (`configs.schema.option`) of every field that has one, nested ones included."""
    for f in fields(part):
        value = getattr(part, f.name)
        if is_dataclass(value):
            yield from declared_fields(value, f"{prefix}{f.name}.")
        elif f.metadata:
            yield prefix + f.name, value, dict(f.metadata)


def _task_of(name: str, library: str | None) -> str | None:
    """The task of a network; None for one that this repository does not know."""
    return "classification" if library else TASK_OF.get(name)


def _check_network(plan: Plan) -> None:
    """Refuse a network of another task; a task of the user's own takes any."""
    model, task = plan.model, plan.data.task
    ours = _task_of(model.name, model.library)
    if ours in (None, task) or task not in TASK_OF.values():
        return
    path = CONFIGS / "data" / f"{plan.data.name}.yaml"
    if not path.exists() or load_yaml(path).get("task", "classification") != task:
        return  # data of the user's own, or a data.task of the command line, which is looked at once the data are open
    files = {path.stem: load_yaml(path) for path in sorted((CONFIGS / "model").glob("*.yaml"))}
    fitting = [name for name, of in files.items() if _task_of(of.get("name", ""), of.get("library")) == task]
    given = f"model={model.library}: its networks are trained" if model.library else f"model.name={model.name} is"
    raise UserError(f"{given} for {ours}, data={plan.data.name} is for {task}: choose one of {', '.join(fitting)}")


def _check_regularizers(plan: Plan) -> None:
    """Refuse what a regularizer does not take, and one that the task, the network or another one has no use for."""
    task, known = plan.data.task, _task_of(plan.model.name, plan.model.library) is not None
    # label_smoothing=0.1 needs no regularizer of that name.
    for name in dict.fromkeys([*plan.regularizer, *(method.name for method in plan.methods)]):
        of, groups = declared(name), [layer.groups for layer in plan.layers]
        # Image transforms may suit a task of the user's own; a batch or a loss is that of its task.
        if of.tasks and task not in of.tasks and (task in TASKS or of.kind != "image"):
            raise UserError(f"regularizer={name} is for {' and '.join(of.tasks)}, not for {task}")
        made_for = of.layer is None or of.layer.groups in groups
        if of.networks and made_for and known and plan.model.name not in of.networks:
            raise UserError(f"regularizer={name} needs model={' or '.join(of.networks)}")
        for other in plan.regularizer:
            alike = of.kind in ("batch", "loss") and declared(other).kind == of.kind
            if other != name and (alike or other in of.excludes):
                both = ", or mixup_cutmix: one of the two a batch" if {name, other} == {"mixup", "cutmix"} else ""
                raise UserError(f"regularizer=[{name},{other}]: they exclude each other; choose one of them{both}")
    for method in plan.methods:
        for option, value in method.options.items():
            key = option if option == "label_smoothing" else f"regularizer.{method.name}.{option}"
            _check_option(key, value, declared(method.name).options.get(option, {}))
    for layer, name in zip(plan.layers, [name for name in plan.regularizer if declared(name).layer], strict=False):
        for option, value in layer.options.items():
            _check_option(f"regularizer.{name}.{option}", value, declared(name).options.get(option, {}))


def _check_option(key: str, value: Any, declaration: Mapping[str, Any]) -> None:
    """Check a value of a regularizer's own option: its range, and that it has the type of its default."""
    if "meaning" not in declaration:  # of a script, where 1 may be short for 1.0
        return
    default = declaration["default"]
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(f"{key}={value}: expected true or false")
    number = isinstance(default, int | float) and not isinstance(default, bool)
    if number and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{key}={value}: expected a number")
    if number and isinstance(default, int) and not float(value).is_integer():
        raise UserError(f"{key}={value}: expected a whole number")
    if isinstance(default, list) and default:
        kinds = int | float if isinstance(default[0], int | float) else type(default[0])
        if not isinstance(value, list) or not value or not all(isinstance(one, kinds) for one in value):
            raise UserError(f"{key}={value}: expected a list such as [{','.join(map(str, default))}]")
    check_value(key, value, declaration)
