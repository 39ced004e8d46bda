"""Orbit's controller without its prints, and TensorFlow's errors in the words of this project."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import orbit
import tensorflow as tf
from absl import logging

from pipeline.data import reader
from pipeline.train import distribution


@contextlib.contextmanager
def quiet_orbit() -> Iterator[None]:
    """Orbit prints every loop to stdout; the progress line and `metrics.jsonl` say the same.

    There is no switch for it: its private `_log` is replaced by the half of it that logs.
    """
    with mock.patch.object(orbit.controller, "_log", logging.info):
        yield


@contextlib.contextmanager
def explained_errors(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Raises a DamagedRecordError where the input stopped at one, and says when another process is gone."""
    try:
        yield
    except tf.errors.OpError as error:
        if (damage := reader.damage(error)) is not None:
            raise damage from None
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise distribution.PeerLostError(
                f"Working together failed ({error.message.splitlines()[0]}): very likely another process is gone. "
                "Start the same command on every worker again; all continue from the last checkpoint."
            ) from error
        raise
