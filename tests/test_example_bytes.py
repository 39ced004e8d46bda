"""The hand-written serialisation of an Example, against the protocol buffer library's."""

import random

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data import example_bytes


def ours(features) -> bytes:
    return b"".join(
        example_bytes.message({name: example_bytes.entry(name, *value) for name, value in features.items()})
    )


def theirs(features) -> bytes:
    example = tf.train.Example()
    for name, (kind, values) in features.items():
        getattr(example.features.feature[name], f"{kind}_list").value.extend(values)
    return example.SerializeToString(deterministic=True)


def some_features(seed: int) -> dict:
    rng = random.Random(seed)
    integers = [rng.randrange(-(2**63), 2**63) >> rng.randrange(64) for _ in range(rng.randrange(1, 40))]
    floats = [rng.choice([0.0, -1.5, 1e-45, 1e39, float("inf")]) for _ in range(rng.randrange(1, 40))]
    data = rng.randbytes(rng.choice([0, 1, 100, 127, 128, 16_000, 16_384, 70_000]))
    return {"é": ("bytes", [data]), "a" * rng.randrange(1, 300): ("int64", integers), "weights": ("float", floats)}


@pytest.mark.parametrize("seed", range(40))
def test_the_bytes_are_those_of_the_library(seed):
    features = some_features(seed)
    assert ours(features) == theirs(features)


def test_numbers_of_numpy_and_limits_of_64_bits():
    values = {"x": ("int64", [np.int64(-1), True, 2**63 - 1, -(2**63)]), "y": ("float", [np.float32(0.1), 2])}
    assert ours(values) == theirs(values)


def test_no_value():
    values = {"x": ("int64", []), "y": ("float", [])}
    assert ours(values) == theirs(values)


@pytest.mark.parametrize(
    ("kind", "value", "error"),
    [
        ("int64", 1.5, TypeError),
        ("int64", "1", TypeError),
        ("int64", 2**63, ValueError),
        ("float", "1", TypeError),
        ("bytes", 1, TypeError),
        ("bytes", "text", TypeError),
    ],
)
def test_a_value_of_another_kind_is_refused(kind, value, error):
    with pytest.raises(error):
        example_bytes.entry("x", kind, [value])


def test_bytes_are_not_copied():
    data = bytes(100)
    assert example_bytes.entry("x", "bytes", [data])[1] is data
