"""Classifying images with an exported SavedModel, with TensorFlow alone."""

import dataclasses
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import UnidentifiedImageError

from pipeline.data import rgb
from pipeline.errors import cause
from pipeline.files import opened
from pipeline.serving import labels, servable


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best classes of one image with their probabilities; `error` says why there are none."""

    image: str
    classes: list[str]
    probabilities: list[float]
    error: str | None = None


def versions(directory: str) -> dict[int, str]:
    """Number to path of the versions in `directory`, or of the one that it is; folders without a SavedModel are not."""
    if tf.saved_model.contains_saved_model(directory):
        name = os.path.basename(directory.rstrip("/"))
        return {int(name) if name.isdigit() else 1: directory}
    names = tf.io.gfile.listdir(directory) if tf.io.gfile.isdir(directory) else []
    numbers = [name.rstrip("/") for name in names if name.rstrip("/").isdigit()]
    paths = {int(number): os.path.join(directory, number) for number in numbers}
    return {number: path for number, path in paths.items() if tf.saved_model.contains_saved_model(path)}


def find(directory: str) -> str:
    """The folder of the newest of `versions`.

    Raises:
      FileNotFoundError: there is none.
    """
    found = versions(directory)
    if not found:
        raise FileNotFoundError(
            f"{directory} holds no SavedModel, neither itself nor in a numbered version folder: export one with "
            "`python pipeline/main.py --model_dir=RUN --task=export`."
        )
    return found[max(found)]


def load(directory: str) -> Any:
    """Loads the SavedModel that `find` finds.

    Raises:
      FileNotFoundError: there is none, or it has other signatures.
    """
    path = find(directory)
    saved_model = tf.saved_model.load(path)
    if servable.BYTES not in saved_model.signatures:
        raise FileNotFoundError(
            f"{path} was exported by something else, or by an earlier version: its signatures are "
            f"{sorted(saved_model.signatures)}, expected {servable.BYTES!r}. Export the run again."
        )
    return saved_model


def classes(saved_model: Any) -> list[str]:
    """The class names of what `load` returns, in label order."""
    return labels.read(saved_model.labels.asset_path.numpy().decode())


def predict(
    saved_model: Any, images: Sequence[str | bytes], top: int | None = None, batch: int = 32
) -> Iterator[Prediction]:
    """Classifies images in their order; one that cannot be read or decoded yields an `error`.

    Args:
      saved_model: what `load` returns.
      images: paths of files, local or remote, or files that have been read; these are called "image 0" by their place.
      top: how many classes each prediction has, at most all; as many as were exported if None.
      batch: images per call of the model.
    """
    serve = saved_model.signatures[servable.BYTES]
    names = classes(saved_model)
    for start in range(0, len(images), batch):
        chunk = images[start : start + batch]
        encoded, errors = zip(*(read(image) for image in chunk), strict=True)
        output = {name: value.numpy() for name, value in serve(image_bytes=tf.constant(encoded)).items()}
        for i, image in enumerate(chunk):
            shown = image if isinstance(image, str) else f"image {start + i}"
            if not output["valid"][i]:
                yield Prediction(shown, [], [], errors[i] or damage(encoded[i]))
                continue
            probabilities = output["probabilities"][i]
            best = np.argsort(-probabilities, kind="stable")[: top or output["top_classes"].shape[1]]
            yield Prediction(shown, [names[label] for label in best], probabilities[best].tolist())


def read(image: str | bytes) -> tuple[bytes, str | None]:
    """The bytes of an image file as the model takes them, as a record would hold them; and what went wrong."""
    try:
        data = image if isinstance(image, bytes) else _contents(image)
        decoded = rgb.open_image(data)
        if rgb.fits(decoded, data):
            return data, None
        buffer = io.BytesIO()
        rgb.convert(decoded).save(buffer, "PNG")
        return buffer.getvalue(), None
    except tf.errors.OpError as error:
        return b"", cause(error)
    except rgb.TooManyPixels as error:
        return b"", str(error)
    except UnidentifiedImageError:
        return (
            b"",
            "not an image of a supported format, or one whose header is damaged" if data else "the file is empty",
        )
    except OSError as error:
        return b"", error.strerror or str(error)
    except Exception as error:  # Pillow's decoders raise many types on hostile bytes
        return b"", f"{type(error).__name__}: {error}"


def damage(data: bytes) -> str:
    """Why the model could not decode an image whose header `read` has accepted."""
    try:
        rgb.open_image(data).load()
    except Exception as error:  # Pillow's decoders raise many types on hostile bytes
        return f"damaged: {error}"
    return "damaged: TensorFlow does not decode it"


def _contents(path: str) -> bytes:
    with opened(path, "rb") as file:
        return file.read()
