"""What TensorBoard shows of a run: each step once, whatever was interrupted or evaluated twice."""

import os
from collections.abc import Mapping, Sequence

import orbit
import tensorflow as tf

from pipeline import files

FOLDER = "tensorboard"  # in the run's folder
_QUEUE = 1000  # scalars that are written at once


class Summaries(orbit.utils.SummaryManagerInterface):
    """TensorBoard's scalars, all those of a loop written at once.

    Orbit's own class flushes the file after each scalar, and in an object store every flush uploads the whole file.

    Args:
      directory: of TensorBoard's files; None writes nothing.
      step: the variable that counts steps, at the step that the run continues from.
    """

    def __init__(self, directory: str | None, step: tf.Variable):
        self._step = step
        self._writer = tf.summary.create_noop_writer()
        if directory:
            _start_after(directory, int(step.numpy()))
            self._writer = tf.summary.create_file_writer(directory, max_queue=_QUEUE)

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


def _start_after(directory: str, step: int) -> None:
    """Writes that the run starts after `step`: at a second start, TensorBoard drops what it has read of later steps."""
    start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    with tf.Graph().as_default(), tf.compat.v1.summary.FileWriter(directory) as writer:  # it refuses eager execution
        writer.add_session_log(start, step + 1)


def write_evaluations(model_dir: str, split: str, lines: Sequence[Mapping[str, float]]) -> None:
    """Writes the metrics of a split, in all `lines` of `metrics.jsonl` that hold some, in place of earlier files."""
    directory = os.path.join(model_dir, FOLDER, split)
    if tf.io.gfile.exists(directory):
        files.remove_folder(directory)
    writer = tf.summary.create_file_writer(directory, max_queue=_QUEUE)
    with writer.as_default():
        for line in sorted(lines, key=lambda line: line["step"]):
            for name, value in line.items():
                if name.startswith(f"{split}_"):
                    tf.summary.scalar(name, value, int(line["step"]))
    writer.close()
