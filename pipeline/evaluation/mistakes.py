"""The worst mistakes of a model: which they are, and their images, read from the records."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipeline import contact_sheet
from pipeline.data.reader import RecordSet
from pipeline.evaluation.metrics import Confusion
from pipeline.evaluation.predictions import Predictions

WORST = 40  # on the contact sheet
PAIRS, OF_A_PAIR = 6, 8  # pairs of classes with a contact sheet each, and its images


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An example that was classified wrong, and what it takes to look at it.

    Attributes:
      key: the example's name in its source.
      image: encoded, as the record holds it.
      labels: true class or classes, with the probability that the model gives each.
      predicted: the most probable class, with its probability.
    """

    key: str
    image: bytes
    labels: tuple[tuple[int, float], ...]
    predicted: tuple[int, float]


def worst(predictions: Predictions, count: int = WORST) -> np.ndarray:
    """Indices of the examples whose most probable class is no label, the most confident predictions first."""
    return _most_confident(predictions, np.flatnonzero(~predictions.top1), count)


class Pair(NamedTuple):
    """A class, the class that it is taken for, how often, and the indices of the most confident of these examples."""

    label: int
    predicted: int
    times: int
    examples: np.ndarray


def confused_pairs(predictions: Predictions, confusion: Confusion) -> list[Pair]:
    """The largest cells of the confusion matrix off the diagonal."""
    pairs = []
    for label, predicted, times in zip(*(array[:PAIRS].tolist() for array in confusion.mistakes()), strict=True):
        here = (predictions.label == label) & (predictions.predicted == predicted)
        pairs.append(Pair(label, predicted, times, _most_confident(predictions, np.flatnonzero(here), OF_A_PAIR)))
    return pairs


def _most_confident(predictions: Predictions, indices: np.ndarray, count: int) -> np.ndarray:
    return indices[np.argsort(-predictions.confidence[indices], kind="stable")][:count]


def read(records: RecordSet, predictions: Predictions, indices: np.ndarray) -> dict[int, Mistake]:
    """The examples at `indices`, by index, with key and image from the split's records."""
    if not len(indices):
        return {}
    positions = tf.data.Dataset.from_tensors(predictions.position[indices])
    fields = next(iter(positions.flat_map(records.lookup().read)))
    keys, images = fields["key"].numpy(), fields["image"].numpy()
    return {
        index: Mistake(
            key.decode("utf-8", "surrogateescape"),
            image,
            _labels(predictions, index),
            (int(predictions.predicted[index]), float(predictions.confidence[index])),
        )
        for key, image, index in zip(keys, images, indices.tolist(), strict=True)
    }


def _labels(predictions: Predictions, index: int) -> tuple[tuple[int, float], ...]:
    real = predictions.label_weights[index] > 0
    labels, probabilities = predictions.labels[index], predictions.label_probabilities[index]
    return tuple(zip(labels[real].tolist(), probabilities[real].tolist(), strict=True))


def sheet(mistakes: Sequence[Mistake], names: Sequence[str]) -> bytes:
    """The contact sheet of mistakes, as JPEG: under each, the true class, the predicted one, and the key."""
    tiles: list[contact_sheet.Tile] = []
    for number, mistake in enumerate(mistakes):
        true = [f"{names[label]} {probability:.0%}" for label, probability in mistake.labels[:1]] or ["no label"]
        label, probability = mistake.predicted
        lines = [*true, f"→ {names[label]} {probability:.0%}", f"{number + 1}: {mistake.key}"]
        tiles.append((contact_sheet.thumbnail(mistake.image), lines))
    return contact_sheet.jpeg(tiles)
