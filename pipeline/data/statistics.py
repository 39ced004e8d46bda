"""What a record set is like: counts that training does not need, and the choice of its settings does."""

import dataclasses
import json
import os

import numpy as np
import tensorflow as tf

from pipeline import files
from pipeline.data.manifest import ManifestError

FILE = "summary.json"


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Counts that the manifest does not have.

    Attributes:
      images_per_class: split to the number of images of each class, in label order.
      shared: `SPLIT and SPLIT` to the number of images, by their bytes, that are in both.
      sides: bucket of an image's shorter side (see `side_bucket`) to the number of images, of all splits.
    """

    images_per_class: dict[str, list[int]]
    shared: dict[str, int]
    sides: dict[str, int]

    @property
    def median_side(self) -> int:
        """The median of the images' shorter sides in pixels, as far as buckets tell it: up to 1.4 times smaller."""
        buckets = sorted((int(bucket), count) for bucket, count in self.sides.items())
        middle = np.searchsorted(np.cumsum([count for _, count in buckets]), sum(self.sides.values()) / 2)
        return round(2 ** (buckets[middle][0] / 2))

    def class_weights(self, split: str) -> np.ndarray:
        """How much an example of each class counts so that all classes count the same, float32 [classes].

        The mean over the examples of the split is 1. A class without examples has weight 0.
        """
        counts = np.array(self.images_per_class[split], np.float64)
        classes = np.count_nonzero(counts)
        return np.where(counts > 0, counts.sum() / (classes * np.maximum(counts, 1)), 0).astype(np.float32)


def side_bucket(side: int) -> int:
    """The bucket of a shorter side in pixels: b for sides from 2**(b/2) up to 2**((b+1)/2)."""
    return (side * side).bit_length() - 1


def write(folder: str, statistics: Statistics) -> None:
    """Writes `summary.json` into the folder of a record set."""
    content = json.dumps(dataclasses.asdict(statistics), sort_keys=True) + "\n"
    files.write_atomically(os.path.join(folder, FILE), content, several_writers=True)


def read(folder: str) -> Statistics:
    """Reads what `write` wrote.

    Raises:
      ManifestError: the record set has none, or one of an older version.
    """
    path = os.path.join(folder, FILE)
    try:
        with files.opened(path, "r") as file:
            return Statistics(**json.load(file))
    except (OSError, tf.errors.OpError, TypeError, ValueError) as error:
        raise ManifestError(
            f"{path} is missing, damaged or of an older version; the command that built the records writes it again."
        ) from error
