"""What a model said of each example of a split, in small arrays: no logits, so a million examples fit in memory."""

import dataclasses

import numpy as np

from pipeline.evaluation.metrics import ClassCounts


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions for n examples with up to k labels each, in the order in which they are stored.

    Attributes:
      position: int64 [n], where the record is stored in its split.
      labels: int32 [n, k].
      label_weights: float32 [n, k], 0 where there is no label.
      label_probabilities: float32 [n, k], the probability that the model gives each label.
      predicted: int32 [n], the most probable class.
      confidence: float32 [n], its probability.
      top1, top5: bool [n], whether one of the 1 or 5 most probable classes is a label.
      classes: how many the model tells apart.
      class_counts: None where it is not defined which classes are predicted (several labels under softmax).
      several_labels: whether the records may have several labels, so that an example has no one true class.
      has_confidence: whether `confidence` is a probability that the predicted class is a label.
    """

    position: np.ndarray
    labels: np.ndarray
    label_weights: np.ndarray
    label_probabilities: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    classes: int
    class_counts: ClassCounts | None
    several_labels: bool
    has_confidence: bool

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.position)

    @property
    def label(self) -> np.ndarray:
        """The one label of each example, int32 [n]; only where there are not several."""
        if self.several_labels:
            raise ValueError("Examples with several labels have no one true class.")
        return self.labels[:, 0]
