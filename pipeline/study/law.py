"""Scaling laws: fits of loss against compute with intervals, the compute-optimal frontier, and how the optimum grows.

Two laws are fitted. `fit_line` is least squares on log-log axes, as in "ConvNets Match Vision Transformers at Scale".
`fit_saturating` is L = E + A C^-a by Huber loss on log residuals from a grid of starts, as in approach 3 of Hoffmann
et al., "Training Compute-Optimal Large Language Models", 2022, appendix D. Intervals come from bootstrapping residuals.
Compute may be in any unit; nothing here knows which.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy import special, stats

from pipeline.study import StudyError

Values = Sequence[float] | np.ndarray  # [n]
LEVEL = 0.9  # of all intervals
RESAMPLES = 400
TAILS = (1 - LEVEL) / 2, (1 + LEVEL) / 2
MIN_POINTS_LINE, MIN_POINTS_SATURATING, MIN_POINTS_BEND = 4, 5, 5
HUBER_DELTA = 1e-3  # of Hoffmann et al.; in units of log loss


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Values of a law, float64 [n], with the confidence band of the law and the prediction band of a new run."""

    value: np.ndarray
    confidence: tuple[np.ndarray, np.ndarray]
    prediction: tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Line:
    """y = exp(intercept) (x / center)^slope; the `pivots` are studentised errors of resampled fits.

    Attributes:
      intercept, slope: of log y against log(x / center).
      center: geometric mean of the fitted x.
      deviation: standard deviation of the residuals of log y.
      spread: sum of squares of log(x / center).
      count: number of fitted points.
      pivots: rows of (intercept, slope, deviation) of resampled fits, and a drawn residual; float64 [resamples, 4].
    """

    intercept: float
    slope: float
    center: float
    deviation: float
    spread: float
    count: int
    pivots: np.ndarray = dataclasses.field(repr=False)

    @property
    def slope_interval(self) -> tuple[float, float]:
        """Bootstrap-t interval of the slope."""
        low, high = self._quantiles((self.pivots[:, 1] - self.slope) / self.pivots[:, 2])
        return self.slope - high * self.deviation, self.slope - low * self.deviation

    @property
    def text(self) -> str:
        """The law as a formula, x in the fitted unit."""
        return f"y = {np.exp(self.intercept - self.slope * np.log(self.center)):.4g} x^{self.slope:.4g}"

    def predict(self, x: Values) -> Prediction:
        """The law at `x`, with its bands."""
        log_x = np.log(np.asarray(x, np.float64) / self.center)
        log_value = self.intercept + self.slope * log_x
        intercepts, slopes, deviations, residuals = self.pivots.T[:, :, None]
        refitted = intercepts + slopes * log_x
        leverage = 1 / self.count + log_x**2 / self.spread
        width = np.sqrt(leverage)
        low, high = self._quantiles((refitted - log_value) / (deviations * width))
        confidence = (log_value - high * self.deviation * width, log_value - low * self.deviation * width)
        width = np.sqrt(1 + leverage)
        low, high = self._quantiles((log_value + residuals - refitted) / (deviations * width))
        prediction = (log_value + low * self.deviation * width, log_value + high * self.deviation * width)
        # With few points the two sets of resampled errors can cross, but no new run is surer than the law itself.
        prediction = (np.minimum(prediction[0], confidence[0]), np.maximum(prediction[1], confidence[1]))
        return Prediction(np.exp(log_value), _exp(confidence), _exp(prediction))

    def _quantiles(self, pivots: np.ndarray) -> np.ndarray:
        return np.quantile(pivots, TAILS, axis=0)


@dataclasses.dataclass(frozen=True)
class Saturating:
    """y = floor + scale (x / center)^-exponent.

    Attributes:
      floor, scale, exponent: of the law, all positive.
      lowest: the lowest fitted y, which no floor exceeds.
      center: geometric mean of the fitted x.
      samples: rows of (log floor, log scale, log exponent) of resampled fits, float64 [resamples, 3].
      residuals: a residual of log y drawn for each of them, float64 [resamples].
      widening: factor on the spread of `samples` that makes up for the small number of points.
    """

    floor: float
    scale: float
    exponent: float
    lowest: float
    center: float
    samples: np.ndarray = dataclasses.field(repr=False)
    residuals: np.ndarray = dataclasses.field(repr=False)
    widening: float = 1.0

    @property
    def exponent_interval(self) -> tuple[float, float]:
        """Bootstrap interval of the exponent."""
        low, high = self._interval(np.log(self.exponent), self.samples[:, 2])
        return float(low), float(high)

    @property
    def floor_interval(self) -> tuple[float, float]:
        """Bootstrap interval of the floor; no higher than the lowest loss, unless the fitted floor is."""
        low, high = (float(end) for end in self._interval(np.log(self.floor), self.samples[:, 0]))
        return min(low, self.floor), max(min(high, self.lowest), self.floor)

    @property
    def text(self) -> str:
        """The law as a formula, x in the fitted unit."""
        return f"y = {self.floor:.4g} + {self.scale * self.center**self.exponent:.4g} x^-{self.exponent:.4g}"

    def predict(self, x: Values) -> Prediction:
        """The law at `x`, with its bands."""
        log_x = np.log(np.asarray(x, np.float64) / self.center)
        log_value = _log_saturating(np.log([self.floor, self.scale, self.exponent]), log_x)
        refitted = np.stack([_log_saturating(sample, log_x) for sample in self.samples])
        confidence = self._interval(log_value, refitted)
        prediction = self._interval(log_value, refitted + self.residuals[:, None])
        return Prediction(np.exp(log_value), confidence, prediction)

    def _interval(self, log_value: float | np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Percentiles of `samples`, moved away from `log_value` by `widening`, as values."""
        ends = np.quantile(samples, TAILS, axis=0)
        return _exp(log_value + self.widening * (end - log_value) for end in ends)


Law = Line | Saturating


def fit_line(x: Values, y: Values, resamples: int = RESAMPLES, seed: int = 0) -> Line:
    """Least squares of log y on log x; intervals by the studentised bootstrap of residuals.

    Raises:
      StudyError: fewer than 4 points, values that are not positive and finite, or a single x.
    """
    log_x, log_y, center = _logarithms(x, y, MIN_POINTS_LINE, "a straight line with intervals")
    rng, count = np.random.default_rng(seed), len(log_x)
    spread = float(log_x @ log_x)

    def least_squares(log_y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        intercepts, slopes = log_y.mean(-1), log_y @ log_x / spread
        errors = log_y - intercepts[..., None] - slopes[..., None] * log_x
        return intercepts, slopes, np.sqrt((errors**2).sum(-1) / (count - 2)), errors

    intercept, slope, deviation, errors = least_squares(log_y)
    # Residuals are smaller than errors, the more so where a point has leverage.
    errors = errors / np.sqrt(np.maximum(1 - 1 / count - log_x**2 / spread, 1e-9))
    errors -= errors.mean()
    drawn = rng.choice(errors, (resamples, count + 1))
    intercepts, slopes, deviations, _ = least_squares(intercept + slope * log_x + drawn[:, :-1])
    deviations = np.maximum(deviations, np.maximum(deviation, 1e-12) * 1e-3)  # one residual drawn every time
    pivots = np.stack([intercepts, slopes, deviations, drawn[:, -1]], axis=1)
    return Line(float(intercept), float(slope), center, float(deviation), spread, count, pivots)


def fit_saturating(x: Values, y: Values, resamples: int = RESAMPLES, seed: int = 0) -> Saturating:
    """Least Huber loss of log residuals over floor, scale and exponent, the best from a grid of starts.

    Raises:
      StudyError: fewer than 5 points, values that are not positive and finite, a single x, or y that does not fall.
    """
    log_x, log_y, center = _logarithms(x, y, MIN_POINTS_SATURATING, "a law with a floor")
    rng, count = np.random.default_rng(seed), len(log_x)
    if log_x @ log_y >= 0:
        raise StudyError("The loss does not fall with compute, so there is no law with a floor to fit.")
    floors, exponents = log_y.min() + np.log([0.05, 0.5, 0.9]), np.log([0.1, 0.3, 1.0])
    mean = np.exp(log_y.mean())
    starts = [(floor, np.log(mean - np.exp(floor)), a) for floor, a in itertools.product(floors, exponents)]
    ends = _minimise_rows(np.array(starts), log_x, np.tile(log_y, (len(starts), 1)), iterations=200)
    best = ends[_huber(ends, log_x, log_y).argmin()]
    fitted = _log_saturating(best, log_x)
    residuals = (log_y - fitted) * np.sqrt(count / (count - 3))
    residuals -= residuals.mean()
    drawn = rng.choice(residuals, (resamples, count + 1))
    samples = _minimise_rows(best, log_x, fitted + drawn[:, :-1])
    floor, scale, exponent = np.exp(best)
    widening = stats.t.ppf(TAILS[1], count - 3) / stats.norm.ppf(TAILS[1])
    return Saturating(floor, scale, exponent, float(np.exp(log_y.min())), center, samples, drawn[:, -1], widening)


@dataclasses.dataclass(frozen=True)
class Bend:
    """The quadratic term of log y on log x, with its interval: above 0 where a curve levels off."""

    quadratic: float
    interval: tuple[float, float]

    @property
    def found(self) -> bool:
        """Whether the interval excludes a straight line."""
        return not self.interval[0] <= 0 <= self.interval[1]


def bend(x: Values, y: Values) -> Bend:
    """Whether points bend away from a line on log-log axes; the interval is Student's.

    Raises:
      StudyError: fewer than 5 points, values that are not positive and finite, or a single x.
    """
    log_x, log_y, _ = _logarithms(x, y, MIN_POINTS_BEND, "a test for bends")
    powers, freedom = np.vander(log_x, 3), len(log_x) - 3
    inverse = np.linalg.inv(powers.T @ powers)
    fitted = inverse @ (powers.T @ log_y)
    deviation = max(np.sqrt(((log_y - powers @ fitted) ** 2).sum() / freedom), 1e-9)  # of exact points: rounding
    half = special.stdtrit(freedom, TAILS[1]) * deviation * np.sqrt(inverse[0, 0])
    return Bend(float(fitted[0]), (float(fitted[0] - half), float(fitted[0] + half)))


def straight_end(x: Values, y: Values) -> int | None:
    """Where the longest end of the points, by rising `x`, begins that shows no bend; None if all ends do.

    Ends have at least 5 points; fewer points than that are not tested.
    """
    if len(x) < MIN_POINTS_BEND:
        return 0
    starts = range(len(x) - MIN_POINTS_BEND + 1)
    return next((start for start in starts if not bend(x[start:], y[start:]).found), None)


def frontier(compute: Values, loss: Values) -> np.ndarray:
    """Indices of the runs that no run of at most their compute beats, by rising compute; int64 [k]."""
    compute, loss = np.asarray(compute, np.float64), np.asarray(loss, np.float64)
    order = np.lexsort((loss, compute))
    best = np.minimum.accumulate(loss[order])
    return order[np.concatenate([[True], best[1:] < best[:-1]])] if len(order) else order


@dataclasses.dataclass(frozen=True)
class Growth:
    """How the optimum grows: size ~ compute^size.slope, epochs ~ compute^epochs.slope, and their quotient."""

    size: Line
    epochs: Line
    quotient: Line

    @property
    def agree(self) -> bool:
        """Whether one rate for both is within the interval of the difference."""
        low, high = self.quotient.slope_interval
        return bool(low <= 0 <= high)


def growth(compute: Values, size: Values, epochs: Values) -> Growth:
    """Exponents of the model size and epoch budget of the frontier's runs against their compute.

    Raises:
      StudyError: the frontier holds one model or one epoch budget, or too few runs.
    """
    for name, values in (("model size", size), ("epoch budget", epochs)):
        if len(set(values)) < 2:
            raise StudyError(
                f"The frontier holds {len(set(values))} {name}, so how the best one grows with compute is not seen; "
                f"at least 2 are needed: add runs with a smaller or larger {name}."
            )
    size, epochs = np.asarray(size, np.float64), np.asarray(epochs, np.float64)
    return Growth(*(fit_line(compute, values) for values in (size, epochs, size / epochs)))


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The frontier's run of the largest compute beside what the smaller runs predicted for it."""

    index: int
    actual: float
    predicted: float
    interval: tuple[float, float]

    @property
    def inside(self) -> bool:
        """Whether the run is within the prediction interval."""
        return bool(self.interval[0] <= self.actual <= self.interval[1])


def leave_largest_out(compute: Values, loss: Values, fit: Callable[..., Law]) -> HeldOut:
    """Fits the frontier's runs without the one of the largest compute, and predicts that one.

    Raises:
      StudyError: too few runs are left.
    """
    compute, loss = np.asarray(compute, np.float64), np.asarray(loss, np.float64)
    index = int(np.argmax(compute))
    rest = np.arange(len(compute)) != index
    predicted = fit(compute[rest], loss[rest]).predict(compute[[index]])
    low, high = (float(end[0]) for end in predicted.prediction)
    return HeldOut(index, float(loss[index]), float(predicted.value[0]), (low, high))


def _log_saturating(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    log_floor, log_scale, log_exponent = parameters
    return np.logaddexp(log_floor, log_scale - np.exp(log_exponent) * x)


def _huber(parameters: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Huber loss of log residuals of each row of parameters; float64 [rows]."""
    size = np.abs(_log_saturating(parameters.T[:, :, None], x) - y)
    return np.where(size < HUBER_DELTA, size**2 / 2, HUBER_DELTA * (size - HUBER_DELTA / 2)).sum(-1)


def _minimise_rows(starts: np.ndarray, x: np.ndarray, y: np.ndarray, iterations: int = 60) -> np.ndarray:
    """Parameters of the least Huber loss of each row of `y`, from one start or one for each row; float64 [rows, 3].

    Levenberg-Marquardt on reweighted squares. SciPy takes one row at a time, and a hundred times as long.
    """
    parameters = np.broadcast_to(starts, (len(y), 3)).copy()
    damping = np.full(len(y), 1e-3)
    lowest, highest = _bounds(y[0])

    current = _huber(parameters, x, y)
    for _ in range(iterations):
        errors = _log_saturating(parameters.T[:, :, None], x) - y
        weights = HUBER_DELTA / np.maximum(np.abs(errors), HUBER_DELTA)
        slopes = _jacobian(parameters.T[:, :, None], x)  # [rows, 3, points]
        weighted = slopes * weights[:, None, :]
        curvature = weighted @ np.swapaxes(slopes, 1, 2)
        scale = damping[:, None] * (np.einsum("rii->ri", curvature) + 1e-9)
        step = np.linalg.solve(curvature + scale[:, :, None] * np.eye(3), -(weighted @ errors[:, :, None]))
        moved = np.clip(parameters + step[:, :, 0], lowest, highest)
        new = _huber(moved, x, y)
        better = new < current
        parameters[better], current[better] = moved[better], new[better]
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
    return parameters


def _jacobian(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Derivatives of `_log_saturating` by its parameters; these are axis 1 of the result."""
    exponent = np.exp(parameters[2])
    share = np.exp(parameters[1] - exponent * x - _log_saturating(parameters, x))  # of the value, which falls
    return np.stack([1 - share, share, -share * exponent * x], axis=1)


def _bounds(y: np.ndarray) -> tuple[list[float], list[float]]:
    return [y.min() - 12, y.min() - 30, np.log(1e-3)], [y.min() + 1, y.max() + 30, np.log(20)]


def _logarithms(x: Values, y: Values, least: int, what: str) -> tuple[np.ndarray, np.ndarray, float]:
    """log(x / center), log y and the center, the geometric mean of x, after checks that there is something to fit."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < least:
        raise StudyError(f"{what.capitalize()} needs at least {least} points, found {len(x)}: finish more runs.")
    if not (np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)).all():
        raise StudyError("A fit on log-log axes needs positive finite values; leave diverged runs out.")
    if np.ptp(np.log(x)) == 0:
        raise StudyError("All points have the same compute, so no law can be fitted: add budgets.")
    center = float(stats.gmean(x))
    return np.log(x / center), np.log(y), center


def _exp(ends: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    low, high = (np.exp(end) for end in ends)
    return low, high
