"""Parts shared by the programs of this folder: the name of a run on the command line, and one line for a mistake."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from engine.console import SurvivingStream, error_line


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of a program, as it is written there."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def folder(word: str) -> Path:
    """A run or sweep directory from the command line: FOLDER, or run=FOLDER or sweep=FOLDER as evaluate.py has it."""
    key, separator, value = word.partition("=")
    return Path(value if separator and key in ("run", "sweep") else word)


def guarded(main: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """Decorator: return 2 and print one line for a mistake of the user, instead of a traceback.

    The program goes on when its output is no longer read (`| head`).

    Args:
        main: takes the arguments, returns the exit code; raises ValueError (which a UserError is) or
            OSError for what the user can correct.
    """

    def run(arguments: list[str]) -> int:
        with redirect_stdout(SurvivingStream(sys.stdout)):
            try:
                return main(arguments)
            except (ValueError, OSError) as error:
                print(f"error: {error_line(error)}", file=sys.stderr)
                return 2
            finally:
                sys.stdout.flush()

    return run
