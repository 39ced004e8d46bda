"""Classifying images with an exported SavedModel, with TensorFlow alone."""

import dataclasses
import io
import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from PIL import Image

from pipeline.data import rgb


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best classes of one image with their probabilities; `error` says why there are none."""

    image: str
    classes: list[str]
    probabilities: list[float]
    error: str | None = None


def load(directory: str) -> Any:
    """Loads a SavedModel: `directory` itself, or the highest of its numbered version folders that holds one.

    Raises:
      FileNotFoundError: neither holds a SavedModel.
    """
    path = directory
    if not tf.saved_model.contains_saved_model(path):
        names = tf.io.gfile.listdir(directory) if tf.io.gfile.isdir(directory) else []
        versions = sorted((int(name.rstrip("/")) for name in names if name.rstrip("/").isdigit()), reverse=True)
        paths = (os.path.join(directory, str(version)) for version in versions)
        path = next(filter(tf.saved_model.contains_saved_model, paths), None)
        if path is None:
            raise FileNotFoundError(
                f"{directory} holds no SavedModel, neither itself nor in a numbered version folder: export one with "
                "`python pipeline/main.py --model_dir=RUN --task=export`."
            )
    return tf.saved_model.load(path)


def predict(saved_model: Any, paths: Sequence[str], batch: int = 32) -> list[Prediction]:
    """Classifies the image files `paths`; one that cannot be read or decoded yields an `error`."""
    serve = saved_model.signatures["serving_default"]
    predictions = []
    for start in range(0, len(paths), batch):
        chunk = paths[start : start + batch]
        encoded, errors = zip(*(read(path) for path in chunk), strict=True)
        output = {name: value.numpy() for name, value in serve(image_bytes=tf.constant(encoded)).items()}
        for i, path in enumerate(chunk):
            if not output["valid"][i]:
                predictions.append(Prediction(path, [], [], errors[i] or "not a JPEG, PNG, GIF or BMP image"))
            else:
                names = [name.decode() for name in output["top_classes"][i]]
                predictions.append(Prediction(path, names, output["top_probabilities"][i].tolist()))
    return predictions


def read(path: str) -> tuple[bytes, str | None]:
    """The bytes of an image file as the model takes them, as they would stand in a record; and what went wrong."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            data = file.read()
        image = Image.open(io.BytesIO(data))
        if rgb.fits(image, data):
            return data, None
        buffer = io.BytesIO()
        rgb.convert(image).save(buffer, "PNG")
        return buffer.getvalue(), None
    except tf.errors.OpError as error:
        return b"", error.message
    except Exception as error:  # Pillow's decoders raise many types on hostile bytes
        return b"", f"{type(error).__name__}: {error}"
