"""What a run tells: a progress line while it works, metrics by step, and a summary when it ends."""

import json
import os
import sys
from collections.abc import Mapping

import tensorflow as tf
from tqdm import tqdm

from pipeline.files import write_atomically

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "run.json"
CONFIG_FILE = "config.gin"


class Progress:
    """A line with images done, rate, time left and the newest metrics; on a terminal it is redrawn in place.

    Args:
      title: of the line.
      images: images to process in all.
      done: images processed before (a resumed run).
      show: whether to write anything.
    """

    def __init__(self, title: str, images: int, done: int = 0, show: bool = True):
        self._redraw = redraw = sys.stderr.isatty()
        self._bar = tqdm(
            desc=title,
            total=images,
            initial=min(done, images),
            unit=" images",
            unit_scale=True,
            dynamic_ncols=redraw,
            ncols=None if redraw else 120,
            mininterval=0.2 if redraw else 10,
            file=sys.stderr,
            disable=not show,
        )

    def update(self, images: int, metrics: Mapping[str, float] | None = None) -> None:
        """Moves to `images` done in all."""
        if metrics:
            self._bar.set_postfix_str(describe(metrics), refresh=False)
        if not self._bar.disable:
            self._bar.update(min(images, self._bar.total) - self._bar.n)

    def say(self, message: str) -> None:
        """Writes a line that stays, above the progress line."""
        if self._bar.disable:
            return
        if self._redraw:
            tqdm.write(message, file=sys.stderr)
        else:
            print(f"\n{message}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the line as it stands."""
        self._bar.close()


def describe(metrics: Mapping[str, float]) -> str:
    """Metrics on one line."""
    return " ".join(f"{name.removeprefix('validation_')} {value:.4g}" for name, value in metrics.items())


class Metrics:
    """`metrics.jsonl`: one line of metrics for each step at which some were taken.

    Lines of steps after `resume_step` are from work that an interruption undid; they are dropped, so a resumed run
    leaves the same lines as an undisturbed one.
    """

    def __init__(self, directory: str, resume_step: int, write: bool = True):
        self.lines = [line for line in read_metrics(directory) if line["step"] <= resume_step]
        self._path = os.path.join(directory, METRICS_FILE) if write else None
        if self._path:
            write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line."""
        self.lines.append({"step": step, **metrics})
        if self._path:
            with tf.io.gfile.GFile(self._path, "a") as file:
                file.write(json.dumps(self.lines[-1]) + "\n")


def read_metrics(directory: str) -> list[dict]:
    """The metrics of the run in `directory`, oldest first; a half-written last line is left out."""
    path = os.path.join(directory, METRICS_FILE)
    if not tf.io.gfile.exists(path):
        return []
    lines = []
    with tf.io.gfile.GFile(path) as file:
        for line in file.read().splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return lines


def write_summary(directory: str, summary: Mapping[str, object]) -> str:
    """Writes `run.json`, whole or not at all; returns its path."""
    path = os.path.join(directory, SUMMARY_FILE)
    write_atomically(path, json.dumps(summary, indent=1) + "\n")
    return path


def find_summary(directory: str) -> dict | None:
    """The summary of the run in `directory`, None where it has not finished."""
    path = os.path.join(directory, SUMMARY_FILE)
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path) as file:
        return json.load(file)
