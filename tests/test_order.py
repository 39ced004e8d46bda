import numpy as np
import pytest

from pipeline.data import order as orders
from pipeline.data.batch_shape import BatchShape

JFT = 4_000_000_000


def lane_positions(order, epoch, lane):
    row, parts = 0, []
    while row < order.lane_size(lane):
        first, end = order.window_bounds(lane, row)
        assert first == row
        parts.append(order.positions(epoch, lane, first, end))
        row = end
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def epoch_positions(order, epoch):
    """The whole epoch as batches see it: row by row, lane by lane."""
    table = np.full((order.rows, order.lanes), -1)
    for lane in range(order.lanes):
        positions = lane_positions(order, epoch, lane)
        table[: len(positions), lane] = positions
    return table[table >= 0]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("examples", "lanes"), [(1, 1), (10, 8), (63, 64), (64, 64), (65, 64), (997, 16), (5000, 64)])
def test_every_epoch_is_a_permutation(examples, lanes, shuffle):
    order = orders.Order(examples, lanes, seed=3, shuffle=shuffle)
    for epoch in range(3):
        assert sorted(epoch_positions(order, epoch)) == list(range(examples))


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"fingerprint": "other"}, {"window": 32}, {"block": 4}],
)
def test_order_depends_on_all_that_defines_it(other):
    base = {"examples": 1000, "lanes": 8, "seed": 0, "fingerprint": "data"}
    first, second = (epoch_positions(orders.Order(**settings), 0) for settings in (base, {**base, **other}))
    assert np.mean(first == second) < 0.2


def test_seed_and_epoch_do_not_add_up():
    a = epoch_positions(orders.Order(1000, 8, seed=0), 1)
    b = epoch_positions(orders.Order(1000, 8, seed=1), 0)
    assert np.mean(a == b) < 0.05


def test_epochs_differ():
    order = orders.Order(1000, 8)
    assert np.mean(epoch_positions(order, 0) == epoch_positions(order, 1)) < 0.05


def test_positions_of_part_of_a_window_are_part_of_its_positions():
    order = orders.Order(1000, 4)
    first, end = order.window_bounds(1, 100)
    whole = order.positions(2, 1, first, end)
    np.testing.assert_array_equal(order.positions(2, 1, first + 5, end - 3), whole[5:-3])


def test_four_billion_records_are_arithmetic():
    """Random windows of one epoch of JFT-4B: in range, no position twice, spread over the whole storage."""
    order = orders.Order(JFT + 7, 64)
    rng = np.random.default_rng(0)
    seen = []
    for lane in rng.integers(0, 64, 100).tolist():
        first, end = order.window_bounds(lane, int(rng.integers(order.lane_size(lane))))
        seen.append(order.positions(5, lane, first, end))
    seen = np.concatenate(seen)
    assert len(np.unique(seen)) == len(seen)
    assert seen.min() >= 0
    assert seen.max() < JFT + 7
    histogram, _ = np.histogram(seen // order.block, bins=4, range=(0, JFT // order.block))
    assert histogram.min() > 0.7 * histogram.mean()


def test_four_billion_blocks_permute_without_collision():
    order = orders.Order(JFT, 64, block=1)
    sample = np.concatenate([order.positions(0, lane, *order.window_bounds(lane, 10**7)) for lane in range(64)])
    assert len(np.unique(sample)) == len(sample)
    # Neighbours before are strangers after: without enough cipher rounds this correlation is 0.7.
    assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 0.05


def test_class_sorted_storage_is_mixed_into_batches():
    """The share of a batch that its commonest class takes, against a true uniform shuffle."""
    examples, classes, batch = 20_000, 10, 256
    labels = np.arange(examples) * classes // examples
    order = orders.Order(examples, 64)
    ours = labels[epoch_positions(order, 0)]
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
    filled = [0] * len(expected)
    for epoch in range(len(expected)):
        for lane in range(plan.order.lanes):
            filled[epoch] += int(plan.filled(epoch, lane, np.arange(plan.order.rows)).sum())
    assert filled == expected


def test_a_quarter_epoch_of_jft():
    plan = budget(JFT, 4096, 0.25)
    assert plan.expected == [10**9]
    assert plan.steps == -(-(10**9) // 4096)


@pytest.mark.parametrize("bad", [0, -1])
def test_an_empty_budget_is_refused(bad):
    with pytest.raises(ValueError, match="must be greater than 0"):
        budget(epochs=bad)
