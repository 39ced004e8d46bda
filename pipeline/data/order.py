"""Which record stands where in training: a pure function of (data, seed, epoch, row, lane), in O(1) memory.

A global batch has a fixed number of lanes, whatever the number of hosts: slot `i` of every batch belongs to lane
`i % lanes`, and a host reads whole lanes. A row is one slot of every lane. An epoch is a permutation in four steps:

1. the storage is rotated by a random offset, so that block borders differ from epoch to epoch;
2. it is cut into blocks of `block` neighbouring records, and the blocks are permuted;
3. each window of `window` rows takes the next blocks, and each lane an equal, contiguous part of them;
4. each lane shuffles its part of the window.

Windows are cut on the axis of all epochs' rows, off the multiples of their size: a window that ends where a batch ends
would bring most neighbours into one batch.

A block is one contiguous read. Slot `(row, lane)` of an epoch is empty when `row * lanes + lane` is not below the
number of examples, so an epoch has fewer than `lanes` empty slots, all in its last row.

The arithmetic is TensorFlow's, so that it runs in the input graph of any host and, called eagerly, everywhere else.
"""

import dataclasses
import hashlib

import tensorflow as tf

# TensorFlow's default of 4 cipher rounds leaves neighbours correlated (0.7 over 4 billion); from 8 on it is noise.
_CIPHER_ROUNDS = 24
EMPTY = -1  # the position in a slot that holds no example


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of `examples` records under `seed`; `shuffle=False` is storage order, a window of rows after the other.

    `fingerprint` is the data set's digest: another data set has another order.
    """

    examples: int
    lanes: int
    seed: int = 0
    fingerprint: str = ""
    block: int = 8
    window: int = 20
    shuffle: bool = True

    def __post_init__(self):
        for name in ("examples", "lanes", "block", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"Order.{name} must be at least 1, found {getattr(self, name)}.")

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return -(-self.examples // self.lanes)

    @property
    def windows(self) -> int:
        """Windows of an epoch; its first and last may be shorter than `window` rows, or empty."""
        return -(-self.rows // self.window) + 1

    def first_window_rows(self, epoch: int | tf.Tensor) -> int | tf.Tensor:
        """Rows of the first window of an epoch, from 0 to `window - 1` (if the epoch has as many)."""
        return ((self.window // 4 | 1) - epoch * self.rows) % self.window

    def positions(
        self, epoch: int | tf.Tensor, window: int | tf.Tensor, lanes: range | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Storage positions of the slots of one window of an epoch.

        Args:
          epoch: int64 [], from 0.
          window: int64 [], from 0 to `windows - 1`.
          lanes: the lanes asked for, neighbours; all where None.

        Returns:
          The window's first row in the epoch, int64 []; positions, int64 [rows of the window, lanes asked for], `EMPTY`
          in empty slots.
        """
        epoch, window = tf.cast(epoch, tf.int64), tf.cast(window, tf.int64)
        lanes = lanes or range(self.lanes)
        end_row = self.first_window_rows(epoch) + window * self.window
        first_row = tf.clip_by_value(end_row - self.window, 0, self.rows)
        first_place = first_row * self.lanes
        rows = tf.range(tf.minimum(end_row, self.rows) - first_row)
        lane = tf.range(lanes.start, lanes.stop, dtype=tf.int64)[:, None]
        # The window's examples are divided over the lanes; in an epoch's last window some lanes have one less.
        examples = tf.clip_by_value(self.examples - first_place, 0, tf.size(rows, tf.int64) * self.lanes)
        share, rest = examples // self.lanes, examples % self.lanes
        filled = rows < share + tf.cast(lane < rest, tf.int64)  # [lanes, rows]
        if self.shuffle:
            numbers = self._random([self.lanes, self.window], epoch, window)[lanes.start : lanes.stop, : tf.size(rows)]
            rows = tf.cast(tf.argsort(tf.where(filled, numbers, tf.int64.max), stable=True), tf.int64)
        places = first_place + lane * share + tf.minimum(lane, rest) + rows
        return first_row, tf.transpose(tf.where(filled, self.stored(epoch, places), EMPTY))

    def stored(self, epoch: int | tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        """Storage positions of `places` in the sequence of an epoch's permuted blocks; int64, any shape."""
        if not self.shuffle:
            return places
        full_blocks = self.examples // self.block
        if full_blocks > 1:
            # Neighbours share a block; the slot 0 is there because the operation refuses to shuffle no number at all.
            slots, index = tf.unique(tf.concat([tf.reshape(places // self.block, [-1]), [0]], 0), tf.int64)
            key = tf.bitcast(self._random([2], epoch, -1), tf.int32)  # [2, 2]
            moved = tf.random_index_shuffle(
                tf.minimum(slots, full_blocks - 1), tf.reshape(key, [-1])[:3], full_blocks - 1, _CIPHER_ROUNDS
            )
            moved = tf.where(slots < full_blocks, moved, slots)  # what is left over at the end stays there
            places = tf.reshape(tf.gather(moved, index[:-1]), tf.shape(places)) * self.block + places % self.block
        offset = self._random([], epoch, -2) % self.examples
        return (places + offset) % self.examples

    def _random(self, shape: list[int], epoch: tf.Tensor, purpose: int | tf.Tensor) -> tf.Tensor:
        """Random int64 of `shape`, which depend on all that defines the order, on the epoch and on `purpose`."""
        text = f"{self.fingerprint}/{self.seed}".encode()
        digest = hashlib.shake_128(text).digest(16)
        seed = tf.constant([int.from_bytes(part, "little", signed=True) for part in (digest[:8], digest[8:])], tf.int64)
        # The algorithm is left to TensorFlow, which takes Philox on CPUs, where input is made: to name it takes twenty
        # operations more for each call, and a tenth of the start of a short run.
        for number in (epoch, purpose):
            seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(number, tf.int64))
        return tf.random.stateless_uniform(shape, seed, None, None, tf.int64)


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
        return [self.order.examples] * self.whole_epochs + ([self._rest] if self._rest else [])

    @property
    def _rest(self) -> int:
        """Examples of the partial last epoch."""
        return round((self.epochs - self.whole_epochs) * self.order.examples)

    @property
    def examples(self) -> int:
        """Examples to be consumed in all."""
        return sum(self.expected)

    @property
    def rows(self) -> int:
        """Rows of the whole budget."""
        return self.whole_epochs * self.order.rows + -(-self._rest // self.order.lanes)

    @property
    def steps(self) -> int:
        """Training steps of the whole budget."""
        return -(-self.rows // self.rows_per_step)

    def epoch_of_step(self, step: int) -> float:
        """How many epochs have been consumed after `step` steps."""
        return min(step * self.rows_per_step / self.order.rows, self.epochs)

    def window_of_row(self, row: int) -> int:
        """The window that holds `row`; rows and windows are counted through all epochs."""
        epoch, row = divmod(row, self.order.rows)
        within = 1 + (row - self.order.first_window_rows(epoch)) // self.order.window
        return epoch * self.order.windows + within

    def positions(self, window: int | tf.Tensor, lanes: range | None = None) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The slots of one window, which is counted through all epochs.

        Returns:
          Its epoch, int64 []; its first row through all epochs, int64 []; storage positions as `Order.positions`
          returns them, `EMPTY` also where the budget is spent.
        """
        order, window = self.order, tf.cast(window, tf.int64)
        epoch = window // order.windows
        first_row, positions = order.positions(epoch, window % order.windows, lanes)
        lanes = lanes or range(order.lanes)
        row = first_row + tf.range(tf.shape(positions, tf.int64)[0])[:, None]
        slot = row * order.lanes + tf.range(lanes.start, lanes.stop, dtype=tf.int64)
        last = tf.where(epoch == self.whole_epochs, tf.constant(self._rest, tf.int64), 0)
        limit = tf.where(epoch < self.whole_epochs, tf.constant(order.examples, tf.int64), last)
        return epoch, epoch * order.rows + first_row, tf.where(slot < limit, positions, EMPTY)
