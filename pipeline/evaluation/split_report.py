"""What an evaluation of a split leaves in a folder: metrics, tables, pictures, and `report.html`, which shows them."""

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipeline import files
from pipeline.data.reader import RecordSet
from pipeline.evaluation import figures, metrics, mistakes
from pipeline.evaluation.metrics import BINS, Confusion
from pipeline.evaluation.mistakes import Mistake, Pair
from pipeline.evaluation.names import of_classes, short
from pipeline.evaluation.page import Page, Picture, Section, Table, render
from pipeline.evaluation.predictions import Predictions

PAGE = "report.html"
METRICS = "metrics.json"
_PAIR_SHEETS = [f"confused_{number + 1}.jpg" for number in range(mistakes.PAIRS)]
_TABLES = ["classes.csv", "confusion.csv", "calibration.csv", "mistakes.csv"]
_PICTURES = ["confusion.png", "calibration.png", "mistakes.jpg", *_PAIR_SHEETS]
_ROWS = 1000  # of the table of classes on the page; the file has all
_JPEG = "image/jpeg"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was evaluated.

    Attributes:
      run: folder of the run.
      step: of its checkpoint.
      split: name of the split.
      data: folder of the record set.
      values: metrics by name, of `Evaluator` and `of_predictions`.
      notes: lines at the top of the page.
    """

    run: str
    step: int
    split: str
    data: str
    values: dict[str, float]
    notes: Sequence[str] = ()

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


class _Part(NamedTuple):
    """Sections of the page, and the files that go with them, by name."""

    sections: Sequence[Section]
    files: Mapping[str, bytes] = MappingProxyType({})


def write(evaluation: Evaluation, predictions: Predictions, names: Sequence[str], records: RecordSet) -> str:
    """Writes the files of an evaluation, over those of an earlier one of the split; returns the path of the page.

    Args:
      evaluation: what was evaluated.
      predictions: of the split's examples.
      names: of the classes.
      records: the split, from which images are shown.
    """
    names = of_classes(names, predictions.classes)
    confusion = None if predictions.several_labels else metrics.confusion(predictions.label, predictions.predicted)
    worst = mistakes.worst(predictions)
    pairs = mistakes.confused_pairs(predictions, confusion) if confusion else []
    shown = np.unique(np.concatenate([worst, *(pair.examples for pair in pairs)]))
    examples = mistakes.read(records, predictions, shown)
    parts = [
        _mistakes([examples[index] for index in worst.tolist()], predictions, names),
        _confusion(confusion, names),
        _pairs(pairs, examples, predictions, names),
        _classes(predictions, confusion, names),
        _calibration(predictions),
    ]
    page = _page(evaluation, predictions, [section for part in parts for section in part.sections])
    summary = {**dataclasses.asdict(evaluation), "examples": predictions.examples, **evaluation.values}
    del summary["values"], summary["notes"]
    content = {METRICS: (json.dumps(summary, indent=1) + "\n").encode()}
    for part in parts:
        content |= part.files
    content[PAGE] = render(page)
    files.make_folder(evaluation.directory)
    for name, data in content.items():
        files.write_atomically(os.path.join(evaluation.directory, name), data)
    for name in {*_TABLES, *_PICTURES} - set(content):
        if tf.io.gfile.exists(path := os.path.join(evaluation.directory, name)):
            tf.io.gfile.remove(path)
    return os.path.join(evaluation.directory, PAGE)


def _page(evaluation: Evaluation, predictions: Predictions, sections: Sequence[Section]) -> Page:
    formats = {"top1": ".2%", "top5": ".2%", "loss": ".4g", "macro_f1": ".4f", "calibration_error": ".4f"}
    titles = {"top1": "top-1", "top5": "top-5", "macro_f1": "macro F1", "calibration_error": "calibration error"}
    values = evaluation.values
    numbers = [(titles.get(name, name), format(values[name], form)) for name, form in formats.items() if name in values]
    lines = [f"Checkpoint of step {evaluation.step:,}; {predictions.examples:,} examples of {evaluation.data}."]
    lines += evaluation.notes
    if predictions.several_labels:
        lines.append("An example may have several labels: top-1 and top-5 count whether one of them is found.")
    return Page(f"{evaluation.run}: {evaluation.split}", lines, numbers, sections)


def _calibration(predictions: Predictions) -> _Part:
    if not predictions.has_confidence:
        line = "Not defined: under softmax, several labels share a probability of 1, and none states how likely it is."
        return _Part([Section("Calibration", [line])])
    calibration = metrics.calibration(predictions.confidence, predictions.top1)
    edges = (np.arange(BINS + 1) / BINS).round(6).tolist()
    columns = (calibration.examples, calibration.confidence, calibration.accuracy)
    rows = zip(edges[:-1], edges[1:], *(column.tolist() for column in columns), strict=True)
    picture = figures.reliability(calibration)
    caption = (
        f"Expected calibration error {calibration.error:.4f}: how far accuracy and confidence are apart on average, in "
        f"{BINS} bins of equal width (Guo et al., On Calibration of Modern Neural Networks, 2017). Where a bar ends "
        "below the dashed line, the model is overconfident. calibration.csv has the numbers."
    )
    return _Part(
        [Section("Calibration", pictures=[Picture(picture, caption)])],
        {
            "calibration.csv": _csv(("from", "to", "examples", "confidence", "accuracy"), rows),
            "calibration.png": picture,
        },
    )


def _mistakes(worst: Sequence[Mistake], predictions: Predictions, names: Sequence[str]) -> _Part:
    rows = [_mistake_row(number + 1, mistake, names) for number, mistake in enumerate(worst)]
    head = ("number", "key", "true", "probability of true", "predicted", "probability of predicted")
    table = _csv([name.replace(" ", "_") for name in head], rows)
    if not worst:
        line = "None: the most probable class of each example is right."
        return _Part([Section("Worst mistakes", [line])], {"mistakes.csv": table})
    sheet = mistakes.sheet(worst, names)
    wrong = predictions.examples - int(np.count_nonzero(predictions.top1))
    caption = (
        f"Of {wrong:,} mistakes, those of the highest confidence: true class → predicted class, each with the model's "
        "probability, and the image's key."
    )
    section = Section(
        "Worst mistakes", pictures=[Picture(sheet, caption, _JPEG)], tables=[Table(head, _shortened(rows))]
    )
    return _Part([section], {"mistakes.csv": table, "mistakes.jpg": sheet})


def _mistake_row(number: int, mistake: Mistake, names: Sequence[str]) -> tuple:
    label, probability = mistake.predicted
    true = "; ".join(names[label] for label, _ in mistake.labels)
    highest = max((probability for _, probability in mistake.labels), default=math.nan)
    return number, mistake.key, true, round(highest, 6), names[label], round(probability, 6)


def _pairs(
    pairs: Sequence[Pair], examples: Mapping[int, Mistake], predictions: Predictions, names: Sequence[str]
) -> _Part:
    """A contact sheet for each of the most confused pairs of classes."""
    if not pairs:
        return _Part([])
    sheets = [mistakes.sheet([examples[index] for index in pair.examples.tolist()], names) for pair in pairs]
    pictures = []
    for sheet, pair in zip(sheets, pairs, strict=True):
        of_class = np.count_nonzero(predictions.label == pair.label)
        names_of_pair = f"{short(names[pair.label])} taken for {short(names[pair.predicted])}"
        pictures.append(Picture(sheet, f"{names_of_pair}: {pair.times:,} of {of_class:,} examples.", _JPEG))
    section = Section("Most confused pairs", pictures=pictures)
    return _Part([section], dict(zip(_PAIR_SHEETS, sheets, strict=False)))


def _confusion(confusion: Confusion | None, names: Sequence[str]) -> _Part:
    if confusion is None:
        line = "Not defined: an example may have several labels, so it has no one true class to be taken for another."
        return _Part([Section("Confusion matrix", [line])])
    rows = ((names[label], names[predicted], count) for label, predicted, count in np.stack(confusion, 1).tolist())
    picture = figures.confusion_matrix(confusion, names)
    caption = "confusion.csv has all cells that are not 0."
    return _Part(
        [Section("Confusion matrix", pictures=[Picture(picture, caption)])],
        {"confusion.csv": _csv(("true", "predicted", "count"), rows), "confusion.png": picture},
    )


def _classes(predictions: Predictions, confusion: Confusion | None, names: Sequence[str]) -> _Part:
    counts = predictions.class_counts
    if counts is None:
        line = (
            "Not defined: several labels share a probability under softmax, and none says which classes are predicted."
        )
        return _Part([Section("Classes", [line])])
    columns = {
        "class": names,
        "examples": counts.labelled.tolist(),
        "predicted": counts.predicted.tolist(),
        "correct": counts.correct.tolist(),
        "recall": counts.recall.round(6).tolist(),
        "precision": counts.precision.round(6).tolist(),
        "F1": counts.f1.round(6).tolist(),
    }
    rule = "A class is predicted where its probability is at least one half."
    if confusion:
        columns |= _single_label_columns(predictions, counts.labelled, confusion, names)
        rule = "A class is predicted where it is the most probable one."
    rows = list(zip(*columns.values(), strict=True))
    order = np.argsort(counts.f1, kind="stable")[:_ROWS]  # those without examples and predictions last
    many = (
        "" if len(rows) <= _ROWS else f" These are the {_ROWS:,} of the lowest F1; classes.csv has all {len(rows):,}."
    )
    line = f"{rule} Macro F1 is the mean over the classes with an example or a prediction.{many}"
    table = Table(list(columns), _shortened([rows[label] for label in order]))
    return _Part([Section("Classes", [line], tables=[table])], {"classes.csv": _csv(columns, rows)})


def _single_label_columns(
    predictions: Predictions, labelled: np.ndarray, confusion: Confusion, names: Sequence[str]
) -> dict[str, list]:
    """Of each class, the share of examples among whose five best classes it is, and what it is most often taken for."""
    hits = np.bincount(predictions.label[predictions.top5], minlength=len(labelled))
    top5 = np.divide(hits, labelled, out=np.full(len(labelled), np.nan), where=labelled > 0)
    taken_for, times = [""] * len(labelled), [0] * len(labelled)
    for label, predicted, count in np.stack(confusion.mistakes(), 1).tolist()[::-1]:  # the largest cell comes last
        taken_for[label], times[label] = names[predicted], count
    return {"top-5": top5.round(6).tolist(), "most often taken for": taken_for, "times": times}


def _shortened(rows: Sequence[Sequence]) -> list[list]:
    """Rows for the page: a name or a key may have any length."""
    return [[short(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]


def _csv(head: Iterable[str], rows: Iterable[Sequence]) -> bytes:
    """A CSV file in UTF-8; a number that is not defined is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row] for row in rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
