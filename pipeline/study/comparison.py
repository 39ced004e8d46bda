"""Two families of a study at equal loss and at equal compute, with intervals.

Both are read off the families' lines on log-log axes. Intervals are percentiles of a bootstrap of whole studies: the
loss of every cell is varied by the line's residual deviation, and the frontier, its straight end and the line are found
again. So they cover which runs happen to be on the frontier, and how long its straight end seems to be.
"""

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Sequence

import numpy as np

from pipeline import files
from pipeline.study import StudyError, law
from pipeline.study.analysis import Analysis, Cell, StudyAnalysis, best_cells
from pipeline.study.run_files import UNITS, Run

FILE = "comparison.json"
RESAMPLES = 200


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its interval."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the interval does."""
        return self.low <= value <= self.high

    @property
    def text(self) -> str:
        """As `1.5 (1.2 to 1.9)`."""
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Of a family with the `first`.

    Attributes:
      first, second: names of the families.
      unit: of compute.
      losses: the range that both lines reach.
      compute: the range over which both lines were fitted; None where there is none.
      ratios: loss to the compute that the second family needs for it, over that of the first; at the ends of `losses`
        and in the middle.
      gap: the second's loss over the first's in the middle of `compute`; None where there is none.
      slopes: difference of their exponents, the second's less the first's.
    """

    first: str
    second: str
    unit: str
    losses: tuple[float, float]
    compute: tuple[float, float] | None
    ratios: dict[float, Interval]
    gap: Interval | None
    slopes: Interval

    @property
    def ratio(self) -> Interval:
        """The ratio of compute in the middle of the common losses."""
        return list(self.ratios.values())[1]

    @property
    def differ(self) -> bool:
        """Whether a difference is found: the interval of `ratio` excludes 1."""
        return not self.ratio.holds(1.0)


@dataclasses.dataclass(frozen=True)
class Point:
    """A cell of a family without a line, beside the line of another.

    Attributes:
      family, variant, epochs: of the cell.
      unit: of compute.
      loss: its held-out loss.
      other: the family with the line.
      ratio: the compute of the cell over that at which the line has its loss.
    """

    family: str
    variant: str
    epochs: float
    unit: str
    loss: float
    other: str
    ratio: Interval

    def __str__(self) -> str:
        return (
            f"{self.variant} of {self.family}, {self.epochs:g} epochs: a loss of {self.loss:.4g} for {self.ratio.text} "
            f"times the compute that {self.other} needs for it ({UNITS[self.unit]}, {law.LEVEL:.0%} interval)."
        )


def compare(first: Analysis, second: Analysis) -> Comparison:
    """Compares two families by their lines.

    Raises:
      StudyError: one has no line, or the lines reach no common loss.
    """
    lines = [_resampled(each, seed) for seed, each in enumerate((first, second))]
    points = [(each.compute[each.trusted], each.loss[each.trusted]) for each in (first, second)]
    losses = _common([loss for _, loss in points])
    if losses is None:
        ranges = " and ".join(f"{loss.min():.4g} to {loss.max():.4g}" for _, loss in points)
        raise StudyError(
            f"{first.family} and {second.family} reach no common loss where their lines hold ({ranges}): add larger "
            "budgets to the one, or smaller ones to the other."
        )
    middle = float(np.sqrt(losses[0] * losses[1]))
    compute = _common([compute for compute, _ in points])

    def interval(of_line: Callable[[np.ndarray], np.ndarray]) -> Interval:
        one, other = (of_line(line) for line in lines)
        kept = min(len(one), len(other))
        differences = other[:kept] - one[:kept]
        low, high = np.quantile(differences[1:], law.TAILS)
        return Interval(float(differences[0]), float(low), float(high))

    def needed(loss: float) -> Interval:
        return _exp(interval(lambda line: (np.log(loss) - line[:, 0]) / line[:, 1]))

    gap = None
    if compute:
        log_compute = np.log(compute).mean()
        gap = _exp(interval(lambda line: line[:, 0] + line[:, 1] * log_compute))
    return Comparison(
        first=first.family,
        second=second.family,
        unit=first.unit,
        losses=losses,
        compute=compute,
        ratios={loss: needed(loss) for loss in (losses[1], middle, losses[0])},
        gap=gap,
        slopes=interval(lambda line: line[:, 1]),
    )


def _resampled(analysis: Analysis, seed: int, deviation: float | None = None) -> np.ndarray:
    """Intercept and slope of log loss on log compute, float64 [n, 2]: of the line in row 0, then of resampled studies.

    Raises:
      StudyError: the family has no line, or no resampled study has one.
    """
    rng = np.random.default_rng(seed)
    line = analysis.line
    if isinstance(line, str):
        raise StudyError(f"{analysis.family} has no line to compare. {line}")
    deviation = line.deviation if deviation is None else deviation
    rows = [_intercept_and_slope(line)]
    for _ in range(RESAMPLES):
        loss = analysis.loss * np.exp(rng.normal(0, deviation, len(analysis.loss)))
        frontier = law.frontier(analysis.compute, loss)
        x, y = analysis.compute[frontier], loss[frontier]
        start = law.straight_end(x, y)
        if start is not None and len(x) - start >= law.MIN_POINTS_LINE:
            rows.append(_intercept_and_slope(law.fit_line(x[start:], y[start:], resamples=1)))
    if len(rows) == 1:
        raise StudyError(f"The line of {analysis.family} has no interval: no resampled study of it has a straight end.")
    return np.array(rows)


def _intercept_and_slope(line: law.Line) -> tuple[float, float]:
    return line.intercept - line.slope * np.log(line.center), line.slope


def points(runs: Sequence[Run], study: StudyAnalysis) -> list[Point]:
    """Cells of families without a line, beside every line that reaches their loss.

    They are the frontier of a family whose frontier bends up to its end, and all cells of one that cannot be fitted.
    Intervals are of a bootstrap of whole studies, as in `compare`, but with the noise of `_noise`, and reversed: a cell
    of a family that was not chosen from many is compared with a frontier that was. The cell has that noise too, and the
    line's residuals.
    """
    found = []
    for each in study.families.values():
        if isinstance(each.line, str):
            continue
        deviation, freedom = _noise(each)
        try:
            line = _resampled(each, seed=0, deviation=deviation)
        except StudyError:
            continue  # its line has no interval
        reached, rng = each.loss[each.trusted], np.random.default_rng(1)
        for compute, cell in _without_line(runs, study, each.unit):
            if reached.min() <= cell.loss <= reached.max():
                noise = float(np.hypot(deviation, each.line.deviation)) * rng.standard_t(freedom, len(line))
                noise[0] = 0
                ratios = np.log(compute) - (np.log(cell.loss) + noise - line[:, 0]) / line[:, 1]
                # A frontier holds the luckiest losses, so the line is too low, and those of resampled studies are lower
                # again by as much.
                high, low = 2 * ratios[0] - np.quantile(ratios[1:], law.TAILS)
                ratio = _exp(Interval(float(ratios[0]), float(low), float(high)))
                family = cell.runs[0].trial.family
                found.append(Point(family, cell.variant, cell.epochs, each.unit, cell.loss, each.family, ratio))
    return found


def _noise(analysis: Analysis) -> tuple[float, int]:
    """Standard deviation of a run's log loss, and its degrees of freedom.

    From what parabolas of log loss on log epochs, one a model, leave over; a frontier's residuals are too small, since
    it holds chosen losses. Those of the line where the models have too few budgets.
    """
    squares, freedom = 0.0, 0
    for variant in {cell.variant for cell in analysis.cells}:
        cells = [cell for cell in analysis.cells if cell.variant == variant]
        if len(cells) > 3:
            x, y = (np.log([getattr(cell, name) for cell in cells]) for name in ("epochs", "loss"))
            squares += float(np.sum((y - np.polyval(np.polyfit(x, y, 2), x)) ** 2))
            freedom += len(cells) - 3
    if not freedom:
        assert not isinstance(analysis.line, str)
        return analysis.line.deviation, len(analysis.trusted) - 2
    return float(np.sqrt(squares / freedom)), freedom


def _without_line(runs: Sequence[Run], study: StudyAnalysis, unit: str) -> list[tuple[float, Cell]]:
    """The compute, and the cell, of what `points` sets beside lines."""
    found = []
    for each in study.families.values():
        if isinstance(each.line, str):
            found += [(float(each.compute[i]), each.cells[i]) for i in each.frontier]
    for cell in best_cells([run for run in runs if run.trial.family in study.left_out]):
        with contextlib.suppress(StudyError):  # its cost is unknown, which is why its family is left out
            found.append((float(np.mean([run.compute(unit) for run in cell.runs])), cell))
    return found


def compare_all(analyses: Sequence[Analysis]) -> tuple[list[Comparison], list[str]]:
    """All pairs of families that can be compared, and why the others cannot."""
    comparisons, reasons = [], []
    for first, second in itertools.combinations(analyses, 2):
        try:
            comparisons.append(compare(first, second))
        except StudyError as error:
            reasons.append(str(error))
    return comparisons, reasons


def describe(comparison: Comparison) -> str:
    """The comparison as text."""
    first, second = comparison.first, comparison.second
    percent = f"{law.LEVEL:.0%} intervals"
    head = f"{second} and {first} ({UNITS[comparison.unit]}, {percent}): "
    if comparison.differ:
        head += f"{second} needs {'more' if comparison.ratio.value > 1 else 'less'} compute for the same loss."
    else:
        head += "no difference found."
    lines = [head]
    for loss, ratio in comparison.ratios.items():
        lines.append(f"  For a loss of {loss:.4g}, {second} needs {ratio.text} times the compute of {first}.")
    if comparison.gap and comparison.compute:
        middle = np.sqrt(comparison.compute[0] * comparison.compute[1])
        lines.append(
            f"  With compute of {middle:.3g}, the loss of {second} is {comparison.gap.text} times that of {first}."
        )
    else:
        lines.append("  Their lines share no range of compute, so their losses are not compared there.")
    same = "as one exponent would" if comparison.slopes.holds(0.0) else "so the ratio changes with the loss"
    lines.append(f"  Their exponents differ by {comparison.slopes.text}: {same}.")
    return "\n".join(lines)


def write(comparisons: Sequence[Comparison], points: Sequence[Point], directory: str) -> str:
    """Writes `comparison.json`; returns its path."""
    path = os.path.join(directory, FILE)
    pairs = [
        {
            **dataclasses.asdict(each),
            "ratios": [{"loss": loss, **dataclasses.asdict(ratio)} for loss, ratio in each.ratios.items()],
            "differ": each.differ,
        }
        for each in comparisons
    ]
    content = {"level": law.LEVEL, "pairs": pairs, "points": [dataclasses.asdict(each) for each in points]}
    files.write_atomically(path, json.dumps(content, indent=1))
    return path


def _common(values: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """The range that all arrays span; None where there is none."""
    low, high = max(float(each.min()) for each in values), min(float(each.max()) for each in values)
    return (low, high) if low < high else None


def _exp(interval: Interval) -> Interval:
    return Interval(*(float(np.exp(end)) for end in (interval.value, interval.low, interval.high)))
