"""The search for learning rates: which trial comes next, and where a search ends."""

import dataclasses
import math

import pytest

from pipeline.study import search, sweep
from pipeline.study.family import Family
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


VIT = {"models": ("gin/model/vit_pico.gin", "gin/model/vit_nano.gin"), "learning_rates": (0.002, 0.001)}


def two_families(**changes) -> search.Study:
    """NFNets with a grid around 1, and ViTs with one around 0.001."""
    nfnets = Family("NFNet", ("nano", "tiny"), (1.0, 0.5), "nfnet/pretrain.gin", ("nfnet/tune.gin",))
    vits = Family("ViT", pretrain_file="vit/pretrain.gin", finetune_files=("vit/tune.gin",), **VIT)
    return search.Study("study", (1.0, 2.0), families=(nfnets, vits), **changes)


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


def test_each_family_is_searched_from_its_own_grid():
    best = {"NFNet": 0.25, "ViT": 0.004}
    trials, states = simulate(two_families(), bowl(lambda trial: best[trial.family]))
    for name, grid in (("NFNet", {1.0, 0.5}), ("ViT", {0.002, 0.001})):
        first = [trial for trial in trials if trial.family == name and not trial.task]
        assert {trial.learning_rate for trial in first[:2]} == grid
        assert {trial.family for trial in trials if trial.variant == first[0].variant} == {name}
    assert {states[cell].best for cell in states if cell[0].startswith("vit")} == {0.004}
    assert {states[cell].best for cell in states if not cell[0].startswith("vit")} == {0.25}
    assert sum(trial.task == "tune" for trial in trials) == 8
    assert [cell[0] for cell in states] == ["nano"] * 2 + ["tiny"] * 2 + ["vit_pico"] * 2 + ["vit_nano"] * 2


def test_the_smallest_model_of_a_family_has_no_neighbour_in_another():
    settings = two_families()
    assert settings.neighbour("vit_pico", 1.0) is None
    assert settings.neighbour("vit_nano", 1.0) == ("vit_pico", 1.0)
    # Both searches start at once.
    first = list(search.next_trials(settings, []))
    assert [(trial.variant, trial.learning_rate) for trial in first] == [
        ("nano", 1.0), ("nano", 0.5), ("vit_pico", 0.002), ("vit_pico", 0.001)
    ]  # fmt: skip


def test_a_family_may_have_budgets_of_its_own():
    settings = two_families()
    settings = dataclasses.replace(
        settings, families=(settings.members[0], dataclasses.replace(settings.members[1], epochs=(8.0, 4.0, 2.0)))
    )
    assert {epochs for variant, epochs in settings.grid if variant == "nano"} == set(settings.epochs)
    assert [epochs for variant, epochs in settings.grid if variant == "vit_pico"] == [2.0, 4.0, 8.0]
    assert settings.neighbour("vit_pico", 8.0) == ("vit_pico", 4.0)
    assert settings.neighbour("vit_nano", 2.0) == ("vit_pico", 2.0)
    _, states = simulate(settings, bowl(lambda trial: 0.5))
    assert set(states) == set(settings.grid)


def test_a_model_is_a_variant_or_a_gin_file_over_the_recipe():
    nfnets, vits = two_families().members
    assert nfnets.configuration("nano") == (["nfnet/pretrain.gin"], ['nfnet.variant="nano"'])
    assert vits.configuration("vit_pico") == (["vit/pretrain.gin", "gin/model/vit_pico.gin"], [])
    assert vits.configuration("vit_nano", "tune") == (["vit/tune.gin", "gin/model/vit_nano.gin"], [])


def test_nfnets_and_further_families():
    nfnets, vits = two_families().members
    assert study(families=(vits,)).members == (*study().members, vits)
    assert study(families=(vits,)).family("nano").name == nfnets.name


def test_time_left_of_families():
    """By FLOPs that finished runs report, where they cannot be counted beforehand."""
    settings = two_families(max_extensions=0)
    trials = [settings.trial((name, 1.0), rate, 0) for name, rate in (("nano", 1.0), ("vit_pico", 0.002))]
    done = [dataclasses.replace(run, wall_seconds=10.0) for run in finished(bowl(lambda trial: 1), trials)]
    for run in done:
        run.summary["flops_per_image"] = 1e6
    ahead = len(list(search.remaining(settings, done)))
    assert 10 * ahead <= sweep.seconds_left(settings, done) <= 60 * ahead


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": ()}, "Set Study.variants, .* for NFNets, or Study.families"),
        ({"learning_rates": (1.0,)}, "are those of Study.variants, which is not set"),
        (
            {"variants": ("F0",), "learning_rates": (1.0,), "pretrain_file": "a.gin"},
            "distinct names, found .*NFNet.*NFNet",
        ),
        (
            {"families": (Family("A", ("F0",), (1.0,), "a.gin"), Family("B", ("F0",), (1.0,), "b.gin"))},
            "distinct names",
        ),
        (
            {"families": (Family("A", ("F0",), (1.0,), "a.gin"), Family("A", ("F1",), (1.0,), "b.gin"))},
            "distinct names",
        ),
        (
            {"families": (Family("A", ("F0",), (1.0,), "a.gin", epochs=(1.0, 1.0)),)},
            "Family.epochs of A must hold distinct values",
        ),
        ({"epochs": ()}, "Study.epochs must hold distinct values"),
        (
            {"families": (Family("A", ("F0",), (1.0,), "a.gin", epochs=(1.0, 2.0)),)},
            "Study.epochs is not used",
        ),
    ],
)
def test_families_that_cannot_be_told_apart_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(two_families(), **changes)


def test_what_remains_is_foreseen():
    settings = study(finetune_files=("gin/a.gin",))
    assert len(list(search.remaining(settings, []))) == 2 + 3 * 3 + 4
    done = list(finished(bowl(lambda t: 1.0), [Trial("nano", 1.0, rate) for rate in (2.0, 1.0, 0.5)]))
    assert len(list(search.remaining(settings, done))) == 1 + 2 * (2 + 1) + 3 + 1
    done = [dataclasses.replace(run, wall_seconds=10.0) for run in done]
    assert sweep.seconds_left(settings, []) is None
    assert sweep.seconds_left(settings, done) is None  # of one size: what a larger one takes is not known
    larger = next(finished(bowl(lambda t: 1.0), [Trial("nano", 2.0, 1.0)]))
    done = [*done, dataclasses.replace(larger, wall_seconds=15.0)]
    assert 100 <= sweep.seconds_left(settings, done) <= 60 * 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ("nano", "huge")}, "Unknown variant 'huge'"),
        ({"learning_rates": (1.0, -0.5)}, "must be positive"),
        ({"variants": ()}, "Set Study.variants, .* for NFNets, or Study.families"),
        ({"variants": ("nano", "nano")}, "The models of NFNet must hold distinct values"),
        ({"pretrain_file": ""}, "needs a name and a pretrain_file"),
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
