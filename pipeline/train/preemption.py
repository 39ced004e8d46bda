"""SIGTERM and Ctrl-C: a checkpoint of the last step done, and an orderly end."""

import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any

from pipeline.train import distribution
from pipeline.train.actions import Checkpoints
from pipeline.train.components import RunComponents

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(RuntimeError):
    """The process was told to stop; the message names the checkpoint of the last step done.

    Attributes:
      exit_code: what a shell reports of a process that the signal ended: 143 for SIGTERM, 130 for Ctrl-C.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Preemption:
    """An action that stops the run where any of its processes has been sent SIGTERM or Ctrl-C; a context manager.

    It is called after each loop of training and after each step of evaluation. A second Ctrl-C ends the process at
    once, also in the middle of a loop.

    Args:
      run: what the run works with.
      checkpoints: where the last step is saved.
    """

    def __init__(self, run: RunComponents, checkpoints: Checkpoints):
        self._run, self._checkpoints = run, checkpoints
        self._signal = 0  # the one that was sent

    def __enter__(self) -> "Preemption":
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._request) for number in _SIGNALS}
            # Python runs its handlers between two of its own instructions, and a loop of training is one of them.
            # The number of a signal is written into this pipe at once, and another thread can act on it.
            receiver, self._pipe = os.pipe()
            os.set_blocking(self._pipe, False)
            self._other_pipe = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
            self._watcher = threading.Thread(target=_watch, args=(receiver,), daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._handlers:
            signal.set_wakeup_fd(self._other_pipe)
            os.close(self._pipe)
            self._watcher.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: object) -> None:
        self._signal = number

    def __call__(self, output: Mapping[str, float] | None = None) -> None:
        """Saves a checkpoint and raises Preempted where a stop was requested.

        All processes stop after the same step, or the others would wait for ever.
        """
        number = max(distribution.of_all_processes(self._run.strategy, self._signal))
        if not number:
            return
        self._checkpoints.save()
        self._checkpoints.wait()
        raise Preempted(
            f"stopped at step {self._run.state.step} of {self._run.last_step}; the checkpoint in "
            f"{self._checkpoints.directory} is whole, and the same command continues from it.",
            number,
        )


def _watch(receiver: int) -> None:
    """Answers the first Ctrl-C, and ends the process at the second, until the pipe is closed."""
    interrupts = 0
    with open(receiver, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
            interrupts += number[0] == signal.SIGINT
            if interrupts > 1:
                os._exit(128 + signal.SIGINT)  # the main thread may be in TensorFlow for long
            if number[0] == signal.SIGINT:
                print("\nStopping after the running loop, with a checkpoint; Ctrl-C again ends now.", file=sys.stderr)
