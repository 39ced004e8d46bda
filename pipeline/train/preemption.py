"""SIGTERM: a checkpoint of the last step done, and an orderly end."""

import signal
import threading
from collections.abc import Mapping
from typing import Self

from pipeline.train import distribution
from pipeline.train.actions import Checkpoints
from pipeline.train.components import RunComponents


class Preempted(RuntimeError):
    """The process was told to stop; the message names the checkpoint of the last step done."""


class Preemption:
    """An action that stops the run where any of its processes has been sent SIGTERM; a context manager.

    It is called after each loop of training and after each step of evaluation.

    Args:
      run: what the run works with.
      checkpoints: where the last step is saved.
    """

    def __init__(self, run: RunComponents, checkpoints: Checkpoints):
        self._run, self._checkpoints = run, checkpoints
        self._requested = False

    def __enter__(self) -> Self:
        self._handler = None
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)

    def _request(self, *_):
        self._requested = True

    def __call__(self, output: Mapping[str, float] | None = None) -> None:
        """Saves a checkpoint and raises Preempted where a stop was requested.

        All processes stop after the same step, or the others would wait for ever.
        """
        if 1 not in distribution.of_all_processes(self._run.strategy, int(self._requested)):
            return
        self._checkpoints.save()
        self._checkpoints.wait()
        raise Preempted(
            f"stopped at step {self._run.state.step} of {self._run.last_step}; the checkpoint in "
            f"{self._checkpoints.directory} is whole, and the same command continues from it."
        )
