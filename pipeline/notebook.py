"""What a notebook needs of a run: its classes, predictions and metrics. `import pipeline` offers these functions."""

import dataclasses
import io
import os
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from pipeline import command_line

command_line.set_up_tensorflow()  # before the imports below load it

from pipeline import registry
from pipeline.data import rgb
from pipeline.serving import client, image_files
from pipeline.serving.client import Prediction

__all__ = ["Prediction", "Run", "evaluate", "load_run"]

Picture = str | os.PathLike | bytes | np.ndarray | Image.Image


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, ready to classify images.

    Attributes:
      model_dir: its folder.
      classes: class names, in label order.
    """

    model_dir: str
    classes: tuple[str, ...]
    _saved_model: Any = dataclasses.field(repr=False)

    def predict(
        self, images: Picture | list[Picture] | tuple[Picture, ...], top: int | None = None
    ) -> list[Prediction]:
        """Classifies images; one that cannot be read or decoded has an `error` and no classes.

        Args:
          images: one or several of these: the path of a file, a folder (all images in it) or a pattern; an encoded
            image as bytes; a Pillow image; an array uint8 [height, width, 3], or [height, width] in grey.
          top: how many classes each prediction has, at most all; as many as were exported (5) if None.

        Raises:
          ValueError: a path names nothing, or an array is no image.
        """
        named: list[str | bytes] = []
        for image in images if isinstance(images, list | tuple) else [images]:
            named += image_files.find([os.fspath(image)]) if isinstance(image, str | os.PathLike) else [_encoded(image)]
        return list(client.predict(self._saved_model, named, top))


def load_run(model_dir: str | os.PathLike) -> Run:
    """Loads the run in the folder `model_dir`, which is exported first if it was not yet.

    Raises:
      ValueError, CheckpointError: it is not the folder of a run, or holds no checkpoint.
    """
    model_dir = os.fspath(model_dir)
    logging.set_verbosity(logging.WARNING)
    saved_model = client.load(registry.exported(model_dir))
    return Run(model_dir, tuple(client.classes(saved_model)), saved_model)


def evaluate(model_dir: str | os.PathLike, split: str | None = None) -> dict[str, float]:
    """Evaluates a run as `main.py --task=evaluate` does; returns and prints the metrics.

    Args:
      model_dir: folder of the run; its records must be where its configuration says.
      split: of the records; the run's validation split if None.

    Raises:
      ValueError, CheckpointError: the folder holds no run, or the records are missing or have other classes.
    """
    logging.set_verbosity(logging.WARNING)
    params = [] if split is None else [f"evaluate.split={split!r}"]
    return registry.run_configured([], params, os.fspath(model_dir), task="evaluate")


def _encoded(image: bytes | np.ndarray | Image.Image) -> bytes:
    """The image as a file that `client.predict` takes."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(
                f"An array of {image.dtype} {list(image.shape)} is no image: expected uint8 [height, width, 3], or "
                "[height, width] in grey."
            )
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    rgb.convert(image).save(buffer, "PNG")
    return buffer.getvalue()
