import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data import order as orders
from pipeline.data.batch_shape import BatchShape

JFT = 4_000_000_000


def epoch_positions(order, epoch, lanes=None):
    """The whole epoch as batches see it: row by row, lane by lane."""
    rows, parts = 0, []
    for window in range(order.windows):
        first_row, positions = order.positions(epoch, window, lanes)
        assert int(first_row) == rows
        rows += len(positions)
        parts.append(positions.numpy())
    assert rows == order.rows
    return np.concatenate(parts)


def filled(positions):
    return positions[positions >= 0]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("examples", "lanes"), [(1, 1), (10, 8), (63, 64), (64, 64), (65, 64), (997, 16), (5000, 64)])
def test_every_epoch_is_a_permutation(examples, lanes, shuffle):
    order = orders.Order(examples, lanes, seed=3, shuffle=shuffle)
    for epoch in range(3):
        positions = epoch_positions(order, epoch).reshape(-1)
        assert sorted(positions[:examples]) == list(range(examples))
        assert set(positions[examples:]) <= {orders.EMPTY}


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"fingerprint": "other"}, {"window": 32}, {"block": 4}],
)
def test_order_depends_on_all_that_defines_it(other):
    base = {"examples": 1000, "lanes": 8, "seed": 0, "fingerprint": "data"}
    first, second = (epoch_positions(orders.Order(**settings), 0) for settings in (base, {**base, **other}))
    assert np.mean(first == second) < 0.2


def test_an_interrupted_run_goes_on_in_the_order_of_older_versions():
    order = orders.Order(20, 4, seed=1, fingerprint="data", block=2, window=3)
    expected = [[8, 17, 6, 13], [7, 18, 5, 14], [9, 12, 1, 0], [16, 11, 3, 4], [15, 10, 2, 19]]
    np.testing.assert_array_equal(epoch_positions(order, 1), expected)


def test_seed_and_epoch_do_not_add_up():
    a = epoch_positions(orders.Order(1000, 8, seed=0), 1)
    b = epoch_positions(orders.Order(1000, 8, seed=1), 0)
    assert np.mean(a == b) < 0.05


def test_epochs_differ():
    order = orders.Order(1000, 8)
    assert np.mean(epoch_positions(order, 0) == epoch_positions(order, 1)) < 0.05


@pytest.mark.parametrize("hosts", [2, 8, pytest.param(64, marks=pytest.mark.slow)])
def test_hosts_have_the_lanes_of_one_order(hosts):
    order = orders.Order(5003, 64, seed=1)
    whole = epoch_positions(order, 1)
    shape = BatchShape(64, hosts=hosts)
    parts = [epoch_positions(order, 1, shape.host_lanes(host)) for host in range(hosts)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


def test_a_graph_computes_the_same_order():
    order = orders.Order(5003, 64, seed=1)
    compiled = tf.function(order.positions)
    for window in range(order.windows):
        for a, b in zip(compiled(tf.constant(3), tf.constant(window)), order.positions(3, window), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_window_is_whole_blocks_of_neighbours():
    order = orders.Order(64 * 400, 64)
    _, positions = order.positions(0, 3)
    assert len(positions) == order.window
    neighbours = np.diff(np.sort(positions, axis=None)) == 1
    assert neighbours.mean() > 0.8  # 7 of 8, but for blocks that the window's borders cut


def test_windows_are_cut_off_the_borders_of_batches():
    """Through all epochs, whatever their length, a border is never where a batch of 4, 8, 16, ... rows ends."""
    order = orders.Order(64 * 33 + 5, 64, window=16)
    for epoch in range(20):
        borders = [int(order.positions(epoch, window)[0]) for window in range(1, order.windows)]
        assert {(border + epoch * order.rows) % 4 for border in borders if border < order.rows} <= {1}


def test_four_billion_records_are_arithmetic():
    """Random windows of one epoch of JFT-4B: in range, no position twice, spread over the whole storage."""
    order = orders.Order(JFT + 7, 64)
    rng = np.random.default_rng(0)
    seen = np.concatenate([order.positions(5, window)[1] for window in rng.integers(0, order.windows, 10)], axis=None)
    assert len(np.unique(seen)) == len(seen)
    assert seen.min() >= 0
    assert seen.max() < JFT + 7
    histogram, _ = np.histogram(seen // order.block, bins=4, range=(0, JFT // order.block))
    assert histogram.min() > 0.7 * histogram.mean()


def test_four_billion_blocks_permute_without_collision():
    order = orders.Order(JFT, 64, block=1)
    sample = np.concatenate([order.positions(0, window)[1] for window in range(10**6, 10**6 + 8)], axis=None)
    assert len(np.unique(sample)) == len(sample)
    # Neighbours before are far apart after: without enough cipher rounds this correlation is 0.7.
    by_place = dataclasses.replace(order, window=1)  # a window of one row shuffles nothing
    row = np.concatenate([by_place.positions(0, window)[1] for window in range(10**7, 10**7 + 20)], axis=None)
    for values in (sample, row):
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.08


def test_class_sorted_storage_is_mixed_into_batches():
    """The share of a batch that its commonest class takes, against a true uniform shuffle."""
    examples, classes, batch = 20_000, 10, 256
    labels = np.arange(examples) * classes // examples
    order = orders.Order(examples, 64)
    ours = labels[filled(epoch_positions(order, 0))]
    uniform = labels[np.random.default_rng(0).permutation(examples)]

    def largest_share(stream):
        batches = stream[: len(stream) // batch * batch].reshape(-1, batch)
        return np.mean([np.bincount(b, minlength=classes).max() / batch for b in batches])

    assert largest_share(ours) < 1.6 * largest_share(uniform)


def budget(examples=1000, batch=64, epochs=1.0):
    return orders.EpochBudget(orders.Order(examples, BatchShape(batch).lanes), batch, epochs)


@pytest.mark.parametrize(
    ("examples", "batch", "epochs", "expected", "steps"),
    [
        (1000, 64, 1.0, [1000], 16),
        (1000, 64, 0.25, [250], 4),
        (1000, 64, 2.5, [1000, 1000, 500], 40),
        (1000, 50, 1.0, [1000], 20),
        (3, 64, 2.0, [3, 3], 2),
        (1024, 256, 3.0, [1024] * 3, 12),
    ],
)
def test_budget_counts_every_example(examples, batch, epochs, expected, steps):
    plan = budget(examples, batch, epochs)
    assert plan.expected == expected
    assert plan.steps == steps
    counts = [0] * (len(expected) + 1)
    for window in range(len(counts) * plan.order.windows):
        epoch, _, positions = plan.positions(window)
        counts[int(epoch)] += len(filled(positions.numpy()))
    assert counts == [*expected, 0]


@pytest.mark.parametrize("examples", [197, pytest.param(997, marks=pytest.mark.slow)])
def test_the_window_of_a_row_holds_it(examples):
    plan = budget(examples, 16, 3.0)
    for row in range(plan.rows):
        _, first_row, positions = plan.positions(plan.window_of_row(row))
        assert int(first_row) <= row < int(first_row) + len(positions)


def test_a_quarter_epoch_of_jft():
    plan = budget(JFT, 4096, 0.25)
    assert plan.expected == [10**9]
    assert plan.steps == -(-(10**9) // 4096)


@pytest.mark.parametrize("bad", [0, -1])
def test_an_empty_budget_is_refused(bad):
    with pytest.raises(ValueError, match="must be greater than 0"):
        budget(epochs=bad)
