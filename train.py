"""Train a network with a regularizer: python train.py regularizer=dropblock block_size=7

Command-line overrides are composed by Hydra, resolved into a plan, and the plan is built and trained. `--help` lists
the keys, `-m` runs a grid, `+sweep=NAME` a whole table of the paper, `estimate=true` says what the runs would cost.

Exit codes: 0 done; 2 a mistake in the configuration or the data, in one line; 130 and 143 stopped by a signal, the
same command resumes; 1 anything else.
"""

from __future__ import annotations

import faulthandler
import sys

from configs.checking import UserError
from configs.command_line import check_arguments
from configs.help import help_text
from engine import cpu
from engine.console import prepare_output
from experiment.command import run_command
from experiment.outcome import report_error


def main(arguments: list[str]) -> int:
    """Run the command of these arguments; returns its exit code."""
    cpu.configure_process()
    if {"-h", "--help"} & {*arguments}:
        print(f"{__doc__}\n{help_text()}")
        return 0
    try:
        return run_command(check_arguments(arguments))
    except (UserError, KeyboardInterrupt, OSError) as error:
        return report_error(error)[0]


if __name__ == "__main__":
    faulthandler.enable()  # a crash in native code names the line of Python that led there
    prepare_output()
    sys.exit(main(sys.argv[1:]))
