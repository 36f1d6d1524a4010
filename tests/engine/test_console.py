"""Output that nobody reads any more, and TensorBoard's table of runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.console import SurvivingStream, epoch_line, metric_text, result_text, table_rows, wrapped
from engine.loggers import add_to_hparams_table
from tests.conftest import ROOT


def test_a_closed_pipe_ends_nothing() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe:
        stream = SurvivingStream(pipe)
        print("read", file=stream, flush=True)
        assert os.read(reader, 100) == b"read\n"
        os.close(reader)
        for _ in range(3):
            print("lost", file=stream, flush=True)
        assert stream.fileno() == writer


@pytest.mark.parametrize("program", ["train.py", "evaluate.py"])
def test_a_program_whose_output_is_closed_ends_well(program: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, program, "--help"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_one_rank_prints_for_all_and_each_says_what_ends_it() -> None:
    for words, code in (("--help", 0), ("keep_prob=2", 2)):
        outputs = []
        for rank in ("0", "1"):
            of = {**os.environ, "RANK": rank, "WORLD_SIZE": "2"}
            command = [sys.executable, "train.py", words]
            ended = subprocess.run(command, cwd=ROOT, env=of, capture_output=True, text=True, check=False)
            assert ended.returncode == code
            assert ("keep_prob=2" in ended.stderr) == (code == 2)
            outputs.append(ended.stdout)
        assert outputs[1] == ""
        assert (outputs[0] != "") == (code == 0)


def test_a_metric_is_shown_in_its_unit() -> None:
    assert [metric_text(*given) for given in ((0.5, ""), (41.256, "%"), (12.0,), (0.25, "nats"))] == [
        "0.5000",
        "41.26%",
        "12.00%",
        "0.2500 nats",
    ]


def test_a_long_name_keeps_its_ends_in_a_table() -> None:
    long = f"begins {200 * 'x'} ends"
    [[name, share, none, short]] = table_rows([[long, 0.5, None, "cat"]])
    assert (share, none, short) == ("0.50", "-", "cat")
    assert len(str(name)) == 48
    assert str(name).startswith("begins x")
    assert str(name).endswith("x ends")


def test_the_closing_table_says_what_each_number_is() -> None:
    values = {"epoch": 2, "test/top1": 70.0, "val/top1": 71.0}
    record = {which: dict(values) for which in ("last", "best", "peak")}
    record |= {"headline": "top1", "drop_last_epoch": {"group4": {"measured": 0.0748, "expected": 0.0744}}}
    text = result_text({**record, "images_per_s": 100.0, "train_seconds": 9.0}, Path("run"))
    ends = {line[:18].strip(): " ".join(line.split()[3:]) for line in text.splitlines()}
    assert ends["best test/top1"] == "epoch 2, chosen as the best on val"
    assert ends["peak test/top1"] == "epoch 2, the best on test: chooses nothing"
    assert "expected 7.44% over the last epoch" in text
    assert max(map(len, text.splitlines())) <= 80


def test_tensorboard_shows_the_columns_of_all_runs(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams.backend_context import Context

    rows = {"none": {"data": "fake", "keep_prob": None}, "dropblock": {"data": "fake", "keep_prob": 0.9}}
    for name, row in rows.items():
        add_to_hparams_table(tmp_path / name, row)
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    context, request = Context(TBContext(data_provider=provider)), RequestContext()
    tags = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(
        request, "", True, tags, context.hparams_from_data_provider(request, "", 100)
    )
    assert {info.name for info in experiment.hparam_infos} == {"data", "keep_prob"}


def test_the_line_of_an_epoch_keeps_the_best_apart_and_fits_the_terminal() -> None:
    names = ("loss", "top1", "top5", "ece")
    values = {f"{split}/{name}": 12.0 for split in ("val", "test") for name in names}
    units, best = {**dict.fromkeys(names, "%"), "loss": ""}, {"epoch": 12, "val/top1": 41.25}
    start = "epoch  30/300  val/top1 12.00%  test/top1 12.00%  best val 41.25% in epoch 12"
    assert len(start) <= 80
    assert epoch_line(30, 300, values, units, "top1", best, 80) == start
    losses = "  val/loss 12.0000  val/top5 12.00%  test/loss 12.0000  test/top5 12.00%"
    assert epoch_line(30, 300, values, units, "top1", best, 160) == start + losses
    assert epoch_line(30, 300, values, units, "top1", best) == start + losses  # a file: two further metrics a split

    assert epoch_line(3, 12, {"test/loss": 0.25}, {"loss": ""}, "loss") == "epoch   3/12  test/loss 0.2500"


def test_long_lines_are_broken_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"a  table\nnote: {'word ' * 20}end\n"
    assert wrapped(text) == text
    monkeypatch.setattr("engine.console.columns", lambda: 40)
    lines = wrapped(text).splitlines()
    assert lines[0] == "a  table"
    assert all(len(line) <= 40 for line in lines)
    assert [line[:10] for line in lines[1:3]] == ["note: word", "      word"]
