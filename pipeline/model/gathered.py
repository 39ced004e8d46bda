"""Tensors that stand for a model's kernels during a step, where each replica keeps but a part of their rows."""

import contextlib
import threading
from collections.abc import Iterator, Mapping

import tensorflow as tf


class _Values(threading.local):  # replicas are traced in threads of their own
    by_name: Mapping[str, tf.Tensor] = {}


_values = _Values()


@contextlib.contextmanager
def using(values: Mapping[str, tf.Tensor]) -> Iterator[None]:
    """Within, in this thread, `get` gives these values."""
    before, _values.by_name = _values.by_name, values
    try:
        yield
    finally:
        _values.by_name = before


def get(name: str) -> tf.Tensor | None:
    """What stands for the variable, or the result computed from it, of this name; None where nothing does."""
    return _values.by_name.get(name)


def standardized(kernel: str) -> str:
    """The name of what a kernel becomes by weight standardisation."""
    return f"{kernel.split(':')[0]}/standardized"


def of(prefix: str) -> dict[str, tf.Tensor]:
    """The values whose names begin with `prefix`, by name."""
    return {name: value for name, value in _values.by_name.items() if name.startswith(prefix)}
