"""The figures exist, their data are the study's, and what cannot be drawn is reported."""

import contextlib
import csv
import dataclasses
import io
import pathlib

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from pipeline.model import speeds
from pipeline.study import StudyError, figures
from pipeline.study.analysis import Analysis, analyse, analyse_families, ranks
from pipeline.study.run_files import CORE_HOURS, DIVERGED_FILE, FLOPS, Run, Trial, read
from tests import simulated_studies


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A study of which one fine-tuning diverged, its figures, and what drawing them printed."""

    runs: list[Run]
    analysis: Analysis
    folder: pathlib.Path
    paths: list[str]
    output: str


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Drawn:
    folder = tmp_path_factory.mktemp("study")
    simulated_studies.write(folder, task="imagenet")
    diverged = Trial("F1", 8.0, 0.8, task="imagenet").folder(str(folder))
    (pathlib.Path(diverged) / DIVERGED_FILE).write_text("The loss is nan at step 7.\n")
    runs = read(str(folder))
    analysis = analyse(runs, CORE_HOURS)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        paths = figures.draw(runs, [analysis], str(folder / "figures"))
    return Drawn(runs, analysis, folder / "figures", paths, output.getvalue())


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_each_figure_is_png_svg_and_csv(drawn):
    names = {"loss", "learning_rate", "transfer_imagenet", "ranks_imagenet"}
    assert {pathlib.Path(path).stem for path in drawn.paths} == names
    for name in names:
        assert Image.open(drawn.folder / f"{name}.png").width >= 700
        assert (drawn.folder / f"{name}.svg").read_text().startswith("<?xml")
        assert len(rows(drawn.folder / f"{name}.csv")) > 10


def test_curves_and_bands_of_the_loss_figure(drawn):
    table = rows(drawn.folder / "loss_laws.csv")
    assert {row["law"] for row in table} == {"line", "with floor"}
    for row in table:
        law = drawn.analysis.line if row["law"] == "line" else drawn.analysis.saturating
        low, value, high = (float(row[name]) for name in ("new_run_low", "validation_loss", "new_run_high"))
        assert low < value < high
        assert value == pytest.approx(law.predict([float(row[drawn.analysis.unit])]).value[0])


def test_data_of_the_loss_figure(drawn):
    table = rows(drawn.folder / "loss.csv")
    assert len(table) == 36
    best = {
        (run.trial.variant, run.trial.epochs): run.loss
        for run in sorted(drawn.runs, key=lambda r: -r.loss)
        if not run.trial.task
    }
    for row in table:
        assert float(row["validation_loss"]) == pytest.approx(best[row["variant"], float(row["epochs"])])
    f0 = next(row for row in table if (row["variant"], row["epochs"]) == ("F0", "0.25"))
    assert float(f0["core_hours"]) == pytest.approx(speeds.core_hours("F0", 0.25 * 4e9), rel=0.03)
    assert sum(row["on_frontier"] == "1" for row in table) == len(drawn.analysis.frontier)


def test_data_of_the_other_figures(drawn):
    assert {row["best_learning_rate"] for row in rows(drawn.folder / "learning_rate.csv")} == {"1.6", "0.8"}
    table = rows(drawn.folder / "transfer_imagenet.csv")
    assert {"ViT-g/14", "ViT-G/14", "SoViT-400m/14", "NFNet-F7+"} <= {row["model"] for row in table}
    assert float(next(row for row in table if row["model"] == "ViT-G/14")["core_hours"]) == 280e3
    table = rows(drawn.folder / "ranks_imagenet.csv")
    losses, errors = (np.array([float(row[name]) for row in table]) for name in ("validation_loss", "top1_error"))
    assert stats.rankdata(losses).tolist() == [float(row["rank_loss"]) for row in table]
    assert stats.rankdata(errors).tolist() == [float(row["rank_top1"]) for row in table]


def test_models_differ_in_more_than_colour(drawn):
    styles = figures._styles([drawn.analysis]).values()
    assert len({style["color"] for style in styles}) == len({style["marker"] for style in styles}) == 6


def test_ranks_need_three_checkpoints(tmp_path):
    for rate in (1.6, 0.8):
        simulated_studies.write_run(tmp_path, Trial("F0", 1.0, rate))
        simulated_studies.write_run(tmp_path, Trial("F0", 1.0, rate, task="t"))
    with pytest.raises(StudyError, match=r"at least 3 checkpoints .* 't', found 2"):
        ranks(read(str(tmp_path)), "t")


def test_diverged_finetunings_are_counted(drawn):
    assert "1 fine-tunings of imagenet diverged and are in none of its figures." in drawn.output
    assert len(rows(drawn.folder / "ranks_imagenet.csv")) == 6 * 6 * 2 - 1


def test_figures_of_two_families(tmp_path):
    """One of both, and each family's own; of one colour and line each."""
    simulated_studies.write_two_families(tmp_path, 2.0, ("F0", "F1", "F3"), epochs=(0.5, 1, 2), rates=(1.6,), task="t")
    runs = read(str(tmp_path))
    analyses = list(analyse_families(runs, FLOPS).families.values())
    names = {pathlib.Path(path).stem for path in figures.draw(runs, analyses, str(tmp_path / "figures"))}
    own = {f"{name}_{family}" for name in ("loss", "learning_rate") for family in ("NFNet", "ViT")}
    assert names == {"families", "transfer_t", "ranks_t", *own}
    table = rows(tmp_path / "figures" / "families.csv")
    assert {(row["family"], row["variant"][:3]) for row in table} == {
        ("NFNet", row["variant"][:3]) for row in table[:9]
    } | {("ViT", "vit")}
    styles = figures._styles(analyses)
    assert len({style["color"] for style in styles.values()}) == 2
    assert styles["F0"]["linestyle"] != styles["vit_F0"]["linestyle"]
