"""Plans by the paper's rules and by a study whose law is known."""

import json

import pytest

from pipeline.model import cost, speeds, variants
from pipeline.study import StudyError, planner, run_files
from pipeline.study.run_files import CORE_HOURS, FINISHED, FLOPS, Run, Trial
from tests import simulated_studies


@pytest.fixture(autouse=True)
def speeds_of_the_paper(monkeypatch):
    """The paper's budgets are in core-hours of its authors' step, whatever ours takes."""
    monkeypatch.setattr(speeds, "FINETUNING_SPEEDS", {})
    monkeypatch.setattr(speeds, "SPEEDS", speeds.STUDY_SPEEDS)


@pytest.mark.parametrize(
    ("core_hours", "variant", "epochs", "rate", "cores"),
    [(400, "F0", 0.25, 1.6, 64), (5_000, "F3", 1.0, 1.6, 128), (110_000, "F7+", 8.0, 0.8, 512)],
)
def test_the_papers_budgets(core_hours, variant, epochs, rate, cores):
    plan = planner.from_paper(core_hours)
    assert (plan.choice.variant, plan.choice.epochs) == (variant, epochs)
    assert plan.choice.compute == pytest.approx(core_hours, rel=0.05)
    assert plan.learning_rates == (rate, rate / 2)
    assert planner.slice_cores(plan.choice) == cores
    text = planner.describe(plan)
    name = f"{variant.lower().replace('+', 'plus')}_jft"
    assert f"--gin_file=gin/{name}.gin --gin_param=EPOCHS={epochs:g} --gin_param=LEARNING_RATE={rate:g}" in text
    assert f"TPU v4-{cores}" in text
    assert "No study" in text and "Held-out loss" not in text


@pytest.mark.parametrize(
    ("core_hours", "variant", "taken"), [(400, "F0", 400), (5_000, "F3+", 5_000), (110_000, "F7+", 82_640)]
)
def test_plans_with_the_speeds_of_our_step(monkeypatch, core_hours, variant, taken):
    """Which is faster than the paper's: 5k core-hours reach a larger model, and 8 epochs leave a quarter of 110k."""
    monkeypatch.setattr(speeds, "SPEEDS", speeds.choose_speeds(speeds.read_table(speeds.TABLE)))
    assert all(
        speeds.speed(each).source.startswith("estimated by the TPU compiler") for each in variants.STUDY_CORE_BATCHES
    )
    plan = planner.from_paper(core_hours)
    assert plan.choice.variant == variant
    assert plan.choice.compute == pytest.approx(taken, rel=0.05)


def test_model_and_epochs_grow_together():
    plans = [planner.from_paper(budget) for budget in (400, 2_000, 5_000, 20_000, 50_000, 110_000)]
    sizes = [cost.multiply_adds(plan.choice.variant, 224, 1) for plan in plans]
    assert sizes == sorted(sizes) and len(set(sizes)) >= 4
    assert all(plan.choice.compute <= 1.03 * plan.budget for plan in plans)
    # The rule itself: the square root of compute, 1 at 5k core-hours.
    assert [plan.best_epochs for plan in plans] == pytest.approx([(p.budget / 5_000) ** 0.5 for p in plans])


def test_a_plan_outside_of_the_papers_range_says_so():
    assert "outside of what was studied" in planner.describe(planner.from_paper(1e6))
    assert "fewer than the 0.25" in planner.describe(planner.from_paper(10))
    small = planner.from_paper(50, images=14e6)
    assert small.choice.epochs == 8
    assert "set DATA_DIR" in planner.describe(small)
    # Far more epochs would be best than were studied, so the largest model takes the most of them.
    plenty = planner.from_paper(5_000, images=1.28e6)
    assert (plenty.choice.variant, plenty.choice.epochs) == ("F7+", 8)
    assert "The rule calls 3.1e+03 epochs best; more than 8 were not studied" in planner.describe(plenty)
    for budget in (0, -1, float("nan")):
        with pytest.raises(StudyError, match="positive number of core-hours"):
            planner.from_paper(budget)


def test_a_study_plans_by_its_own_law(tmp_path):
    study = run_files.read(simulated_studies.write(tmp_path))
    plan = planner.from_study(30_000, CORE_HOURS, study)
    assert plan.choice.compute == pytest.approx(30_000, rel=0.1)
    rate = simulated_studies.best_rate(plan.choice.variant, plan.choice.epochs)
    truth = simulated_studies.loss(plan.choice.variant, plan.choice.epochs, rate, 4e9)
    value, low, high = plan.prediction["with floor"]
    assert low < value < high
    assert value == pytest.approx(truth, rel=0.02)
    text = planner.describe(plan)
    assert "Learning rates from the study's" in text and "Held-out loss" in text
    # Its own recipe, data and batch, on a TPU.
    assert f"--gin_file={tmp_path}/pretrain/" in text and f'nfnet.variant="{plan.choice.variant}"' in text
    assert 'Loop.strategy="tpu"' in text and "Batch             1024" in text
    # The best of all pairs that cost about as much is not much better than what was chosen.
    others = [
        simulated_studies.loss(variant, 30_000 / speeds.core_hours(variant, 4e9), 1.6, 4e9)
        for variant in simulated_studies.PAPER
    ]
    assert truth < 1.03 * min(others)


def test_a_study_of_small_batches_is_no_plan_for_a_slice(tmp_path):
    study = simulated_studies.write(tmp_path, settings={"batch": 32})
    plan = planner.from_study(30_000, CORE_HOURS, run_files.read(study))
    with pytest.raises(StudyError, match="A batch of 32 images does not suit a TPU v4 slice"):
        planner.describe(plan)


def test_a_study_in_flops_names_its_own_models_and_warns_beyond_its_reach(tmp_path):
    settings = {"variants": variants.SMALL, "epochs": (1, 2, 4, 8), "images": 1e7, "resolution": 48}
    study = run_files.read(simulated_studies.write(tmp_path, **settings))
    plan = planner.from_study(1e16, FLOPS, study)
    text = planner.describe(plan)
    assert plan.choice.variant in variants.SMALL
    assert f"{tmp_path}/pretrain/" in text and "config.gin" in text
    assert "times the study's largest frontier run" in text
    with pytest.raises(ValueError, match=r"No cost in TPU-v4 core-hours is known for \w+ .*--unit=flops"):
        planner.from_study(100, CORE_HOURS, study)


def test_costs_are_the_papers_at_both_ends_and_between_them_in_between():
    assert speeds.core_hours("F0", 1e9) == pytest.approx(400)
    assert speeds.core_hours("F7+", 32e9) == pytest.approx(110_000)
    rates = [speeds.speed(variant) for variant in simulated_studies.PAPER]
    values = [speed.images_per_second for speed in rates]
    assert values == sorted(values, reverse=True)
    assert [speed.source.split()[0] for speed in rates] == ["inferred", *["estimated:"] * 4, "reported"]
    # Half of the way in log FLOPs is half of the way in log speed.
    ends = [speeds.training_flops(variant) for variant in ("F0", "F7+")]
    middle = speeds.speed("F3", (ends[0] * ends[1]) ** 0.5)
    assert middle.images_per_second == pytest.approx((values[0] * values[-1]) ** 0.5)


def test_the_speed_of_another_resolution_is_scaled_and_says_so():
    """Of a variant with an entry of its own; by FLOPs, which at 384 pixels are (384 / 224)^2 of those at 224."""
    flops = speeds.training_flops("F7+", 384, 1000)
    at_384 = speeds.speed("F7+", flops)
    share = speeds.training_flops("F7+") / flops
    assert share == pytest.approx((224 / 384) ** 2, rel=0.02)
    assert at_384.images_per_second == pytest.approx(share * speeds.speed("F7+").images_per_second)
    assert at_384.source.startswith("scaled by FLOPs, ") and "reported 110000 core-hours" in at_384.source
    assert speeds.core_hours("F7+", 1e9, flops, passes=2) == 2 * speeds.core_hours("F7+", 1e9, flops)
    with pytest.raises(speeds.UnknownSpeedError, match="No cost in TPU-v4 core-hours is known for F6"):
        speeds.speed("F6", speeds.training_flops("F6", 576))


def test_a_compilation_at_the_resolution_goes_before_scaling(monkeypatch, tmp_path):
    """Its step of SAM takes an image through two passes."""
    row = {"images_per_second_per_core": 100.0, "gradient_passes": 2, "replica_batch": 32, "date": "2026-11-21"}
    row["topology"] = "v4:4x4x4"
    path = tmp_path / "speeds.json"
    path.write_text(json.dumps({"variants": {}, "finetuning": {"F0": {**row, "versions": {"libtpu": "1.2"}}}}))
    assert speeds.read_table(str(path)) == {}
    monkeypatch.setattr(speeds, "FINETUNING_SPEEDS", speeds.read_table(str(path), "finetuning"))
    compiled = speeds.speed("F0", speeds.training_flops("F0", 384, 1000))
    assert compiled.images_per_second == 200 and compiled.source.startswith("estimated by the TPU compiler")
    assert speeds.core_hours("F0", 3600 * 100, speeds.training_flops("F0", 384, 1000), passes=2) == pytest.approx(1)
    nearby = speeds.speed("F0", speeds.training_flops("F0", 400, 1000))
    assert nearby.source.startswith("scaled by FLOPs, ") and "libtpu 1.2" in nearby.source
    assert speeds.speed("F0") == speeds.STUDY_SPEEDS["F0"]


def test_the_lower_end_of_the_papers_range_is_inferred_to_be_f0():
    """The paper states the range alone."""
    assert "inferred" in speeds.STUDY_SPEEDS["F0"].source and "inferred" not in speeds.STUDY_SPEEDS["F7+"].source


def test_a_table_counts_where_it_spans_the_family(tmp_path):
    path = tmp_path / "speeds.json"
    assert speeds.read_table(str(path)) == {}
    row = {
        "images_per_second_per_core": 700.0,
        "replica_batch": 64,
        "topology": "v4:2x4x4",
        "date": "2026-11-21",
        "versions": {"libtpu": "1.2"},
    }
    path.write_text(json.dumps({"variants": {"F0": row}}))
    partial = speeds.read_table(str(path))
    assert partial["F0"].images_per_second == 700
    assert "libtpu 1.2, 2026-11-21" in partial["F0"].source and "64 images a core of v4:2x4x4" in partial["F0"].source
    assert speeds.choose_speeds(partial) == speeds.STUDY_SPEEDS
    whole = partial | {"F7+": speeds.Speed(60.0, "the same")}
    assert speeds.choose_speeds(whole) == whole


def test_the_table_in_the_repository_is_near_to_what_is_reported():
    for name, speed in speeds.read_table(speeds.TABLE).items():
        assert speed.images_per_second > 0
        if name in speeds.STUDY_SPEEDS:
            assert 0.7 < speed.images_per_second / speeds.STUDY_SPEEDS[name].images_per_second < 2.5


def test_compute_in_each_unit():
    summary = {"variant": "F0", "flops_per_image": speeds.training_flops("F0") / 3, "images_seen": 1e9, "seconds": 7.0}
    summary["gradient_passes"] = 1
    run = Run(Trial("F0", 1.0, 0.8), "folder", FINISHED, summary=summary)
    assert run.compute("seconds") == 7
    assert run.compute("flops") == speeds.training_flops("F0") * 1e9
    assert run.compute("core_hours") == pytest.approx(400)
    with pytest.raises(StudyError, match="Unknown unit 'parsecs'"):
        run.compute("parsecs")
    with pytest.raises(StudyError, match=r"folder/run\.json lacks 'seconds'"):
        Run(run.trial, "folder", FINISHED).compute("seconds")
