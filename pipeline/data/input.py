"""The input pipeline: what is read, how it is varied, and the batches that every replica gets."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from pipeline.data import augment, manifest, reader, record, statistics
from pipeline.data.batch_shape import BatchShape
from pipeline.data.order import EpochBudget, Order
from pipeline.objective import Objective

_REMOTE_SIZES = (32, 64)  # block and window, in records
View = Callable[[tf.data.Dataset], tf.data.Dataset]


@dataclasses.dataclass(frozen=True)
class Data:
    """What is read.

    Attributes:
      directory: a record set, made by `beam/build_tfrecords.py`.
      batch: global batch, in images: with `augmentation.repeats` views of each example, it holds fewer examples.
      train_size, eval_size: resolution in training and evaluation, in pixels.
      eval_view: geometry of the evaluation view, one of `augment.EVAL_VIEWS`.
      augmentation: how a training image is varied.
      train_split, validation_split: names of the splits.
      train_examples: how many examples of the training split to train on, the first ones; all where None. Few-shot
        evaluation draws from them too; `balance_classes` counts the classes of the whole split.
      on_damage: 'stop' or 'mask', what to do with a record that cannot be read.
      check_shards: check at the start that every shard exists with the size that the manifest says: one request a
        shard where the records are remote. None checks only records on this machine's disk.
      block, window: sizes of the shuffle, in records (see `order.py`). None takes those of `Order`, and longer ones for
        records in an object store, where each read takes long.
      balance_classes: in training, weigh an example by how rare its class is, so that all classes count the same.
      max_labels: labels kept of a multi-label record, its first ones.
      images: about how many images the training split has, for estimates before the records exist.
    """

    directory: str
    batch: int
    train_size: int
    eval_size: int
    augmentation: augment.Augmentation = augment.Augmentation()  # noqa: RUF009 (frozen)
    eval_view: str = augment.CROP_RESIZE
    train_split: str = "train"
    validation_split: str = "validation"
    train_examples: int | None = None
    on_damage: str = "stop"
    check_shards: bool | None = None
    block: int | None = None
    window: int | None = None
    balance_classes: bool = False
    max_labels: int = 16
    images: int | None = None

    def __post_init__(self):
        if self.eval_view not in augment.EVAL_VIEWS:
            raise ValueError(f"Data.eval_view is {self.eval_view!r}; expected one of {', '.join(augment.EVAL_VIEWS)}.")
        if self.train_examples is not None and self.train_examples < 1:
            raise ValueError(f"Data.train_examples is {self.train_examples}; expected 1 or more, or None for all.")

    def batch_shape(self, images: int | None = None, **divisors: int) -> BatchShape:
        """How a training batch divides; raises ValueError where it does not.

        Args:
          images: of the batch, the global one where None.
          **divisors: `hosts`, `replicas` and `accumulation_steps`, 1 each where not given.
        """
        images = self.batch if images is None else images
        return BatchShape(images, self.augmentation.repeats, self.augmentation.group, **divisors)

    def evaluation_batch_shape(self, images: int | None = None, **divisors: int) -> BatchShape:
        """How an evaluation batch divides; arguments as in `batch_shape`."""
        return BatchShape(self.batch if images is None else images, **divisors)

    @property
    def shuffle_sizes(self) -> tuple[int, int]:
        """`block` and `window` of the training order, in records."""
        block, window = (Order.block, Order.window) if manifest.is_local(self.directory) else _REMOTE_SIZES
        return self.block or block, self.window or window

    def read_manifest(self) -> manifest.Manifest:
        """The record set's manifest; raises ManifestError where there is none, or it is damaged."""
        return manifest.read(self.directory)

    def training_records(self, made: manifest.Manifest | None = None, damaged_folder: str = "") -> reader.RecordSet:
        """The training split; `made` is the manifest if it has been read, `damaged_folder` as in `RecordSet`."""
        return self._records(self.train_split, made, damaged_folder, self.train_examples)

    def validation_records(self, made: manifest.Manifest | None = None, damaged_folder: str = "") -> reader.RecordSet:
        """The held-out split; arguments as in `training_records`."""
        return self._records(self.validation_split, made, damaged_folder, None)

    def split_records(self, split: str, made: manifest.Manifest | None = None) -> reader.RecordSet:
        """The split `split`, to be evaluated; raises ManifestError naming the splits there are."""
        made = made or self.read_manifest()
        if split not in (*made.splits, self.validation_split):
            raise manifest.ManifestError(
                f"No split {split!r} in {self.directory}: it has {', '.join(sorted(made.splits))}. To evaluate on "
                f"other images, build them with --test_input=IMAGES --classes_of={self.directory} "
                "--output_dir=OTHER_SET, and set DATA_DIR to that."
            )
        return self._records(split, made, "", None)

    def _records(
        self, split: str, made: manifest.Manifest | None, damaged_folder: str, examples: int | None
    ) -> reader.RecordSet:
        made = made or self.read_manifest()
        self._check_split(split, made)
        if self.check_shards or (self.check_shards is None and manifest.is_local(self.directory)):
            manifest.check_shards(made, self.directory, split)
        return reader.RecordSet(self.directory, split, self.on_damage, made, damaged_folder, examples)

    def _check_split(self, split: str, made: manifest.Manifest) -> None:
        if split in made.splits:
            return
        others = sorted(made.splits.keys() - {self.train_split, self.validation_split})
        if split == self.train_split:
            advice = "to train, build it with training images"
        else:
            advice = "build it again with --validation_fraction=0.1 to hold a tenth out"
        if others:
            setting = "train_split" if split == self.train_split else "validation_split"
            advice += f", or name a split that it has: --gin_param='Data.{setting}=\"{others[0]}\"'"
        raise manifest.ManifestError(
            f"No split {split!r} in {self.directory}, which has {', '.join(sorted(made.splits))}: {advice}."
        )

    def training_view(self, seed: int, objective: Objective) -> View:
        """Maps records to varied training examples; the variation depends on (seed, epoch, record id) alone."""
        class_weights = self._class_weights() if self.balance_classes else None

        def prepare(example):
            key = tf.constant([seed, 1], tf.int64)
            for number in (tf.cast(example["epoch"], tf.int64), example["id"]):
                key = tf.random.experimental.stateless_fold_in(key, number)
            seeds = tf.random.stateless_uniform([2], key, None, None, tf.int32)
            prepared = {**self._example(example, objective), "seed": seeds}
            if class_weights is not None:
                prepared["label_weights"] *= tf.gather(class_weights, prepared["labels"])
            return prepared

        return lambda records: self.augmentation.examples(records, self.train_size, prepare)

    def evaluation_view(self, objective: Objective) -> View:
        """Maps records to the examples that evaluation sees, with the `position` of each record in its split."""

        def prepare(example):
            image = augment.evaluation_view(example["image"], self.eval_size, self.eval_view)
            return {**self._example(example, objective), "image": image, "position": example["position"]}

        return lambda records: records.map(prepare, num_parallel_calls=augment.PARALLEL_CALLS, deterministic=True)

    def training_batch(self, label_kind: str, images: int, objective: Objective) -> dict[str, tf.TensorSpec]:
        """Shapes and dtypes of a batch of `images` training images, of records of `label_kind`.

        `image` uint8 [b, h, w, 3], `labels` int64 and `label_weights` float32 [b, k], `weight` float32 [b], `id` int64
        [b], `epoch` int32 [b].
        """
        placeholder = tf.constant([record.placeholder(label_kind)])
        example = {**record.parse(placeholder, tf.constant([""]), label_kind), **reader.slot_fields([0], [0], [0.0])}
        unweighted = dataclasses.replace(self, balance_classes=False)  # the same shapes, without the records
        view = unweighted.training_view(0, objective)(tf.data.Dataset.from_tensor_slices(example))
        return view.batch(images, drop_remainder=True).element_spec

    def _class_weights(self) -> np.ndarray:
        return statistics.read(self.directory).class_weights(self.train_split)

    def _example(self, example: dict[str, tf.Tensor], objective: Objective) -> dict[str, tf.Tensor]:
        """The fields that training needs, with `labels` int64 [k] and `label_weights` float32 [k]."""
        if "label" in example:
            labels, weights = example["label"][None], tf.ones([1])
        else:
            labels, weights = example["labels"][: self.max_labels], example["label_weights"][: self.max_labels]
            padding = [[0, self.max_labels - tf.size(labels)]]
            labels = tf.ensure_shape(tf.pad(labels, padding), [self.max_labels])
            weights = tf.ensure_shape(tf.pad(weights, padding), [self.max_labels])
        kept = {name: example[name] for name in ("image", "id", "epoch", "weight")}
        return {"labels": labels, "label_weights": objective.normalize_weights(weights), **kept}


def distributed_batches(
    strategy: tf.distribute.Strategy,
    records: reader.RecordSet,
    budget: EpochBudget,
    view: View,
    images: int,
    first_step: int = 0,
) -> tf.distribute.DistributedDataset | tf.data.Dataset:
    """The batches of `reader.dataset` for every replica of `strategy`; `images` make a global batch."""

    @tf.autograph.experimental.do_not_convert
    def host_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return reader.dataset(
            records,
            budget,
            view,
            first_step=first_step,
            host=context.input_pipeline_id,
            hosts=context.num_input_pipelines,
            replica_batch=context.get_per_replica_batch_size(images),
        )

    if isinstance(strategy, tf.distribute.OneDeviceStrategy) and "CPU" in strategy.extended.worker_devices[0]:
        # TensorFlow would copy each batch to the device that it is on, with an iterator whose tuner cannot be switched
        # off: see the end of `reader.dataset`.
        return host_dataset(tf.distribute.InputContext())
    return strategy.distribute_datasets_from_function(host_dataset)
