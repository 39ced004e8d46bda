"""Record set on disk -> batches of examples, in exactly the order of `order.py`.

Reading is arithmetic: a step's records are found through the offset index, so starting at any step costs the same
and nothing that came before is read again. All of it is a graph of TensorFlow's operations, which runs in the
TensorFlow server of a host that has no Python of ours.
"""

import math
import os
import re
from collections.abc import Callable, Sequence

import tensorflow as tf

from pipeline import files
from pipeline.data import manifest as manifests
from pipeline.data import order as orders
from pipeline.data import shard
from pipeline.data.batch_shape import BatchShape
from pipeline.data.lookup import IS_DAMAGED, Lookup

ON_DAMAGE = ("stop", "mask")
_LANES_TOGETHER = 16  # lanes whose windows are read together: what each read costs beside its bytes is shared
_LOCAL_READS, _REMOTE_READS = 1, 32
_BATCHES_AHEAD = 2

# Nothing here is Python that depends on tensors; converting it all the same would take seconds.
_plain = tf.autograph.experimental.do_not_convert


class RecordSet:
    """One split of a record set, readable at any position.

    Args:
      directory: of `manifest.json`.
      split: name of the split.
      on_damage: 'stop' raises at a record that cannot be read; 'mask' leaves its slot empty.
      manifest: the set's manifest, read from the directory where None.
      damaged_folder: where 'mask' writes the names of what it left out (see `damaged_records`); it prints them anyway.
      examples: how many of the split's examples to read, the first ones; all where None.

    Raises:
      ManifestError: the record set is missing, or has no such split, or the split holds no examples or too few.
    """

    def __init__(
        self,
        directory: str,
        split: str,
        on_damage: str = "stop",
        manifest: manifests.Manifest | None = None,
        damaged_folder: str = "",
        examples: int | None = None,
    ):
        if on_damage not in ON_DAMAGE:
            raise ValueError(f"on_damage is {on_damage!r}; expected one of {ON_DAMAGE}.")
        self.directory = directory
        self.manifest = manifest or manifests.read(directory)
        self.split = self.manifest.split(split)
        self.examples = self.split.written if examples is None else examples
        self.id_checksum = self.split.id_checksum if self.examples == self.split.written else None
        self.masks_damage = on_damage == "mask"
        self.damaged_folder = damaged_folder
        if not self.split.written:
            raise manifests.ManifestError(f"Split {split!r} of {directory!r} holds no examples.")
        if self.examples > self.split.written:
            raise manifests.ManifestError(
                f"Split {split!r} of {directory!r} holds {self.split.written:,} examples, fewer than the "
                f"{self.examples:,} asked for: set Data.train_examples to at most that, or to None for all."
            )

    def order(self, batch: int, seed: int, shuffle: bool = True, **sizes: int) -> orders.Order:
        """The order of this split for global batches of `batch` slots; `sizes` are `block` and `window`."""
        return orders.Order(
            self.examples, BatchShape(batch).lanes, seed, self.manifest.digest, shuffle=shuffle, **sizes
        )

    @property
    def is_remote(self) -> bool:
        """Whether the records are in an object store, where each read takes long and many run at a time."""
        return files.is_remote(self.directory)

    def lookup(self) -> Lookup:
        """What reads the split's records by position."""
        return Lookup(
            [os.path.join(files.absolute(self.directory), each.file) for each in self.split.shards],
            [each.examples for each in self.split.shards],
            self.manifest.label_kind,
            self.masks_damage,
            files.absolute(self.damaged_folder) if self.damaged_folder else "",
            whole_runs=self.is_remote,
            opens_lazily=self.directory.startswith("gs://"),
        )


def damaged_records(folder: str) -> list[str]:
    """Shard, record and offset of every damaged record that was named in `folder`, sorted."""
    if not tf.io.gfile.exists(folder):
        return []
    names = set()
    for file_name in tf.io.gfile.listdir(folder):
        with files.opened(os.path.join(folder, file_name), "r") as file:
            names.update(file.read().splitlines())
    return sorted(names)


def damage(error: tf.errors.OpError) -> shard.DamagedRecordError | None:
    """What `error`, which a `dataset` raised, says about damaged records; None where it is about something else."""
    found = re.search(rf"\[([^\[]+{re.escape(IS_DAMAGED)})", error.message)
    return shard.DamagedRecordError(found[1]) if found else None


def unreadable(error: tf.errors.OpError) -> manifests.ManifestError | None:
    """What `error`, which a `dataset` raised, says about a file of records that a host cannot open; None otherwise."""
    found = re.search(r"[^\s\"']*\.tfrecord-\d+-of-\d+(\.index)?", error.message)
    if found is None or not isinstance(error, tf.errors.NotFoundError | tf.errors.PermissionDeniedError):
        return None
    return manifests.ManifestError(
        f"{found[0]} cannot be opened by the host that reads it ({type(error).__name__}): every host needs all shards "
        "and their indexes at the same path. Restore it there, and start the same command again; the run continues "
        "from its last checkpoint."
    )


def slot_fields(
    positions: tf.Tensor | Sequence[int], epochs: tf.Tensor | Sequence[int], weights: tf.Tensor | Sequence[float]
) -> dict[str, tf.Tensor]:
    """What the slots of a batch add to the fields of their records.

    `position` int64 [n], where the record is stored in its split, `epoch` int32 [n] and `weight` float32 [n].
    """
    return {
        "position": tf.cast(positions, tf.int64),
        "epoch": tf.cast(epochs, tf.int32),
        "weight": tf.cast(weights, tf.float32),
    }


def dataset(
    records: RecordSet,
    budget: orders.EpochBudget,
    view: Callable[[tf.data.Dataset], tf.data.Dataset],
    *,
    first_step: int = 0,
    last_step: int | None = None,
    host: int = 0,
    hosts: int = 1,
    replica_batch: int | None = None,
    reads: int | None = None,
) -> tf.data.Dataset:
    """Batches of this host for the steps [first_step, last_step).

    Args:
      records: where to read.
      budget: order, global batch and length.
      view: maps the examples, in order (the fields of `record.py` and of `slot_fields`), to
        the elements that are batched, `replica_batch` of them for every replica and step.
      first_step: the first step to produce; what lies before it is not touched.
      last_step: the end, the budget's last step where None.
      host: which of `hosts` this input pipeline is for; each reads its own lanes.
      hosts: number of input pipelines.
      replica_batch: elements of `view` in a batch; the host's slots of the global batch where None.
      reads: reads that run at a time, each of the same window of a few lanes; twice as many are ahead of them. Where
        None 1, and 32 from an object store.

    Returns:
      A dataset of batches, in order; `weight` is 0 in empty slots.
    """
    lanes = BatchShape(budget.batch, hosts=hosts).host_lanes(host)
    replica_batch = replica_batch or budget.batch // hosts
    last_step = budget.steps if last_step is None else last_step
    first_row, end_row = first_step * budget.rows_per_step, last_step * budget.rows_per_step
    together = math.gcd(len(lanes), 1 if records.is_remote else _LANES_TOGETHER)
    groups = len(lanes) // together
    reads = reads or (_REMOTE_READS if records.is_remote else _LOCAL_READS)
    lookup = records.lookup()

    @_plain
    def plan(window):
        """The positions of each group of lanes, row by row, int64 [groups, slots], and their epoch, int64 [groups]."""
        epoch, row, positions = budget.positions(window, lanes)
        positions = positions[tf.maximum(first_row - row, 0) : tf.maximum(end_row - row, 0)]
        positions = tf.transpose(tf.reshape(positions, [-1, groups, together]), [1, 0, 2])
        return tf.reshape(positions, [groups, -1]), tf.fill([groups], epoch)

    @_plain
    def read(positions, epoch):
        def add_epoch(examples):
            epochs = tf.fill(tf.shape(positions), epoch)
            return {**examples, **slot_fields(positions, epochs, examples["weight"])}

        return lookup.read(positions).map(add_epoch)

    windows = range(budget.window_of_row(first_row), budget.window_of_row(end_row - 1) + 1)
    plans = tf.data.Dataset.range(windows.start, windows.stop if first_row < end_row else windows.start).map(plan)
    plans = plans.filter(lambda positions, _: tf.size(positions) > 0).unbatch()
    # A read yields one element, so that reads come in the order of their plans. All groups of a window have as many
    # rows: taking one row of each in turn, they end together.
    examples = plans.interleave(read, reads, num_parallel_calls=reads, deterministic=True)
    examples = examples.interleave(tf.data.Dataset.from_tensor_slices, groups, together)
    batches = view(examples).batch(replica_batch, drop_remainder=True).prefetch(_BATCHES_AHEAD)
    # Every number of parallel calls is given, so there is nothing to tune; and an iterator that is closed can miss the
    # end of its tuner's sleep and wait for it, up to a minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)
