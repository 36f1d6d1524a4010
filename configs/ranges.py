"""The ranges and names that every value of a plan must keep to, whatever it came from."""

from __future__ import annotations

from configs.plan import Plan, choices
from configs.schema import UserError, one_of

SCHEDULES = ("linear", "constant")
LR_SCHEDULES = ("cosine", "step", "exponential", "halving", "constant")
OPTIMIZERS = ("sgd", "adamw", "rmsprop")
PRECISIONS = ("float32", "bfloat16", "float16")
TASKS = ("classification", "segmentation", "detection")
DEVICES = ("auto", "cpu", "cuda")
POLICIES = ("imagenet", "cifar10", "svhn")


def check_values(plan: Plan) -> None:
    """Refuse what cannot be meant, before any data is touched or any network is built.

    Raises:
        UserError: one line that names the key.
    """
    recipe = plan.recipe
    if plan.model.library is None:
        one_of("model.name", plan.model.name, choices("model"))
        one_of("model.stem", str(plan.model.stem), ("small", "stride2", "imagenet"))
    else:
        one_of("model.library", plan.model.library, ("torchvision", "timm"))
    one_of("data.name", plan.data.name, choices("data"))
    one_of("data.task", plan.data.task, TASKS)
    one_of("lr_schedule", recipe.lr_schedule, LR_SCHEDULES)
    one_of("recipe.optimizer", recipe.optimizer, OPTIMIZERS)
    one_of("recipe.precision", recipe.precision, PRECISIONS)
    one_of("device", plan.runtime.device, DEVICES)
    one_of("data.on_bad_image", plan.data.on_bad_image, ("error", "skip"))
    one_of("data.decoder", plan.data.decoder, ("auto", "simplejpeg", "pillow", "pil"))
    for key, value, least in (
        ("model.width", plan.model.width, 1),
        ("data.image_size", plan.data.image_size, 8),
        ("data.train_subset", plan.data.train_subset, 1),
        ("epochs", recipe.epochs, 1),
        ("batch_size", recipe.batch_size, 2),
        ("recipe.eval_batch_size", recipe.eval_batch_size, 1),
        ("recipe.accumulate", recipe.accumulate, 1),
        ("recipe.eval_every", recipe.eval_every, 1),
        ("recipe.warmup_epochs", recipe.warmup_epochs, 0),
        ("recipe.weight_decay", recipe.weight_decay, 0),
        ("seed", plan.seed, 0),
        ("cutout", plan.cutout, 0),
        ("workers", plan.runtime.workers, 0),
        ("log_every", plan.runtime.log_every, 1),
        ("checkpoint_every", plan.runtime.checkpoint_every, 0),
        ("rank_timeout", plan.runtime.rank_timeout, 1),
    ):
        if value is not None and not value >= least:
            raise UserError(f"{key}={value}: must be at least {least}")
    for key, share, top in (
        ("label_smoothing", plan.label_smoothing, 0.99),
        ("data.val_fraction", plan.data.val_fraction, 0.5),
        ("recipe.momentum", recipe.momentum, 0.9999),
        ("recipe.ema_decay", recipe.ema_decay, 0.999999),
    ):
        if share is not None and not 0.0 <= share <= top:
            raise UserError(f"{key}={share}: must lie between 0 and {top:g}")
    for key, value in (
        ("lr", recipe.lr),
        ("recipe.grad_clip", recipe.grad_clip),
        ("recipe.decay_epochs", recipe.decay_epochs),
    ):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{key}={value}: must be above 0")
    if not 0 < recipe.lr_decay <= 1:
        raise UserError(f"recipe.lr_decay={recipe.lr_decay}: must lie above 0 and not above 1")
    if recipe.lr_schedule == "step" and not recipe.milestones:
        raise UserError("lr_schedule=step: name the epochs at which the rate falls: recipe.milestones=[60,120,160]")
    if recipe.lr_schedule == "step" and max(recipe.milestones) >= recipe.epochs:
        told = ", ".join(f"{milestone:g}" for milestone in recipe.milestones)
        raise UserError(f"recipe.milestones=[{told}]: must lie before the end of the run, epochs={recipe.epochs}")
    if recipe.lr_schedule == "exponential" and recipe.lr_decay ** (recipe.epochs / recipe.decay_epochs) < 1e-6:
        raise UserError(
            f"lr_schedule=exponential: times {recipe.lr_decay:g} every {recipe.decay_epochs:g} epochs leaves nothing; "
            "say how fast it falls, such as recipe.lr_decay=0.97 recipe.decay_epochs=2.4"
        )
    if recipe.batch_size % recipe.accumulate:
        raise UserError(f"recipe.accumulate={recipe.accumulate}: must divide batch_size={recipe.batch_size}")
