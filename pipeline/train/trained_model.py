"""The model of a checkpoint: the one way from a run's folder to something that evaluates, exports or predicts."""

from collections.abc import Callable

import numpy as np

from pipeline.model import weights
from pipeline.model.classifier import HEAD, Classifier
from pipeline.train import checkpoint
from pipeline.train.checkpoint import CheckpointError, Saved


def load_model(saved: Saved, create: Callable[[int], Classifier]) -> Classifier:
    """Makes a model with the checkpoint's weights: its averaged ones, or its raw ones where it kept no average.

    Args:
      saved: a checkpoint of a run, or of imported weights.
      create: makes the model, in the strategy's scope, from the length of its logits, which is the checkpoint's.

    Raises:
      CheckpointError: the checkpoint is of another model; says how it differs.
    """
    arrays = evaluated_weights(saved)
    if f"{HEAD}bias" not in arrays:
        raise CheckpointError(f"{saved.path} has no variable {HEAD}bias, so it is not a classifier's checkpoint.")
    model = create(len(arrays[f"{HEAD}bias"]))
    assign(model, arrays, saved)
    return model


def is_averaged(saved: Saved) -> bool:
    """Whether the checkpoint kept averaged weights, which `load_model` then takes."""
    return any(name.startswith("ema/") for name in checkpoint.variables(saved))


def evaluated_weights(saved: Saved) -> dict[str, np.ndarray]:
    """The checkpoint's averaged weights, or its raw ones where it kept no average, by name."""
    return checkpoint.arrays(saved, "ema") or checkpoint.arrays(saved, "model")


def assign(model: Classifier, arrays: dict[str, np.ndarray], saved: Saved, but: frozenset[str] = frozenset()) -> None:
    """Gives the model the weights `arrays` by name, which come from `saved`, but for the variables `but`.

    Raises:
      CheckpointError: the checkpoint is of another model; says how it differs.
    """
    variables = {name: variable for name, variable in weights.named(model).items() if name not in but}
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    found = {name: array.shape for name, array in arrays.items() if name not in but}
    if problems := checkpoint.differences(shapes, found):
        raise CheckpointError(
            f"{saved.path} (variant {saved.facts.get('variant', 'unknown')}) does not fit this model:\n  "
            f"{checkpoint.shown(problems)}\nUse the gin/model file of the checkpoint's variant."
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])
