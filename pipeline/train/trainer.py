"""The inner loop of training, on Orbit."""

import math
import time
from collections.abc import Callable, Iterator

import orbit
import tensorflow as tf
import tf_keras

from pipeline.data.input import distributed_batches
from pipeline.train import distribution, memory
from pipeline.train.components import RunComponents
from pipeline.train.experiment import Experiment
from pipeline.train.step import Batch, TrainingStep

# Nothing here is Python that depends on tensors; converting it all the same would take most of a run's start.
_plain = tf.autograph.experimental.do_not_convert


class DivergedError(RuntimeError):
    """The loss is not finite."""


class Trainer(orbit.StandardTrainer):
    """Runs training steps; the input starts at the step that the optimiser stands at.

    `train` returns the means over its steps: `loss`, `top1`, `learning_rate`, `epoch`; `epochs_exactly_once`; and
    `seconds`, spent in training steps since step 0.

    Args:
      experiment: what is learned.
      run: what the run works with.
      step: of one replica.
      seconds: spent in training steps before an interruption.

    Attributes:
      seconds: spent in training steps.
      step_seconds: of a step of the last loop, on average; infinite before the first.
    """

    def __init__(self, experiment: Experiment, run: RunComponents, step: TrainingStep, seconds: float = 0.0):
        super().__init__(train_dataset=None)
        self.train_dataset: tf.distribute.DistributedDataset | None = None
        self.seconds, self.step_seconds = seconds, math.inf
        self._experiment, self._run, self._step = experiment, run, step
        with run.strategy.scope():
            self._metrics = {name: tf_keras.metrics.Mean(name=name) for name in ("loss", "top1")}
            self._diverged_at = tf.Variable(
                -1, trainable=False, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
            )

    def train_loop_begin(self) -> None:
        """Builds the input on first use, from the restored step."""
        self._started, self._first_step = time.monotonic(), self._run.state.step
        for metric in self._metrics.values():
            metric.reset_state()
        if self.train_dataset is None:
            run, data = self._run, self._experiment.data
            view = data.training_view(self._experiment.seed, self._experiment.objective)
            self.train_dataset = distributed_batches(
                run.strategy, run.records, run.budget, view, data.batch, first_step=run.state.step
            )

    def create_train_loop_fn(self) -> Callable[[Iterator[Batch], tf.Tensor], None]:
        """Orbit's loop; before its first step it is traced, and refused where it cannot fit into memory."""
        loop = super().create_train_loop_fn()

        def checked_loop(iterator, num_steps):
            if not self._step.kept_bytes:
                loop.get_concrete_function(iterator, num_steps)  # what the call below would do
                self._check_memory()
            loop(iterator, num_steps)

        return checked_loop

    def _check_memory(self) -> None:
        strategy, experiment = self._run.strategy, self._experiment
        if distribution.device(strategy) != "cpu":
            return  # there XLA decides what is kept and what is computed again
        variables = [variable for group in self._run.state.groups.values() for variable in group.values()]
        memory.check(
            images=experiment.data.batch // strategy.num_replicas_in_sync,
            parts=experiment.accumulation_steps,
            kept=max(self._step.kept_bytes),
            state=memory.state_bytes(variables),
            machine=memory.Machine.now(),
        )

    @_plain
    def train_step(self, iterator: Iterator[Batch]) -> None:
        """One step on all replicas."""
        self._run.strategy.run(self._replica_step, args=(next(iterator),))

    def _replica_step(self, batch):
        step = tf.identity(self._step.optimizer.iterations)
        output = self._step(batch)
        weight = tf.maximum(output.examples, 1.0)
        self._metrics["loss"].update_state(output.loss / weight, output.examples)
        self._metrics["top1"].update_state(output.top1 / weight, output.examples)
        context = tf.distribute.get_replica_context()
        finite = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(tf.math.is_finite(output.loss), tf.int32))
        first_time = (finite < context.num_replicas_in_sync) & (self._diverged_at < 0)
        self._diverged_at.assign(tf.where(first_time, step, self._diverged_at))

    def train_loop_end(self) -> dict[str, float]:
        """Returns the loop's metrics; raises DivergedError, naming step and learning rate, where the loss is lost."""
        step, optimizer = self._run.state.step, self._step.optimizer
        if (diverged := int(self._diverged_at.numpy())) >= 0:
            rate = float(optimizer.learning_rate_at(diverged))
            raise DivergedError(
                f"The loss is not finite at step {diverged}, where the learning rate is {rate:.4g}: lower the learning "
                "rate, lengthen the warm-up, or lower AGC's clipping. The last checkpoint is from before that step."
            )
        seconds = time.monotonic() - self._started
        self.seconds += seconds
        self.step_seconds = seconds / (step - self._first_step)
        return {
            **{name: float(metric.result().numpy()) for name, metric in self._metrics.items()},
            "learning_rate": float(optimizer.learning_rate_at(step - 1)),
            "epoch": self._run.budget.epoch_of_step(step),
            "seconds": round(self.seconds, 3),
            "epochs_exactly_once": sum(entry.exactly_once for entry in self._run.ledger_entries()),
        }
