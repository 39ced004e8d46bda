"""Which record stands where in training: a pure function of (data, seed, epoch, place), in O(1) memory.

A global batch has a fixed number of lanes, whatever the number of hosts: slot `i` of every batch belongs to lane
`i % lanes`, and a host owns whole lanes. An epoch is made in four steps, each a permutation:

1. the storage is rotated by a random offset, so that block borders differ from epoch to epoch;
2. it is cut into blocks of `block` neighbouring records, and the blocks are permuted;
3. each lane takes a contiguous part of the permuted blocks;
4. each lane shuffles its part inside windows of `window` records, which end at other rows in every lane.

A block is one contiguous read. `rows` counts the batch slots that a lane consumes: slot `(row, lane)` of an epoch
is empty when `row * lanes + lane` is not below the number of examples, so an epoch has fewer than `lanes` empty
slots, all in its last row.
"""

import dataclasses
import functools
import hashlib

import numpy as np
import tensorflow as tf

from pipeline.data.batch_shape import MAX_LANES

# TensorFlow's default of 4 cipher rounds leaves neighbours correlated (0.7 over 4 billion); from 8 on it is noise.
_CIPHER_ROUNDS = 24
_CHUNK = 64  # slots of blocks that are computed together


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of `examples` records under `seed`; `shuffle=False` is storage order cut into lanes.

    `fingerprint` is the data set's digest: another data set has another order.
    """

    examples: int
    lanes: int
    seed: int = 0
    fingerprint: str = ""
    block: int = 8
    window: int = 16
    shuffle: bool = True

    def __post_init__(self):
        for name in ("examples", "lanes", "block", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"Order.{name} must be at least 1, found {getattr(self, name)}.")

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return -(-self.examples // self.lanes)

    def lane_size(self, lane: int) -> int:
        """Examples of an epoch in `lane`."""
        return -(-(self.examples - lane) // self.lanes)

    def window_bounds(self, lane: int, row: int) -> tuple[int, int]:
        """First and end row of the shuffle window of `lane` that holds `row`."""
        stagger = self.window * lane // self.lanes
        first = (row + stagger) // self.window * self.window - stagger
        return max(0, first), min(self.lane_size(lane), first + self.window)

    def positions(self, epoch: int, lane: int, first: int, end: int) -> np.ndarray:
        """Storage positions, int64 [end - first], of the rows [first, end) of `lane` in `epoch`.

        All rows must lie inside one window (`window_bounds`).
        """
        rows = np.arange(first, end, dtype=np.int64)
        if self.shuffle:
            start, stop = self.window_bounds(lane, first)
            rows = start + self._shuffled(stop - start, "window", epoch, lane, start)[rows - start]
        places = rows + lane * (self.examples // self.lanes) + min(lane, self.examples % self.lanes)
        if not self.shuffle:
            return places
        full_blocks = self.examples // self.block
        slots = np.minimum(places // self.block, full_blocks)
        moved = slots < full_blocks
        slots[moved] = _permuted_blocks(self, epoch, slots[moved])
        offset = int.from_bytes(self._bits(12, "offset", epoch), "little") % self.examples
        return (slots * self.block + places % self.block + offset) % self.examples

    def _bits(self, count: int, purpose: str, *numbers: int) -> bytes:
        """`count` random bytes, which depend on all that defines the order and on the arguments."""
        text = "/".join((self.fingerprint, str(self.seed), purpose, *map(str, numbers)))
        return hashlib.shake_128(text.encode()).digest(count)

    def _shuffled(self, size: int, purpose: str, *numbers: int) -> np.ndarray:
        """A uniform permutation of range(size), for a small `size`: the order of random 64-bit numbers."""
        return np.frombuffer(self._bits(8 * size, purpose, *numbers), "<u8").argsort(kind="stable")


@dataclasses.dataclass(frozen=True)
class EpochBudget:
    """How long to train: `epochs` (a fraction is allowed) in global batches of `batch` slots.

    Every epoch of the budget consumes each example once; a fractional last one consumes
    `round(fraction * examples)` of them. The last batch's remaining slots are empty and weigh nothing.
    """

    order: Order
    batch: int
    epochs: float

    def __post_init__(self):
        if self.batch < 1 or self.batch % self.order.lanes:
            raise ValueError(f"A batch of {self.batch} cannot be cut into {self.order.lanes} lanes.")
        if not self.epochs > 0:
            raise ValueError(f"The epoch budget must be greater than 0, found {self.epochs}.")

    @property
    def rows_per_step(self) -> int:
        """Rows that one global batch takes from every lane."""
        return self.batch // self.order.lanes

    @property
    def whole_epochs(self) -> int:
        """Complete epochs in the budget."""
        return int(self.epochs)

    @property
    def expected(self) -> list[int]:
        """Examples to be consumed in each epoch, the partial last one included."""
        rest = round((self.epochs - self.whole_epochs) * self.order.examples)
        return [self.order.examples] * self.whole_epochs + ([rest] if rest else [])

    @property
    def examples(self) -> int:
        """Examples to be consumed in all."""
        return sum(self.expected)

    @property
    def rows(self) -> int:
        """Rows of the whole budget."""
        rest = sum(self.expected) - self.whole_epochs * self.order.examples
        return self.whole_epochs * self.order.rows + -(-rest // self.order.lanes)

    @property
    def steps(self) -> int:
        """Training steps of the whole budget."""
        return -(-self.rows // self.rows_per_step)

    def epoch_of_step(self, step: int) -> float:
        """How many epochs have been consumed after `step` steps."""
        return min(step * self.rows_per_step / self.order.rows, self.epochs)

    def filled(self, epoch: int, lane: int, rows: np.ndarray) -> np.ndarray:
        """Which slots (`rows` of `lane` in `epoch`) hold an example: bool, the shape of `rows`."""
        expected = self.expected
        limit = expected[epoch] if epoch < len(expected) else 0
        return rows * self.order.lanes + lane < limit


def _permuted_blocks(order: Order, epoch: int, slots: np.ndarray) -> np.ndarray:
    """The blocks that stand at `slots` (int64 [n]) of `epoch`."""
    chunks, blocks = slots // _CHUNK, np.empty_like(slots)
    for chunk in set(chunks.tolist()):
        here = chunks == chunk
        blocks[here] = _chunk_of_blocks(order, epoch, chunk)[slots[here] - chunk * _CHUNK]
    return blocks


@functools.lru_cache(maxsize=4 * MAX_LANES)
def _chunk_of_blocks(order: Order, epoch: int, chunk: int) -> np.ndarray:
    """The blocks of neighbouring slots: a lane soon needs the next ones, and a call costs more than its arithmetic."""
    full_blocks = order.examples // order.block
    slots = np.arange(chunk * _CHUNK, min((chunk + 1) * _CHUNK, full_blocks), dtype=np.int64)
    if full_blocks < 2:
        return slots
    key = np.frombuffer(order._bits(12, "block", epoch), np.uint32)
    return tf.random_index_shuffle(slots, key, np.int64(full_blocks - 1), rounds=_CIPHER_ROUNDS).numpy()
