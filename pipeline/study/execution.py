"""The process of one run: started, polled, stopped, and how it ended."""

import dataclasses
import os
import time
from collections.abc import Sequence

from pipeline import files
from pipeline.study import StudyError, program, run_files
from pipeline.study.run_files import Run

MAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "main.py")
LOG_FILE = "log.txt"
PREEMPTED = 143  # exit code of a run that was told to stop


class Stopped(RuntimeError):
    """The sweep or one of its runs was told to stop; running ones have saved a checkpoint."""


class Execution:
    """A run in a process of its own; it resumes from its checkpoint if it has one.

    Args:
      arguments: of `pipeline/main.py`.
      run: which; its trial is written into its folder.
      lock: file that the process inherits, so that the study is locked as long as it or the sweep lives.
      at_once: runs that share this machine's cores.
    """

    def __init__(self, arguments: Sequence[str], run: Run, lock: int, at_once: int):
        self.run = run
        run_files.write_trial(run)
        self._log_path = os.path.join(run.folder, LOG_FILE)
        self._start = time.monotonic()
        environment = {**_threads(at_once), **os.environ}
        self._process = program.start(MAIN, arguments, self._log_path, environment, lock)

    @property
    def ended(self) -> bool:
        """Whether its process has ended."""
        return self._process.exitcode is not None

    def tell_to_stop(self) -> None:
        """Asks for a checkpoint and an end."""
        if not self.ended:
            self._process.terminate()

    def close(self) -> None:
        """Waits for the end, and writes down the time that it took."""
        self._process.join()
        seconds = self.run.wall_seconds + time.monotonic() - self._start
        run_files.write_trial(dataclasses.replace(self.run, wall_seconds=seconds))

    def result(self) -> str:
        """Why an ended run diverged, which is also written into its folder; '' where it finished.

        Raises:
          StudyError: it failed, or left no summary; with the end of its log.
          Stopped: it was told to stop.
        """
        self.close()
        folder, code = self.run.folder, self._process.exitcode
        if code == 0 and os.path.exists(os.path.join(folder, run_files.SUMMARY_FILE)):
            return ""
        last = _last_lines(self._log_path)
        if code == PREEMPTED:
            raise Stopped(f"{folder} was told to stop; the same command resumes it from its checkpoint.")
        if "\nDivergedError: " in last:
            reason = last.rsplit("\nDivergedError: ", 1)[1].strip()
            files.write_atomically(os.path.join(folder, run_files.DIVERGED_FILE), reason + "\n")
            return reason
        raise StudyError(f"{folder} failed with exit code {code}; the end of {self._log_path}:\n{last[-1500:]}")


def _threads(at_once: int) -> dict[str, str]:
    """Environment of a run with a share of the cores: two that both take all of them need a quarter more time."""
    if at_once == 1:
        return {}
    share = str(max(1, (os.cpu_count() or 1) // at_once))
    return {"TF_NUM_INTRAOP_THREADS": share, "TF_NUM_INTEROP_THREADS": share}


def _last_lines(path: str, size: int = 4000) -> str:
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - size))
        return file.read().decode(errors="replace")
