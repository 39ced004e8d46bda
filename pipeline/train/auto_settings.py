"""Settings that follow from the data: what `%AUTO` stands for in gin/finetune_own.gin.

The rules are from runs on small public sets (`make bench-own`, docs/own_images.md), for a few hundred to a few hundred
thousand images: a start that is rarely far off, not an optimum.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from pipeline.data import manifest, statistics
from pipeline.train import checkpoint

# Between two rows in proportion, on logarithmic scales; beyond the first and the last as there.
_EPOCHS = {300: 100, 5_000: 25, 50_000: 12, 500_000: 6}  # training images to epochs from random weights
_SHARE_FROM_WEIGHTS = 0.5  # of these epochs, where training starts from trained weights
_MIN_AREA = {5_000: 0.8, 500_000: 0.25}  # of a training crop, as a share of what evaluation sees
_SIZES = (48, 64, 96)  # pixels, of networks that start from random weights: half the images' side, where it is one
_IMPORTED_SIZE = 224  # pixels, for imported weights; those of a run continue at the run's own size
_RATE, _RATE_FROM_WEIGHTS = 4e-3, 5e-4  # AdamW's, for _BATCH images
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class AutoSettings:
    """Values of gin's macros, and what they follow from."""

    values: dict[str, float | int]
    reason: str


def choose(
    directory: str,
    initial_checkpoint: str = "",
    batch: int | None = None,
    epochs: float | None = None,
    size: int | None = None,
    train_examples: int | None = None,
) -> AutoSettings:
    """Chooses settings for the record set in `directory`, and a start from random weights or `initial_checkpoint`.

    What is given of `batch`, in images, `epochs` and `size`, in pixels, stays; the other settings follow from it, too.
    `train_examples` are those of the training split that are used, all where None.

    Raises:
      ManifestError: there is no record set, or it has no training split.
      CheckpointError: there is no checkpoint at `initial_checkpoint`.
    """
    made, counts = manifest.read(directory), statistics.read(directory)
    images = made.split("train").written if train_examples is None else train_examples
    side, trained_size = counts.median_side, _trained_size(initial_checkpoint) if initial_checkpoint else None
    start = f"the weights of {initial_checkpoint}" if initial_checkpoint else "random weights"
    reason = f"For {images:,} images of {len(made.classes):,} classes, about {side} pixels, from {start}"
    return AutoSettings(rules(images, side, trained_size, batch, epochs, size), reason)


def rules(
    images: int,
    side: int,
    trained_size: int | None = None,
    batch: int | None = None,
    epochs: float | None = None,
    size: int | None = None,
) -> dict[str, float | int]:
    """The values for a number of training images, whose shorter sides have a median of `side` pixels.

    `trained_size` is the resolution of the weights that training starts from, None where they are random.
    """
    batch = batch or (_BATCH if images >= 1_000 else _BATCH // 2)
    epochs = epochs or round(_between(_EPOCHS, images) * (_SHARE_FROM_WEIGHTS if trained_size else 1))
    size = size or trained_size or next((s for s in _SIZES if s >= side / 2), _SIZES[-1])
    rate = _RATE_FROM_WEIGHTS if trained_size else _RATE
    return {
        "GLOBAL_BATCH": batch,
        "EPOCHS": epochs,
        "WARMUP_EPOCHS": round(epochs / 20, 2),
        "PATIENCE": max(5, round(epochs / 3)),
        "LEARNING_RATE": round(rate * math.sqrt(batch / _BATCH), 6),
        "TRAIN_SIZE": size,
        "EVAL_SIZE": size,
        "MIN_AREA": round(_between(_MIN_AREA, images), 2),
        "EMA_DECAY": round(1 - 1 / max(20, images * epochs / batch / 30), 5),  # over a thirtieth of the run
    }


def _trained_size(initial_checkpoint: str) -> int:
    bindings = checkpoint.find(initial_checkpoint, verify=False).facts.get("bindings", {})
    return int(bindings.get("Data.train_size", _IMPORTED_SIZE))


def _between(table: Mapping[int, float], images: int) -> float:
    rows = np.log([(float(size), value) for size, value in table.items()])
    return math.exp(np.interp(math.log(images), rows[:, 0], rows[:, 1]))
