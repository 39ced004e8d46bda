"""Two families with a known ratio of compute: intervals hold it at their stated rate, or above."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from pipeline.study import StudyError, comparison, law
from pipeline.study.analysis import Analysis, analyse, analyse_families
from tests import simulated_studies

EPOCHS = (0.25, 0.5, 1, 2, 4, 8)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """For time: the ends of an interval are of 60 resampled studies."""
    monkeypatch.setattr(comparison, "RESAMPLES", 60)


def families(ratio: float, sigma: float = 0.005, seed: int = 0, epochs=EPOCHS, vit_epochs=EPOCHS) -> list[Analysis]:
    """NFNets, and ViTs that take `ratio` times their FLOPs for the same loss."""
    names = simulated_studies.PAPER
    vits = [f"vit_{name}" for name in names]
    runs = [
        simulated_studies.family("NFNet", names, epochs, sigma, seed),
        simulated_studies.family(simulated_studies.VIT, vits, vit_epochs, sigma, seed + 1000, ratio=ratio),
    ]
    return [analyse(each, "flops") for each in runs]


@pytest.mark.parametrize("ratio", [0.5, 1.0, 4.0])
def test_the_known_ratio_is_found(ratio):
    compared = comparison.compare(*families(ratio))
    assert compared.ratio.low <= ratio <= compared.ratio.high
    assert compared.ratio.high / compared.ratio.low < 1.7
    assert compared.differ == (ratio != 1.0)
    # At equal compute, the family that needs more for a loss has the higher one.
    if ratio != 1.0:
        assert (compared.gap.value > 1) == (ratio > 1)
    text = comparison.describe(compared)
    assert ("no difference found" in text) == (ratio == 1.0)
    assert {0.5: "needs less compute", 1.0: "ViT and NFNet", 4.0: "needs more compute"}[ratio] in text
    assert "as one exponent would" in text


def test_what_is_written_is_what_was_found(tmp_path):
    compared = comparison.compare(*families(2.0))
    (content,) = json.loads(pathlib.Path(comparison.write([compared], [], str(tmp_path))).read_text())["pairs"]
    assert [row["loss"] for row in content["ratios"]] == sorted(compared.ratios, reverse=True)
    assert content["ratios"][1]["value"] == compared.ratio.value and content["differ"]


def test_families_without_a_common_loss_are_not_compared():
    first, second = families(1.0, 0.02, epochs=(0.01, 0.02, 0.04), vit_epochs=(64, 128, 256))
    with pytest.raises(StudyError, match=r"NFNet and ViT reach no common loss \(.* and .*\): add larger budgets"):
        comparison.compare(first, second)


def test_a_frontier_of_few_points_is_not_compared():
    first, second = families(1.0)
    short = dataclasses.replace(second, frontier=second.frontier[:4])
    assert comparison.compare_all([first, short])[0] == []
    (reason,) = comparison.compare_all([first, short])[1]
    assert "The frontier of ViT has 4 points, too few to compare: at least 5 are needed" in reason


@pytest.mark.parametrize(("less", "quadratic"), [(0.0, 1), (1.8, -1)])
def test_frontiers_without_a_line_are_compared(less, quadratic):
    """Losses that level off, and losses that fall faster and faster, since most of them is taken away."""
    bent = []
    for each in families(3.0, 0.0):
        runs = [run for cell in each.cells for run in cell.runs]
        lower = [{**run.summary, "validation_loss": run.loss - less} for run in runs]
        runs = [dataclasses.replace(run, summary=summary) for run, summary in zip(runs, lower, strict=True)]
        bent.append(analyse(runs, "flops"))
    assert all(each.bend.found and each.bend.quadratic * quadratic > 0 for each in bent)
    compared = comparison.compare(*(dataclasses.replace(each, line="It bends.") for each in bent))
    assert all(ratio.value == pytest.approx(3.0, rel=0.05) and ratio.holds(3.0) for ratio in compared.ratios.values())
    assert compared.slopes.holds(0.0) and abs(compared.slopes.value) < 0.01


def test_without_common_compute_there_is_no_gap():
    compared = comparison.compare(*families(1e4))
    assert compared.gap is None and compared.ratio.holds(1e4)
    assert "share no range of compute" in comparison.describe(compared)


@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_a_family_of_one_model_is_set_beside_the_frontiers_of_others(ratio, tmp_path):
    """It learns as a model of the frontier, in its middle, for `ratio` times the compute."""
    runs = simulated_studies.family("NFNet", simulated_studies.PAPER, EPOCHS, 0.005, 0)
    alone = analyse(runs, "flops")
    cell = alone.cells[alone.trusted[len(alone.trusted) // 2]]
    model, budgets = f"vit_{cell.variant}", (cell.epochs, 1e6)
    runs += simulated_studies.family(simulated_studies.VIT, [model], budgets, 0.0, 1, ratio=ratio)
    study = analyse_families(runs, "flops")
    (point,) = comparison.points(runs, study)  # the other loss is below all that the frontier reaches
    assert (point.variant, point.epochs, point.other) == (model, cell.epochs, "NFNet")
    assert ratio / 1.15 < point.ratio.value < ratio * 1.15
    assert point.ratio.holds(point.ratio.value) and point.ratio.high / point.ratio.low < 2
    assert f"{model} of ViT, {cell.epochs:g} epochs: a loss of" in str(point)
    assert "times the compute that NFNet needs for it (FLOPs of pre-training, 90% interval)" in str(point)
    (content,) = json.loads(pathlib.Path(comparison.write([], [point], str(tmp_path))).read_text())["points"]
    assert content["ratio"]["value"] == point.ratio.value


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "sigma"), [(1.0, 0.01), (2.0, 0.01), (1.0, 0.03)])
def test_intervals_cover_the_ratio_of_whole_studies(ratio, sigma, monkeypatch):
    """At their rate where noise decides, and above it where most of the residuals are steps of the grid."""
    monkeypatch.setattr(comparison, "RESAMPLES", 100)
    hits = []
    for seed in range(60):
        try:
            compared = comparison.compare(*families(ratio, sigma, seed))
        except StudyError:
            continue
        hits.append([*(each.holds(ratio) for each in compared.ratios.values()), compared.slopes.holds(0.0)])
    assert len(hits) >= 55
    # Two standard errors of a share of 0.9 in 60 are 0.077.
    assert (np.mean(hits, axis=0) > law.LEVEL - 0.08).all(), np.mean(hits, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.01, 0.03])
def test_intervals_cover_the_ratio_of_one_model(sigma, monkeypatch):
    """A model that learns as one of the frontier's without noise, with a noise of its own."""
    monkeypatch.setattr(comparison, "RESAMPLES", 100)
    names = simulated_studies.PAPER
    clean = analyse(simulated_studies.family("NFNet", names, EPOCHS, 0.0, 0), "flops")
    hits = []
    for seed in range(60):
        cell = clean.cells[np.random.default_rng(seed).choice(clean.trusted[1:-1])]
        runs = simulated_studies.family("NFNet", names, EPOCHS, sigma, seed)
        one = [f"vit_{cell.variant}"]
        runs += simulated_studies.family(simulated_studies.VIT, one, (cell.epochs, 1e6), sigma, seed + 5000)
        study = analyse_families(runs, "flops")
        hits += [point.ratio.holds(1.0) for point in comparison.points(runs, study) if point.epochs == cell.epochs]
    assert len(hits) >= 50
    # Two standard errors of a share of 0.9 in 60 are 0.077.
    assert np.mean(hits) > law.LEVEL - 0.08, np.mean(hits)
