"""The programs of a study, in processes that are forked where TensorFlow has been imported."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

# The server imports once what takes each run of `pipeline/main.py` 4 seconds otherwise.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["__main__", "pipeline.registry"])


def start(
    program: str, arguments: Sequence[str], log_path: str, environment: Mapping[str, str], lock: int
) -> ForkServerProcess:
    """Starts `python PROGRAM ARGUMENTS` with `environment`, in this folder; what it prints is added to `log_path`.

    `lock` is a file descriptor that the process keeps open. Signals from the terminal do not reach it.
    """
    # A connection is what carries a descriptor to the process; nothing is sent through it.
    inherited = Connection(os.dup(lock))
    process = _SERVER.Process(
        target=_run, args=(program, list(arguments), log_path, dict(environment), os.getcwd(), inherited)
    )
    process.start()
    inherited.close()
    return process


def _run(
    program: str,
    arguments: list[str],
    log_path: str,
    environment: dict[str, str],
    folder: str,
    lock: Connection,
) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with open(log_path, "ab") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    sys.argv = [program, *arguments]
    sys.path.insert(0, os.path.dirname(program))  # which the program takes for its own folder, as if Python ran it
    try:
        runpy.run_path(program, run_name="__main__")
    finally:
        lock.close()
