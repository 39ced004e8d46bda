"""Two families of a study at equal loss and at equal compute, with intervals.

Both are read off the families' frontiers, each smoothed by a parabola of log loss on log compute: within the range of
its runs it follows a line, a law with a floor and a frontier that falls faster and faster. It says nothing outside.
Intervals are percentiles of a bootstrap of whole studies: the loss of every cell is varied by the noise of a run, and
the frontier and its parabola are found again. So they cover which runs happen to be on the frontier.
"""

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Sequence

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
      losses: the range that both frontiers reach.
      compute: the range of both frontiers; None where they share none.
      ratios: loss to the compute that the second family needs for it, over that of the first; at the ends of `losses`
        and in the middle.
      gap: the second's loss over the first's in the middle of `compute`; None where there is none.
      slopes: difference of their exponents in the middle of `losses`, the second's less the first's.
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
    """A cell of a family that cannot be fitted, beside the frontier of another.

    Attributes:
      family, variant, epochs: of the cell.
      unit: of compute.
      loss: its held-out loss.
      other: the family with the frontier.
      ratio: the compute of the cell over that at which the frontier has its loss.
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


@dataclasses.dataclass(frozen=True)
class _Parabolas:
    """log loss = a + b u + c u^2 with u = log(compute / center): a frontier's, then those of resampled studies.

    Attributes:
      coefficients: rows of (a, b, c), float64 [n, 3].
      center: of compute.
      deviation: standard deviation of the frontier's residuals.
      noise: standard deviation of a run's log loss, by which the studies are varied.
      freedom: degrees of freedom of `noise`.
    """

    coefficients: np.ndarray
    center: float
    deviation: float
    noise: float
    freedom: int

    def loss(self, compute: float) -> np.ndarray:
        """Log loss at `compute`, float64 [n]."""
        return np.polynomial.polynomial.polyval(np.log(compute / self.center), self.coefficients.T)

    def compute(self, log_loss: float | np.ndarray) -> np.ndarray:
        """Log compute at which each falls to `log_loss`, float64 [n]."""
        a, b, _ = self.coefficients.T
        return np.log(self.center) - 2 * (a - log_loss) / (b + self.slope(log_loss))

    def slope(self, log_loss: float | np.ndarray) -> np.ndarray:
        """Derivative where each falls to `log_loss`, float64 [n]; 0 for one whose vertex is above it."""
        a, b, c = self.coefficients.T
        return -np.sqrt(np.maximum(b**2 - 4 * c * (a - log_loss), 0))


def compare(first: Analysis, second: Analysis) -> Comparison:
    """Compares two families by their frontiers.

    Raises:
      StudyError: a frontier has too few points, or they reach no common loss.
    """
    one, other = (_resampled(each, seed) for seed, each in enumerate((first, second)))
    ranges = [each.loss[each.frontier] for each in (first, second)]
    losses = _common(ranges)
    if losses is None:
        found = " and ".join(f"{loss.min():.4g} to {loss.max():.4g}" for loss in ranges)
        raise StudyError(
            f"{first.family} and {second.family} reach no common loss ({found}): add larger budgets to the one, or "
            "smaller ones to the other."
        )
    middle = float(np.sqrt(losses[0] * losses[1]))
    compute = _common([each.compute[each.frontier] for each in (first, second)])

    def needed(loss: float) -> Interval:
        return _exp(_difference(one.compute(np.log(loss)), other.compute(np.log(loss))))

    gap = None
    if compute:
        center = float(np.sqrt(compute[0] * compute[1]))
        gap = _exp(_difference(one.loss(center), other.loss(center)))
    return Comparison(
        first=first.family,
        second=second.family,
        unit=first.unit,
        losses=losses,
        compute=compute,
        ratios={loss: needed(loss) for loss in (losses[1], middle, losses[0])},
        gap=gap,
        slopes=_difference(one.slope(np.log(middle)), other.slope(np.log(middle))),
    )


def _difference(one: np.ndarray, other: np.ndarray) -> Interval:
    """The other's value less the one's, by their rows 0, with percentiles of the rows behind them."""
    kept = min(len(one), len(other))
    differences = other[:kept] - one[:kept]
    low, high = np.quantile(differences[1:], law.TAILS)
    return Interval(float(differences[0]), float(low), float(high))


def _resampled(analysis: Analysis, seed: int) -> _Parabolas:
    """Parabolas of the frontier, and of those of studies whose losses are varied by the noise of a run.

    Raises:
      StudyError: the frontier has too few points.
    """
    if len(analysis.frontier) < law.MIN_POINTS_BEND:
        raise StudyError(
            f"The frontier of {analysis.family} has {len(analysis.frontier)} points, too few to compare: at least "
            f"{law.MIN_POINTS_BEND} are needed. Add models or epoch budgets."
        )
    rng = np.random.default_rng(seed)
    center = float(np.exp(np.log(analysis.compute).mean()))
    log_compute, log_loss = np.log(analysis.compute / center), np.log(analysis.loss)

    def fitted(log_loss: np.ndarray, frontier: np.ndarray) -> np.ndarray:
        return np.polynomial.polynomial.polyfit(log_compute[frontier], log_loss[frontier], 2)

    rows = [fitted(log_loss, analysis.frontier)]
    residuals = (log_loss - np.polynomial.polynomial.polyval(log_compute, rows[0]))[analysis.frontier]
    freedom = len(residuals) - 3
    deviation = float(np.sqrt(np.sum(residuals**2) / freedom))
    # A frontier's residuals are smaller than the noise, since it holds chosen losses.
    noise, freedom = _noise(analysis) or (deviation, freedom)
    for _ in range(RESAMPLES):
        varied = log_loss + rng.normal(0, noise, len(log_loss))
        frontier = law.frontier(analysis.compute, varied)
        if len(frontier) >= law.MIN_POINTS_BEND:
            rows.append(fitted(varied, frontier))
    return _Parabolas(np.array(rows), center, deviation, noise, freedom)


def _noise(analysis: Analysis) -> tuple[float, int] | None:
    """Standard deviation of a run's log loss, and its degrees of freedom; None where the models have too few budgets.

    From what parabolas of log loss on log epochs, one a model, leave over.
    """
    squares, freedom = 0.0, 0
    for variant in {cell.variant for cell in analysis.cells}:
        cells = [cell for cell in analysis.cells if cell.variant == variant]
        if len(cells) > 3:
            x, y = (np.log([getattr(cell, name) for cell in cells]) for name in ("epochs", "loss"))
            squares += float(np.sum((y - np.polyval(np.polyfit(x, y, 2), x)) ** 2))
            freedom += len(cells) - 3
    return (float(np.sqrt(squares / freedom)), freedom) if freedom else None


def points(runs: Sequence[Run], study: StudyAnalysis) -> list[Point]:
    """Cells of families that cannot be fitted, beside every frontier that reaches their loss.

    Intervals are of a bootstrap of whole studies, as in `compare`, but symmetric: a cell that was not chosen from many
    is compared with a frontier that was. The cell has the noise of a run too, and the frontier's residuals.
    """
    found = []
    for each in study.families.values():
        try:
            parabolas = _resampled(each, seed=0)
        except StudyError:
            continue  # too few points, as `compare` says
        rows, rng = len(parabolas.coefficients), np.random.default_rng(1)
        spread, reached = np.hypot(parabolas.noise, parabolas.deviation), each.loss[each.frontier]
        for compute, cell in _left_out(runs, study, each.unit):
            if reached.min() <= cell.loss <= reached.max():
                noise = spread * rng.standard_t(parabolas.freedom, rows)
                noise[0] = 0
                ratios = np.log(compute) - parabolas.compute(np.log(cell.loss) + noise)
                # A frontier holds the luckiest losses, so it is too low, and those of resampled studies are lower again
                # by up to as much: the interval takes both, as if they were not, and as if by as much.
                low, high = np.quantile(ratios[1:], law.TAILS) - ratios[0]
                half = max(-low, high)
                ratio = _exp(Interval(float(ratios[0]), float(ratios[0] - half), float(ratios[0] + half)))
                family = cell.runs[0].trial.family
                found.append(Point(family, cell.variant, cell.epochs, each.unit, cell.loss, each.family, ratio))
    return found


def _left_out(runs: Sequence[Run], study: StudyAnalysis, unit: str) -> list[tuple[float, Cell]]:
    """The compute, and the cell, of families that cannot be fitted."""
    found = []
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
        lines.append("  Their frontiers share no range of compute, so their losses are not compared there.")
    same = "as one exponent would" if comparison.slopes.holds(0.0) else "so the ratio changes with the loss"
    lines.append(f"  Their exponents, in the middle of those losses, differ by {comparison.slopes.text}: {same}.")
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
