import numpy as np
import pytest
import tensorflow as tf

from pipeline.data import manifest
from pipeline.train import ledger

IDS = np.random.default_rng(0).integers(-(2**63), 2**63, 40, dtype=np.int64)


def add_all(book, ids, epochs, weights=None):
    weights = np.ones(len(ids), np.float32) if weights is None else weights

    @tf.function
    def step():
        args = tf.constant(ids), tf.constant(epochs, tf.int32), tf.constant(weights, tf.float32)
        return tf.distribute.get_strategy().run(book.add, args=args)

    return int(step())


def entries(book, expected):
    return book.entries(expected, len(IDS), manifest.checksum(IDS))


def test_counts_and_checksums_by_epoch_whatever_the_order():
    book = ledger.Ledger(2)
    ids = np.concatenate([IDS[::-1], IDS[:10]])
    assert add_all(book, ids[:25], [0] * 25) == 25
    assert add_all(book, ids[25:], [0] * 15 + [1] * 10) == 25
    first, second = entries(book, [40, 10])
    assert (first.examples, first.expected, first.exactly_once) == (40, 40, True)
    assert (second.examples, second.expected, second.exactly_once) == (10, 10, True)
    assert str(first) == "epoch 0: exactly once"


def test_empty_slots_do_not_count():
    book = ledger.Ledger(1)
    assert add_all(book, np.append(IDS, 123), [0] * 41, np.append(np.ones(40), 0)) == 40
    assert entries(book, [40])[0].exactly_once


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (IDS[:-1], "39 of 40 examples, 1 too few"),
        (np.append(IDS, IDS[0]), "41 of 40 examples, 1 too many"),
        (np.append(IDS[:-1], IDS[0]), "checksum differs"),
    ],
)
def test_anything_else_than_once_is_found(ids, text):
    book = ledger.Ledger(1)
    add_all(book, ids, [0] * len(ids))
    (entry,) = entries(book, [40])
    assert not entry.exactly_once
    assert text in str(entry)


def test_the_epochs_of_a_subset_are_compared_with_its_first():
    """The manifest has no checksum of a subset."""
    ledgers = [ledger.Ledger(4), ledger.Ledger(4)]
    for book, third in zip(ledgers, (IDS[:30], np.append(IDS[:29], IDS[0])), strict=True):
        add_all(book, np.concatenate([IDS[:30], IDS[29::-1], third, IDS[:7]]), np.repeat(range(4), [30, 30, 30, 7]))
    whole, wrong = (book.entries([30, 30, 30, 7], 30, None) for book in ledgers)
    assert [entry.exactly_once for entry in whole] == [True] * 4
    assert [entry.exactly_once for entry in wrong] == [True, True, False, True]


def test_an_epoch_that_has_not_begun_has_no_entry():
    assert entries(ledger.Ledger(3), [40, 40, 40]) == []
