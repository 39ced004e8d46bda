"""Record set on disk -> batches of examples, in exactly the order of `order.py`.

Reading is arithmetic: a step's records are found through the offset index, so starting at any step costs the same
and nothing that came before is read again. All of it is a graph of TensorFlow's operations, so that it runs in the
TensorFlow server of a host that has no Python of ours.
"""

import math
import os
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipeline import files
from pipeline.data import manifest as manifests
from pipeline.data import order as orders
from pipeline.data import record, shard
from pipeline.data.batch_shape import BatchShape

ON_DAMAGE = ("stop", "mask")
_LOCAL_READS, _REMOTE_READS = 16, 64
_LARGEST_BUFFER = 16 << 20  # bytes that are read at a time from a remote shard
_plain = tf.autograph.experimental.do_not_convert
_NAMED = re.compile(r"\S+ record \d+ at offset \d+ is damaged")


class _Runs(NamedTuple):
    paths: tf.Tensor
    examples: tf.Tensor
    numbers_first: tf.Tensor
    starts: tf.Tensor
    counts: tf.Tensor
    of_record: tf.Tensor
    numbers: tf.Tensor

    @property
    def index_pieces(self):
        size, header = 8 * (self.counts + 1), 8 * self.numbers_first
        return self.paths, tf.strings.join([self.paths, ".index"]), size, header, 8 * (self.examples + 1) - header - size


class RecordSet:
    """One split of a record set, readable at any position.

    Args:
      directory: of `manifest.json`.
      split: name of the split.
      on_damage: 'stop' raises at a record that cannot be read; 'mask' leaves its slot empty and writes its name into
        `damaged`.
      manifest: the set's manifest, read from the directory where None.
      damaged: folder for the names of damaged records (see `damaged_records`); where None they are printed alone.

    Raises:
      ManifestError: the record set is missing, or has no such split, or the split is empty.
    """

    def __init__(
        self,
        directory: str,
        split: str,
        on_damage: str = "stop",
        manifest: manifests.Manifest | None = None,
        damaged: str | None = None,
    ):
        if on_damage not in ON_DAMAGE:
            raise ValueError(f"on_damage is {on_damage!r}; expected one of {ON_DAMAGE}.")
        self.directory = directory
        self.manifest = manifest or manifests.read(directory)
        self.split = self.manifest.split(split)
        self.examples = self.split.written
        self.masks_damage = on_damage == "mask"
        self.is_remote = files.is_remote(directory)
        self.damaged = damaged
        if not self.examples:
            raise manifests.ManifestError(f"Split {split!r} of {directory!r} holds no examples.")

    def order(self, batch: int, seed: int, shuffle: bool = True, **sizes: int) -> orders.Order:
        """The order of this split for global batches of `batch` slots; `sizes` are `block` and `window`."""
        return orders.Order(
            self.examples, BatchShape(batch).lanes, seed, self.manifest.digest, shuffle=shuffle, **sizes
        )

    def read(self, positions: tf.Tensor) -> tf.data.Dataset:
        """Reads the records at `positions`, int64 [n], any order, `EMPTY` in some; neighbours are read together.

        Returns:
          A data set of one element: the fields of `record.py`, each [n], with `weight` float32 [n], 0 where there is
          no example. For use inside a function of a data set.
        """
        # Empty slots come first in storage order, and are cut off.
        by_storage = tf.argsort(positions)
        wanted = tf.gather(positions, by_storage)[tf.math.count_nonzero(positions < 0) :]
        runs = self._runs(wanted)
        index = tf.data.Dataset.from_tensor_slices(runs.index_pieces).flat_map(shard.read_index_piece)

        def read(pieces, _):
            offsets = tf.io.decode_raw(tf.strings.reduce_join(pieces), tf.int64)
            before = tf.range(tf.size(wanted)) + runs.of_record  # each run has one offset more than records
            return self._payloads(runs, tf.gather(offsets, before), tf.gather(offsets, before + 1))

        def finish(payloads, offsets, ends):
            names = tf.strings.join(
                [
                    tf.gather(runs.paths, runs.of_record),
                    " record ",
                    tf.strings.as_string(runs.numbers),
                    " at offset ",
                    tf.strings.as_string(offsets),
                ]
            )
            intact = tf.strings.length(payloads)[:-1] == tf.cast(ends - offsets, tf.int32) - shard.FRAME_BYTES
            with tf.control_dependencies([self._report(tf.boolean_mask(names, ~intact))]):
                weights = tf.cast(intact, tf.float32)
            slots = tf.math.invert_permutation(by_storage) - (tf.size(positions) - tf.size(wanted))
            slots = tf.where((slots >= 0) & tf.gather(tf.concat([intact, [False]], 0), tf.maximum(slots, 0)), slots, tf.size(wanted))
            names = tf.gather(tf.concat([names, [""]], 0), slots)
            examples = record.parse(tf.gather(payloads, slots), names, self.manifest.label_kind)
            return {**examples, "weight": tf.gather(tf.concat([weights, [0.0]], 0), slots)}

        return index.batch(tf.size(runs.paths, tf.int64)).flat_map(read).map(finish)

    def _runs(self, wanted: tf.Tensor) -> "_Runs":
        """The runs of neighbours in a shard that `wanted`, int64 [n], ascending, is made of; one of no record for n = 0."""
        shards = tf.searchsorted(self._ends, wanted, side="right")
        apart = (wanted[1:] - wanted[:-1] != 1) | (shards[1:] != shards[:-1])
        starts = tf.where(tf.concat([[True], apart], 0))[:, 0]
        counts = tf.concat([starts[1:], tf.size(wanted, tf.int64)[None]], 0) - starts
        shards = tf.gather(tf.concat([shards, [0]], 0), starts)
        of_record = tf.concat([[0], tf.cumsum(tf.cast(apart, tf.int32))], 0)[: tf.size(wanted)]
        examples = tf.gather(self._sizes, shards)
        before = tf.gather(self._ends, shards) - examples
        numbers = wanted - tf.gather(before, of_record)
        return _Runs(tf.gather(self._paths, shards), examples, tf.gather(tf.concat([numbers, [0]], 0), starts), starts, counts, of_record, numbers)

    def _payloads(self, runs: "_Runs", offsets: tf.Tensor, ends: tf.Tensor) -> tf.data.Dataset:
        """One element: payloads, string [n], empty where the bytes are damaged; with `offsets` and `ends` int64 [n]."""
        count = tf.size(offsets, tf.int64)
        first = tf.gather(tf.concat([offsets, [0]], 0), runs.starts)
        buffer = tf.zeros_like(first)

        def read_run(path, offset, count, buffer):
            return shard.payloads(path, offset, buffer).take(count)

        def read_one(path, offset):
            payload = shard.payloads(path, offset).take(1).ignore_errors()
            return payload.concatenate(tf.data.Dataset.from_tensors("")).take(1)

        placeholder = tf.data.Dataset.from_tensors(record.placeholder(self.manifest.label_kind))
        together = tf.data.Dataset.from_tensor_slices((runs.paths, first, runs.counts, buffer)).flat_map(read_run)
        together = together.concatenate(placeholder).batch(count + 1, drop_remainder=True)

        def one_by_one(_):
            each = tf.data.Dataset.from_tensor_slices((tf.gather(runs.paths, runs.of_record), offsets))
            return each.flat_map(read_one).concatenate(placeholder).batch(count + 1)

        fallback = tf.data.Dataset.from_tensors(0).flat_map(one_by_one)
        payloads = together.ignore_errors().concatenate(fallback).take(1)
        return payloads.map(lambda payloads: (payloads, offsets, ends))

    def _report(self, names: tf.Tensor) -> tf.Operation:
        """Stops at damaged records, or writes their names, string [n]."""
        text = tf.strings.reduce_join(names, separator="\n")
        if not self.masks_damage:
            message = tf.strings.join(
                [
                    text,
                    " is damaged: its bytes are not what the Beam job wrote. Restore the shard or build the records "
                    "again, or let damaged records be left out with on_damage = 'mask'.",
                ]
            )
            return tf.debugging.Assert(tf.size(names) == 0, [message])

        def write():
            written = [tf.print(text, "is damaged and left out.", output_stream=sys.stderr)]
            if self.damaged:
                name = tf.strings.as_string(tf.strings.to_hash_bucket_fast(text, 2**62))
                written.append(tf.io.write_file(tf.strings.join([self.damaged, "/", name]), text + "\n"))
            with tf.control_dependencies(written):
                return tf.constant(True)

        return tf.cond(tf.size(names) > 0, write, lambda: tf.constant(False)).op

    @property
    def _paths(self) -> tf.Tensor:
        return tf.constant([os.path.join(_absolute(self.directory), each.file) for each in self.split.shards])

    @property
    def _sizes(self) -> tf.Tensor:
        return tf.constant([each.examples for each in self.split.shards], tf.int64)

    @property
    def _ends(self) -> tf.Tensor:
        return tf.constant(np.cumsum([each.examples for each in self.split.shards]), tf.int64)


def _absolute(path: str) -> str:
    return path if files.is_remote(path) else os.path.abspath(path)


def damaged_records(folder: str) -> list[str]:
    """Shard, record and offset of every damaged record that was left out and named in `folder`, sorted."""
    if not tf.io.gfile.exists(folder):
        return []
    names = set()
    for name in tf.io.gfile.listdir(folder):
        with tf.io.gfile.GFile(os.path.join(folder, name)) as file:
            names.update(file.read().splitlines())
    return sorted(names)


def damage(error: tf.errors.OpError) -> shard.DamagedRecordError | None:
    """The damaged record that `error`, raised in reading a `dataset`, is about; None where it is about something else."""
    found = _NAMED.search(error.message)
    return found and shard.DamagedRecordError(error.message)


def slot_fields(epochs, weights) -> dict[str, tf.Tensor]:
    """What the slots of a batch add to the fields of their records: `epoch` int32 [n] and `weight` float32 [n]."""
    return {"epoch": tf.cast(epochs, tf.int32), "weight": tf.cast(weights, tf.float32)}


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
      threads: windows of lanes that are read at a time; 16 where None, 64 of a remote record set.

    Returns:
      A dataset of batches, in order; `weight` is 0 in empty slots.
    """
    lanes = BatchShape(budget.batch, hosts=hosts).host_lanes(host)
    replica_batch = replica_batch or budget.batch // hosts
    last_step = budget.steps if last_step is None else last_step
    first_row, end_row = first_step * budget.rows_per_step, last_step * budget.rows_per_step
    threads = int(os.environ.get('K','0')) or threads or (_REMOTE_READS if records.is_remote else _LOCAL_READS)

    group = math.gcd(len(lanes), int(os.environ.get('G','4')))

    @_plain
    def plan(window):
        epoch, row, positions = budget.positions(window, lanes)
        positions = positions[tf.maximum(first_row - row, 0) : tf.maximum(end_row - row, 0)]
        positions = tf.transpose(tf.reshape(positions, [-1, len(lanes) // group, group]), [1, 0, 2])
        positions = tf.reshape(positions, [len(lanes) // group, -1])
        return positions, tf.fill([len(lanes) // group], epoch)

    @_plain
    def read(positions, epoch):
        def add_epoch(examples):
            return {**examples, "epoch": tf.fill(tf.shape(positions), tf.cast(epoch, tf.int32))}

        return records.read(positions).map(add_epoch)

    first, end = budget.window_of_row(first_row), budget.window_of_row(end_row - 1) + 1
    windows = tf.data.Dataset.range(first, end if first_row < end_row else first)
    lane_windows = windows.map(plan).filter(lambda positions, _: tf.size(positions) > 0).unbatch()
    read_ahead = lane_windows.interleave(read, threads, num_parallel_calls=threads, deterministic=True)
    examples = read_ahead.interleave(tf.data.Dataset.from_tensor_slices, len(lanes) // group, group)
    return view(examples).batch(replica_batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
