"""The search for learning rates: which trial comes next, and where a search ends."""

import dataclasses
import math

import pytest

from pipeline.study import search, sweep
from pipeline.study.run_files import DIVERGED, FINISHED, Run, Trial


def study(**changes) -> search.Study:
    settings = {
        "directory": "study",
        "variants": ("tiny", "nano"),
        "epochs": (2.0, 1.0),
        "learning_rates": (1.0, 0.5),
        "pretrain_file": "pretrain.gin",
        **changes,
    }
    return search.Study(**settings)


def finished(loss_of, trials):
    """Runs of `trials`; an infinite loss is one that diverged."""
    for trial in trials:
        value = loss_of(trial)
        status = DIVERGED if math.isinf(value) else FINISHED
        yield Run(trial, "", status, summary={"validation_loss": value, "validation_top1": 0.5})


def simulate(settings, loss_of):
    """Plays a whole study; returns the trials in order, and the last state of each search."""
    done = []
    while pending := search.next_trials(settings, done):
        done += finished(loss_of, [next(iter(pending))])
        assert len(done) < 200
    return [run.trial for run in done], search.searches(settings, done)


def bowl(best):
    """A loss with its least at the learning rate `best(trial)`; the same for fine-tuning."""
    return lambda trial: 1 + abs(math.log2(trial.learning_rate / best(trial)))


def test_two_trials_start_from_the_neighbour():
    trials, states = simulate(study(), bowl(lambda trial: 0.5))
    rates = {}
    for trial in trials:
        rates.setdefault((trial.variant, trial.epochs), []).append(trial.learning_rate)
    # The grid's best is on its lower edge, so that 0.25 is tried too; then 0.5, half of it, and what is above.
    assert rates[("nano", 1.0)] == [1.0, 0.5, 0.25]
    assert all(rates[key] == [0.5, 0.25, 1.0] for key in (("nano", 2.0), ("tiny", 1.0), ("tiny", 2.0)))
    assert set(states.values()) == {search.Search(best=0.5)}


def test_the_search_follows_a_falling_optimum_and_says_so():
    settings = study(variants=("nano",), epochs=(1.0, 8.0))
    done = list(finished(bowl(lambda t: 0.5), [Trial("nano", 1.0, rate) for rate in (1.0, 0.5)]))
    ((trial, reason),) = search.next_trials(settings, done).items()
    assert trial.learning_rate == 0.25
    assert reason == "the best, 0.5, is on the lower edge: the grid is extended"
    _, states = simulate(settings, bowl(lambda trial: 0.5 if trial.epochs == 1 else 0.125))
    assert states[("nano", 8.0)].best == 0.125


def test_the_search_follows_a_rising_optimum():
    settings = study(variants=("nano",), epochs=(1.0, 8.0))
    trials, states = simulate(settings, bowl(lambda trial: 0.5 if trial.epochs == 1 else 2.0))
    assert [trial.learning_rate for trial in trials if trial.epochs == 8] == [0.5, 0.25, 1.0, 2.0, 4.0]
    assert states[("nano", 8.0)] == search.Search(best=2.0)


def test_a_grid_is_extended_at_its_upper_edge():
    settings = study(variants=("nano",), epochs=(1.0,), search="grid")
    trials, states = simulate(settings, bowl(lambda trial: 2.0))
    assert [trial.learning_rate for trial in trials] == [1.0, 0.5, 2.0, 4.0]
    assert states[("nano", 1.0)] == search.Search(best=2.0)


def test_extension_has_a_limit_and_says_so():
    settings = study(variants=("nano",), epochs=(1.0,), max_extensions=2)
    trials, states = simulate(settings, bowl(lambda trial: 1e-6))
    assert len(trials) == 4
    assert states[("nano", 1.0)].note == "the best learning rate, 0.125, is still on the lower edge"


def test_divergence_drives_the_search_down():
    settings = study(variants=("nano",), epochs=(1.0,))
    trials, states = simulate(settings, lambda t: math.inf if t.learning_rate > 0.3 else 2 - t.learning_rate)
    assert [trial.learning_rate for trial in trials] == [1.0, 0.5, 0.25, 0.125]
    assert states[("nano", 1.0)].best == 0.25
    _, states = simulate(settings, lambda trial: math.inf)
    assert "every learning rate from 0.0625 to 1 diverged" in states[("nano", 1.0)].note


@pytest.mark.parametrize(("finetune", "count"), [("best", 4), ("all", 16)])
def test_seeds_and_finetuning_follow_the_best(finetune, count):
    settings = study(seeds=(3, 4), finetune_files=("gin/a.gin",), finetune=finetune)
    trials, _ = simulate(settings, bowl(lambda trial: 0.5))
    assert sum(trial.task == "a" for trial in trials) == count
    again = [trial for trial in trials if trial.seed == 4 and not trial.task]
    assert len(again) == 4
    assert {trial.learning_rate for trial in again} == {0.5}


def test_what_remains_is_foreseen():
    settings = study(finetune_files=("gin/a.gin",))
    assert len(list(search.remaining(settings, []))) == 2 + 3 * 3 + 4
    done = list(finished(bowl(lambda t: 1.0), [Trial("nano", 1.0, rate) for rate in (2.0, 1.0, 0.5)]))
    assert len(list(search.remaining(settings, done))) == 1 + 2 * (2 + 1) + 3 + 1
    done = [dataclasses.replace(run, wall_seconds=10.0) for run in done]
    assert 100 <= sweep.seconds_left(settings, done) <= 60 * 10
    assert sweep.seconds_left(settings, []) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ("nano", "huge")}, "Unknown variant 'huge'"),
        ({"learning_rates": (1.0, 0.4)}, r"spaced by factors of two, found \[0.4, 1.0\]"),
        ({"epochs": (1.0, 1.0)}, "Study.epochs must hold distinct values"),
        ({"epochs": (0.0,)}, "must be positive"),
        ({"at_once": 0}, "Study.at_once is 0; expected 1 or more"),
        ({"search": "random"}, "Study.search is 'random'"),
        ({"finetune_files": ("a/x.gin", "b/x.gin")}, "distinct names"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        study(**changes)
