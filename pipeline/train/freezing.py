"""Layers that training leaves as they are."""

import fnmatch
from collections.abc import Sequence

import tf_keras

from pipeline.model import weights


def freeze(model: tf_keras.Model, patterns: Sequence[str]) -> list[str]:
    """Takes the layers whose variables fit `patterns` out of `model.trainable_variables`.

    Args:
      model: any model; frozen normalisation layers also stop to follow the data's statistics.
      patterns: of variable names, as of file names: `stem/*`, `stage[01]/*`.

    Returns:
      Names of the variables that are frozen.

    Raises:
      ValueError: a pattern fits nothing, or only part of a layer, or nothing would be left to train.
    """
    before = [variable.name.split(":")[0] for variable in model.trainable_variables]
    chosen: set[str] = set()
    for pattern in patterns:
        fits = fnmatch.filter(before, pattern)
        if not fits:
            raise ValueError(f"Nothing to freeze fits {pattern!r}; the variables are {before[0]}, ..., {before[-1]}.")
        chosen.update(fits)
    for layer in model.submodules:
        if isinstance(layer, tf_keras.layers.Layer):
            names = {variable.name.split(":")[0] for variable in layer.trainable_variables}
            if names and names <= chosen:
                layer.trainable = False
    left = {variable.name.split(":")[0] for variable in model.trainable_variables}
    if partial := sorted(chosen & left):
        raise ValueError(f"Layers freeze as a whole, and the patterns fit only part of one: {', '.join(partial[:5])}.")
    if not left:
        raise ValueError(f"{', '.join(patterns)} freeze the whole of {model.name}: nothing is left to train.")
    return [name for name in weights.named(model) if name in chosen]
