"""The process of one run: begun, looked at, stopped, and what came of it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from pipeline.study import runs as reading
from pipeline.study.errors import StudyError
from pipeline.study.runs import Run, Trial

MAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "main.py")
LOG_FILE = "log.txt"
PREEMPTED = 143  # exit code of a run that was told to stop


class Stopped(RuntimeError):
    """The sweep or a run of it was told to stop; runs at work have saved a checkpoint."""


class Execution:
    """A trial at work in a process of its own; it goes on from its checkpoint if it has one.

    Args:
      arguments: of `pipeline/main.py`.
      trial, directory: which run of which study.
      lock: file that the process inherits, so that the study is locked as long as it or the sweep lives.
    """

    def __init__(self, arguments: Sequence[str], trial: Trial, directory: str, lock: int):
        earlier = reading.read_one(trial, directory)
        self._trial, self._directory = trial, directory
        self._before = earlier.wall_seconds if earlier else 0.0
        self._folder = reading.write_trial(trial, directory, self._before)
        self._is_new = not reading.has_checkpoint(self._folder)
        if self._is_new:
            reading.forget_recipe(self._folder)  # of an attempt that saved nothing, perhaps with another recipe
        self._log_path = os.path.join(self._folder, LOG_FILE)
        self._begun, self._checked = time.monotonic(), False
        with open(self._log_path, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, MAIN, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,  # so that Ctrl-C reaches it through here alone, as SIGTERM
            )

    @property
    def ended(self) -> bool:
        """Whether its process has ended."""
        return self._process.poll() is not None

    def check(self, others: Sequence[Run]) -> None:
        """Raises a StudyError where its recipe is not that of `others`."""
        if not (self._checked or self.ended or reading.recipe(self._folder) is None):
            reading.check_same([*others, Run(self._trial, self._folder, reading.UNFINISHED)])
            self._checked = True

    def tell_to_stop(self) -> None:
        """Asks for a checkpoint and an end."""
        if not self.ended:
            self._process.terminate()

    def close(self) -> None:
        """Waits for the end, and notes the time that it took."""
        self._process.wait()
        reading.write_trial(self._trial, self._directory, self._before + time.monotonic() - self._begun)

    def discard_if_strange(self, others: Sequence[Run]) -> None:
        """Removes what an ended run left, if it was begun here and its recipe is not that of `others`."""
        try:
            reading.check_same([*others, Run(self._trial, self._folder, reading.UNFINISHED)])
        except StudyError:
            if self._is_new:
                shutil.rmtree(self._folder)

    def result(self) -> str:
        """Why an ended run diverged, which its folder then says too; '' where it finished.

        Raises:
          StudyError: it failed, or left no summary; with the end of its log.
          Stopped: somebody told it to stop.
        """
        self.close()
        if self._process.returncode == 0 and os.path.exists(os.path.join(self._folder, reading.SUMMARY_FILE)):
            return ""
        last = _last_lines(self._log_path)
        if self._process.returncode == PREEMPTED:
            raise Stopped(f"{self._folder} was told to stop; the same command goes on from its checkpoint.")
        if "\nDivergedError: " in last:
            reason = last.rsplit("\nDivergedError: ", 1)[1].strip()
            with open(os.path.join(self._folder, reading.DIVERGED_FILE), "w") as file:
                file.write(reason + "\n")
            return reason
        raise StudyError(
            f"{self._folder} failed with exit code {self._process.returncode}; the end of {self._log_path}:\n"
            f"{last[-1500:]}"
        )


def _last_lines(path: str, size: int = 4000) -> str:
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - size))
        return file.read().decode(errors="replace")
