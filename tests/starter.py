"""Starts the entry scripts in fresh processes without paying for the imports each time.

Reads one JSON request a line and answers with one line. The imports are done once; every request forks a process that
runs the script as a user would have started it, in a session of its own, its output in a file.

    {"words": [...], "environment": {...}, "log": FILE, "faults": {...}}  ->  {"pid": ...}
    {"wait": PID}                                                         ->  {"code": ...}   (-9: killed by SIGKILL)
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def die(*_: Any, **__: Any) -> None:
    os._exit(86)


class Faults:
    """What a request may ask to go wrong in its process, by name."""

    def stop_after(self, steps: int) -> None:
        """As if SIGTERM had come during that step of this process."""
        from engine.loop import Fit

        step, done = Fit.step, [0]

        def patched(fit: Fit, *args: Any) -> None:
            step(fit, *args)
            done[0] += 1
            if done[0] == steps:
                fit.stop.received = 15

        Fit.step = patched  # type: ignore[method-assign]

    def killed_before_step(self, number: int) -> None:
        """SIGKILL while no message to or from another rank is under way: all answered, or not begun."""
        from engine.loop import Fit

        step = Fit.step

        def patched(fit: Fit, *args: Any) -> None:
            if fit.state.step == number:
                os.kill(os.getpid(), signal.SIGKILL)
            step(fit, *args)

        Fit.step = patched  # type: ignore[method-assign]

    def die_after_write_of(self, name: str) -> None:
        """A kill between two files: the first of that name is whole, the next does not exist."""
        from engine import checkpoint

        save = checkpoint.save

        def patched(payload: Any, path: Path, *args: Any) -> None:
            save(payload, path, *args)
            if path.name == name:
                die()

        checkpoint.save = patched

    def slow(self, seconds: float) -> None:
        """A disk that takes this long for each checkpoint."""
        from engine import checkpoint

        save = checkpoint.write_aside

        def patched(path: Path, *args: Any) -> None:
            if path.name == "last.pt":
                fsync = os.fsync
                os.fsync = lambda _: time.sleep(seconds)
                save(path, *args)
                os.fsync = fsync
            else:
                save(path, *args)

        checkpoint.write_aside = patched

    def pause_in(self, where: str) -> None:
        """Leave a mark at this place and stay there for a while, so that a signal meets the program there."""
        from engine import loop

        def patch(owner: Any, name: str) -> None:
            original = getattr(owner, name)

            def patched(*args: Any, **kwargs: Any) -> Any:
                Path(os.environ["MARK"]).touch()
                time.sleep(1.0)
                return original(*args, **kwargs)

            setattr(owner, name, patched)

        if where == "save":
            patch(loop.checkpoint, "write_aside")
        elif where == "evaluation":
            patch(loop.Fit, "_evaluate")
        elif where == "data":
            from experiment import build

            patch(build, "build_data")
        elif where == "compose":
            from experiment import command

            patch(command, "resolve_composed")

    def bad_loss(self, step: int, rank: int = 0, task: str = "classification") -> None:
        """The loss of this step is NaN on that rank."""
        from engine.tasks import TASKS

        loss, calls = TASKS[task].loss, [0]

        def patched(self: Any, model: Any, batch: Any) -> Any:
            value, weight, sums = loss(self, model, batch)
            calls[0] += 1
            if calls[0] == step + 1 and int(os.environ.get("RANK", 0)) == rank:
                value = value * float("nan")
            return value, weight, sums

        TASKS[task].loss = patched  # type: ignore[method-assign]

    def ledger(self, path: str) -> None:
        """Write down which samples every step was given, and how many an evaluation counted."""
        from engine import loop

        step, evaluate = loop.Fit.step, loop.evaluate
        file = open(path, "a", buffering=1)  # noqa: SIM115

        def patched(fit: Any, batch: Any, *args: Any) -> None:
            line = {"step": fit.state.step, "samples": batch.indices.tolist()}
            step(fit, batch, *args)
            file.write(json.dumps({**line, "mask": fit.layers.layers[0].mask_seed.item()}) + "\n")

        def counted(task: Any, *args: Any) -> Any:
            done = evaluate(task, *args)
            file.write(json.dumps({"evaluated": done.images}) + "\n")
            return done

        loop.Fit.step, loop.evaluate = patched, counted  # type: ignore[method-assign,assignment]

    def keep_state(self, path: str) -> None:
        """What this rank holds in the end, not only what the main rank writes."""
        from engine import checkpoint
        from engine.loop import Fit

        run = Fit.run

        def patched(fit: Any) -> None:
            run(fit)
            checkpoint.save(fit.state.state_dict(), Path(path))

        Fit.run = patched  # type: ignore[method-assign]

    def skip_a_collective(self, step: int) -> None:
        """This rank leaves the others waiting."""
        from engine.loop import Fit

        original = Fit._stop_if_asked

        def patched(fit: Any) -> None:
            if fit.state.step != step:
                original(fit)

        Fit._stop_if_asked = patched  # type: ignore[method-assign]

    def file_limit(self, size: int) -> None:
        """No file may grow beyond this: what a full disk looks like to the program."""
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def child(request: dict[str, Any]) -> int:
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which the tests ignore where they run under nohup
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["environment"])
    for name, value in request["faults"].items():
        getattr(Faults(), name)(**value) if isinstance(value, dict) else getattr(Faults(), name)(value)
    import train

    return train.main(request["words"])


def serve() -> int:
    import hydra  # noqa: F401
    import sklearn.datasets  # noqa: F401 - of the handwritten digits, with all of SciPy
    import torch
    import torch._dynamo  # the first optimizer imports it, for seconds
    import torch.distributed
    import torch.utils.tensorboard

    import data  # noqa: F401
    import dropblock  # noqa: F401
    import engine.loop  # noqa: F401
    import experiment.run  # noqa: F401
    import models  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # the children share these objects as they are
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            status = os.waitpid(request["wait"], 0)[1]
            print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), file=answers)
            continue
        pid = os.fork()
        if pid == 0:
            code = child(request)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # taking all the modules apart would be the longest part
        print(json.dumps({"pid": pid}), file=answers)
    return 0


if __name__ == "__main__":
    sys.exit(serve())
