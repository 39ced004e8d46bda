"""Fits against independent computations and against simulations of a given truth."""

import numpy as np
import pytest
from scipy import optimize, stats

from pipeline.study import StudyError, law


def power(x, noise=0.0, floor=0.0):
    return (floor + 3.0 * x**-0.25) * np.exp(noise)


def test_line_is_least_squares():
    x = np.geomspace(10, 1e5, 9)
    y = power(x, np.random.default_rng(0).normal(0, 0.05, 9))
    line, expected = law.fit_line(x, y), stats.linregress(np.log(x), np.log(y))
    assert line.slope == pytest.approx(expected.slope)
    assert line.predict([123.0]).value[0] == pytest.approx(np.exp(expected.intercept) * 123**expected.slope)
    # With normal noise and no bootstrap, the interval is Student's; the bootstrap's is near it.
    half = stats.t.ppf((1 + law.LEVEL) / 2, 7) * expected.stderr
    low, high = line.slope_interval
    assert low < line.slope < high
    assert (high - low) / (2 * half) == pytest.approx(1, abs=0.25)


def test_line_is_the_same_in_any_unit():
    x = np.geomspace(1, 100, 6)
    y = power(x, np.random.default_rng(1).normal(0, 0.02, 6))
    one, other = law.fit_line(x, y), law.fit_line(x * 1e15, y)
    assert one.slope == pytest.approx(other.slope)
    np.testing.assert_allclose(one.predict([50.0]).prediction, other.predict([50e15]).prediction)
    assert one.text.startswith("y = ")


def test_bands_widen_away_from_the_data_and_hold_more_for_a_new_run():
    x = np.geomspace(1, 100, 8)
    y = power(x, np.random.default_rng(2).normal(0, 0.03, 8), floor=1)
    for fit in (law.fit_line, law.fit_saturating):
        bands = fit(x, y).predict([10.0, 1e4])
        confidence, prediction = (np.log(high / low) for low, high in (bands.confidence, bands.prediction))
        assert confidence[1] > 1.5 * confidence[0] > 0
        assert prediction[0] > 1.5 * confidence[0]


def test_exact_points_give_their_law_without_width():
    x = np.geomspace(1, 1000, 6)
    line = law.fit_line(x, power(x))
    assert line.slope_interval == pytest.approx((-0.25, -0.25))
    bent = law.fit_saturating(x, power(x, floor=1.0))
    assert (bent.floor, bent.scale * bent.center**bent.exponent, bent.exponent) == pytest.approx((1, 3, 0.25), rel=1e-3)


def test_saturating_fit_is_robust_to_one_outlier():
    x = np.geomspace(1, 1e4, 12)
    y = power(x, np.random.default_rng(3).normal(0, 0.001, 12), floor=1)
    y[4] *= 1.3
    assert law.fit_saturating(x, y, resamples=50).exponent == pytest.approx(0.25, rel=0.1)


def test_refitting_in_bulk_agrees_with_scipy():
    x = np.log(np.geomspace(0.1, 10, 9))
    rng = np.random.default_rng(4)
    y = np.log(power(np.exp(x), floor=1)) + rng.normal(0, 0.01, (20, 9))
    start = np.log([1.0, 3.0, 0.25])

    def by_scipy(y):
        bounds = law._bounds(y)
        return optimize.least_squares(
            lambda parameters: law._log_saturating(parameters, x) - y,
            np.clip(start, *bounds),
            bounds=bounds,
            loss="huber",
            f_scale=law.HUBER_DELTA,
        ).x

    def cost(parameters, y):
        size = np.abs(law._log_saturating(parameters, x) - y)
        delta = law.HUBER_DELTA
        return np.where(size < delta, size**2 / 2, delta * (size - delta / 2)).sum()

    for row, parameters in zip(y, law._minimise_rows(start, x, y), strict=True):
        assert cost(parameters, row) <= 1.02 * cost(by_scipy(row), row)


def test_a_law_that_does_not_bend_is_predicted_as_a_line():
    x = np.geomspace(1, 1e3, 10)
    y = power(x, np.random.default_rng(5).normal(0, 0.002, 10))
    bent, line = law.fit_saturating(x, y, resamples=50), law.fit_line(x, y)
    assert bent.predict([3e3]).value[0] == pytest.approx(line.predict([3e3]).value[0], rel=0.03)


def coverage(fit, truth, exponent, simulations, points, sigma):
    """Shares of simulations whose intervals hold the exponent, the law beyond the data, and a new run there."""
    x, beyond = np.geomspace(1, 300, points), 1000.0
    hits = np.zeros(3)
    for seed in range(simulations):
        rng = np.random.default_rng(1000 + seed)
        fitted = fit(x, truth(x) * np.exp(rng.normal(0, sigma, points)), 200, seed)
        predicted = fitted.predict([beyond])
        new = truth(beyond) * np.exp(rng.normal(0, sigma))
        low, high = fitted.slope_interval if isinstance(fitted, law.Line) else fitted.exponent_interval
        hits[0] += low <= exponent <= high
        hits[1] += predicted.confidence[0][0] <= truth(beyond) <= predicted.confidence[1][0]
        hits[2] += predicted.prediction[0][0] <= new <= predicted.prediction[1][0]
    return hits / simulations


@pytest.mark.parametrize("points", [6, 12])
def test_line_intervals_cover_the_truth_at_their_rate(points):
    shares = coverage(law.fit_line, power, -0.25, 200, points, 0.02)
    # Two standard errors of a share of 0.9 in 200 are 0.042.
    assert (shares > 0.84).all(), shares
    assert (shares < 0.96).all(), shares


@pytest.mark.slow
def test_intervals_of_the_law_with_a_floor_cover_the_truth():
    shares = coverage(law.fit_saturating, lambda x: power(x, floor=1.0), 0.25, 200, 10, 0.01)
    assert (shares > 0.83).all(), shares
    assert (shares < 0.98).all(), shares


@pytest.mark.parametrize("points", [5, 12])
def test_bends_of_straight_lines_are_found_at_the_stated_rate(points):
    x = np.geomspace(1, 200, points)
    rngs = (np.random.default_rng(seed) for seed in range(500))
    share = np.mean([law.bend(x, power(x, rng.normal(0, 0.02, points))).found for rng in rngs])
    # Two standard errors of a share of 0.1 in 500 are 0.027.
    assert share == pytest.approx(1 - law.LEVEL, abs=0.03)


def test_the_quadratic_term_is_that_of_a_parabola():
    x = np.geomspace(1, 1e4, 9)
    noise = np.random.default_rng(8).normal(0, 0.01, 9)
    fitted = law.bend(x, power(x, noise, floor=1.0))
    assert fitted.quadratic == pytest.approx(np.polyfit(np.log(x), np.log(power(x, noise, floor=1.0)), 2)[0])
    assert fitted.found and fitted.interval[0] > 0
    assert not law.bend(x, power(x)).found  # exact: what is left is rounding


def test_the_straight_end_begins_after_the_knee():
    x = np.geomspace(1, 1e4, 17)
    y = np.where(x < 100, 3.0, 3.0 * (x / 100) ** -0.25)
    assert law.straight_end(x, y) == 8
    assert law.straight_end(x, power(x)) == 0
    assert law.straight_end(x, np.exp(-0.01 * np.log(x) ** 3)) is None
    assert law.straight_end(x[:4], y[:4]) == 0  # too few to tell
    with pytest.raises(StudyError, match="at least 5 points, found 4"):
        law.bend(x[:4], y[:4])


def test_the_slope_of_the_straight_end_covers_the_law_after_a_knee():
    x, hits = np.geomspace(1, 1e4, 17), 0
    y = np.where(x < 100, 3.0, 3.0 * (x / 100) ** -0.25)
    for seed in range(100):
        noisy = y * np.exp(np.random.default_rng(seed).normal(0, 0.02, 17))
        start = law.straight_end(x, noisy)
        low, high = law.fit_line(x[start:], noisy[start:], 200, seed).slope_interval
        hits += low <= -0.25 <= high
    # The interval does not cover the choice of where the end begins.
    assert 0.75 <= hits / 100 <= 0.97


def test_frontier_by_hand():
    compute = [1, 2, 3, 4, 5, 4, 1]
    loss = [9, 8, 8.5, 6, 6, 7, 10]
    assert law.frontier(compute, loss).tolist() == [0, 1, 3]
    assert law.frontier([], []).tolist() == []


@pytest.mark.parametrize("rates", [(0.5, 0.5), (0.7, 0.3)])
def test_growth_of_the_optimum(rates):
    compute = np.geomspace(1, 1e4, 10)
    rng = np.random.default_rng(6)
    size, epochs = (compute**rate * np.exp(rng.normal(0, 0.1, 10)) for rate in rates)
    growth = law.growth(compute, size, epochs)
    assert growth.size.slope == pytest.approx(rates[0], abs=0.05)
    assert growth.epochs.slope == pytest.approx(rates[1], abs=0.05)
    assert growth.agree == (rates[0] == rates[1])


def test_growth_needs_two_models_and_two_budgets():
    with pytest.raises(StudyError, match="The frontier holds 1 model size"):
        law.growth([1, 2, 3, 4], [5, 5, 5, 5], [1, 2, 3, 4])
    with pytest.raises(StudyError, match="1 epoch budget"):
        law.growth([1, 2, 3, 4], [1, 2, 3, 4], [5, 5, 5, 5])


def test_leaving_the_largest_out():
    x = np.geomspace(1, 1e4, 9)[::-1]
    noise = np.random.default_rng(7).normal(0, 0.01, 9)
    kept = law.leave_largest_out(x, power(x, noise), law.fit_line)
    assert (kept.index, kept.inside) == (0, True)
    rest = stats.linregress(np.log(x[1:]), np.log(power(x, noise)[1:]))
    assert kept.predicted == pytest.approx(np.exp(rest.intercept) * 1e4**rest.slope)
    bent = law.leave_largest_out(x, power(x, noise) * np.where(x == x.max(), 1.2, 1), law.fit_line)
    assert not bent.inside


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, 3], [3, 2, 1], "needs at least 4 points, found 3"),
        ([1, 2, 3, 4], [3, 2, 1, np.inf], "leave diverged runs out"),
        ([1, 2, 3, 4], [3, 2, 1, -1], "needs positive finite values"),
        ([2, 2, 2, 2], [3, 2, 1, 1], "the same compute"),
    ],
)
def test_lines_through_nothing_are_refused(x, y, message):
    with pytest.raises(StudyError, match=message):
        law.fit_line(x, y)


def test_laws_with_a_floor_through_nothing_are_refused():
    with pytest.raises(StudyError, match="at least 5 points, found 4"):
        law.fit_saturating([1, 2, 3, 4], [4, 3, 2, 1])
    with pytest.raises(StudyError, match="does not fall"):
        law.fit_saturating([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])


def test_few_points_give_bands_that_contain_each_other_and_a_floor_below_the_losses():
    compute, loss = [8.6e10, 1.7e11, 3.5e11, 6.9e11, 1.5e12], [3.69, 3.51, 3.02, 2.43, 2.28]
    predicted = law.fit_line(compute, loss).predict(np.geomspace(8e10, 5e12, 50))
    assert np.all(predicted.prediction[0] <= predicted.confidence[0])
    assert np.all(predicted.prediction[1] >= predicted.confidence[1])
    fitted = law.fit_saturating(compute, loss)
    low, high = fitted.floor_interval
    assert low <= fitted.floor <= high <= 2.28


def test_a_floor_fitted_above_the_lowest_loss_lies_in_its_interval():
    """One lucky run is no bound on the floor."""
    loss = [4, 2.9, 2.35, 2.12, 2.03, 2.012, 2.004, 1.93]
    fitted = law.fit_saturating(np.geomspace(1, 1e4, 8), loss)
    low, high = fitted.floor_interval
    assert min(loss) < fitted.floor and low <= fitted.floor <= high
