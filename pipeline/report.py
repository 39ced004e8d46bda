"""What a run tells: a progress line while it works, metrics by step, and a summary when it ends."""

import json
import os
import sys
from collections.abc import Iterable, Mapping

import tensorflow as tf
from tqdm import tqdm

from pipeline.files import write_atomically

METRICS_FILE = "metrics.jsonl"
SPLIT = "split"  # in the lines of metrics that --task=evaluate added: which split they are of
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
        self._directory = directory if write else None
        if self._directory is not None:
            _write_metrics(self._directory, self.lines)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line; an evaluation by hand of the same step leaves its metrics of these names to it."""
        repeated = [
            line for line in self.lines if line["step"] == step and SPLIT in line and line.keys() & metrics.keys()
        ]
        for line in repeated:
            for name in line.keys() & metrics.keys():
                del line[name]
        self.lines.append({"step": step, **metrics})
        if self._directory is None:
            return
        if repeated:
            _write_metrics(self._directory, self.lines)
        else:
            _append_metrics(self._directory, self.lines[-1])


def add_evaluation(directory: str, step: int, split: str, metrics: Mapping[str, float]) -> list[dict]:
    """Adds the metrics of a split, named `SPLIT_METRIC`, to `metrics.jsonl`, in place of earlier ones of the same step.

    Training never reads the line, which `SPLIT` marks: an evaluation by hand does not change what a run does. It leaves
    out the metrics that training itself has logged at this step. Where there is no earlier one, a line is appended,
    since the run may still be training.

    Returns:
      All lines that hold metrics of the split.
    """
    text = _metrics_text(directory)
    lines = _parse_metrics(text)
    named = {f"{split}_{name}": value for name, value in metrics.items()}
    logged = {name for line in lines if line["step"] == step and SPLIT not in line for name in line}
    added = {"step": step, SPLIT: split, **{name: value for name, value in named.items() if name not in logged}}
    kept = [line for line in lines if (line["step"], line.get(SPLIT)) != (step, split)]
    if len(kept) == len(lines) and text.endswith("\n"):
        _append_metrics(directory, added)
    else:
        _write_metrics(directory, [*kept, added])
    return [line for line in [*kept, added] if line.keys() & named.keys()]


def read_metrics(directory: str) -> list[dict]:
    """The metrics of the run in `directory`, oldest first; a half-written last line is left out."""
    return _parse_metrics(_metrics_text(directory))


def _metrics_text(directory: str) -> str:
    path = os.path.join(directory, METRICS_FILE)
    if not tf.io.gfile.exists(path):
        return ""
    with tf.io.gfile.GFile(path) as file:
        return file.read()


def _parse_metrics(text: str) -> list[dict]:
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _write_metrics(directory: str, lines: Iterable[Mapping]) -> None:
    write_atomically(os.path.join(directory, METRICS_FILE), (json.dumps(line) + "\n" for line in lines))


def _append_metrics(directory: str, line: Mapping) -> None:
    with tf.io.gfile.GFile(os.path.join(directory, METRICS_FILE), "a") as file:
        file.write(json.dumps(line) + "\n")


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
