"""What an evaluation of a split leaves in a folder: metrics, tables, pictures, and `report.html`, which shows them."""

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from pipeline import files
from pipeline.data.reader import RecordSet
from pipeline.evaluation import figures, metrics, mistakes
from pipeline.evaluation.metrics import BINS, Calibration, Confusion
from pipeline.evaluation.mistakes import Mistake
from pipeline.evaluation.names import of_classes, short
from pipeline.evaluation.page import Page, Picture, Section, Table, render
from pipeline.evaluation.predictions import Predictions

PAGE = "report.html"
METRICS = "metrics.json"
_PAIR_SHEETS = [f"confused_{number + 1}.jpg" for number in range(mistakes.PAIRS)]
_FILES = (METRICS, "classes.csv", "confusion.csv", "confusion.png", "calibration.csv", "calibration.png")
_FILES += ("mistakes.csv", "mistakes.jpg", *_PAIR_SHEETS, PAGE)
_ROWS = 1000  # of the table of classes on the page; the file has all
_JPEG = "image/jpeg"
_SEVERAL = "Examples may have several labels, so there is no one true class to confuse with another."


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was evaluated.

    Attributes:
      run: folder of the run.
      step: of its checkpoint.
      split: name of the split.
      data: folder of the record set.
      values: metrics by name, of `Evaluator` and `of_predictions`.
    """

    run: str
    step: int
    split: str
    data: str
    values: dict[str, float]

    @property
    def directory(self) -> str:
        """Where its files are."""
        return os.path.join(self.run, "evaluation", self.split)


def of_predictions(predictions: Predictions) -> dict[str, float]:
    """Metrics that are not sums over examples, as far as they are defined: `macro_f1` and `calibration_error`."""
    values = {}
    if predictions.class_counts is not None:
        values["macro_f1"] = predictions.class_counts.macro_f1
    if predictions.has_confidence:
        values["calibration_error"] = metrics.calibration(predictions.confidence, predictions.top1).error
    return values


def write(evaluation: Evaluation, predictions: Predictions, names: Sequence[str], records: RecordSet) -> str:
    """Writes the files of an evaluation, over those of an earlier one of the split; returns the path of the page.

    Args:
      evaluation: what was evaluated.
      predictions: of the split's examples.
      names: of the classes.
      records: the split, from which images are shown.
    """
    names = of_classes(names, predictions.classes)
    summary = {**dataclasses.asdict(evaluation), "examples": predictions.examples, **evaluation.values}
    del summary["values"]
    content = {METRICS: (json.dumps(summary, indent=1) + "\n").encode()}
    sections = [
        *_calibration(predictions, content),
        *_mistakes(predictions, names, records, content),
        *_confusion(predictions, names, records, content),
        *_classes(predictions, names, content),
    ]
    content[PAGE] = render(_page(evaluation, predictions, sections))
    files.make_folder(evaluation.directory)
    for name, data in content.items():
        files.write_atomically(os.path.join(evaluation.directory, name), data)
    for name in set(_FILES) - set(content):
        if tf.io.gfile.exists(path := os.path.join(evaluation.directory, name)):
            tf.io.gfile.remove(path)
    return os.path.join(evaluation.directory, PAGE)


def _page(evaluation: Evaluation, predictions: Predictions, sections: Sequence[Section]) -> Page:
    values = evaluation.values
    numbers = [
        ("top-1", f"{values['top1']:.2%}"),
        ("top-5", f"{values['top5']:.2%}"),
        ("loss", f"{values['loss']:.4g}"),
    ]
    if "macro_f1" in values:
        numbers.append(("macro F1", f"{values['macro_f1']:.4f}"))
    if "calibration_error" in values:
        numbers.append(("calibration error", f"{values['calibration_error']:.4f}"))
    lines = [f"Checkpoint of step {evaluation.step:,}; {predictions.examples:,} examples of {evaluation.data}."]
    if predictions.several_labels:
        lines.append("An example may have several labels: top-1 and top-5 count whether one of them is found.")
    return Page(f"{evaluation.run}: {evaluation.split}", lines, numbers, sections)


def _calibration(predictions: Predictions, content: dict[str, bytes]) -> list[Section]:
    if not predictions.has_confidence:
        line = "Not defined: under softmax, several labels share a probability of 1, and none states how likely it is."
        return [Section("Calibration", [line])]
    calibration = metrics.calibration(predictions.confidence, predictions.top1)
    rows = _calibration_rows(calibration)
    content["calibration.csv"] = _csv(("from", "to", "examples", "confidence", "accuracy"), rows)
    content["calibration.png"] = figures.reliability(calibration)
    caption = (
        f"Expected calibration error {calibration.error:.4f}: how far accuracy and confidence are apart on average, in "
        f"{BINS} bins of equal width (Guo et al., On Calibration of Modern Neural Networks, 2017). Where a bar ends "
        "below the dashed line, the model is right less often than it says. calibration.csv has the numbers."
    )
    return [Section("Calibration", pictures=[Picture(content["calibration.png"], caption)])]


def _calibration_rows(calibration: Calibration) -> Iterable[Sequence]:
    edges = (np.arange(BINS + 1) / BINS).round(6).tolist()
    columns = (calibration.examples, calibration.confidence, calibration.accuracy)
    return zip(edges[:-1], edges[1:], *(column.tolist() for column in columns), strict=True)


def _mistakes(
    predictions: Predictions, names: Sequence[str], records: RecordSet, content: dict[str, bytes]
) -> list[Section]:
    wrong = predictions.examples - int(np.count_nonzero(predictions.top1))
    worst = mistakes.read(records, predictions, mistakes.worst(predictions))
    rows = [_mistake_row(number, mistake, names) for number, mistake in enumerate(worst)]
    head = ("number", "key", "true", "probability of true", "predicted", "probability of predicted")
    content["mistakes.csv"] = _csv([name.replace(" ", "_") for name in head], rows)
    if not worst:
        return [Section("Mistakes", ["None: the most probable class of each example is right."])]
    content["mistakes.jpg"] = mistakes.sheet(worst, names)
    caption = f"Of {wrong:,} mistakes, those of the highest confidence. mistakes.csv has their keys."
    shown = [[cell if isinstance(cell, float | int) else short(cell) for cell in row] for row in rows]
    picture = Picture(content["mistakes.jpg"], caption, _JPEG)
    return [Section("Worst mistakes", pictures=[picture], tables=[Table(head, shown)])]


def _mistake_row(number: int, mistake: Mistake, names: Sequence[str]) -> tuple:
    label, probability = mistake.predicted
    true = "; ".join(names[label] for label, _ in mistake.labels)
    highest = max((probability for _, probability in mistake.labels), default=math.nan)
    return number + 1, mistake.key, true, round(highest, 6), names[label], round(probability, 6)


def _confusion(
    predictions: Predictions, names: Sequence[str], records: RecordSet, content: dict[str, bytes]
) -> list[Section]:
    if predictions.several_labels:
        return [Section("Confusion", [_SEVERAL])]
    confusion = metrics.confusion(predictions.label, predictions.predicted)
    rows = ((names[label], names[predicted], count) for label, predicted, count in np.stack(confusion, 1).tolist())
    content["confusion.csv"] = _csv(("true", "predicted", "count"), rows)
    content["confusion.png"] = figures.confusion_matrix(confusion, names)
    caption = "confusion.csv has all cells that are not 0."
    matrix = Section("Confusion matrix", pictures=[Picture(content["confusion.png"], caption)])
    pairs = _pairs(predictions, confusion, names, records, content)
    return [matrix, Section("Most confused pairs", pictures=pairs)] if pairs else [matrix]


def _pairs(
    predictions: Predictions,
    confusion: Confusion,
    names: Sequence[str],
    records: RecordSet,
    content: dict[str, bytes],
) -> list[Picture]:
    """A contact sheet for each of the most confused pairs of classes."""
    pictures = []
    for name, (label, predicted, count) in zip(_PAIR_SHEETS, mistakes.confused_pairs(confusion), strict=False):
        examples = mistakes.read(records, predictions, mistakes.of_pair(predictions, label, predicted))
        content[name] = mistakes.sheet(examples, names)
        which = f"{short(names[label])} taken for {short(names[predicted])}: {count:,} of "
        of_class = int(predictions.class_counts.labelled[label]) if predictions.class_counts else 0
        pictures.append(Picture(content[name], f"{which}{of_class:,} examples.", _JPEG))
    return pictures


def _classes(predictions: Predictions, names: Sequence[str], content: dict[str, bytes]) -> list[Section]:
    counts = predictions.class_counts
    if counts is None:
        return [Section("Classes", ["Not defined: under softmax, no threshold says which classes are predicted."])]
    columns = {
        "class": names,
        "examples": counts.labelled.tolist(),
        "predicted": counts.predicted.tolist(),
        "correct": counts.correct.tolist(),
        "recall": counts.recall.round(6).tolist(),
        "precision": counts.precision.round(6).tolist(),
        "F1": counts.f1.round(6).tolist(),
    }
    if not predictions.several_labels:
        columns |= _single_label_columns(predictions, names)
    rows = list(zip(*columns.values(), strict=True))
    content["classes.csv"] = _csv(columns, rows)
    order = np.argsort(counts.f1, kind="stable")[:_ROWS]  # those without examples and predictions last
    shown = [[short(cell) if isinstance(cell, str) else cell for cell in rows[i]] for i in order]
    many = "" if len(rows) <= _ROWS else f" The {_ROWS:,} of the lowest F1; classes.csv has all {len(rows):,}."
    rule = "A class is predicted where its probability is at least one half." if predictions.several_labels else ""
    lines = [f"Macro F1 is the mean over classes with an example or a prediction. {rule}{many}"]
    return [Section("Classes", lines, tables=[Table(list(columns), shown)])]


def _single_label_columns(predictions: Predictions, names: Sequence[str]) -> dict[str, list]:
    """Of each class, the share of examples among whose five best classes it is, and what it is most often taken for."""
    labelled = predictions.class_counts.labelled
    found = np.bincount(predictions.label[predictions.top5], minlength=len(labelled))
    top5 = np.divide(found, labelled, out=np.full(len(labelled), np.nan), where=labelled > 0)
    taken_for, times = [""] * len(labelled), [0] * len(labelled)
    confusion = metrics.confusion(predictions.label, predictions.predicted)
    for label, predicted, count in np.stack(confusion.mistakes(), 1).tolist()[::-1]:  # the largest cell comes last
        taken_for[label], times[label] = names[predicted], count
    return {"top-5": top5.round(6).tolist(), "most often taken for": taken_for, "times": times}


def _csv(head: Iterable[str], rows: Iterable[Sequence]) -> bytes:
    """A CSV file in UTF-8; a number that is not defined is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row] for row in rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
