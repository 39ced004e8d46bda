"""Runs read back from disk: how each ended, and whether they belong to one study."""

import json
import math
import pathlib

import pytest

from pipeline.study import StudyError, recipe, run_files
from pipeline.study.analysis import best_cells
from pipeline.study.run_files import Trial
from tests import simulated_studies


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"momentum": 0.5}}, r"recipe:\n  sgd\.momentum: 0\.9 in the first, 0\.5 in the second"),
        ({"digest": "another"}, "training or evaluation records"),
    ],
)
def test_mixed_runs_are_refused(tmp_path, changes, message):
    simulated_studies.write(tmp_path, variants=("F0",))
    simulated_studies.write_run(tmp_path, Trial("F1", 1.0, 1.6), **changes)
    with pytest.raises(StudyError, match=rf"(?s)F0_e0\.25.*F1_e1.*{message}"):
        recipe.check_same(run_files.read(str(tmp_path)))


def test_a_binding_that_one_run_lacks_is_a_difference(tmp_path):
    first, second = (
        run_files.start(Trial("F0", 1.0, 0.8), str(tmp_path), bindings) for bindings in ({"SAM.rho": "0.05"}, {})
    )
    assert recipe.differences(first, second) == ["SAM.rho: 0.05 in the first, not set in the second"]
    assert recipe.differences(second, first) == ["SAM.rho: not set in the first, 0.05 in the second"]


def test_length_and_rate_of_finetuning_belong_to_its_recipe(tmp_path):
    simulated_studies.write(tmp_path, variants=("F0",), task="t")
    simulated_studies.write_run(tmp_path, Trial("F1", 1.0, 1.6, task="t"), settings={"tuning_epochs": 20})
    with pytest.raises(StudyError, match=r"Experiment\.epochs: 50 in the first, 20 in the second"):
        recipe.check_same(run_files.read(str(tmp_path)))


def test_families_have_recipes_of_their_own_and_share_records_and_loss(tmp_path):
    simulated_studies.write_two_families(tmp_path, 2.0, ("F0", "F1"))
    recipe.check_same(run_files.read(str(tmp_path)))
    vit = Trial("vit_F1", 1.0, 1.6, family=simulated_studies.VIT)
    simulated_studies.write_run(tmp_path, vit, digest="another")
    with pytest.raises(StudyError, match=r"F0_e0\.25.*vit_F1_e1_.*training or evaluation records"):
        recipe.check_same(run_files.read(str(tmp_path)))
    folder = pathlib.Path(simulated_studies.write_run(tmp_path, vit))
    summary = json.loads((folder / "run.json").read_text())
    for name, wrong, message in (
        ("Experiment.loss", "'sigmoid'", r"F0_e0\.25.*vit_F1_e1_.*Experiment\.loss: not set in the first, 'sigmoid'"),
        ("adamw.weight_decay", "0.1", r"vit_F0_e0\.25.*vit_F1_e1_.*adamw\.weight_decay: 0\.05 in the first, 0\.1"),
        ("garden.settings", "'other'", r"vit_F1_e0\.25.*vit_F1_e1_.*garden\.settings: 'vit_F1' in the first, 'other'"),
    ):
        bindings = {**summary["bindings"], name: wrong}
        (folder / "run.json").write_text(json.dumps({**summary, "bindings": bindings}))
        with pytest.raises(StudyError, match=rf"(?s){message}"):
            recipe.check_same(run_files.read(str(tmp_path)))


def test_core_hours_of_another_family_are_those_of_the_studys_own_estimate(tmp_path):
    trial = Trial("vit_F0", 1.0, 1.6, family=simulated_studies.VIT)
    simulated_studies.write_run(tmp_path, trial, images=3.6e6)
    (run,) = run_files.read(str(tmp_path))
    with pytest.raises(StudyError, match=r"vit_F0 in core_hours is unknown.*vit, which is no NFNet.*--unit=flops"):
        run.compute("core_hours")
    row = {"images_per_second_per_core": 50.0, "gradient_passes": 2, "replica_batch": 32, "date": "2026-11-22"}
    row |= {"topology": "v4:2x2x1", "versions": {"libtpu": "1.2"}}
    (tmp_path / run_files.SPEEDS_FILE).write_text(json.dumps({"models": {"vit_F0": row}}))
    (run,) = run_files.read(str(tmp_path))
    assert run.compute("core_hours") == pytest.approx(10)  # 3.6M images at 100 a second


def test_what_a_study_varies_is_no_recipe(tmp_path):
    """Variant, budget, learning rate, seed, checkpoint and the records' folder differ between these runs."""
    simulated_studies.write(tmp_path, variants=("F0", "F1"), task="t")
    simulated_studies.write_run(tmp_path, Trial("F1", 1.0, 1.6, seed=1))
    runs = run_files.read(str(tmp_path))
    assert len({json.dumps(run.bindings) for run in runs}) == len(runs)
    recipe.check_same(runs)


def test_best_of_each_cell_over_seeds(tmp_path):
    for seed, noise in ((0, 0.0), (1, 0.1)):
        simulated_studies.write_run(tmp_path, Trial("F0", 1.0, 0.8, seed), noise=noise)
    simulated_studies.write_run(tmp_path, Trial("F0", 1.0, 0.4))
    simulated_studies.write_run(tmp_path, Trial("F0", 1.0, 3.2), validation_loss=math.nan)
    (cell,) = best_cells(run_files.read(str(tmp_path)))
    assert (cell.learning_rate, len(cell.runs), cell.edge, cell.tried) == (0.8, 2, "", (0.4, 0.8, 3.2))
    assert cell.loss == pytest.approx(simulated_studies.loss("F0", 1.0, 0.8, 4e9) * math.exp(0.05))


def test_damaged_files_are_named(tmp_path):
    folder = pathlib.Path(simulated_studies.write_run(tmp_path, Trial("F0", 1.0, 0.8)))
    (folder / "run.json").write_text(json.dumps({"validation_loss": 1.0}))
    with pytest.raises(StudyError, match=r"run\.json lacks validation_top1, images_seen"):
        run_files.read(str(tmp_path))
    (folder / "run.json").write_text("{")
    with pytest.raises(StudyError, match=r"run\.json cannot be read"):
        run_files.read(str(tmp_path))
    (folder / "trial.json").write_text('{"size": 3}')
    with pytest.raises(StudyError, match=r"trial\.json describes no trial"):
        run_files.read(str(tmp_path))
    with pytest.raises(StudyError, match="does not exist"):
        run_files.read(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match="No run in"):
        run_files.read(str(tmp_path / "empty"))


@pytest.mark.parametrize("name", ["run.json", "trial.json"])
def test_a_study_of_an_earlier_version_is_refused(tmp_path, name):
    """Without bindings its recipe cannot be compared."""
    folder = pathlib.Path(simulated_studies.write_run(tmp_path, Trial("F0", 1.0, 0.8)))
    content = json.loads((folder / name).read_text())
    del content["bindings"]
    (folder / name).write_text(json.dumps(content))
    if name == "trial.json":
        assert run_files.read(str(tmp_path))[0].status == "finished"  # whose run.json has them
        (folder / "diverged.txt").write_text("nan")
    with pytest.raises(StudyError, match=rf"{name} has no 'bindings'.*earlier version.*another Study\.directory"):
        run_files.read(str(tmp_path))


def test_views_and_passes_cost_compute(tmp_path):
    """Four views of each example, each in two passes of SAM: eight times the FLOPs and the core-hours of one."""
    costs = []
    for views, passes in ((1, 1), (4, 2)):
        counts = {"examples_seen": 1e6, "images_seen": views * 1e6, "gradient_passes": passes}
        simulated_studies.write_run(tmp_path, Trial("F7+", 1.0, 1.6), resolution=384, **counts)
        (run,) = run_files.read(str(tmp_path))
        costs.append([run.compute("flops"), run.compute("core_hours")])
    assert [eight / one for one, eight in zip(*costs, strict=True)] == pytest.approx([8, 8])


@pytest.mark.parametrize(
    ("bindings", "factor"),
    [({}, 1), ({"Augmentation.repeats": "4"}, 4), ({"Experiment.sam": "@SAM()", "Augmentation.repeats": "4"}, 8)],
)
def test_a_run_of_before_views_and_passes_were_counted_costs_what_it_cost(tmp_path, bindings, factor):
    """Its `images_seen` are examples; its bindings say how often each was seen."""
    folder = pathlib.Path(simulated_studies.write_run(tmp_path, Trial("F0", 1.0, 0.8)))
    (run,) = run_files.read(str(tmp_path))
    summary = json.loads((folder / "run.json").read_text())
    assert "examples_seen" not in summary
    summary["bindings"] |= bindings
    (folder / "run.json").write_text(json.dumps(summary))
    (again,) = run_files.read(str(tmp_path))
    for unit in ("flops", "core_hours"):
        assert again.compute(unit) == pytest.approx(factor * run.compute(unit))
    assert again.summary["examples_seen"] == run.summary["examples_seen"] == 4e9
