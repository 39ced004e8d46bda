"""How the programs start and end: help, Ctrl-C, and TensorFlow's own messages."""

import os
import signal
import sys
from collections.abc import Callable

from absl import app

_HELP = {f"{dashes}{name}" for dashes in ("-", "--") for name in ("help", "helpshort", "helpfull", "?")}
_GPU_DRIVER = "/proc/driver/nvidia/version"


def run(main: Callable[[list[str]], int]) -> None:
    """Runs `main` with the arguments that are no flags, and exits with what it returns.

    Ctrl-C ends the program at once, with 130 in a shell, unless `main` handles it: files are whole or not there at any
    moment, and a KeyboardInterrupt would wait for TensorFlow, or be lost in a library that catches everything.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    set_up_tensorflow()
    try:
        app.run(main, flags_parser=_parse)
    except BrokenPipeError:  # the reader of the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at the end
        sys.exit(1)


def set_up_tensorflow() -> None:
    """Says how TensorFlow is to be when it is imported, unless the environment says otherwise.

    It logs what matters alone. Of the two Keras that it can import, it takes the one that we do, tf_keras. It uses
    oneDNN on every CPU: by itself it does so only where a CPU has instructions for neural networks (AVX512_VNNI, AMX
    and the like), and without oneDNN it has no gradient of grouped convolutions.
    """
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # Of errors in its C++, it raises those that matter; without a GPU it reports as one that there is none.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if os.path.exists(_GPU_DRIVER) else "3")


def _parse(argv: list[str]) -> list[str]:
    """The arguments that are no flags; ends the program with 0 after help, where absl ends it with 1."""
    argv = ["--help" if argument == "-h" else argument for argument in argv]
    try:
        return app.parse_flags_with_usage(argv)
    except SystemExit:
        sys.exit(0 if _HELP.intersection(argv[1:]) else 1)
