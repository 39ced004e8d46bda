"""The pictures of an evaluation and of a run, as PNG."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.evaluation.metrics import BINS, Calibration, Confusion
from pipeline.evaluation.names import short
from pipeline.figure_style import STYLE

SHOWN_CLASSES = 30  # of the confusion matrix
_NUMBERED = 15  # up to so many classes, each cell shows its count
_NAME = 24  # characters of a class name
_POINTS = 2000  # of a curve
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's
_RC = {**STYLE, "font.size": 9}

Curve = tuple[Sequence[float], Sequence[float]]  # steps and values


def confusion_matrix(confusion: Confusion, names: Sequence[str]) -> bytes:
    """The confusion matrix: rows are true classes, and a cell's colour is its share of the row.

    Of more than `SHOWN_CLASSES` classes it shows those of the largest cells off the diagonal, and says so.
    """
    present = np.union1d(confusion.label, confusion.predicted)
    shown = _most_confused(confusion, present)
    index = {label: place for place, label in enumerate(shown.tolist())}
    counts = np.zeros((len(shown), len(shown)), np.int64)
    inside = np.isin(confusion.label, shown) & np.isin(confusion.predicted, shown)
    for label, predicted, count in np.stack(confusion, 1)[inside].tolist():
        counts[index[label], index[predicted]] = count
    totals = np.array([confusion.counts[confusion.label == label].sum() for label in shown])
    shares = counts / np.maximum(totals, 1)[:, None]
    title = ""
    if len(shown) < len(names):
        which = "the most confused" if len(shown) < len(present) else "with any example"
        title = f"{len(shown)} of {len(names):,} classes, {which}"
    with rc_context({**_RC, "axes.grid": False, "text.parse_math": False}):  # a class name may hold dollar signs
        side = 2.2 + 0.3 * max(len(shown), 5)
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        axes = figure.add_subplot()
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        labels = [f"{label}: {short(names[label], _NAME)}" for label in shown]
        axes.set_xticks(range(len(shown)), labels, rotation=90, fontsize=8)
        axes.set_yticks(range(len(shown)), labels, fontsize=8)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_title(title, fontsize=9)
        figure.colorbar(picture, ax=axes, shrink=0.6, label="share of the true class")
        if len(shown) <= _NUMBERED:
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    colour = "white" if shares[row, column] > 0.55 else "black"
                    axes.text(column, row, _compact(int(count)), ha="center", va="center", color=colour, fontsize=7)
        return _png(figure)


def _most_confused(confusion: Confusion, present: np.ndarray) -> np.ndarray:
    """The labels to show, ascending: of pairs of classes by the number of mistakes, as many as fit."""
    if len(present) <= SHOWN_CLASSES:
        return present
    chosen: dict[int, None] = {}
    for label, predicted in zip(*confusion.mistakes()[:2], strict=True):
        if len(chosen | {label: None, predicted: None}) > SHOWN_CLASSES:
            break
        chosen |= {label: None, predicted: None}
    rest = (label for label in present if label not in chosen)
    while len(chosen) < SHOWN_CLASSES:
        chosen[next(rest)] = None
    return np.sort(list(chosen))


def reliability(calibration: Calibration) -> bytes:
    """The reliability diagram: accuracy by confidence, and how many predictions have each confidence."""
    with rc_context(_RC):
        figure = Figure(figsize=(5, 4.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        centres, width = (np.arange(BINS) + 0.5) / BINS, 1 / BINS
        above.bar(centres, np.nan_to_num(calibration.accuracy), 0.94 * width, color=_COLOURS[0], label="accuracy")
        above.plot([0, 1], [0, 1], color="#555555", lw=1, ls="--", label="perfect calibration")
        above.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
        above.legend(loc="upper left", fontsize=8)
        below.bar(centres, calibration.examples / calibration.examples.sum(), 0.94 * width, color="#7F7F7F")
        below.set(xlabel="confidence (probability of the predicted class)", ylabel="share")
        return _png(figure)


def curves(panels: Mapping[str, Mapping[str, Curve]]) -> bytes:
    """A panel by step for each title, with a curve for each name in it."""
    with rc_context(_RC):
        columns = min(2, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure = Figure(figsize=(4.6 * columns, 2.8 * rows), layout="constrained")
        for number, (title, lines) in enumerate(panels.items()):
            axes = figure.add_subplot(rows, columns, number + 1)
            for place, (name, (steps, values)) in enumerate(lines.items()):
                every = max(1, len(steps) // _POINTS)
                marker = "o" if len(steps) < 40 else ""
                colour = _COLOURS[place % len(_COLOURS)]
                axes.plot(steps[::every], values[::every], color=colour, lw=1.3, marker=marker, ms=3.5, label=name)
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_xlabel("step")
            if title == "loss":
                _set_scale(axes, [value for _, values in lines.values() for value in values])
            if len(lines) > 1:
                axes.legend(fontsize=8)
        return _png(figure)


def _set_scale(axes: Axes, values: Sequence[float]) -> None:
    """Takes a logarithmic axis for values that span a decade: the first ones would hide the others."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) / min(finite) > 10:
        axes.set_yscale("log")


def _compact(count: int) -> str:
    return f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # one that the font lacks is drawn as a box
        figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
