"""Positions in a split -> its records, read and parsed as part of a TensorFlow graph.

Everything here is TensorFlow's operations alone, so that it runs in the TensorFlow server of a host without Python.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.data import record, shard

# No quotation marks, which TensorFlow would escape.
IS_DAMAGED = (
    " is damaged: its bytes are not what the Beam job wrote. Restore the shard, build the records again, or leave "
    "damaged records out with Data.on_damage = mask."
)
_LARGEST_BUFFER = 16 << 20  # bytes of a shard that are fetched by one request

# Nothing here is Python that depends on tensors; converting it all the same would take seconds.
_plain = tf.autograph.experimental.do_not_convert


class _Runs(NamedTuple):
    """Neighbours in a shard, which are read together. One run of no record stands for none at all."""

    paths: tf.Tensor  # string [runs], of the shards
    examples: tf.Tensor  # int64 [runs], of the shards
    first: tf.Tensor  # int64 [runs], number of the first record in its shard
    starts: tf.Tensor  # int64 [runs], where the run starts in the list of records
    counts: tf.Tensor  # int64 [runs], records
    numbers: tf.Tensor  # int64 [records], in their shards
    of_record: tf.Tensor  # int32 [records], the run of each record

    @property
    def record_paths(self) -> tf.Tensor:
        """The shard of each record, string [records]."""
        return tf.gather(self.paths, self.of_record)


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Reads the records of one split by position.

    Attributes:
      paths: of the shards.
      sizes: records of each shard.
      label_kind: 'single' or 'multiple'.
      masks_damage: leave damaged records out, instead of stopping at them.
      damaged_folder: where a file names the records that were left out; '' for nowhere.
      whole_runs: fetch all records of a run by one request, as suits object stores; each by itself otherwise.
      opens_lazily: the file system asks for nothing when a file is opened; errors come when it is read.
    """

    paths: Sequence[str]
    sizes: Sequence[int]
    label_kind: str
    masks_damage: bool
    damaged_folder: str
    whole_runs: bool = False
    opens_lazily: bool = False

    @_plain
    def read(self, positions: tf.Tensor) -> tf.data.Dataset:
        """Reads the records at `positions`, int64 [n] in any order, negative in empty slots; n is at least 1.

        Returns:
          A data set of one element: the fields of `record.py` and `weight` float32, each [n]; `weight` is 0 where there
          is no example. For use in a function of a data set.

        Raises:
          tf.errors.OpError: on iteration, where a file is missing, an index is not its shard's, or a record is damaged
            (InvalidArgumentError, names shard, record and offset).
        """
        by_storage = tf.argsort(positions)
        empty = tf.math.count_nonzero(positions < 0, dtype=tf.int32)  # they come first by storage
        wanted = tf.gather(positions, by_storage)[empty:]
        runs = self._runs(wanted)

        def read(_, index):
            offsets = tf.io.decode_raw(tf.strings.reduce_join(index), tf.int64)
            places = tf.range(tf.size(wanted)) + runs.of_record  # a run has one offset more than records
            offsets, ends = tf.gather(offsets, places), tf.gather(offsets, places + 1)
            return self._payloads(runs, offsets, ends).map(lambda payloads: (payloads, offsets, ends))

        def parse(payloads, offsets, ends):
            numbers, offsets_text = tf.strings.as_string(runs.numbers), tf.strings.as_string(offsets)
            names = tf.strings.join([runs.record_paths, " record ", numbers, " at offset ", offsets_text])
            intact = tf.strings.length(payloads)[:-1] == tf.cast(ends - offsets, tf.int32) - shard.FRAME_BYTES
            with tf.control_dependencies([self._report(tf.boolean_mask(names, ~intact))]):
                weights = tf.concat([tf.cast(intact, tf.float32), [0.0]], 0)
            # What is empty or damaged takes the last payload, which is the placeholder.
            placeholder = tf.size(wanted)
            sources = tf.where(intact, tf.range(placeholder), placeholder)
            sources = tf.concat([tf.fill([empty], placeholder), sources], 0)
            sources = tf.gather(sources, tf.math.invert_permutation(by_storage))
            names = tf.gather(tf.concat([names, ["placeholder"]], 0), sources)
            examples = record.parse(tf.gather(payloads, sources), names, self.label_kind)
            return {**examples, "weight": tf.gather(weights, sources)}

        pieces = (runs.paths, runs.examples, runs.first, runs.counts)
        index = tf.data.Dataset.from_tensor_slices(pieces).flat_map(self._index_bytes)
        return index.batch(tf.size(runs.paths, tf.int64)).flat_map(read).map(parse)

    def _index_bytes(self, path: tf.Tensor, *piece: tf.Tensor) -> tf.data.Dataset:
        """The index of a run. Raises where its shard cannot be opened, which `ignore_errors` would try without end."""
        byte = tf.data.Dataset.from_tensors("") if self.opens_lazily else shard.first_byte(path)
        return tf.data.Dataset.zip(byte, shard.index_bytes(path, *piece))

    def _runs(self, wanted: tf.Tensor) -> _Runs:
        """The runs that `wanted` is made of, int64 [records], ascending positions."""
        ends = tf.constant(self._ends)
        shards = tf.searchsorted(ends, wanted, side="right")
        apart = (wanted[1:] - wanted[:-1] != 1) | (shards[1:] != shards[:-1])
        starts = tf.where(tf.concat([[True], apart], 0))[:, 0]
        counts = tf.concat([starts[1:], tf.size(wanted, tf.int64)[None]], 0) - starts
        of_record = tf.concat([[0], tf.cumsum(tf.cast(apart, tf.int32))], 0)[: tf.size(wanted)]
        first = tf.gather(tf.concat([wanted, [0]], 0), starts)
        shards = tf.searchsorted(ends, first, side="right")
        examples = tf.gather(tf.constant(self.sizes, tf.int64), shards)
        before = tf.gather(ends, shards) - examples
        paths = tf.gather(tf.constant(self.paths), shards)
        numbers = wanted - tf.gather(before, of_record)
        return _Runs(paths, examples, first - before, starts, counts, numbers, of_record)

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.sizes, dtype=np.int64)

    def _payloads(self, runs: _Runs, offsets: tf.Tensor, ends: tf.Tensor) -> tf.data.Dataset:
        """A data set of one element: a payload for each record and last the placeholder, string [records + 1].

        All runs are read as they are stored. Where that fails, each record is read by itself; a damaged one is ''.
        """
        placeholder = tf.data.Dataset.from_tensors(record.placeholder(self.label_kind))
        size = tf.size(offsets, tf.int64) + 1
        begins = tf.gather(tf.concat([offsets, [0]], 0), runs.starts)
        buffers = tf.zeros_like(begins)
        if self.whole_runs:
            stops = tf.gather(tf.concat([[0], ends], 0), runs.starts + runs.counts)
            buffers = tf.clip_by_value(stops - begins, 0, _LARGEST_BUFFER)

        def read_one(path, offset):
            none = tf.constant(0, tf.int64)
            payload = shard.payloads(path, offset, none + 1, none).ignore_errors(log_warning=True)
            return payload.concatenate(tf.data.Dataset.from_tensors("")).take(1)

        def one_by_one(_):
            each = tf.data.Dataset.from_tensor_slices((runs.record_paths, offsets)).flat_map(read_one)
            return each.concatenate(placeholder).batch(size)

        def fall_back(_):
            # What is missing or out of reach is not damaged: it raises here.
            checked = tf.data.Dataset.from_tensor_slices(runs.paths).flat_map(shard.first_byte)
            return checked.batch(tf.size(runs.paths, tf.int64)).flat_map(one_by_one)

        stored = tf.data.Dataset.from_tensor_slices((runs.paths, begins, runs.counts, buffers))
        together = stored.flat_map(shard.payloads).concatenate(placeholder).batch(size, drop_remainder=True)
        otherwise = tf.data.Dataset.from_tensors(0).flat_map(fall_back)
        return together.ignore_errors().concatenate(otherwise).take(1)

    def _report(self, names: tf.Tensor) -> tf.Operation:
        """Stops at damaged records with these names, string [n], or writes them down."""
        if not self.masks_damage:
            text = tf.strings.reduce_join(names, separator=", ")
            return tf.debugging.Assert(tf.size(names) == 0, [text + IS_DAMAGED])

        def write():
            text = tf.strings.reduce_join(names, separator="\n")
            written = [tf.print("Damaged and left out:", text, output_stream=sys.stderr)]
            if self.damaged_folder:
                file = tf.strings.as_string(tf.strings.to_hash_bucket_fast(text, 1 << 62))
                written.append(tf.io.write_file(tf.strings.join([self.damaged_folder, "/", file]), text + "\n"))
            with tf.control_dependencies(written):
                return tf.constant(True)

        return tf.cond(tf.size(names) > 0, write, lambda: tf.constant(False)).op
