"""What Orbit's controller is given: the length of its loops, silence, and errors in the words of this project."""

import contextlib
import re
from collections.abc import Callable, Iterator
from unittest import mock

import orbit
import tensorflow as tf
from absl import logging

from pipeline.data import reader
from pipeline.errors import cause, remote_file_error
from pipeline.train import distribution
from pipeline.train.components import RunComponents
from pipeline.train.memory import OutOfMemoryError
from pipeline.train.run_config import Loop
from pipeline.train.trainer import Trainer

_LOOP_SECONDS = 20.0
_LOOPS = 100  # that a run has at least
_ALLOCATION = re.compile("OOM|out of memory|allocat", re.IGNORECASE)  # files have the same class of error
_GROUPED = re.compile("grouped convolutions")
_LOST_HOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)


def inner_loop(loop: Loop, run: RunComponents, trainer: Trainer) -> Callable[[int], int]:
    """From the step at which an inner loop starts to its number of steps, in all processes the same.

    It ends at the latest where a checkpoint is due. With `Loop.steps_per_loop` it ends at the next multiple of that,
    also in a run that continues; without, it takes the time of a loop, as far as the last loop tells.
    """

    def steps(step: int) -> int:
        to_checkpoint = loop.checkpoint_every - step % loop.checkpoint_every
        if loop.steps_per_loop is not None:
            return min(loop.steps_per_loop - step % loop.steps_per_loop, to_checkpoint)
        in_time = distribution.of_all_processes(run.strategy, timed_steps(trainer.step_seconds, run.last_step))
        return min(*in_time, to_checkpoint)

    return steps


def timed_steps(step_seconds: float, last_step: int) -> int:
    """Steps of a loop by time."""
    return max(1, min(int(_LOOP_SECONDS / step_seconds), last_step // _LOOPS))


@contextlib.contextmanager
def quiet_orbit() -> Iterator[None]:
    """Orbit prints every loop to stdout; the progress line and `metrics.jsonl` say the same.

    There is no switch for it: its private `_log` is replaced by the half of it that logs.
    """
    with mock.patch.object(orbit.controller, "_log", logging.info):
        yield


@contextlib.contextmanager
def explained_errors(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Raises errors of this project where the input, an object store or another host is what failed.

    Raises:
      DamagedRecordError: the input stopped at a damaged record.
      ManifestError: a host cannot open a shard.
      RemoteFileError: a file in an object store cannot be read or written.
      OutOfMemoryError: a device has too little memory.
      ValueError: TensorFlow lacks a kernel of grouped convolutions on this CPU.
      PeerLostError: another process is gone.
      HostLostError: a host of the TPU slice is gone.
    """
    try:
        yield
    except tf.errors.OpError as error:
        for explain in (reader.damage, reader.unreadable, remote_file_error):
            if (problem := explain(error)) is not None:
                raise problem from error
        if isinstance(error, tf.errors.ResourceExhaustedError) and _ALLOCATION.search(str(error)):
            raise OutOfMemoryError(
                f"A device has too little memory ({cause(error)[:200]}): lower the batch (Data.batch, or "
                "Loop.eval_batch in evaluation), or keep it and raise Experiment.accumulation_steps, or lower the "
                "resolution (Data.train_size), or take a smaller variant."
            ) from error
        if _GROUPED.search(str(error)):
            raise ValueError(
                "TensorFlow works without oneDNN on this CPU, and then cannot compute an NFNet "
                f"({cause(error)[:200]}). Set TF_ENABLE_ONEDNN_OPTS=1 before TensorFlow is imported; programs of this "
                "project set it unless it has another value."
            ) from error
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise distribution.PeerLostError(
                f"Working together failed ({cause(error)}): very likely another process is gone. "
                "Start the same command on every worker again; all continue from the last checkpoint."
            ) from error
        if isinstance(strategy, tf.distribute.TPUStrategy) and isinstance(error, _LOST_HOST):
            raise distribution.HostLostError(
                f"A host of the TPU slice is gone ({type(error).__name__}: {cause(error)}). "
                "Start the same command again when the slice is whole, or with TPU_NAME of another one, of any number "
                "of hosts that divides the batch; the run continues from its last checkpoint."
            ) from error
        raise
