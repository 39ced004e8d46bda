"""The errors of jobs that cannot be done as asked."""

import tensorflow as tf

from pipeline.errors import remote_file_error


class BuildError(Exception):
    """The build cannot be done as asked; the message says what was found, what was expected and what to do."""


class PredictionError(Exception):
    """A batch prediction cannot be done as asked; the message says what was found, what was expected and what to do."""


def message(error: BuildError | PredictionError | tf.errors.OpError) -> str:
    """What an error says; TensorFlow's are raised again if they are not about a file in an object store."""
    if not isinstance(error, tf.errors.OpError):
        return str(error)
    if (problem := remote_file_error(error)) is None:
        raise error
    return str(problem)
