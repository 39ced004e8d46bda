"""Programs of the repository in processes of their own, forked from one that has imported TensorFlow.

They save the seconds that its import takes. What a program does before is tested where it starts from nothing, in
`test_command_line.py`.
"""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pipeline.registry"])  # what it lacks the programs import themselves


def run(program: str, *words: object, timeout: float = 300) -> subprocess.CompletedProcess:
    """Runs a program as a user would, in the repository and with the environment of this process."""
    line = [str(ROOT / program), *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        shown = [pathlib.Path(folder, name) for name in ("stdout", "stderr")]
        process = _SERVER.Process(target=_main, args=(line, dict(os.environ), shown))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(line, timeout)
        return subprocess.CompletedProcess(line, process.exitcode, *(path.read_text() for path in shown))


def _main(line: list[str], environment: Mapping[str, str], shown: Sequence[pathlib.Path]) -> None:
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(shown, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = line
    sys.path.insert(0, os.path.dirname(line[0]))  # as Python does, and the programs replace
    runpy.run_path(line[0], run_name="__main__")
