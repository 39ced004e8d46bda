"""Record set on disk -> batches of examples, in exactly the order of `order.py`.

Reading is arithmetic: a step's records are found through the offset index, so starting at any step costs the same
and nothing that came before is read again.
"""

import bisect
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from pipeline.data import manifest as manifests
from pipeline.data import order as orders
from pipeline.data import record, shard
from pipeline.data.batch_shape import BatchShape

ON_DAMAGE = ("stop", "mask")
_LANES_OF_A_THREAD = 8  # each hand-over of an example between threads costs as much as reading it


@dataclasses.dataclass(frozen=True)
class Slots:
    """The slots that one read fills: raw records with where they stand, and which of them are examples."""

    records: list[bytes]
    names: list[str]
    epochs: np.ndarray  # int32 [slots]
    filled: np.ndarray  # bool [slots]


class RecordSet:
    """One split of a record set, readable at any position.

    Args:
      directory: of `manifest.json`.
      split: name of the split.
      on_damage: 'stop' raises at a record that cannot be read; 'mask' leaves its slot empty and remembers its
        name in `damaged`.
      made: the set's manifest, read from the directory where None.

    Raises:
      ManifestError: the record set is missing, or has no such split, or the split is empty.
    """

    def __init__(self, directory: str, split: str, on_damage: str = "stop", made: manifests.Manifest | None = None):
        if on_damage not in ON_DAMAGE:
            raise ValueError(f"on_damage is {on_damage!r}; expected one of {ON_DAMAGE}.")
        self.directory = directory
        self.manifest = made or manifests.read(directory)
        self.split = self.manifest.split(split)
        self.examples = self.split.written
        self.damaged: set[str] = set()
        self.error: Exception | None = None  # what went wrong in a `dataset`; TensorFlow wraps it beyond recognition
        self.masks_damage = on_damage == "mask"
        self._ends = np.cumsum([s.examples for s in self.split.shards]).tolist()
        if not self.examples:
            raise manifests.ManifestError(f"Split {split!r} of {directory!r} holds no examples.")
        self._index = functools.lru_cache(maxsize=1024)(self._read_index)
        self._placeholder = record.placeholder(self.manifest.label_kind)

    def order(self, batch: int, seed: int, shuffle: bool = True, **sizes: int) -> orders.Order:
        """The order of this split for global batches of `batch` slots; `sizes` are `block` and `window`."""
        return orders.Order(
            self.examples, BatchShape(batch).lanes, seed, self.manifest.digest, shuffle=shuffle, **sizes
        )

    def read(self, positions: np.ndarray) -> tuple[list[bytes | None], list[str]]:
        """Reads the records at `positions` (int64 [n], any order); neighbours are read together.

        Returns:
          The serialised records (None where damaged, under the 'mask' policy) and where each stands.

        Raises:
          DamagedRecordError: a record's bytes are not what was written, under the 'stop' policy.
        """
        records: list[bytes | None] = [None] * len(positions)
        names = [""] * len(positions)
        for places, run in self._runs(positions):
            number = bisect.bisect_right(self._ends, run[0])
            file = self.split.shards[number]
            path = os.path.join(self.directory, file.file)
            first = int(run[0] - self._ends[number] + file.examples)
            index = self._index(number)
            for i, payload in enumerate(shard.read_records(path, index, first, len(run))):
                name = f"{path} record {first + i} at offset {index[first + i]}"
                records[places[i]], names[places[i]] = payload, name
                if payload is None:
                    self._damage(name)
        return records, names

    def _damage(self, name: str) -> None:
        if not self.masks_damage:
            raise shard.DamagedRecordError(
                f"{name} is damaged: its bytes are not what the Beam job wrote. Restore the shard or build the records "
                "again, or let damaged records be left out with on_damage = 'mask'."
            )
        self.damaged.add(name)

    def _read_index(self, number: int) -> np.ndarray:
        file = self.split.shards[number]
        return shard.read_index(os.path.join(self.directory, file.file), file.examples)

    def _runs(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Groups positions into runs of neighbours within a shard: (places in `positions`, positions)."""
        places = np.argsort(positions, kind="stable")
        ordered = positions[places]
        shards = np.searchsorted(self._ends, ordered, side="right")
        cuts = np.flatnonzero((np.diff(ordered) != 1) | (np.diff(shards) != 0)) + 1
        return zip(np.split(places, cuts), np.split(ordered, cuts), strict=True)

    def slots(self, budget: orders.EpochBudget, lane: int, first: int, end: int) -> Slots:
        """The slots of rows [first, end) of `lane`; rows count through all epochs and lie in one window."""
        order = budget.order
        epoch, row = divmod(first, order.rows)
        rows = np.arange(row, row + end - first, dtype=np.int64)
        filled = budget.filled(epoch, lane, rows)
        records, names = [self._placeholder] * len(rows), [""] * len(rows)
        if filled.any():  # filled slots come first
            count = int(filled.sum())
            found, names[:count] = self.read(order.positions(epoch, lane, row, row + count))
            records[:count] = [self._placeholder if r is None else r for r in found]
            filled[:count] = [r is not None for r in found]
        return Slots(records, names, np.full(len(rows), epoch, np.int32), filled)


def slot_fields(epochs, weights) -> dict[str, tf.Tensor]:
    """What the slots of a batch add to the fields of their records: `epoch` int32 [n] and `weight` float32 [n]."""
    return {"epoch": tf.cast(epochs, tf.int32), "weight": tf.cast(weights, tf.float32)}


def _read_end(budget: orders.EpochBudget, lane: int, row: int, end_row: int) -> int:
    """The end of the read that starts at `row` (rows of all epochs): it stays inside a window and an epoch."""
    if row >= end_row:
        return row
    order = budget.order
    epoch, within = divmod(row, order.rows)
    # A lane may be one example shorter than an epoch has rows; its empty last slot is a read of its own.
    stop = order.window_bounds(lane, within)[1] if within < order.lane_size(lane) else order.rows
    return min(epoch * order.rows + stop, end_row)


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
    threads: int | None = None,
) -> tf.data.Dataset:
    """Batches of this host for the steps [first_step, last_step).

    Args:
      records: where to read.
      budget: order, global batch and length.
      view: maps the examples, in order (the fields of `record.py` with `epoch` int32 [] and `weight` float32 []), to
        the elements that are batched, `replica_batch` of them for every replica and step.
      first_step: the first step to produce; what lies before it is not touched.
      last_step: the end, the budget's last step where None.
      host: which of `hosts` this process is; each reads its own lanes.
      hosts: number of reading processes.
      replica_batch: elements of `view` in a batch; the host's slots of the global batch where None.
      threads: threads that collect the examples of the lanes, whose reading runs beside them; one for every eighth
        lane where None.

    Returns:
      A dataset of batches, in order; `weight` is 0 in empty slots.
    """
    lanes = BatchShape(budget.batch, hosts=hosts).host_lanes(host)
    replica_batch = replica_batch or budget.batch // hosts
    last_step = budget.steps if last_step is None else last_step
    first_row, end_row = first_step * budget.rows_per_step, last_step * budget.rows_per_step

    def read(lane, row):
        end = _read_end(budget, int(lane), int(row), end_row)
        try:
            slots = records.slots(budget, int(lane), int(row), end)
        except Exception as error:
            records.error = error
            raise
        columns = np.array(slots.records, object), np.array(slots.names, object), slots.epochs
        return np.int64(end), *columns, slots.filled.astype(np.float32)

    def parse(serialized, names, epochs, weights):
        examples = record.parse(serialized, names, records.manifest.label_kind)
        return {**examples, **slot_fields(epochs, weights)}

    def lane_dataset(lane):
        def read_next(row, _):
            types = (tf.int64, tf.string, tf.string, tf.int32, tf.float32)
            end, *columns = tf.numpy_function(read, (lane, row), types, stateful=False)
            return tf.ensure_shape(end, []), tuple(tf.ensure_shape(column, [None]) for column in columns)

        reads = tf.data.Dataset.counter().scan(tf.constant(first_row, tf.int64), read_next)
        return reads.take_while(lambda serialized, *_: tf.size(serialized) > 0).map(parse).prefetch(1).unbatch()

    def in_turn(lanes):
        return tf.data.Dataset.from_tensor_slices(lanes).interleave(lane_dataset, groups.shape[1], block_length=1)

    groups = np.asarray(lanes, np.int64).reshape(-1, math.gcd(len(lanes), _LANES_OF_A_THREAD))
    examples = tf.data.Dataset.from_tensor_slices(groups).interleave(
        in_turn,
        cycle_length=len(groups),
        block_length=groups.shape[1],
        num_parallel_calls=min(threads or len(groups), len(groups)),
        deterministic=True,
    )
    return view(examples).batch(replica_batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
