"""Orbit's controller without its prints, and TensorFlow's errors in the words of this project."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from unittest import mock

import orbit
import tensorflow as tf
from absl import logging

from pipeline import files
from pipeline.data import reader
from pipeline.train import distribution

_LOST_HOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)


@contextlib.contextmanager
def quiet_orbit() -> Iterator[None]:
    """Orbit prints every loop to stdout; the progress line and `metrics.jsonl` say the same.

    There is no switch for it: its private `_log` is replaced by the half of it that logs.
    """
    with mock.patch.object(orbit.controller, "_log", logging.info):
        yield


class Summaries(orbit.utils.SummaryManagerInterface):
    """TensorBoard's scalars, all those of a loop written at once.

    Orbit's own class flushes the file after each scalar, and in an object store every flush uploads the whole file.

    Args:
      directory: of TensorBoard's files; None writes nothing.
      step: the variable that counts steps.
    """

    def __init__(self, directory: str | None, step: tf.Variable):
        self._step = step
        self._writer = tf.summary.create_noop_writer()
        if directory:
            self._writer = tf.summary.create_file_writer(directory, max_queue=1000)

    def summary_writer(self, relative_path: str = "") -> tf.summary.SummaryWriter:
        """What Orbit opens around a loop, and so flushes after it: nothing is written there."""
        return tf.summary.create_noop_writer()

    def write_summaries(self, summary_dict: Mapping[str, float]) -> None:
        """Writes the scalars of a loop or of an evaluation."""
        with self._writer.as_default():
            for name, value in summary_dict.items():
                tf.summary.scalar(name, value, self._step)

    def flush(self) -> None:
        """Does nothing: `write_summaries` has flushed."""


@contextlib.contextmanager
def explained_errors(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Raises errors of this project where the input, an object store or another host is what failed.

    Raises:
      DamagedRecordError: the input stopped at a damaged record.
      ManifestError: a host cannot open a shard.
      RemoteFileError: a file in an object store cannot be read or written.
      PeerLostError: another process is gone.
      HostLostError: a host of the TPU slice is gone.
    """
    try:
        yield
    except tf.errors.OpError as error:
        for explain in (reader.damage, reader.unreadable, files.remote_file_error):
            if (problem := explain(error)) is not None:
                raise problem from error
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise distribution.PeerLostError(
                f"Working together failed ({error.message.splitlines()[0]}): very likely another process is gone. "
                "Start the same command on every worker again; all continue from the last checkpoint."
            ) from error
        if isinstance(strategy, tf.distribute.TPUStrategy) and isinstance(error, _LOST_HOST):
            tasks = sorted(set(re.findall(r"/job:\w+/replica:\d+/task:\d+", error.message)))
            raise distribution.HostLostError(
                f"A host of the TPU slice is gone ({type(error).__name__}; {', '.join(tasks) or 'no host is named'}). "
                "Start the same command again when the slice is whole, or with TPU_NAME of another one, of any number "
                "of hosts that divides the batch; the run continues from its last checkpoint."
            ) from error
        raise
