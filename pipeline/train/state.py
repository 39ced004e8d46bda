"""Everything a run carries from step to step, under the names that checkpoints use."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import tensorflow as tf
import tf_keras

from pipeline.data.order import EpochBudget
from pipeline.model import weights
from pipeline.model.classifier import HEAD, Classifier
from pipeline.sharding.sharded_variable import sharding_kernels
from pipeline.train import checkpoint, distribution, freezing, trained_model
from pipeline.train.ema import AveragedModel
from pipeline.train.experiment import Experiment
from pipeline.train.ledger import Ledger

#: Steps of a run on a CPU below which a model's operations for a CPU do not repay their compilation.
MIN_CPU_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run carries.

    Attributes:
      model: what is trained.
      averaged: the average of its weights; None without EMA.
      evaluated: what evaluation uses: the averaged weights where there are some, else those of `model` itself.
      optimizer, ledger: see there.
    """

    model: Classifier
    averaged: AveragedModel | None
    evaluated: Classifier
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
    def groups(self) -> checkpoint.State:
        """Group to variable name to variable: what a checkpoint holds."""
        groups = {
            "model": weights.named(self.model),
            "optimizer": self.optimizer.named_variables(),
            "ledger": {"examples": self.ledger.examples, "checksum": self.ledger.checksum},
        }
        return {**groups, "ema": weights.named(self.averaged.model)} if self.averaged else groups


def create_state(
    experiment: Experiment, num_classes: int, budget: EpochBudget, target_device: str | None = None
) -> TrainState:
    """Makes the state of step 0, in the strategy's scope; the same seed makes the same weights.

    `target_device` is the kind of device that trains (see `classifier.py`), the strategy's own where None.
    """
    if target_device is None:
        target_device = distribution.device(tf.distribute.get_strategy())
    if target_device == "cpu" and budget.steps < MIN_CPU_STEPS:
        target_device = None  # so that models choose nothing that compiles, unless they are told to
    tf_keras.utils.set_random_seed(experiment.seed)
    with sharding_kernels(experiment.shard_optimizer):
        model, averaged, evaluated = _create_models(experiment, num_classes, target_device)
    steps_per_epoch = budget.order.rows / budget.rows_per_step
    optimizer = experiment.optimizer(learning_rate=experiment.schedule(budget.steps, steps_per_epoch))
    optimizer.build(model.trainable_variables)
    return TrainState(model, averaged, evaluated, optimizer, Ledger(len(budget.expected)))


def _create_models(
    experiment: Experiment, num_classes: int, target_device: str | None
) -> tuple[Classifier, AveragedModel | None, Classifier]:
    """What is trained, the average of its weights, and what evaluation uses."""
    created: list[tf.Variable] = []
    with tf.variable_creator_scope(_recording(created)):
        model = experiment.create_model(num_classes, target_device)
    freezing.freeze(model, experiment.frozen)
    if experiment.ema_decay is not None:
        evaluated = experiment.create_evaluation_model(num_classes, target_device)
        freezing.freeze(evaluated, experiment.frozen)  # for the same order of variables: Keras has frozen ones last
        return model, AveragedModel(model, evaluated, experiment.ema_decay), evaluated
    if experiment.eval_precision in (None, experiment.precision):
        return model, None, model
    with tf.variable_creator_scope(_reusing(created)):
        return model, None, experiment.create_evaluation_model(num_classes, target_device)


def _recording(created: list[tf.Variable]) -> Callable:
    """A variable creator that appends each variable to `created`."""

    def create(next_creator, **settings):
        created.append(next_creator(**settings))
        return created[-1]

    return create


def _reusing(created: Sequence[tf.Variable]) -> Callable:
    """A variable creator that gives the variables `created`, in their order, to a model made like theirs."""
    remaining = iter(created)
    return lambda next_creator, **settings: next(remaining)


def weights_digest(model: tf_keras.Model) -> str:
    """SHA-256 over the model's variables (name, shape and bytes) in name order."""
    digest = hashlib.sha256()
    for name, variable in sorted(weights.named(model).items()):
        value = variable.numpy()
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def initialize(state: TrainState, saved: checkpoint.Saved, same_classes: bool) -> list[str]:
    """Starts `state` from another run's weights: its averaged ones where it kept some.

    The last layer keeps its random weights unless it is the same task (`same_classes`) and the same width.

    Returns:
      Names of the variables that keep their random weights.

    Raises:
      CheckpointError: the checkpoint is of another model; says how it differs.
    """
    arrays, variables = trained_model.evaluated_weights(saved), weights.named(state.model)
    head = frozenset(name for name in {*variables, *arrays} if name.startswith(HEAD))
    same_shapes = all(
        name in variables and name in arrays and tuple(variables[name].shape) == arrays[name].shape for name in head
    )
    if same_classes and same_shapes:
        head = frozenset()
    trained_model.assign(state.model, arrays, saved, but=head)
    if state.averaged:
        state.averaged.reset()
    return sorted(head & variables.keys())
