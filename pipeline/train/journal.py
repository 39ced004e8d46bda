"""What happens between inner loops: metrics, the ledger's verdict, checkpoints, and the request to stop."""

import os
import signal
import threading
import time
from collections.abc import Mapping

from absl import logging

from pipeline import report
from pipeline.model import cost, graph_cost, speeds, variants
from pipeline.train import checkpoint, distribution
from pipeline.train import state as states
from pipeline.train.damaged_records import DamagedRecords
from pipeline.train.ledger import Entry, LedgerError
from pipeline.train.run_config import Loop, RunContext

BEST_METRIC = "validation_loss"


class Preempted(RuntimeError):
    """The process was told to stop; the message names the checkpoint of the last step done."""


class Journal:
    """Keeps a run's books; a context manager, in which SIGTERM asks for a checkpoint and an orderly stop.

    Args:
      context, experiment, loop: the run's settings.
      parts: the run's `Parts`.
      resumed: the checkpoint that the run goes on from, None at its start.
    """

    def __init__(self, context: RunContext, experiment, loop: Loop, parts, resumed: checkpoint.Saved | None):
        self._context, self._experiment, self._loop, self._parts = context, experiment, loop, parts
        self._state = parts.state
        self._chief = distribution.is_chief()
        self._writer = checkpoint.Writer(context.checkpoints, self._state.groups, loop.background_checkpoints)
        self._saved_step = resumed.step if resumed else -1
        self._metrics = report.Metrics(context.model_dir, self._state.step, write=self._chief)
        self._settled = self._whole_epochs()  # epochs whose verdict was given before the interruption
        self._seconds = resumed.facts["seconds"] if resumed else 0.0
        self._looked_at = time.monotonic()
        self._damaged = DamagedRecords(context.model_dir, (parts.records, parts.validation))
        self._evaluation_steps = 0
        self._stop_requested = False

    def __enter__(self):
        images = min(self._parts.budget.examples, self._parts.last_step * self._parts.budget.batch)
        self._progress = report.Progress("training", images, self._images(), show=self._chief)
        self._handler = None
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._request_stop)
        return self

    def __exit__(self, *_):
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
        self._progress.close()

    def _request_stop(self, *_):
        self._stop_requested = True

    def steps_to_next_look(self, step: int) -> int:
        """Steps of the next inner loop: to the next multiple of `steps_per_loop` or `checkpoint_every`."""
        return min(n - step % n for n in (self._loop.steps_per_loop, self._loop.checkpoint_every))

    def after_loop(self, output: dict[str, float]) -> None:
        """Books an inner loop: metrics, ledger, checkpoint; raises Preempted where a stop was requested."""
        now = time.monotonic()
        self._seconds += now - self._looked_at
        self._looked_at = now
        step = self._state.step
        self._metrics.add(step, output)
        self._progress.update(self._images(), output)
        self._damaged.write()
        stop = self._stop_requested_anywhere()  # every process gets here, so each sees what all have written
        self._settle_epochs()
        output["epochs_exactly_once"] = sum(entry.exactly_once for entry in self.ledger())  # for TensorBoard
        if step % self._loop.checkpoint_every == 0:
            self.save()
        if stop:
            self._stop()
        self._looked_at = time.monotonic()

    def after_evaluation_step(self) -> None:
        """Looks whether to stop, as often as in training; raises Preempted."""
        self._evaluation_steps += 1
        if self._evaluation_steps % self._loop.steps_per_loop == 0 and self._stop_requested_anywhere():
            self._stop()

    def _stop_requested_anywhere(self) -> bool:
        """Whether any process was told to stop: all stop after the same step, or the others would wait for ever."""
        return 1 in distribution.of_all_processes(self._parts.strategy, int(self._stop_requested))

    def _stop(self) -> None:
        self.save()
        self._writer.wait()
        raise Preempted(
            f"stopped at step {self._state.step} of {self._parts.last_step}; the checkpoint in "
            f"{self._context.checkpoints} is whole, and the same command goes on from it."
        )

    def after_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Books an evaluation; keeps the checkpoint apart where it is the best so far."""
        step = self._state.step
        metrics = {name: value for name, value in metrics.items() if name.startswith("validation_")}
        earlier = [line[BEST_METRIC] for line in self._metrics.lines if BEST_METRIC in line]
        if (
            self._chief
            and self._loop.evaluate_every_epochs
            and metrics[BEST_METRIC] < min(earlier, default=float("inf"))
        ):
            self._writer.wait()
            best = os.path.join(self._context.model_dir, "best")
            checkpoint.copy(checkpoint.folder(self._context.checkpoints, step), best)
            checkpoint.prune(best, keep=1, keep_every_hours=0)
        # Booked last: an interruption before this line repeats the evaluation, and with it the copy.
        self._metrics.add(step, metrics)
        self._progress.say(f"step {step}: {report.describe(metrics)}")
        self._looked_at = time.monotonic()

    def has_evaluation(self, step: int) -> bool:
        """Whether the evaluation after `step` is booked already."""
        return any(line["step"] == step and BEST_METRIC in line for line in self._metrics.lines)

    def save(self) -> None:
        """Saves a checkpoint, unless this step has one."""
        step = self._state.step
        if self._chief and step != self._saved_step:
            self._prune()  # what is about to be written does not count before it is whole
            self._writer.save(step, self._facts())
        self._saved_step = step

    def _prune(self) -> None:
        self._writer.wait()
        checkpoint.prune(self._context.checkpoints, self._loop.keep, self._loop.keep_every_hours)

    def ledger(self) -> list[Entry]:
        """What each epoch has consumed so far."""
        split, budget = self._parts.records.split, self._parts.budget
        return self._state.ledger.entries(budget.expected, split.written, split.id_checksum)

    def finish(self) -> dict:
        """Writes and returns the run's summary."""
        self._damaged.write()
        distribution.of_all_processes(self._parts.strategy, 0)  # waits until all have written
        self._settle_epochs()
        self.save()
        if self._chief:
            self._prune()
        summary = self._summary()
        if self._chief:
            report.write_summary(self._context.model_dir, summary)
        return summary

    def _summary(self) -> dict:
        evaluation = next((line for line in reversed(self._metrics.lines) if BEST_METRIC in line), {})
        images = sum(entry.examples for entry in self.ledger())
        return {
            "variant": self._state.variant,
            "parameters": sum(v.shape.num_elements() for v in self._state.model.trainable_variables),
            "flops_per_image": self._flops_per_image(),
            "step": self._state.step,
            "epochs": self._experiment.epochs,
            "images_seen": images,
            "tpu_v4_core_hours": self._core_hours(images),
            "seconds": self._seconds,
            "images_per_second": images / self._seconds if self._seconds else None,
            **{name: value for name, value in evaluation.items() if name != "step"},
            "bindings": self._context.bindings,
            "config_digest": self._context.config_digest,
            "data_digest": self._parts.records.manifest.digest,
            "weights_digest": states.weights_digest(self._state.model),
            "damaged_records": self._damaged.names(),
            "ledger": [entry.as_dict() for entry in self.ledger()],
        }

    def _flops_per_image(self) -> int:
        """Of a forward pass at the training resolution, two a multiply-add; a training step takes three times that."""
        size = self._experiment.data.train_size
        if self._state.variant not in variants.VARIANTS:
            return 2 * graph_cost.multiply_adds(self._state.model, size)
        num_classes = self._experiment.classes(len(self._parts.records.manifest.classes))
        return 2 * cost.multiply_adds(self._state.variant, size, num_classes)

    def _core_hours(self, images: int) -> float | None:
        """What the run would take on TPU v4 by the cost model; None for networks that it does not cover."""
        if self._state.variant not in variants.VARIANTS:
            return None
        try:
            return speeds.core_hours(self._state.variant, images, 3 * self._flops_per_image())
        except speeds.UnknownSpeedError:
            return None

    def _facts(self) -> dict:
        return {
            "bindings": self._context.bindings,
            "data_digest": self._parts.records.manifest.digest,
            "classes": self._parts.records.manifest.classes_digest,
            "variant": self._state.variant,
            "seconds": self._seconds,
        }

    def _images(self) -> int:
        return int(self._state.ledger.examples.numpy().sum())

    def _whole_epochs(self) -> int:
        budget = self._parts.budget
        return min(self._state.step * budget.rows_per_step // budget.order.rows, budget.whole_epochs)

    def _settle_epochs(self) -> None:
        """Gives the verdict on every epoch that ended since the last look."""
        ended = self._whole_epochs()
        if self._state.step >= self._parts.budget.steps:
            ended = len(self._parts.budget.expected)
        entries = self.ledger()
        for entry in entries[self._settled : ended]:
            self._progress.say(str(entry))
            if not entry.exactly_once:
                damaged = self._damaged.names()
                message = f"{entry}. Damaged records left out: {', '.join(damaged) or 'none'}."
                if self._loop.on_ledger_mismatch == "stop" and not damaged:
                    raise LedgerError(message)
                logging.warning("%s", message)
        self._settled = ended
