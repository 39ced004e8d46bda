"""Settings that follow from the data: what `%AUTO` stands for in gin/finetune_own.gin.

The rules are from runs on small public sets (`make bench-own`, docs/own_images.md), for a few hundred to a few hundred
thousand images: a start that is rarely far off, not an optimum.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from pipeline.data import manifest, statistics

# Between two rows in proportion, on logarithmic scales; beyond the first and the last as there.
_EPOCHS = {300: 100, 5_000: 20, 50_000: 12, 500_000: 6}  # training images to epochs from random weights
_SHARE_FROM_WEIGHTS = 0.5  # of these epochs, where training starts from trained weights
_MIN_AREA = {5_000: 0.7, 500_000: 0.25}  # least share of an image in a crop
_SIZES = (64, 96, 128)  # pixels, of networks that start from random weights
_SIZE_FROM_WEIGHTS = 224


@dataclasses.dataclass(frozen=True)
class AutoSettings:
    """Values of gin's macros, and what they follow from."""

    values: dict[str, float | int]
    reason: str


def choose(
    directory: str, initial_checkpoint: str = "", batch: int | None = None, epochs: float | None = None
) -> AutoSettings:
    """Chooses settings for the record set in `directory`, and a start from random weights or `initial_checkpoint`.

    What is given of `batch`, in images, and `epochs` stays; the other settings follow from it, too.

    Raises:
      ManifestError: there is no record set, or it has no training split.
    """
    made, counts = manifest.read(directory), statistics.read(directory)
    images = made.split("train").written
    side, starts_from_weights = counts.median_side, bool(initial_checkpoint)
    start = f"the weights of {initial_checkpoint}" if initial_checkpoint else "random weights"
    reason = f"For {images:,} images of {len(made.classes):,} classes, about {side} pixels, from {start}"
    return AutoSettings(rules(images, side, starts_from_weights, batch, epochs), reason)


def rules(
    images: int, side: int, starts_from_weights: bool, batch: int | None = None, epochs: float | None = None
) -> dict[str, float | int]:
    """The values for a number of training images, whose shorter sides have a median of `side` pixels."""
    batch = batch or (64 if images >= 1_000 else 32)
    epochs = epochs or round(_between(_EPOCHS, images) * (_SHARE_FROM_WEIGHTS if starts_from_weights else 1))
    size = _SIZE_FROM_WEIGHTS if starts_from_weights else next((s for s in _SIZES if s >= side), _SIZES[-1])
    return {
        "GLOBAL_BATCH": batch,
        "EPOCHS": epochs,
        "WARMUP_EPOCHS": round(epochs / 20, 2),
        "PATIENCE": max(5, round(epochs / 3)),
        "LEARNING_RATE": (0.05 if starts_from_weights else 0.2) * batch / 64,
        "TRAIN_SIZE": size,
        "EVAL_SIZE": size,
        "MIN_AREA": round(_between(_MIN_AREA, images), 2),
        "EMA_DECAY": round(1 - 1 / max(20, images * epochs / batch / 30), 5),  # over a thirtieth of the run
    }


def _between(table: Mapping[int, float], images: int) -> float:
    rows = np.log([(float(size), value) for size, value in table.items()])
    return math.exp(np.interp(math.log(images), rows[:, 0], rows[:, 1]))
