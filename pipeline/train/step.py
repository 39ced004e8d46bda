"""The training step of one replica: the function that the trainer runs and that `tpu_check` compiles."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from pipeline.data.augment import normalize
from pipeline.model import gathered
from pipeline.model.classifier import Classifier
from pipeline.objective import SOFTMAX, Objective, metrics
from pipeline.sharding import gathering
from pipeline.sharding.gathering import Gathered
from pipeline.train import accumulation, memory
from pipeline.train.experiment import Experiment
from pipeline.train.ledger import Ledger
from pipeline.train.sam import SAM
from pipeline.train.state import TrainState

Batch = dict[str, tf.Tensor]


class StepOutput(NamedTuple):
    """What a step reports, summed over this replica's examples, float32 []: loss, top-1 hits, examples."""

    loss: tf.Tensor
    top1: tf.Tensor
    examples: tf.Tensor


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """One optimiser step on one replica's part of a global batch; call it inside `strategy.run`.

    The gradient is summed over `accumulation_steps` parts of the batch, one after the other, and found by `sam` where
    there is one. The batch holds `repeats` views of each example, which follow each other.
    `jit_compile` compiles the forward and backward pass with XLA (on a TPU everything is, regardless).
    `kept_bytes` gets a number each time that the step is traced: bytes of activations, of one part (see `memory.py`).
    """

    model: Classifier
    optimizer: tf_keras.optimizers.Optimizer
    ledger: Ledger
    after_update: Callable[[tf.Tensor], None] = lambda step: None
    label_smoothing: float = 0.0
    objective: Objective = SOFTMAX
    seed: int = 0
    accumulation_steps: int = 1
    sam: SAM | None = None
    repeats: int = 1
    jit_compile: bool = False
    kept_bytes: list[int] = dataclasses.field(default_factory=list, compare=False, repr=False)

    @classmethod
    def of(cls, experiment: Experiment, state: TrainState, jit_compile: bool = False) -> "TrainingStep":
        """The step that `experiment` takes from `state`."""
        return cls(
            model=state.model,
            optimizer=state.optimizer,
            ledger=state.ledger,
            after_update=state.averaged.update if state.averaged else lambda step: None,
            label_smoothing=experiment.label_smoothing,
            objective=experiment.objective,
            seed=experiment.seed,
            accumulation_steps=experiment.accumulation_steps,
            sam=experiment.sam,
            repeats=experiment.data.augmentation.repeats,
            jit_compile=jit_compile,
        )

    def __call__(self, batch: Batch) -> StepOutput:
        """Takes the step; `batch` is as `Data.training_batch` says."""
        step = self.optimizer.iterations
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = _fold_in(_fold_in(tf.constant([self.seed, 0], tf.int64), step), tf.cast(replica, tf.int64))
        # Views of one example follow each other; the ledger counts the first.
        examples = self.ledger.add(*(batch[name][:: self.repeats] for name in ("id", "epoch", "weight")))
        images = tf.cast(examples * self.repeats, tf.float32)
        weights = gathering.gather(self.model, raw=self.sam is not None)
        gradients, output = self._gradients(batch, images, tf.cast(seed, tf.int32), weights)
        self.optimizer.apply_gradients(zip(weights.back(gradients), self.model.trainable_variables, strict=True))
        self.after_update(step)
        return output

    def _gradients(
        self, batch: Batch, images: tf.Tensor, seed: tf.Tensor, weights: Gathered
    ) -> tuple[Sequence[tf.Tensor], StepOutput]:
        def compute(part, part_seed, tensors):
            return self._loss_gradients(part, images, part_seed, weights.at(tensors))

        if self.jit_compile:
            compute = tf.function(compute, jit_compile=True, autograph=False)
        zeros = [tf.zeros(source.shape) for source in weights.sources], tf.constant(0.0), tf.constant(0.0)

        def gradients_of_parts(sources):
            tensors = [source for source in sources if not isinstance(source, tf.Variable)]
            gradients, *sums = accumulation.sum_over_parts(
                lambda part, part_seed: compute(part, part_seed, tensors), batch, seed, self.accumulation_steps, zeros
            )
            return gradients, sums

        find = functools.partial(self.sam.gradients, gradients_of_parts) if self.sam else gradients_of_parts
        gradients, (loss, top1) = find(weights.sources)
        return gradients, StepOutput(loss, top1, tf.reduce_sum(batch["weight"]))

    def _loss_gradients(
        self, batch: Batch, images: tf.Tensor, seed: tf.Tensor, weights: Gathered
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        with gathered.using(weights.values):
            with tf.GradientTape() as tape:
                tape.watch([source for source in weights.sources if not isinstance(source, tf.Variable)])
                logits = self.model(normalize(batch["image"]), training=True, seed=seed)
                of_each = metrics(self.objective, batch["labels"], batch["label_weights"], logits, self.label_smoothing)
                # Gradients are summed over replicas, so each takes its share of the global mean.
                total = tf.reduce_sum(of_each["loss"] * batch["weight"])
                share = total / tf.maximum(images, 1.0)
            forward = memory.operations()
            gradients = tape.gradient(share, weights.sources)
        self.kept_bytes.append(memory.kept_bytes(forward, gradients) if forward else 0)
        return gradients, total, tf.reduce_sum(of_each["top1"] * batch["weight"])


def _fold_in(seed: tf.Tensor, data: tf.Tensor) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, data)
