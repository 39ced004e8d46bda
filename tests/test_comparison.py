"""Two families with a known ratio of compute: intervals hold it at their stated rate, or above."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from pipeline.study import StudyError, comparison, law
from pipeline.study.analysis import Analysis, StudyAnalysis, analyse, analyse_families
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


def test_families_without_a_common_loss_or_line_are_not_compared(monkeypatch):
    first, second = families(1.0, 0.02, epochs=(0.01, 0.02, 0.04), vit_epochs=(64, 128, 256))
    with pytest.raises(StudyError, match=r"NFNet and ViT reach no common loss where their lines hold \(.* and .*\)"):
        comparison.compare(first, second)
    monkeypatch.setattr(law, "straight_end", lambda x, y: None)
    bent, other = families(1.0)
    assert comparison.compare_all([bent, other])[0] == []
    (reason,) = comparison.compare_all([bent, other])[1]
    assert "NFNet has no line to compare. The frontier bends up to its end" in reason


def test_without_common_compute_there_is_no_gap():
    compared = comparison.compare(*families(1e4))
    assert compared.gap is None and compared.ratio.holds(1e4)
    assert "share no range of compute" in comparison.describe(compared)


@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_a_family_of_one_model_is_set_beside_the_lines_of_others(ratio):
    """It learns as a model of the frontier, in the middle of the line, for `ratio` times the compute."""
    runs = simulated_studies.family("NFNet", simulated_studies.PAPER, EPOCHS, 0.005, 0)
    alone = analyse(runs, "flops")
    cell = alone.cells[alone.trusted[len(alone.trusted) // 2]]
    model, budgets = f"vit_{cell.variant}", (cell.epochs, 1e6)
    runs += simulated_studies.family(simulated_studies.VIT, [model], budgets, 0.0, 1, ratio=ratio)
    study = analyse_families(runs, "flops")
    (point,) = comparison.points(runs, study)  # the other loss is below all that the line reaches
    assert (point.variant, point.epochs, point.other) == (model, cell.epochs, "NFNet")
    assert ratio / 1.15 < point.ratio.value < ratio * 1.15
    assert point.ratio.holds(point.ratio.value) and point.ratio.high / point.ratio.low < 2
    assert f"{model} of ViT, {cell.epochs:g} epochs: a loss of" in str(point)
    assert "times the compute that NFNet needs for it (FLOPs of pre-training, 90% interval)" in str(point)


def test_the_frontier_of_a_family_whose_line_is_refused_is_set_beside_the_others(tmp_path):
    first, bent = families(2.0)
    runs = [run for each in (first, bent) for cell in each.cells for run in cell.runs]
    bent = dataclasses.replace(bent, line="It bends.")
    found = comparison.points(runs, StudyAnalysis({"NFNet": first, "ViT": bent}, {}))
    frontier = {(cell.variant, cell.epochs) for cell in (bent.cells[i] for i in bent.frontier)}
    assert {(point.variant, point.epochs) for point in found} <= frontier
    assert len(found) >= 4 and sum(point.ratio.holds(2.0) for point in found) >= 0.8 * len(found)
    assert all(1.5 < point.ratio.value < 2.7 for point in found)
    content = json.loads(pathlib.Path(comparison.write([], found, str(tmp_path))).read_text())
    assert [row["ratio"]["value"] for row in content["points"]] == [point.ratio.value for point in found]


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "sigma"), [(1.0, 0.01), (2.0, 0.01), (1.0, 0.03)])
def test_intervals_cover_the_ratio_of_whole_studies(ratio, sigma, monkeypatch):
    """At their rate where noise decides, and above it where most of a line's residuals are steps of the grid."""
    monkeypatch.setattr(comparison, "RESAMPLES", 100)
    hits = []
    for seed in range(60):
        try:
            compared = comparison.compare(*families(ratio, sigma, seed))
        except StudyError:
            continue
        hits.append((compared.ratio.holds(ratio), compared.slopes.holds(0.0)))
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
