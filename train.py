"""Train a network with a regularizer: python train.py regularizer=dropblock block_size=7

The words of the command line become a plan, the rooms build what it names, the loop runs it. `--help` lists the keys,
`-m` runs a grid, `+sweep=NAME` a whole table of the paper.

Exit codes: 0 done; 2 a mistake in the configuration or the data, told in one line; 130 and 143 stopped by a signal,
the same command goes on from there; 1 anything else.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.command_line import asks_for_prices, check_words, is_sweep, split_flags, sweep_name
from configs.plan import LayerPlan, Plan, plan_from
from configs.resolve import resolve
from configs.schema import Config, UserError, check, load_yaml
from engine import cpu
from engine.outcome import CODE_OF, STOPPED_CODES, Outcome, exit_code, told

if TYPE_CHECKING:  # torch takes seconds to import, and a typo is answered before that
    import torch
    from torch import nn

    from data import Data
    from dropblock import LayerControl, LayerSpec
    from engine.distributed import Ranks
    from engine.loop import Fit
    from engine.prices import Job
    from engine.records import RunFolder
    from engine.signals import StopRequest


def open_data(plan: Plan, device: torch.device, ranks: Ranks) -> Data:
    """The data set of a plan."""
    from data import Augment, Cut, Loading, Reading, Source, build_data

    data, recipe, runtime = plan.data, plan.recipe, plan.runtime
    workers = cpu.cores_of_a_rank() if runtime.workers is None else runtime.workers
    return build_data(
        data.name,
        Source(runtime.data_root, runtime.download, data.options()),
        Cut(data.val_fraction, data.train_subset),
        Augment(recipe.augment.crop_padding, recipe.augment.flip, plan.cutout, plan.autoaugment),
        Reading(data.image_size, data.decoder, workers, data.on_bad_image, data.prepared),
        Loading(
            *(recipe.batch_size, recipe.eval_batch_size, plan.seed),
            *(ranks.rank, ranks.world_size, device),
            channels_last=True,
        ),
    )


def build_network(
    plan: Plan, data: Data, device: torch.device, pretrained: bool = True
) -> tuple[nn.Module, LayerControl]:
    """The network of a plan with its layers installed, on the device.

    Without `pretrained` the plan's file of weights is left alone: it may be gone when a checkpoint is there.
    """
    import torch

    from dropblock import LayerControl
    from models import build_model

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
    model = model.to(device).to(memory_format=torch.channels_last)
    specs = [spec_of(layer) for layer in ([plan.layer] if plan.layer else []) + plan.companions]
    return model, LayerControl.install(model, specs, torch.zeros(1, channels, height, width, device=device))


def spec_of(layer: LayerPlan) -> LayerSpec:
    """A layer of the plan as the library takes it."""
    from dropblock import LayerSpec

    return LayerSpec(
        name=layer.name,
        keep_prob=layer.keep_prob,
        groups=layer.groups,
        skip=bool(layer.skip),
        schedule=layer.schedule,
        group_divisor=layer.group_divisor,
        group_shares=layer.group_shares,
        options={} if layer.block_size is None else {"block_size": layer.block_size},
    )


def prepare(plan: Plan, folder: RunFolder, device: torch.device, ranks: Ranks, stop: StopRequest) -> Fit:
    """Everything a run needs, built from its plan, standing where an earlier attempt left it."""
    from dropblock import table_text
    from engine import checkpoint
    from engine.attempt import agree, resume
    from engine.console import plan_text

    data = open_data(plan, device, ranks)
    agree("data set", {"fingerprint": data.fingerprint, "batches per epoch": len(data.train)}, ranks)
    found = checkpoint.load_latest(folder.checkpoints)
    agree("checkpoint", {"step": found and found[0].get("step")}, ranks)
    fit, layers = assemble(plan, data, folder, device, ranks, stop, pretrained=found is None)
    if found is not None:
        resume(fit.state, *found, fit.identity, ranks)
    if ranks.is_main:
        print(plan_text(plan, data, fit.state.model, device))
        if layers.table:
            print(table_text(layers.table))
        if found is not None:
            print(f"resuming after step {fit.state.step}, from {found[1]}")
            checkpoint.set_damaged_aside(found[1])
        folder.write("sites.json", [asdict(row) for row in layers.table])
    return fit


def assemble(
    plan: Plan,
    data: Data,
    folder: RunFolder,
    device: torch.device,
    ranks: Ranks,
    stop: StopRequest,
    pretrained: bool = True,
) -> tuple[Fit, LayerControl]:
    """A run at its first step, and its layers; writes nothing. `pretrained`: see `build_network`."""
    from engine.distributed import synchronized, wrap
    from engine.loop import Fit, LoopSettings
    from engine.optim import LearningRate, build_optimizer
    from engine.seeding import seed_everything
    from engine.state import TrainState
    from engine.tasks import Classification

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
        task=Classification(data.classes, plan.label_smoothing, getattr(model, "aux_weight", 0.0)),
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
        settings=LoopSettings(
            epochs=recipe.epochs,
            seed=plan.seed,
            accumulate=recipe.accumulate,
            grad_clip=recipe.grad_clip,
            precision=recipe.precision,
            eval_every=recipe.eval_every,
            log_every=plan.runtime.log_every,
            checkpoint_every=plan.runtime.checkpoint_every,
        ),
        folder=folder,
        identity={"plan": plan.identity(), "fingerprint": data.fingerprint},
        ranks=ranks,
        device=device,
        stop=stop,
        progress=plan.runtime.progress,
    )
    return fit, layers


def train(plan: Plan, words: list[str], began: float, wait: bool = False) -> dict[str, Any]:
    """Carry out a plan in its folder, from wherever an earlier attempt left it; returns the summary.

    Args:
        plan, words: what to do, and how the user said it.
        began: when the command did; a fresh start puts aside what is older.
        wait: for another process that has this run, instead of raising.

    Raises:
        ValueError, FileNotFoundError, RunLocked: for what the user can mend, in one line.
        Stopped: if a signal asked for it.
    """
    from engine.attempt import agree, hold, refuse_another
    from engine.console import result_text
    from engine.distributed import find_device, join
    from engine.records import DONE, RunFolder

    device = find_device(plan.runtime.device)
    ranks = join(device, plan.runtime.rank_timeout)
    # These two decide, with the identity, when the ranks have something to tell each other.
    rhythm = {key: getattr(plan.runtime, key) for key in ("log_every", "checkpoint_every")}
    agree("configuration", {**plan.identity(), **rhythm, "run folder": str(plan.run_dir())}, ranks)
    folder = RunFolder(plan.run_dir())
    with hold(folder, ranks, began if plan.runtime.fresh else None, wait):
        plan_file = folder.path / "plan.yaml"
        if plan_file.exists():  # a folder given by run_dir= may hold another run
            refuse_another(folder.path, plan.identity(), plan_from(load_yaml(plan_file)).identity())
        summary = folder.summary()
        done = folder.status().get("status") == DONE and bool(summary)
        ranks.barrier()  # every rank has read the status before the main rank writes a new one
        if not done:
            return carry_out(plan, words, folder, device, ranks)
    if ranks.is_main:
        print(f"already done (commit {str(summary['environment']['commit'])[:9]}); fresh=true would start over")
        print(result_text(summary, folder.path))
    return summary


def carry_out(plan: Plan, words: list[str], folder: RunFolder, device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Train to the end in a folder that is held, and leave the record."""
    from engine import points
    from engine.attempt import attempt
    from engine.checkpoint import write_aside
    from engine.console import result_text
    from engine.loggers import add_to_hparams_table
    from engine.records import DONE, environment
    from engine.signals import Stopped, StopRequest

    started = {**environment(), "device": str(device), "world_size": ranks.world_size}
    with attempt(folder, ranks), StopRequest() as stop:
        if ranks.is_main:
            folder.checkpoints.mkdir(exist_ok=True)
            for name, values in (("plan.yaml", asdict(plan)), ("config_min.yaml", {"overrides": words})):
                write_aside(folder.path / name, [OmegaConf.to_yaml(OmegaConf.create(values)).encode()])
        fit = prepare(plan, folder, device, ranks, stop)
        fit.state.started_in(started)
        fit.run()
        parameters = sum(p.numel() for p in fit.state.model.parameters())
        where = {"environment": started, "environments": fit.state.environments}
        summary = {**fit.result(), "parameters": parameters, **where, "plan": asdict(plan)}
        if ranks.is_main:
            add_to_hparams_table(
                folder.path, points.table_row(plan), [name for name in summary["last"] if name != "epoch"]
            )
            folder.write("summary.json", summary)
            folder.set_status(DONE, commit=started["commit"])
            print(result_text(summary, folder.path))
    asked = ranks.max(stop.received)
    if asked:  # too late to stop this run, not the ones behind it
        raise Stopped(asked, "after its last step, the run is done", done=True)
    return summary


def estimate(jobs: list[Job]) -> int:
    """The price of the runs that a command asks for, from some real steps of each kind; see `engine.prices`."""
    from engine.distributed import Ranks, find_device
    from engine.estimate import timed_batch
    from engine.prices import price
    from engine.records import RunFolder
    from engine.signals import StopRequest

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("estimate=true: prices a run on one device; leave torchrun away")
    opened: dict[str, Data] = {}

    def build(plan: Plan) -> Fit:
        device = find_device(plan.runtime.device)
        # Weights that hardly move cannot go wrong, however often they see the same batch; nor can a constant rate,
        # though more steps may be timed than the run has.
        batch_size = timed_batch(plan, device.type == "cpu")
        recipe = replace(plan.recipe, batch_size=batch_size, lr=1e-6, lr_schedule="constant")
        timed = replace(plan, recipe=recipe)
        key = repr((timed.data, recipe.augment, recipe.batch_size, timed.cutout, timed.autoaugment, timed.runtime))
        if key not in opened:
            opened[key] = open_data(timed, device, Ranks())
        return assemble(timed, opened[key], RunFolder(plan.run_dir()), device, Ranks(), StopRequest())[0]

    answer, complete = price(jobs, build, lambda line: print(line, flush=True))
    print(f"\n{answer}\n\nnothing was trained; leave estimate=true away to start")
    return 0 if complete else 2


def job(
    config: DictConfig, words: list[str], sweep: Path | None, number: int, began: float, later: bool, wait: bool = False
) -> Outcome:
    """One run of this command, which began at that time, or one of many; never raises, so that a grid goes on.

    A run that another process has is looked at again `later`, or waited for, or told as not done.
    """
    run, reason, outcome = None, "", Outcome()
    shown: dict[str, Any] = {}
    try:
        if sweep is not None:
            print(f"\n=== run {number + 1}: {' '.join(words)}", flush=True)
        plan, remarks = resolve(check(config, Config), grid=sweep is not None)
        if sweep is not None and plan.runtime.run_dir:
            raise UserError("run_dir: all runs of a grid would share this folder; leave it out")
        run, shown = plan.run_dir(), {"experiment": plan.experiment, "paper": asdict(plan.paper)}
        for remark in remarks:
            print(f"note: {remark}")
        summary = train(plan, words, began, wait)
        shown["last test"] = summary["last"].get(f"test/{summary['headline']}")
    except BaseException as error:
        if later and getattr(error, "in_use", False):
            print(f"{error}; left for the end", flush=True)
            return Outcome(in_use=True)
        code, reason = told(error, config.get("fresh") is True)
        # Ranks that do not all know of a failure would wait for each other in different jobs.
        alone = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not hasattr(error, "exit_code")
        done = getattr(error, "done", False)
        outcome = Outcome(code, refused="" if run else reason, ends_all=alone or code in STOPPED_CODES, done=done)
    if sweep is not None and run is not None and os.environ.get("RANK", "0") == "0":
        from engine.sweep import note_run

        note_run(sweep, run, outcome.status, words, reason, **shown)
    return outcome


def asked(config: DictConfig, words: list[str], grid: bool) -> Job:
    """One run of a command that asks for prices."""
    from engine.prices import Job

    try:
        plan, remarks = resolve(check(config, Config), grid)
        if grid and plan.runtime.run_dir:
            raise UserError("run_dir: all runs of a grid would share this folder; leave it out")
    except UserError as error:
        return Job(words, refused=str(error))
    return Job(words, plan, remarks)


def compose(words: list[str], sweep: Path | None, each: Callable[[DictConfig, list[str], int], None]) -> None:
    """Have Hydra compose the configuration of every job and call `each` with it, its own words and its number.

    Raises:
        UserError: for what Hydra does not understand, in one line.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    def one(config: DictConfig) -> None:
        state = HydraConfig.get()
        each(config, list(state.overrides.task), state.job.num if sweep is not None else 0)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where they are told in one line
    flags, rest = split_flags(words)  # anywhere for us, in front for argparse
    sys.argv[1:] = [*flags, *rest, *([f"hydra.sweep.dir={sweep}"] if sweep else [])]
    try:
        hydra.main(version_base="1.3", config_path="configs", config_name="config")(one)()
    except UserError:
        raise
    except SystemExit:  # after --help
        return
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(plain(str(error), words)) from error


def plain(message: str, words: list[str]) -> str:
    """Hydra's message as one line; where it blames commas, what to do about them."""
    if message.startswith("Ambiguous value"):
        several = [word for word in words if "," in word]
        return f"{' '.join(several)}: several values make a grid, which needs -m; a list is written [a,b]"
    if "hydra/launcher/submitit_" in message:
        return "this launcher needs submitit: pip install '.[train,slurm]'"
    return " ".join(message.split())


def run_all(words: list[str], sweep: Path | None) -> int:
    """Carry out every job of a command; returns its exit code."""
    started, here = time.time(), os.getpid()
    outcomes: list[Outcome] = []
    later: list[tuple[DictConfig, list[str], int]] = []

    def each(config: DictConfig, overrides: list[str], number: int) -> None:
        if os.getpid() != here:  # of a launcher; what becomes of the job is read from the folder of the sweep
            cpu.settle()
            refused = job(config, overrides, sweep, number, started, later=False).refused
            if refused:
                raise UserError(refused)
        elif not any(outcome.ends_all for outcome in outcomes):
            outcomes.append(job(config, overrides, sweep, number, started, later=sweep is not None))
            if outcomes[-1].in_use:
                later.append((config, overrides, number))

    compose(words, sweep, each)
    for config, overrides, number in later:  # done by now, or waited for, or taken over if the other process died
        if not any(outcome.ends_all for outcome in outcomes):
            outcomes.append(job(config, overrides, sweep, number, started, later=False, wait=True))
    if sweep is not None:
        from engine.sweep import read_runs, summary_text

        refused = [outcome.refused for outcome in outcomes if outcome.refused]
        runs = read_runs(sweep, since=started)
        print(f"\n{summary_text(runs, sweep, refused)}")
        outcomes = outcomes or [Outcome(CODE_OF.get(run["status"], 1)) for run in runs]
    return exit_code(outcomes, sweep is not None)


def price_all(words: list[str], sweep: Path | None) -> int:
    """Say what every job of a command would cost; returns its exit code."""
    jobs: list[Job] = []
    # Here, whatever launcher the runs will have; Hydra makes the folder of a sweep, and prices leave none.
    here = [word for word in words if not word.startswith(("hydra/launcher", "hydra.launcher"))]
    with tempfile.TemporaryDirectory() as folder:
        grid = sweep is not None
        place = Path(folder) if grid else None
        compose(here, place, lambda config, overrides, _: jobs.append(asked(config, overrides, grid)))
    return estimate(jobs)


def main(words: list[str]) -> int:
    """The process: words in, exit code out."""
    cpu.settle()
    try:
        check_words(words)
        given = dict(word.split("=", 1) for word in words if "=" in word)
        root = given.get("output_root", "outputs")
        sweep = Path(root, "sweeps", sweep_name(words)) if is_sweep(words) else None
        return price_all(words, sweep) if asks_for_prices(words) else run_all(words, sweep)
    except (UserError, KeyboardInterrupt, OSError) as error:
        return told(error)[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
