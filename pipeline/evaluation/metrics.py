"""Metrics of a split from its predictions: NumPy alone."""

import dataclasses
from typing import NamedTuple

import numpy as np

BINS = 15  # of the calibration, as in the paper


@dataclasses.dataclass(frozen=True)
class ClassCounts:
    """Counts of each class, int64 [classes]: examples labelled with it, predicted as it, and both."""

    labelled: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """Share of the predictions of a class that are right, float64 [classes]; NaN where it is never predicted."""
        return _ratio(self.correct, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """Share of the examples of a class that are predicted as it, float64 [classes]; NaN where it has none."""
        return _ratio(self.correct, self.labelled)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, float64 [classes]; NaN where it has no example and no prediction."""
        return _ratio(2 * self.correct, self.labelled + self.predicted)

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that have an example or a prediction, as scikit-learn computes it."""
        return float(np.nanmean(self.f1))


def class_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> ClassCounts:
    """Counts of each class where every example has one label: `labels` and `predicted` are integers [n]."""
    arrays = (labels, predicted, labels[labels == predicted])
    return ClassCounts(*(np.bincount(array, minlength=classes) for array in arrays))


class Confusion(NamedTuple):
    """The cells of a confusion matrix that are not empty, ordered by label and prediction; int64 [cells] each."""

    label: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray

    def mistakes(self) -> "Confusion":
        """The cells off the diagonal, the largest first."""
        off = np.flatnonzero(self.label != self.predicted)
        off = off[np.argsort(-self.counts[off], kind="stable")]
        return Confusion(*(array[off] for array in self))


def confusion(labels: np.ndarray, predicted: np.ndarray) -> Confusion:
    """The confusion matrix of examples with one label each; it never takes more memory than they do."""
    classes = int(max(labels.max(), predicted.max())) + 1
    cells, counts = np.unique(labels.astype(np.int64) * classes + predicted, return_counts=True)
    return Confusion(cells // classes, cells % classes, counts)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in `BINS` bins of equal width, [BINS] each.

    Attributes:
      examples: int64, predictions in each bin.
      confidence, accuracy: float64, their means in it; NaN where it is empty.
    """

    examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of accuracy and confidence, bins weighted by their examples.

        As in "On Calibration of Modern Neural Networks" (Guo et al., 2017).
        """
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gaps * self.examples) / self.examples.sum())


def calibration(confidence: np.ndarray, correct: np.ndarray) -> Calibration:
    """Calibration of the probabilities `confidence`, float [n], of predictions that are right where `correct` is."""
    confidence = confidence.astype(np.float64)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # closed above, as in the paper
    examples = np.bincount(bins, minlength=BINS)
    sums = (np.bincount(bins, weights, BINS) for weights in (confidence, correct.astype(np.float64)))
    return Calibration(examples, *(_ratio(each, examples) for each in sums))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, float64; NaN where the denominator is 0."""
    quotient = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=quotient, where=denominator != 0)
