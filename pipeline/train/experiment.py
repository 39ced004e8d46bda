"""One experiment: which model learns what, from which data, for how long."""

import dataclasses
from collections.abc import Callable, Sequence

import tf_keras

from pipeline import objective
from pipeline.data.input import Data
from pipeline.data.order import EpochBudget, Order
from pipeline.model import classifier
from pipeline.train.sam import SAM

PRECISIONS = ("float32", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained, and how.

    Attributes:
      model: called with `num_classes` and `target_device` (see `pipeline/model/classifier.py`), creates the model.
      data: what is read.
      optimizer: called with a learning rate schedule, returns the optimiser.
      schedule: called with (steps, steps an epoch), returns the learning rate schedule.
      epochs: the epoch budget; a fraction is allowed.
      max_steps: stop after this many steps, as if interrupted; for trying things out.
      patience: stop early, after this many epochs without a better validation loss; see `Loop.evaluate_every_epochs`.
      num_classes: width of the last layer; the record set's number of classes where None.
      loss: 'softmax' or 'sigmoid'.
      label_smoothing: share of the target that is spread over all classes.
      ema_decay: decay of the averaged weights that evaluation and export use; None evaluates the raw weights.
      sam: sharpness-aware minimisation; None takes the gradient where the weights are.
      accumulation_steps: in how many parts, one after the other, each replica takes its share of a batch.
      shard_optimizer: share kernels, momenta and averages out over replicas, each of which updates its part; None does
        so where there are several replicas and the strategy can. Differs from False by rounding alone.
      frozen: patterns of the variables that are not trained, `stem/*` for example.
      precision: of training, 'float32' or 'mixed_bfloat16'.
      eval_precision: of evaluation and export; as `precision` where None.
      seed: of initialisation, order, augmentation and dropout.
      initial_checkpoint: start from the weights of this run, checkpoint or import; '' from random ones.
    """

    model: Callable[..., classifier.Classifier]
    data: Data
    optimizer: Callable[..., tf_keras.optimizers.Optimizer]
    schedule: Callable[..., tf_keras.optimizers.schedules.LearningRateSchedule]
    epochs: float
    max_steps: int | None = None
    patience: float | None = None
    num_classes: int | None = None
    loss: str = "softmax"
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    sam: SAM | None = None
    accumulation_steps: int = 1
    shard_optimizer: bool | None = None
    frozen: Sequence[str] = ()
    precision: str = "float32"
    eval_precision: str | None = None
    seed: int = 0
    initial_checkpoint: str = ""

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"Experiment.precision is {self.precision!r}; expected one of {PRECISIONS}.")
        if self.eval_precision not in (None, *PRECISIONS):
            raise ValueError(f"Experiment.eval_precision is {self.eval_precision!r}; expected None or of {PRECISIONS}.")
        objective.get(self.loss)
        if self.accumulation_steps < 1:
            raise ValueError(f"Experiment.accumulation_steps is {self.accumulation_steps}; expected 1 or more.")

    @property
    def objective(self) -> objective.Objective:
        """What the network learns."""
        return objective.get(self.loss)

    @property
    def gradient_passes(self) -> int:
        """Forward and backward passes of a step, one after the other: two with SAM."""
        return 2 if self.sam else 1

    def create_model(
        self, num_classes: int, target_device: str | None = classifier.ANY_DEVICE
    ) -> classifier.Classifier:
        """A model with random weights, which computes in `precision`; in the strategy's scope.

        `target_device` is the kind of device that the model is for (see `pipeline/model/classifier.py`).
        """
        return self._create(self.precision, num_classes, target_device)

    def create_evaluation_model(
        self, num_classes: int, target_device: str | None = classifier.ANY_DEVICE
    ) -> classifier.Classifier:
        """As `create_model`, but computes in `eval_precision`; by default any machine can evaluate and export it."""
        return self._create(self.eval_precision or self.precision, num_classes, target_device)

    def _create(self, precision: str, num_classes: int, target_device: str | None) -> classifier.Classifier:
        before = tf_keras.mixed_precision.global_policy()
        tf_keras.mixed_precision.set_global_policy(precision)
        try:
            return self.model(num_classes=num_classes, target_device=target_device)
        finally:
            tf_keras.mixed_precision.set_global_policy(before)

    def classes(self, found: int) -> int:
        """Width of the last layer for a record set of `found` classes.

        Raises:
          ValueError: the record set has more classes than `num_classes`.
        """
        if self.num_classes is not None and found > self.num_classes:
            raise ValueError(
                f"{self.data.directory} has {found} classes, but num_classes is {self.num_classes}: raise num_classes, "
                "or leave it out to take the record set's own."
            )
        return self.num_classes or found

    def budget(self, examples: int, fingerprint: str = "") -> EpochBudget:
        """Order and length of training over `examples` records, whose manifest has the digest `fingerprint`."""
        shape = self.data.batch_shape()
        order = Order(examples, shape.lanes, self.seed, fingerprint, *self.data.shuffle_sizes)
        return EpochBudget(order, shape.examples, self.epochs)
