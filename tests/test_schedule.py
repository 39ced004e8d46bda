import math

import numpy as np
import pytest
import tensorflow as tf

from pipeline.train import schedule


def test_cosine_warms_up_and_comes_down_to_final():
    rates = schedule.cosine(1000, 100, peak=1.6, warmup_epochs=1, final=0.1)
    for step in (0, 1, 50, 99):
        assert float(rates(step)) == pytest.approx(1.6 * step / 100)
    for step in (100, 101, 550, 999, 1000, 2000):
        share = min(1, (step - 100) / 900)
        assert float(rates(step)) == pytest.approx(0.1 + 1.5 * (1 + math.cos(math.pi * share)) / 2, abs=1e-6)


def test_linear_comes_down_in_a_straight_line():
    rates = schedule.linear(110, 1, peak=1.0, warmup_steps=10, final=0.5)
    assert [float(rates(step)) for step in (5, 10, 60, 110)] == pytest.approx([0.5, 1.0, 0.75, 0.5])


def test_constant_stays():
    rates = schedule.constant(100, 10, peak=0.3, warmup_epochs=0.5)
    assert [float(rates(step)) for step in (0, 1, 5, 50, 99, 1000)] == pytest.approx([0, 0.06, 0.3, 0.3, 0.3, 0.3])


def test_without_warmup_the_first_step_is_at_the_peak():
    assert float(schedule.cosine(10, 5, peak=0.7)(0)) == pytest.approx(0.7)


def test_epochs_may_be_fractions():
    rates = schedule.cosine(1000, 33.3, peak=1.0, warmup_epochs=0.3)
    assert float(rates(5)) == pytest.approx(0.5)


def test_steps_beyond_float32_integers_are_told_apart():
    rates = schedule.linear(2**25 + 1000, 1, peak=1.0, warmup_steps=2**25)
    assert float(rates(2**25 + 1)) == pytest.approx(0.999)


def test_schedules_work_in_graphs_and_survive_their_configuration():
    rates = schedule.cosine(100, 10, peak=1.0, warmup_epochs=2)
    copy = schedule.WarmUp.from_config(rates.get_config())
    compiled = tf.function(copy)
    steps = range(0, 100, 7)
    found = [compiled(tf.constant(step, tf.int64)) for step in steps]
    np.testing.assert_allclose(found, [rates(step) for step in steps], rtol=1e-5)


@pytest.mark.parametrize("make", [schedule.cosine, schedule.linear, schedule.constant])
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(ValueError, match="warm-up takes 50 steps and the whole training 50"):
        make(50, 10, peak=1.0, warmup_epochs=5)
    with pytest.raises(ValueError, match="peak learning rate is 0"):
        make(50, 10, peak=0)
