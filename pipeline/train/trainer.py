"""The inner loops of training and evaluation, on Orbit."""

from collections.abc import Callable

import numpy as np
import orbit
import tensorflow as tf
import tf_keras

from pipeline import objective
from pipeline.data import input as inputs
from pipeline.data import reader
from pipeline.data.order import EpochBudget
from pipeline.train.experiment import Experiment
from pipeline.train.step import TrainingStep

# Nothing here is Python that depends on tensors; converting it all the same would take most of a run's start.
_plain = tf.autograph.experimental.do_not_convert


class DivergedError(RuntimeError):
    """The loss is not finite."""


class Trainer(orbit.StandardTrainer):
    """Runs training steps; the input starts at the step that the optimiser stands at.

    `train` returns the means over its steps: `loss`, `top1`, `learning_rate`, `epoch`.
    """

    def __init__(self, strategy, experiment: Experiment, records: reader.RecordSet, step: TrainingStep):
        super().__init__(train_dataset=None)
        self.strategy = strategy
        self.budget = experiment.budget(records.examples, records.manifest.digest)
        self._experiment = experiment
        self._records = records
        self._step = step
        with strategy.scope():
            self._metrics = {name: tf_keras.metrics.Mean(name=name) for name in ("loss", "top1")}
            self._diverged_at = tf.Variable(
                -1, trainable=False, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
            )

    def train_loop_begin(self):
        """Builds the input on first use, from the restored step."""
        for metric in self._metrics.values():
            metric.reset_state()
        if self.train_dataset is None:
            first = int(self._step.optimizer.iterations.numpy())
            data = self._experiment.data
            view = data.training_view(self._experiment.seed, self._experiment.objective)
            self.train_dataset = inputs.distributed(
                self.strategy, self._records, self.budget, view, data.batch, first_step=first
            )

    @_plain
    def train_step(self, iterator):
        """One step on all replicas."""
        self.strategy.run(self._replica_step, args=(next(iterator),))

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

    def train_loop_end(self):
        """Returns the loop's metrics; raises DivergedError, naming step and learning rate, where the loss is lost."""
        step = self._step.optimizer.iterations
        if (diverged := int(self._diverged_at.numpy())) >= 0:
            rate = float(self._step.optimizer.learning_rate_at(diverged))
            raise DivergedError(
                f"The loss is not finite at step {diverged}, where the learning rate is {rate:.4g}: lower the learning "
                "rate, lengthen the warm-up, or lower AGC's clipping. The last checkpoint is from before that step."
            )
        return {
            **{name: float(metric.result().numpy()) for name, metric in self._metrics.items()},
            "learning_rate": float(self._step.optimizer.learning_rate_at(step - 1)),
            "epoch": self.budget.epoch_of_step(int(step.numpy())),
        }


class Evaluator(orbit.StandardEvaluator):
    """Evaluates `model` over a whole split: `validation_loss`, `validation_top1`, `validation_top5`.

    Every example counts once, whatever the batch: the last batch is padded with examples of weight 0. The loss is
    plain cross-entropy, without label smoothing. `after_step` is called after each step.
    """

    def __init__(
        self,
        strategy,
        experiment: Experiment,
        records: reader.RecordSet,
        model: tf_keras.Model,
        batch: int,
        after_step: Callable[[], None] = lambda: None,
    ):
        self.strategy = strategy
        self._records = records
        self._after_step = after_step
        order = records.order(batch, seed=0, shuffle=False)
        self._budget = EpochBudget(order, batch, 1)
        self._objective = experiment.objective
        self._model = model
        view = experiment.data.evaluation_view(experiment.objective)
        dataset = inputs.distributed(strategy, records, self._budget, view, batch)
        super().__init__(eval_dataset=dataset)

    @property
    def steps(self) -> int:
        """Steps of a whole evaluation."""
        return self._budget.steps

    def eval_begin(self):
        """The sums so far: loss, top-1 hits, top-5 hits, examples."""
        return np.zeros(4, np.float64)

    @_plain
    def eval_step(self, iterator):
        """Sums over one global batch, float32 [4]."""
        sums = self.strategy.run(self._replica_step, args=(next(iterator),))
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)

    def _replica_step(self, batch):
        logits = tf.cast(self._model(batch["image"], training=False), tf.float32)
        metrics = objective.metrics(self._objective, batch["labels"], batch["label_weights"], logits)
        columns = tf.stack([*metrics.values(), tf.ones_like(metrics["loss"])])
        return tf.reduce_sum(columns * batch["weight"], 1)

    def eval_reduce(self, state, step_outputs):
        """Adds in float64."""
        self._after_step()
        return state + step_outputs.numpy()

    def eval_end(self, state):
        """Means over the split."""
        *sums, examples = state.tolist()
        missing = self._records.examples - round(examples)
        if missing and not self._records.masks_damage:
            raise RuntimeError(f"Evaluation saw {examples:.0f} examples of {self._records.examples}.")
        names = ("validation_loss", "validation_top1", "validation_top5")
        return dict(zip(names, (value / examples for value in sums), strict=True))
