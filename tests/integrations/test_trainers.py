"""The callbacks in the trainers themselves, run by `make test-integrations`; skipped where these are not installed."""

from __future__ import annotations

import csv
import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dropblock import installed_layers

EXAMPLE = torch.zeros(1, 3, 64, 64)
STEPS, BATCH = 8, 16
torch.manual_seed(0)
IMAGES, LABELS = torch.randn(STEPS * BATCH, 3, 64, 64), torch.randint(4, (STEPS * BATCH,))


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.conv(x))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 64, 16, 16), Unit(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))


def check(rows: list[dict[str, float]], every: int) -> None:
    """Asked, expected and measured drop of the steps between two entries of the log."""
    assert len(rows) == STEPS // every
    for number, row in enumerate(rows):
        steps = range(number * every, (number + 1) * every)
        assert row["keep_prob/target"] == pytest.approx(1 - 0.5 * steps[-1] / STEPS)
        assert row["drop/asked/group3"] == pytest.approx(sum(0.5 * step / STEPS for step in steps) / every)
        # 2048 maps and more of a standard deviation below .25: 5 sigma = .028, false alarm 6e-7.
        assert row["drop/measured/group3"] == pytest.approx(row["drop/expected/group3"], abs=0.028)


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Weights after training: equal only if every mask was."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


def module_of(pl: Any, compiled: bool = False) -> Any:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            if compiled:
                self.net.compile(backend="aot_eager")

        def training_step(self, batch: Any, index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    return Module()


def lightning(pl: Any, root: Path, module: Any, ckpt: str | None = None, **options: Any) -> list[dict[str, float]]:
    """Train; returns the entries of the log that have a drop."""
    from dropblock.integrations.lightning import DropBlockCallback

    loggers = importlib.import_module(f"{pl.__name__}.loggers")
    torch.manual_seed(2)
    options = {"devices": 1, "max_epochs": 1, "log_every_n_steps": 2, "accelerator": "cpu", **options}
    trainer = pl.Trainer(
        callbacks=[DropBlockCallback(EXAMPLE, 0.5, 2, network="net")],
        logger=loggers.CSVLogger(root),
        default_root_dir=root,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    batches = DataLoader(TensorDataset(IMAGES, LABELS), BATCH // trainer.world_size)
    trainer.fit(module, batches, ckpt_path=ckpt)
    trainer.save_checkpoint(root / "last.ckpt")
    (file,) = root.rglob("metrics.csv")
    rows = csv.DictReader(file.read_text().splitlines())
    return [{k: float(v) for k, v in row.items() if v} for row in rows if row.get("drop/asked/group3")]


@pytest.mark.filterwarnings("ignore")
def test_lightning_logs_the_drop_and_resumes_with_the_same_masks(pl: Any, tmp_path: Path) -> None:
    whole, half, resumed = module_of(pl), module_of(pl), module_of(pl)
    options = {"limit_train_batches": STEPS // 2, "max_epochs": 2}
    check(lightning(pl, tmp_path / "whole", whole, **options), every=2)
    assert len(installed_layers(whole)) == 1
    # Stopped after the first epoch, with the schedule of the whole run, and resumed.
    half.on_train_epoch_end = lambda: setattr(half.trainer, "should_stop", True)
    assert len(lightning(pl, tmp_path / "half", half, **options)) == 2
    assert not equal(half, whole)
    lightning(pl, tmp_path / "resumed", resumed, ckpt=str(tmp_path / "half" / "last.ckpt"), **options)
    assert equal(resumed, whole)


@pytest.mark.filterwarnings("ignore")
def test_lightning_with_accumulated_batches_and_a_compiled_network(pl: Any, tmp_path: Path) -> None:
    whole, compiled = module_of(pl), module_of(pl, compiled=True)
    options = {"accumulate_grad_batches": 2, "max_epochs": 2}
    check(lightning(pl, tmp_path / "whole", whole, **options), every=2)
    check(lightning(pl, tmp_path / "compiled", compiled, **options), every=2)
    for x, y in zip(whole.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.filterwarnings("ignore")
def test_lightning_on_two_ranks(pl: Any, tmp_path: Path) -> None:
    check(lightning(pl, tmp_path, module_of(pl), devices=2, strategy="ddp_fork"), every=2)


@pytest.mark.filterwarnings("ignore")
def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning.pytorch")
    main = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "lightning_module.py"))["main"]
    values = main(epochs=1, images=400, folder=str(tmp_path))
    assert values["drop/asked/group4"] == pytest.approx(4 * values["drop/asked/group3"], rel=0.01)
    assert 0 <= values["accuracy"] <= 100


class Classifier(nn.Module):
    """As Hugging Face's models: loss and logits by name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def hugging_face(root: Path, model: nn.Module, stop: int = STEPS, resume: bool = False, **options: Any) -> list[Any]:
    """Train; returns what a reporter was given that the trainer had before the callback."""
    transformers = pytest.importorskip("transformers", "5")
    from dropblock.integrations.transformers import DropBlockCallback

    reported = []

    class Reporter(transformers.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            reported.append(dict(logs))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= state.global_step == stop

    options = {"per_device_train_batch_size": BATCH, "max_steps": STEPS, "save_steps": STEPS // 2, **options}
    args = transformers.TrainingArguments(
        str(root), logging_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, seed=3, **options
    )
    data = [{"pixel_values": x, "labels": y} for x, y in zip(IMAGES, LABELS, strict=True)]
    trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=[Reporter()])
    DropBlockCallback(EXAMPLE, 0.5, 2, network="net").attach(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return [logs for logs in reported if "loss" in logs]


@pytest.mark.filterwarnings("ignore")
def test_hugging_faces_reporters_get_the_drop_and_a_resumed_run_the_same_masks(tmp_path: Path) -> None:
    whole, half, resumed = Classifier(), Classifier(), Classifier()
    check(hugging_face(tmp_path / "whole", whole), every=2)
    assert len(hugging_face(tmp_path / "half", half, stop=STEPS // 2)) == 2
    assert not equal(half, whole)
    assert len(hugging_face(tmp_path / "half", resumed, resume=True)) == 2
    assert equal(resumed, whole)


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_with_accumulated_batches_and_a_compiled_model(tmp_path: Path) -> None:
    whole, compiled = Classifier(), Classifier()
    options = {"gradient_accumulation_steps": 2, "num_train_epochs": 2}
    check(hugging_face(tmp_path / "whole", whole, **options), every=2)
    more = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    check(hugging_face(tmp_path / "compiled", compiled, **options, **more), every=2)
    for x, y in zip(whole.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(x, y)


def test_hugging_face_on_two_ranks(tmp_path: Path) -> None:
    """Weights are one network's, and what the main rank logs is its own drop."""
    pytest.importorskip("transformers", "5")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, *words], check=True, env=environment)
    check(json.loads((tmp_path / "logs0.json").read_text()), every=2)
    first, second = (torch.load(tmp_path / f"weights{rank}.pt") for rank in (0, 1))
    for key in first:
        assert torch.equal(first[key], second[key])
    assert (tmp_path / "seeds0.json").read_text() != (tmp_path / "seeds1.json").read_text()


@pytest.mark.filterwarnings("ignore")
def test_a_callback_given_to_the_constructor_is_refused_in_one_line(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", "5")
    from dropblock.integrations.transformers import DropBlockCallback

    args = transformers.TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="attach"):
        transformers.Trainer(Classifier(), args, callbacks=[DropBlockCallback(EXAMPLE)])
    assert not os.listdir(tmp_path)


if __name__ == "__main__":  # a rank of test_hugging_face_on_two_ranks
    folder, rank, model = Path(sys.argv[1]), os.environ["RANK"], Classifier()
    logs = hugging_face(folder / "run", model, per_device_train_batch_size=BATCH // 2, ddp_backend="gloo")
    (folder / f"logs{rank}.json").write_text(json.dumps(logs))
    (folder / f"seeds{rank}.json").write_text(json.dumps([int(x.mask_seed) for x in installed_layers(model)]))
    torch.save(model.state_dict(), folder / f"weights{rank}.pt")
