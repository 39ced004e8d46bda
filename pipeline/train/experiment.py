"""One experiment: which model learns what, from which data, for how long."""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf
import tf_keras

from pipeline.data import augment, reader
from pipeline.data import order as orders
from pipeline.train.loss import LOSSES
from pipeline.train.sam import SAM

PRECISIONS = ("float32", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class Data:
    """What is read.

    Attributes:
      directory: a record set, made by `beam/build_tfrecords.py`.
      batch: global batch, in images: with `augmentation.repeats` views of each example, it holds fewer examples.
      train_size, eval_size: resolution in training and evaluation, in pixels.
      augmentation: how a training image is varied.
      train_split, validation_split: names of the splits.
      on_damage: 'stop' or 'mask', what to do with a record that cannot be read.
      block, window: sizes of the shuffle, in records (see `order.py`).
      max_labels: labels kept of a multi-label record, its first ones.
      images: about how many images the training split has, for estimates before the records exist.
    """

    directory: str
    batch: int
    train_size: int
    eval_size: int
    augmentation: augment.Augmentation = augment.Augmentation()  # noqa: RUF009 (frozen)
    train_split: str = "train"
    validation_split: str = "validation"
    on_damage: str = "stop"
    block: int = 8
    window: int = 16
    max_labels: int = 16
    images: int | None = None

    def training_records(self) -> reader.RecordSet:
        """The training split."""
        return reader.RecordSet(self.directory, self.train_split, self.on_damage)

    def validation_records(self) -> reader.RecordSet:
        """The held-out split."""
        return reader.RecordSet(self.directory, self.validation_split, self.on_damage)

    @property
    def examples_per_step(self) -> int:
        """Examples in a global batch: with repeated augmentation, a batch holds several views of each.

        Raises:
          ValueError: the batch does not hold whole examples.
        """
        self.augmentation.check_batch(self.batch)
        return self.batch // self.augmentation.repeats

    def check_replicas(self, replicas: int) -> None:
        """Raises ValueError where a replica's share of the batch would cut images that are varied together."""
        share = self.batch // replicas
        try:
            self.augmentation.check_batch(share)
        except ValueError as error:
            raise ValueError(
                f"Each of {replicas} replicas takes {share} images of the global batch of {self.batch}. {error}"
            ) from None

    def training_view(self, seed: int, loss: str = "softmax") -> Callable[[tf.data.Dataset], tf.data.Dataset]:
        """Maps records to varied training examples; the variation depends on (seed, epoch, record id) alone.

        For `loss` 'softmax' the label weights of each record sum to 1, so that an image's share of a mixed target is
        its share of the pixels; for 'sigmoid', where each weight is a target by itself, they stay as they are.
        """

        def prepare(example):
            example = self._example(example)
            if loss == "softmax":
                weights = example["label_weights"]
                example["label_weights"] = tf.math.divide_no_nan(weights, tf.reduce_sum(weights))
            key = tf.constant([seed, 1], tf.int64)
            for number in (tf.cast(example["epoch"], tf.int64), example["id"]):
                key = tf.random.experimental.stateless_fold_in(key, number)
            return {**example, "seed": tf.random.stateless_uniform([2], key, None, None, tf.int32)}

        def view(records):
            prepared = records.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            return self.augmentation.examples(prepared, self.train_size)

        return view

    def evaluation_view(self, records: tf.data.Dataset) -> tf.data.Dataset:
        """Maps records to the examples that evaluation sees."""

        def view(example):
            return {**self._example(example), "image": augment.evaluation_view(example["image"], self.eval_size)}

        return records.map(view, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _example(self, example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The fields that training needs, with `labels` int64 [k] and `label_weights` float32 [k]."""
        if "label" in example:
            labels, weights = example["label"][None], tf.ones([1])
        else:
            labels, weights = example["labels"][: self.max_labels], example["label_weights"][: self.max_labels]
            padding = [[0, self.max_labels - tf.size(labels)]]
            labels = tf.ensure_shape(tf.pad(labels, padding), [self.max_labels])
            weights = tf.ensure_shape(tf.pad(weights, padding), [self.max_labels])
        kept = {name: example[name] for name in ("image", "id", "epoch", "weight")}
        return {"labels": labels, "label_weights": weights, **kept}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained, and how.

    Attributes:
      model: called with `num_classes`, returns a `tf_keras.Model` from images to logits.
      data: what is read.
      optimizer: called with a learning rate schedule, returns the optimiser.
      schedule: called with (steps, steps an epoch), returns the learning rate schedule.
      epochs: the epoch budget; a fraction is allowed.
      max_steps: stop after this many steps, as if interrupted; for trying things out.
      num_classes: width of the last layer; the record set's number of classes where None.
      loss: 'softmax' or 'sigmoid'.
      label_smoothing: share of the target that is spread over all classes.
      ema_decay: decay of the averaged weights that evaluation and export use; None evaluates the raw weights.
      sam: sharpness-aware minimisation; None takes the gradient where the weights are.
      gradient_parts: in how many parts, one after the other, each replica takes its share of a batch.
      frozen: patterns of the variables that are not trained, `stem/*` for example.
      precision: 'float32' or 'mixed_bfloat16'.
      seed: of initialisation, order, augmentation and dropout.
      initial_checkpoint: start from the weights of this run, checkpoint or import; '' from random ones.
    """

    model: Callable[..., tf_keras.Model]
    data: Data
    optimizer: Callable[..., tf_keras.optimizers.Optimizer]
    schedule: Callable[..., tf_keras.optimizers.schedules.LearningRateSchedule]
    epochs: float
    max_steps: int | None = None
    num_classes: int | None = None
    loss: str = "softmax"
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    sam: SAM | None = None
    gradient_parts: int = 1
    frozen: Sequence[str] = ()
    precision: str = "float32"
    seed: int = 0
    initial_checkpoint: str = ""

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"Experiment.precision is {self.precision!r}; expected one of {PRECISIONS}.")
        if self.loss not in LOSSES:
            raise ValueError(f"Experiment.loss is {self.loss!r}; expected one of {LOSSES}.")
        if self.gradient_parts < 1:
            raise ValueError(f"Experiment.gradient_parts is {self.gradient_parts}; expected 1 or more.")

    def classes(self, records: reader.RecordSet) -> int:
        """Width of the last layer.

        Raises:
          ValueError: the record set has more classes than `num_classes`.
        """
        found = len(records.manifest.classes)
        if self.num_classes is not None and found > self.num_classes:
            raise ValueError(
                f"{self.data.directory} has {found} classes, but num_classes is {self.num_classes}: raise num_classes, "
                "or leave it out to take the record set's own."
            )
        return self.num_classes or found

    def budget(self, records: reader.RecordSet) -> orders.Budget:
        """Order and length of training over `records`."""
        examples = self.data.examples_per_step
        order = records.order(examples, self.seed, block=self.data.block, window=self.data.window)
        return orders.Budget(order, examples, self.epochs)
