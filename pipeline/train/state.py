"""Everything a run carries from step to step, under the names that checkpoints use."""

import dataclasses
import hashlib

import numpy as np
import tensorflow as tf
import tf_keras

from pipeline.data.order import EpochBudget
from pipeline.model import weights
from pipeline.model.classifier import HEAD, Classifier
from pipeline.train import checkpoint, distribution, freezing
from pipeline.train.ema import AveragedModel
from pipeline.train.experiment import Experiment
from pipeline.train.ledger import Ledger

#: Steps of a run on a CPU below which the model's CPU implementation does not repay its compilation.
MIN_CPU_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class TrainState:
    """Model, averaged model (None without EMA), optimiser and ledger."""

    model: Classifier
    averaged: AveragedModel | None
    optimizer: tf_keras.optimizers.Optimizer
    ledger: Ledger

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.optimizer.iterations.numpy())

    @property
    def variant(self) -> str:
        """What the model calls its architecture."""
        return self.model.variant

    @property
    def evaluated(self) -> tf_keras.Model:
        """The model that evaluation and export use: the averaged one where there is one."""
        return self.averaged.model if self.averaged else self.model

    @property
    def groups(self) -> checkpoint.State:
        """Group to variable name to variable: what a checkpoint holds."""
        groups = {
            "model": weights.named(self.model),
            "optimizer": {variable.name.split(":")[0]: variable for variable in self.optimizer.variables},
            "ledger": {"examples": self.ledger.examples, "checksum": self.ledger.checksum},
        }
        return {**groups, "ema": weights.named(self.averaged.model)} if self.averaged else groups


def create(
    experiment: Experiment, num_classes: int, budget: EpochBudget, target_device: str | None = None
) -> TrainState:
    """Makes the state of step 0, in the strategy's scope; the same seed makes the same weights.

    `target_device` is the kind of device that the models are for (see `classifier.py`), the strategy's own where None.
    """
    if target_device is None:
        target_device = distribution.device(tf.distribute.get_strategy())
    if target_device == "cpu" and budget.steps < MIN_CPU_STEPS:
        target_device = None  # so that models choose nothing that compiles, unless they are told to
    tf_keras.mixed_precision.set_global_policy(experiment.precision)
    tf_keras.utils.set_random_seed(experiment.seed)
    model = experiment.model(num_classes=num_classes, target_device=target_device)
    freezing.freeze(model, experiment.frozen)
    averaged = None
    if experiment.ema_decay is not None:
        evaluated = experiment.model(num_classes=num_classes, target_device=target_device)
        averaged = AveragedModel(model, evaluated, experiment.ema_decay)
    steps_per_epoch = budget.order.rows / budget.rows_per_step
    optimizer = experiment.optimizer(learning_rate=experiment.schedule(budget.steps, steps_per_epoch))
    optimizer.build(model.trainable_variables)
    return TrainState(model, averaged, optimizer, Ledger(len(budget.expected)))


def weights_digest(model: tf_keras.Model) -> str:
    """SHA-256 over the model's variables (name, shape and bytes) in name order."""
    digest = hashlib.sha256()
    for name, variable in sorted(weights.named(model).items()):
        value = variable.numpy()
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def restore_evaluated(state: TrainState, saved: checkpoint.Saved) -> None:
    """Gives the model that evaluation uses the weights of a run's checkpoint, or of one of imported weights.

    Raises:
      CheckpointError: the checkpoint is of another model; says how it differs.
    """
    assign(state.evaluated, evaluated_weights(saved), saved)


def assign(model: tf_keras.Model, arrays: dict[str, np.ndarray], saved: checkpoint.Saved) -> None:
    """Gives the model the weights `arrays` by name, which come from `saved`; raises as `restore_evaluated`."""
    variables = weights.named(model)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    _check_fit(saved, shapes, {name: array.shape for name, array in arrays.items()})
    for name, variable in variables.items():
        variable.assign(arrays[name])


def evaluated_weights(saved: checkpoint.Saved) -> dict[str, np.ndarray]:
    """The checkpoint's averaged weights, or its raw ones where it kept no average, by name."""
    return checkpoint.arrays(saved, "ema") or checkpoint.arrays(saved, "model")


def initialize(state: TrainState, saved: checkpoint.Saved, same_classes: bool) -> list[str]:
    """Starts `state` from another run's weights: its averaged ones where it kept some.

    The last layer keeps its random weights unless it is the same task (`same_classes`) and the same width.

    Returns:
      Names of the variables that were initialised anew.

    Raises:
      CheckpointError: the checkpoint is of another model; says how it differs.
    """
    arrays = evaluated_weights(saved)
    variables = weights.named(state.model)
    shapes = {name: tuple(v.shape) for name, v in variables.items()}
    found = {name: array.shape for name, array in arrays.items()}
    head = {name for name in {*shapes, *found} if name.startswith(HEAD)}
    if same_classes and all(shapes.get(name) == found.get(name) for name in head):
        head = set()
    body = {name: shape for name, shape in shapes.items() if name not in head}
    _check_fit(saved, body, {name: shape for name, shape in found.items() if name not in head})
    for name in body:
        variables[name].assign(arrays[name])
    if state.averaged:
        state.averaged.reset()
    return sorted(head & shapes.keys())


def _check_fit(saved, expected, found) -> None:
    if problems := checkpoint.differences(expected, found):
        shown = problems[:10] + [f"and {len(problems) - 10} more"] * (len(problems) > 10)
        raise checkpoint.CheckpointError(
            f"{saved.path} (variant {saved.facts.get('variant', 'unknown')}) does not fit this model:\n  "
            + "\n  ".join(shown)
            + "\nUse the gin/model file of the checkpoint's variant."
        )
