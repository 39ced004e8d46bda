"""Few-shot evaluation of a trained network: ridge regression on its frozen features, from k examples a class.

As in the transfer tests of "Scaling Vision Transformers" (Zhai et al., 2022): one linear map to one-hot labels, in
closed form. Its penalty is chosen by leave-one-out on those few examples alone.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from pipeline import files, report
from pipeline.data import reader
from pipeline.data.augment import normalize
from pipeline.model.classifier import Classifier
from pipeline.train import checkpoint, distribution
from pipeline.train.controller import explained_errors
from pipeline.train.evaluator import evaluation_batches
from pipeline.train.experiment import Experiment
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.step import Batch
from pipeline.train.trained_model import load_model

_PENALTIES = 10.0 ** np.arange(-6, 4)  # times the mean squared singular value of the features


def few_shot(
    context: RunContext,
    experiment: Experiment,
    loop: Loop = Loop(),  # noqa: B008 (frozen)
    shots: Sequence[int] = (1, 5, 10),
    seed: int = 0,
    which_checkpoint: str = checkpoint.NEWEST,
) -> dict:
    """Evaluates a checkpoint in `context.model_dir` on the record set of `experiment.data`.

    The classes may be others than those that the network was trained on. Prints the results and writes them to
    `few_shot.json` in the run's folder.

    Args:
      context: where the run is.
      experiment: the run's experiment; its training split gives the examples, its validation split is classified.
      loop: where to compute the features.
      shots: numbers of examples a class.
      seed: chooses the examples.
      which_checkpoint: see `checkpoint.find`.

    Returns:
      `few_shot_K`: share of the validation split classified right from K examples a class.

    Raises:
      CheckpointError: there is no checkpoint, or it is of another model.
      ValueError: a class has too few examples, or the examples have several labels.
    """
    strategy = loop.create_strategy()
    saved, made = checkpoint.find(context.model_dir, which_checkpoint), experiment.data.read_manifest()
    with strategy.scope():
        model = load_model(
            saved, lambda num_classes: experiment.create_evaluation_model(num_classes, target_device=None)
        )
    with explained_errors(strategy):
        train = extract(strategy, model, experiment, experiment.data.training_records(made), loop.eval_batch)
        validation = extract(strategy, model, experiment, experiment.data.validation_records(made), loop.eval_batch)
    results = {}
    for count in shots:
        chosen = choose(train[1], count, seed)
        predicted = ridge(train[0][chosen], train[1][chosen], validation[0])
        results[f"few_shot_{count}"] = float(np.mean(predicted == validation[1]))
    print(f"step {saved.step} of {context.model_dir} on {experiment.data.directory}: {report.describe(results)}")
    content = {"step": saved.step, "data": experiment.data.directory, "seed": seed, **results}
    if distribution.is_chief():
        files.write_atomically(os.path.join(context.model_dir, "few_shot.json"), json.dumps(content, indent=1))
    return results


def extract(
    strategy: tf.distribute.Strategy,
    model: Classifier,
    experiment: Experiment,
    records: reader.RecordSet,
    batch: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the model's features, float32 [examples, channels], and labels [examples], of a split, by record id.

    Args:
      strategy: in whose scope the model was made.
      model: gives the features.
      experiment: says how the images are seen.
      records: the split.
      batch: global batch, the training batch where None.

    Raises:
      ValueError: the examples have several labels, or the batch does not divide over hosts and replicas.
    """
    compute = features_step(strategy, model)
    dataset, steps = evaluation_batches(strategy, experiment, records, batch)
    iterator, batches = iter(dataset), []
    for _ in range(steps):
        batches.append({name: values.numpy() for name, values in compute(iterator).items()})
        if np.count_nonzero(batches[-1]["label_weights"], axis=1).max() > 1:
            raise ValueError(f"{records.directory} has several labels an example; few-shot evaluation needs one.")
    joined = {name: np.concatenate([each[name] for each in batches]) for name in batches[0]}
    real = np.flatnonzero(joined["weight"])
    real = real[np.argsort(joined["id"][real])]  # on every number of hosts the same
    return joined["features"][real], joined["labels"][real, 0]


def features_step(strategy: tf.distribute.Strategy, model: Classifier) -> Callable[[Iterator[Batch]], Batch]:
    """From the next global batch to the fields of all its slots, in which features take the place of images."""

    def replica_step(batch):
        features = model.features(normalize(batch["image"]), training=False)
        return {"features": features, **{name: batch[name] for name in ("id", "labels", "label_weights", "weight")}}

    @tf.function(autograph=False)
    def step(iterator):
        fields = strategy.run(replica_step, args=(next(iterator),))
        return {name: strategy.gather(values, axis=0) for name, values in fields.items()}

    return step


def choose(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the indices of `count` examples of every class in `labels`, the same for the same seed.

    A larger count keeps the examples of a smaller one.

    Raises:
      ValueError: a class has fewer.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    if count < 1 or sizes.min() < count:
        rare = classes[sizes.argmin()]
        raise ValueError(f"{count} examples a class are asked for; class {rare} has {sizes.min()}.")
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    return np.concatenate([shuffled[labels[shuffled] == each][:count] for each in classes])


def ridge(features: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Returns the classes of `queries` [m, channels] by ridge regression from `features` [n, channels] to `labels` [n].

    Features are standardised, and the intercept is not penalised. Of a grid of penalties, relative to the features'
    scale, the one with the smallest squared leave-one-out error is taken.
    """
    classes, index = np.unique(labels, return_inverse=True)
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    x = ((features - mean) / deviation).astype(np.float64)
    targets = np.eye(len(classes))[index]
    y = targets - targets.mean(0)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    penalties = _PENALTIES * np.mean(s**2)
    penalty = penalties[np.argmin([_leave_one_out(u, s, y, each) for each in penalties])]
    solution = vt.T @ ((s / (s**2 + penalty))[:, None] * (u.T @ y))
    scores = ((queries - mean) / deviation) @ solution + targets.mean(0)
    return classes[scores.argmax(1)]


def _leave_one_out(u: np.ndarray, s: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """Mean squared error of each example predicted from the others, from the singular vectors of all."""
    shrink = s**2 / (s**2 + penalty)
    residuals = y - u @ (shrink[:, None] * (u.T @ y))
    leverage = (u**2) @ shrink + 1 / len(y)  # the intercept adds its share
    return float(np.mean((residuals / np.maximum(1 - leverage, 1e-9)[:, None]) ** 2))
