"""The figures exist, their data are the study's, and what cannot be drawn is said."""

import csv
import pathlib

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from pipeline.model import speeds
from pipeline.study import StudyError, figures, run_files
from pipeline.study.analysis import analyse, ranks
from pipeline.study.run_files import CORE_HOURS, FLOPS, Trial
from tests import simulated_studies


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study = run_files.read(simulated_studies.write(folder, task="imagenet"))
    analysis = analyse(study, CORE_HOURS)
    return study, analysis, folder / "figures", figures.draw(study, analysis, str(folder / "figures"))


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_each_figure_is_png_svg_and_csv(drawn):
    _, _, folder, paths = drawn
    names = {"loss", "learning_rate", "transfer_imagenet", "ranks_imagenet"}
    assert {pathlib.Path(path).stem for path in paths} == names
    for name in names:
        assert Image.open(folder / f"{name}.png").width >= 700
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")
        assert len(rows(folder / f"{name}.csv")) > 10


def test_curves_and_bands_of_the_loss_figure(drawn):
    _, analysis, folder, _ = drawn
    table = rows(folder / "loss_laws.csv")
    assert {row["law"] for row in table} == {"line", "with floor"}
    for row in table:
        law = analysis.line if row["law"] == "line" else analysis.saturating
        low, value, high = (float(row[name]) for name in ("new_run_low", "validation_loss", "new_run_high"))
        assert low < value < high
        assert value == pytest.approx(law.predict([float(row[analysis.unit])]).value[0])


def test_data_of_the_loss_figure(drawn):
    study, analysis, folder, _ = drawn
    table = rows(folder / "loss.csv")
    assert len(table) == 36
    best = {
        (run.trial.variant, run.trial.epochs): run.loss
        for run in sorted(study, key=lambda r: -r.loss)
        if not run.trial.task
    }
    for row in table:
        assert float(row["validation_loss"]) == pytest.approx(best[row["variant"], float(row["epochs"])])
    f0 = next(row for row in table if (row["variant"], row["epochs"]) == ("F0", "0.25"))
    assert float(f0["core_hours"]) == pytest.approx(speeds.core_hours("F0", 0.25 * 4e9), rel=0.03)
    assert sum(row["on_frontier"] == "1" for row in table) == len(analysis.frontier)


def test_data_of_the_other_figures(drawn):
    _, _, folder, _ = drawn
    assert {row["best_learning_rate"] for row in rows(folder / "learning_rate.csv")} == {"1.6", "0.8"}
    table = rows(folder / "transfer_imagenet.csv")
    assert {"ViT-g/14", "ViT-G/14", "SoViT-400m/14", "NFNet-F7+"} <= {row["model"] for row in table}
    assert float(next(row for row in table if row["model"] == "ViT-G/14")["core_hours"]) == 280e3
    table = rows(folder / "ranks_imagenet.csv")
    losses, errors = (np.array([float(row[name]) for row in table]) for name in ("validation_loss", "top1_error"))
    assert stats.rankdata(losses).tolist() == [float(row["rank_loss"]) for row in table]
    assert stats.rankdata(errors).tolist() == [float(row["rank_top1"]) for row in table]


def test_models_differ_in_more_than_colour(drawn):
    styles = figures._styles(drawn[1]).values()
    assert len({style["color"] for style in styles}) == len({style["marker"] for style in styles}) == 6


def test_ranks_need_three_checkpoints(tmp_path):
    for rate in (1.6, 0.8):
        simulated_studies.write_run(tmp_path, Trial("F0", 1.0, rate))
        simulated_studies.write_run(tmp_path, Trial("F0", 1.0, rate, task="t"))
    with pytest.raises(StudyError, match=r"at least 3 checkpoints .* 't', found 2"):
        ranks(run_files.read(str(tmp_path)), "t")


def test_diverged_finetunings_are_counted(tmp_path, capsys):
    folder = simulated_studies.write(tmp_path, variants=("F0", "F1"), task="t")
    lost = Trial("F1", 8.0, 0.8, task="t").folder(folder)
    (pathlib.Path(lost) / run_files.DIVERGED_FILE).write_text("The loss is nan at step 7.\n")
    study = run_files.read(folder)
    figures.draw(study, analyse(study, FLOPS), str(tmp_path / "figures"))
    assert "1 fine-tunings of t diverged and are in none of its figures." in capsys.readouterr().out
    table = rows(tmp_path / "figures" / "ranks_t.csv")
    assert len(table) == 2 * 6 * 2 - 1
