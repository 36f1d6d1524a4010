"""The training loop and what a run leaves behind. Knows no network, no data set, no regularizer by name."""

import sys

try:
    import fcntl  # noqa: F401
except ImportError:  # said here once for every program, instead of a traceback from whichever import comes first
    print(
        "error: train.py and the scripts need Linux or macOS (on Windows: WSL); the layers, import dropblock, do not",
        file=sys.stderr,
    )
    raise SystemExit(2) from None
