"""The report of an evaluation, from the files of predictions."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from beam.errors import PredictionError
from beam.prediction import rows, scores
from beam.prediction.inputs import Shard
from beam.prediction.job import Job, Model, class_names
from pipeline import objective
from pipeline.data.manifest import Manifest
from pipeline.data.reader import RecordSet
from pipeline.evaluation import split_report
from pipeline.evaluation.collector import Collector
from pipeline.serving.labels import label


def check_classes(model: Model, record_set: Manifest, directory: str) -> None:
    """Raises a PredictionError where the model tells other classes apart than the records have."""
    trained, have = class_names(model), [label(name) for name in record_set.classes]
    if trained == have:
        return
    if sorted(trained) == sorted(have):
        what = "the same classes in another order"
    else:
        others = sorted(set(have) - set(trained)) or sorted(set(trained) - set(have))
        what = f"{len(have):,} classes and not the same ones: {others[0]!r} is in one of them alone"
    raise PredictionError(
        f"--evaluate: {model.path} tells {len(trained):,} classes apart, and {directory} has {what}. Build the records "
        "with --classes_of=SET, the record set that the model was trained on."
    )


def report(
    job: Job, model: Model, record_set: Manifest, directory: str, split: str, shards: Sequence[Shard]
) -> tuple[str, dict[str, float]]:
    """Writes the report of an evaluation into the job's folder, from the files of predictions.

    Examples without a prediction are left out.

    Returns:
      The path of its page, and the metrics by name.

    Raises:
      PredictionError: there is no prediction at all.
    """
    learned, classes = objective.get(job.objective), len(record_set.classes)
    collector, losses = Collector(learned, job.several_labels), []
    position = 0
    for shard in shards:
        columns = rows.read(job.path(shard.index), ["valid", *rows.EVALUATION])
        predicted = np.flatnonzero([valid is True for valid in columns.pop("valid")])
        if len(predicted):
            columns = {name: [values[i] for i in predicted] for name, values in columns.items()}
            losses.append(np.array(columns.pop("loss"), np.float64))
            collector.add(_fields(columns, position + predicted, classes, scores.counts_likely(job)))
        position += len(shard)
    if not losses:
        raise PredictionError("--evaluate: the model could use none of the records, so there is nothing to compare.")
    try:
        predictions = collector.result(classes)
    except ValueError as error:  # outputs that are not finite
        raise PredictionError(f"--evaluate: {error}") from error
    values = {
        "loss": float(np.mean(np.concatenate(losses))),
        "top1": float(np.mean(predictions.top1)),
        "top5": float(np.mean(predictions.top5)),
        **split_report.of_predictions(predictions),
    }
    evaluated = split_report.Evaluation(job.output, model.metadata["step"], split, directory, values)
    records = RecordSet(directory, split, manifest=record_set)
    return split_report.write(evaluated, predictions, record_set.classes, records), values


def _fields(
    columns: Mapping[str, list], position: np.ndarray, classes: int, counts_likely: bool
) -> dict[str, tf.Tensor]:
    """The rows of a file as `Collector.add` takes them."""
    arrays = {name: np.array(values) for name, values in columns.items() if name != "likely"}
    arrays |= {"position": position, "weight": np.ones(len(position), np.float32)}
    for name in ("label_weights", "label_probabilities", "confidence"):
        arrays[name] = arrays[name].astype(np.float32)
    if counts_likely:
        arrays["class_counts"] = _class_counts(arrays["labels"], arrays["label_weights"], columns["likely"], classes)[
            None
        ]
    return {name: tf.constant(values) for name, values in arrays.items()}


def _class_counts(labels: np.ndarray, weights: np.ndarray, likely: Sequence[list[int]], classes: int) -> np.ndarray:
    """How often each class is a label, is likely, and both: int64 [3, classes].

    Args:
      labels, weights: [n, k]; a label of weight 0 is none.
      likely: n lists of classes.
      classes: how many there are.
    """
    cells = np.arange(len(labels))[:, None] * classes + labels  # of a matrix of examples and classes
    labelled = np.unique(cells[weights > 0])
    chosen = np.array([i * classes + label for i, row in enumerate(likely) for label in row], np.int64)
    both = np.intersect1d(labelled, chosen)
    return np.stack([np.bincount(each % classes, minlength=classes) for each in (labelled, chosen, both)])
