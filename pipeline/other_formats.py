"""A model in other formats, each file of which is compared with the model on the whole validation split."""

import importlib
import os
from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np
import tensorflow as tf

from pipeline.report import Progress
from pipeline.serving.folding import InferenceForm
from pipeline.train.evaluator import evaluation_batches
from pipeline.train.experiment import Experiment

FORMATS = ("litert", "onnx")  # modules of `pipeline/serving/formats/`
TOLERANCE = 1e-3  # of the largest logit: float32 in another order differs by 1e-6, a wrong operation by 1


class FormatError(ValueError):
    """A model in another format does not answer as the model itself."""


def write(formats: Sequence[str], form: InferenceForm, experiment: Experiment, folder: str) -> dict[str, dict]:
    """Writes `model.SUFFIX` into `folder` for each format, and compares it with the model.

    Returns:
      Name of each file to what the comparison found: `format`, `examples` compared, `top1_equal` the share of them with
      the same best class, and `difference`, the largest of a logit over the largest logit.

    Raises:
      ValueError: a format is unknown, or the model cannot be written in it.
      FormatError: the file does not answer as the model.
      ManifestError: the validation split is missing.
    """
    if unknown := sorted(set(formats) - set(FORMATS)):
        raise ValueError(f"export.formats names {unknown}; expected some of {sorted(FORMATS)}.")
    paths = {}
    for name in formats:
        paths[name] = os.path.join(folder, f"model{_module(name).SUFFIX}")
        print(f"Writing {os.path.basename(paths[name])}; a large model takes minutes.")
        _module(name).write(form, experiment.data.eval_size, paths[name])
    return {os.path.basename(path): _compare(name, path, form, experiment) for name, path in paths.items()}


def _module(name: str) -> ModuleType:
    """The module of a format, which is imported only where it is asked for: its libraries take a second."""
    return importlib.import_module(f"pipeline.serving.formats.{name}")


def _compare(name: str, path: str, form: InferenceForm, experiment: Experiment) -> dict:
    runner, model = _module(name).Runner(path), tf.function(form, autograph=False, reduce_retracing=True)
    examples, equal, difference, largest = 0, 0, 0.0, 0.0
    for images in _validation_images(experiment, f"check {name}"):
        expected, found = model(images).logits.numpy(), runner(images.numpy())
        examples += len(expected)
        equal += int(np.sum(expected.argmax(1) == found.argmax(1)))
        difference = float(np.maximum(difference, np.max(np.abs(found - expected))))  # unlike `max`, keeps a NaN
        largest = float(np.maximum(largest, np.max(np.abs(expected))))
    result = {"format": name, "examples": examples, "top1_equal": equal / examples, "difference": difference / largest}
    if not difference <= TOLERANCE * largest:
        raise FormatError(
            f"The model as {name} differs from itself by {result['difference']:.2g} of the largest logit on "
            f"{examples:,} validation examples, more than {TOLERANCE:g}: nothing was exported. Leave {name!r} out of "
            "export.formats."
        )
    return result


def _validation_images(experiment: Experiment, title: str) -> Iterator[tf.Tensor]:
    """The evaluation views of the validation split, uint8 [batch, size, size, 3]."""
    records = experiment.data.validation_records()
    dataset, steps = evaluation_batches(tf.distribute.get_strategy(), experiment, records)
    progress, done = Progress(title, records.examples), 0
    for batch, _ in zip(dataset, range(steps), strict=False):
        images = tf.boolean_mask(batch["image"], batch["weight"] > 0)
        done += len(images)
        progress.update(done)
        if len(images):
            yield images
    progress.close()
