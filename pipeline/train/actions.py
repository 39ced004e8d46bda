"""What happens after each inner loop of training and after each evaluation: one Orbit action a concern.

Orbit calls an action with the output of the loop: name to value of each metric.
"""

import os
from collections.abc import Callable, Mapping

from absl import logging

from pipeline import report
from pipeline.train import checkpoint, distribution
from pipeline.train.components import RunComponents
from pipeline.train.ledger import LedgerError
from pipeline.train.run_config import Loop

BEST_METRIC = "validation_loss"
_SHOWN = ("loss", "top1", "learning_rate", "epoch")  # in the progress line

Output = Mapping[str, float]


class MetricsLog:
    """Adds the metrics of a step to `metrics.jsonl`; what an interruption undid is dropped on resume."""

    def __init__(self, model_dir: str, run: RunComponents):
        self._state = run.state
        self._file = report.Metrics(model_dir, run.state.step, write=distribution.is_chief())

    def __call__(self, output: Output) -> None:
        """Adds a line."""
        self._file.add(self._state.step, output)

    def after_evaluation(self, output: Output) -> None:
        """Adds a line; last of the actions, since an interruption before it repeats the evaluation."""
        self(validation_metrics(output))

    @property
    def evaluations(self) -> list[dict]:
        """The lines of all evaluations, oldest first."""
        return [line for line in self._file.lines if BEST_METRIC in line and report.SPLIT not in line]

    def has_evaluation(self, step: int) -> bool:
        """Whether the evaluation after `step` is done."""
        return any(line["step"] == step for line in self.evaluations)


class ProgressLine:
    """The line with images done, rate, time left and the newest metrics; a context manager."""

    def __init__(self, run: RunComponents):
        self._run = run

    def __enter__(self) -> "ProgressLine":
        budget, last_step = self._run.budget, self._run.last_step
        images = min(budget.examples, last_step * budget.batch)
        self._line = report.Progress("training", images, self._images(), show=distribution.is_chief())
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()

    def __call__(self, output: Output) -> None:
        """Moves the line."""
        self._line.update(self._images(), {name: output[name] for name in _SHOWN if name in output})

    def after_evaluation(self, output: Output) -> None:
        """Writes the metrics above the line."""
        self.say(f"step {self._run.state.step}: {report.describe(validation_metrics(output))}")

    def say(self, message: str) -> None:
        """Writes a line that stays."""
        self._line.say(message)

    def _images(self) -> int:
        return int(self._run.state.ledger.examples.numpy().sum())


class LedgerCheck:
    """Says of every epoch that has ended whether it consumed each example exactly once.

    Args:
      run: what the run works with.
      say: where to report an epoch.
      on_mismatch: 'stop' raises a LedgerError where an epoch without damaged records does not add up; 'warn' warns.
    """

    def __init__(self, run: RunComponents, say: Callable[[str], None], on_mismatch: str):
        self._run, self._say, self._on_mismatch = run, say, on_mismatch
        self._checked = self._ended_epochs()  # before an interruption

    def __call__(self, output: Output | None = None) -> None:
        """Checks the epochs that ended since the last call."""
        ended = self._ended_epochs()
        if self._run.state.step >= self._run.budget.steps:
            ended = len(self._run.budget.expected)
        for entry in self._run.ledger_entries()[self._checked : ended]:
            self._say(str(entry))
            if not entry.exactly_once:
                damaged = self._run.damaged_records()
                message = f"{entry}. Damaged records left out: {', '.join(damaged) or 'none'}."
                if self._on_mismatch == "stop" and not damaged:
                    raise LedgerError(message)
                logging.warning("%s", message)
        self._checked = ended

    def _ended_epochs(self) -> int:
        """Whole epochs of the steps done."""
        budget = self._run.budget
        return min(self._run.state.step * budget.rows_per_step // budget.order.rows, budget.whole_epochs)


class Checkpoints:
    """Saves a checkpoint every `Loop.checkpoint_every` steps, and removes old ones; the chief alone writes.

    Args:
      directory: folder of the run's checkpoints.
      loop: how often, and how many stay.
      run: what the run works with.
      facts: gives what is saved with the variables.
      saved_step: of the checkpoint that the run continues from, which need not be saved again; None at its start.
    """

    def __init__(
        self, directory: str, loop: Loop, run: RunComponents, facts: Callable[[], dict], saved_step: int | None = None
    ):
        self.directory = directory
        self._loop, self._state, self._facts = loop, run.state, facts
        self._writer = checkpoint.Writer(directory, run.state.groups, loop.background_checkpoints)
        self._saved_step = saved_step

    def __call__(self, output: Output) -> None:
        """Saves a checkpoint if one is due."""
        if self._state.step % self._loop.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Saves a checkpoint, unless this step has one."""
        step = self._state.step
        if distribution.is_chief() and step != self._saved_step:
            self.prune()  # what is about to be written does not count before it is whole
            self._writer.save(step, self._facts())
        self._saved_step = step

    def wait(self) -> None:
        """Waits until the last checkpoint is whole."""
        self._writer.wait()

    def prune(self) -> None:
        """Removes the checkpoints that need not stay."""
        self.wait()
        if distribution.is_chief():
            checkpoint.prune(self.directory, self._loop.keep, self._loop.keep_every_hours)

    def path(self) -> str:
        """Folder of the checkpoint of this step, whole."""
        self.wait()
        return checkpoint.folder(self.directory, self._state.step)


class BestCheckpoint:
    """Copies the checkpoint of an evaluation with the lowest validation loss so far to `best` in the run's folder."""

    def __init__(self, model_dir: str, checkpoints: Checkpoints, metrics: MetricsLog):
        self._directory, self._checkpoints, self._metrics = (
            os.path.join(model_dir, checkpoint.BEST),
            checkpoints,
            metrics,
        )

    def __call__(self, output: Output) -> None:
        """Keeps the checkpoint if it is the best."""
        before = min((line[BEST_METRIC] for line in self._metrics.evaluations), default=float("inf"))
        if distribution.is_chief() and output[BEST_METRIC] < before:
            checkpoint.copy(self._checkpoints.path(), self._directory)
            checkpoint.prune(self._directory, keep=1, keep_every_hours=0)


def validation_metrics(output: Mapping[str, object]) -> dict:
    """The validation metrics among other values."""
    return {name: value for name, value in output.items() if name.startswith("validation_")}
