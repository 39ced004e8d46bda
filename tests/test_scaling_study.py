"""The command line: from runs on disk to laws, figures and plans; errors, with exit code 1."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from pipeline import configure, registry, scaling_study
from pipeline.model import speeds
from pipeline.study import recipe, run_files, search, sweep
from pipeline.study.analysis import analyse
from pipeline.study.run_files import FLOPS, Trial
from pipeline.tpu import compiler
from tests import simulated_studies

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_fit_finds_the_known_law(tmp_path, capsys):
    study = simulated_studies.write(tmp_path)
    assert scaling_study.main(["fit", f"--study={study}"]) == 0
    output = capsys.readouterr().out
    assert "36 pairs of model and epoch budget" in output
    laws = json.loads((tmp_path / "law.json").read_text())
    # Model and images improve the loss with one exponent, so neither takes all of the compute.
    growth = laws["growth"]
    assert 0.3 < growth["size"]["exponent"] < 0.7
    assert 0.3 < growth["epochs"]["exponent"] < 0.7
    difference = growth["size"]["exponent"] - growth["epochs"]["exponent"]
    assert growth["quotient"]["exponent"] == pytest.approx(difference)
    assert growth["agree"] == (growth["quotient"]["interval"][0] <= 0 <= growth["quotient"]["interval"][1])
    assert set(laws["held_out"]) == {"line", "saturating"}
    assert laws["saturating"]["floor"] == pytest.approx(simulated_studies.FLOOR, abs=0.2)


def test_fit_agrees_with_a_fit_by_hand(tmp_path):
    study = run_files.read(simulated_studies.write(tmp_path))
    analysis = analyse(study, FLOPS)
    points = {}
    for run in study:
        flops = 3 * run.summary["flops_per_image"] * run.summary["images_seen"]
        points[flops] = min(points.get(flops, np.inf), run.loss)
    x, best = [], np.inf
    for flops in sorted(points):
        if points[flops] < best:
            best = points[flops]
            x.append(flops)
    # The floor of the known law bends the frontier, so the line is that of its end.
    trusted = x[-len(analysis.trusted) :]
    assert len(trusted) < len(x) == len(analysis.frontier)
    slope = np.polyfit(np.log(trusted), np.log([points[flops] for flops in trusted]), 1)[0]
    assert analysis.line.slope == pytest.approx(slope)
    assert analysis.decades == pytest.approx(np.log10(x[-1] / x[0]))


def test_diverged_and_unfinished_runs_are_left_out_and_counted(tmp_path, capsys):
    study = simulated_studies.write(tmp_path)
    (pathlib.Path(Trial("F0", 1.0, 1.6).folder(study)) / "diverged.txt").write_text("nan")
    (pathlib.Path(Trial("F0", 2.0, 1.6).folder(study)) / "run.json").unlink()
    assert scaling_study.main(["fit", f"--study={study}"]) == 0
    assert "left out: 1 diverged and 1 unfinished runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ("F0",)}, "Every run on the compute-optimal frontier is of F0"),
        ({"variants": ("F0", "F1"), "epochs": (1,)}, "needs at least 4 pairs"),
        ({"variants": ("pico", "nano"), "epochs": (1, 2, 4)}, "No cost in TPU-v4 core-hours is known for nano"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "plot"])
def test_what_cannot_be_fitted_is_refused(tmp_path, capsys, options, message, command):
    study = simulated_studies.write(tmp_path, **options)
    assert scaling_study.main([command, f"--study={study}"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "law.json").exists()


def test_a_family_that_cannot_be_fitted_is_named_and_in_no_figure(tmp_path, capsys):
    simulated_studies.write(tmp_path)
    simulated_studies.write_run(tmp_path, Trial("vit_F0", 1.0, 1.6, family=simulated_studies.VIT))
    assert scaling_study.main(["plot", f"--study={tmp_path}"]) == 0
    output = capsys.readouterr().out
    assert "ViT is left out: The cost of vit_F0 in core_hours is unknown" in output
    assert scaling_study.main(["plot", f"--study={tmp_path}", "--unit=flops"]) == 0
    output = capsys.readouterr().out
    assert "ViT is left out: A law needs at least 4 pairs of model and epoch budget with a finished run" in output
    assert "vit" not in (tmp_path / "figures" / "loss.csv").read_text()
    assert (tmp_path / "law_NFNet.json").exists() and not (tmp_path / "law_ViT.json").exists()
    words = ["plan", "--flops=1e22", f"--study={tmp_path}"]
    assert scaling_study.main(words) == 1
    assert "has the families NFNet, ViT: choose one with --family" in capsys.readouterr().err
    assert scaling_study.main([*words, "--family=ViT"]) == 1
    assert "ViT cannot be fitted" in capsys.readouterr().err
    assert scaling_study.main([*words, "--family=NFNet"]) == 0


def test_a_frontier_of_one_model_has_no_law_and_is_compared(tmp_path, capsys):
    simulated_studies.write(tmp_path)
    simulated_studies.write(tmp_path, ["vit_F1"], family=simulated_studies.VIT, ratio=4.0, seed=1)
    assert scaling_study.main(["plot", f"--study={tmp_path}", "--unit=flops"]) == 0
    output = capsys.readouterr().out
    assert "Line:       refused. Every run on the compute-optimal frontier is of vit_F1: no law of a family" in output
    assert "ViT needs more compute for the same loss" in output
    assert "vit_F1" in (tmp_path / "figures" / "families.csv").read_text()
    assert scaling_study.main(["plan", "--flops=1e22", f"--study={tmp_path}", "--family=ViT"]) == 1
    assert "does not say how the best epoch budget grows" in capsys.readouterr().err


def test_a_plan_for_another_family_takes_its_own_configuration(tmp_path, capsys):
    simulated_studies.write_two_families(tmp_path, 2.0)
    assert scaling_study.main(["plan", "--flops=1e22", f"--study={tmp_path}", "--family=ViT"]) == 0
    output = capsys.readouterr().out
    assert "ViT, vit_F" in output and f"--gin_file={tmp_path}/pretrain/vit_F" in output
    assert "nfnet.variant" not in output


def test_a_line_is_refused_where_the_frontier_bends(tmp_path, capsys):
    study = simulated_studies.write(tmp_path)
    assert scaling_study.main(["fit", f"--study={study}"]) == 0
    output = capsys.readouterr().out
    assert "Line:       refused for the whole frontier. Trust its last" in output
    laws = json.loads((tmp_path / "law.json").read_text())
    assert laws["bend"]["found"] and laws["bend"]["interval"][0] > 0
    assert f"Trust its last {laws['trusted_decades']:.2f} decades, {laws['trusted_points']} points" in output


def test_families_are_compared_by_the_command(tmp_path, capsys):
    simulated_studies.write_two_families(tmp_path, 2.0, rates=(1.6,), sigma=0.01, seed=1)
    assert scaling_study.main(["fit", f"--study={tmp_path}", "--unit=flops"]) == 0
    assert "ViT needs more compute for the same loss." in capsys.readouterr().out
    (content,) = json.loads((tmp_path / "comparison.json").read_text())["pairs"]
    middle = content["ratios"][1]
    assert content["differ"] and middle["low"] <= 2.0 <= middle["high"]


def test_the_papers_grid_is_counted_before_it_is_run(capsys):
    """Of F0 and F7+ alone, for time: what the table of the TPU's compiler gives for the ends of the paper's range."""
    some = ['Study.variants=("F0", "F7+")', "Study.epochs=(0.25, 8.0)", "Study.finetune_files=()"]
    words = ["cost", "--gin_file=gin/study/jft.gin", *(f"--gin_param={each}" for each in some)]
    assert scaling_study.main(words) == 0
    output = capsys.readouterr().out
    flops = 0.25 * 4e9 * speeds.training_flops("F0")
    assert f"| F0 | 19.15 | {flops:.3g} ({speeds.core_hours('F0', 1e9):,.0f}) |" in output
    assert f"({speeds.core_hours('F7+', 32e9):,.0f}) |" in output
    study = scaling_study.load(["gin/study/jft.gin"], [])
    assert study.members[0].variants == list(simulated_studies.PAPER) and set(study.epochs) == {0.25, 0.5, 1, 2, 4, 8}


def test_mixed_data_are_refused(tmp_path, capsys):
    study = simulated_studies.write(tmp_path)
    simulated_studies.write_run(study, Trial("F0", 1.0, 3.2), digest="other")
    for words in (["fit"], ["plot"], ["plan", "--core_hours=400"]):
        assert scaling_study.main([*words, f"--study={study}"]) == 1
        assert "do not belong to one study" in capsys.readouterr().err


def test_plot_draws(tmp_path, capsys):
    study = simulated_studies.write(tmp_path, task="imagenet")
    assert scaling_study.main(["plot", f"--study={study}", "--unit=flops"]) == 0
    assert f"{study}/figures/transfer_imagenet.png" in capsys.readouterr().out
    assert (tmp_path / "figures" / "ranks_imagenet.svg").exists()
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http://" not in page and "https://" not in page and 'src="/' not in page
    assert "NFNet with 10 times the compute" in page and "--gin_file=" in page
    assert all(Trial(name, 8.0, 0.8).name in page for name in simulated_studies.PAPER)


def test_the_runs_of_a_study_are_written_for_hparams(tmp_path, capsys):
    study = simulated_studies.write(tmp_path, variants=("F0", "F1"), epochs=(1,), task="t")
    assert scaling_study.main(["hparams", f"--study={study}"]) == 0
    assert f"tensorboard --logdir={study}/tensorboard" in capsys.readouterr().out
    events = [path for path in (tmp_path / "tensorboard").rglob("*") if "tfevents" in path.name]
    assert len(events) == 8
    tags = set()
    for event in tf.compat.v1.train.summary_iterator(str(events[0])):
        tags |= {value.tag for value in event.summary.value}
    assert {"_hparams_/session_start_info", "validation_loss", "validation_top1"} <= tags


@pytest.mark.parametrize("core_hours", [400, 5000, 110000])
def test_plan_answers_with_a_command_of_this_repository(core_hours, capsys):
    assert scaling_study.main(["plan", f"--core_hours={core_hours}"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "--gin_file=" in line]
    file = line.split("--gin_file=")[1].split()[0]
    assert (ROOT / file).exists()


def test_plan_without_a_study_in_another_unit_is_refused(capsys):
    assert scaling_study.main(["plan", "--flops=1e18"]) == 1
    assert "needs a study" in capsys.readouterr().err


def test_a_study_that_does_not_exist(capsys):
    assert scaling_study.main(["fit", "--study=nowhere"]) == 1
    assert "No study in 'nowhere'" in capsys.readouterr().err


def test_the_cost_of_a_study_without_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["cost", f"--gin_file={ROOT / 'gin/study/demo_subset.gin'}"]
    assert scaling_study.main(words) == 1
    message = capsys.readouterr().err
    assert "StudyError: The cost of nano_e0.5_lr0.4_s0 cannot be counted. There are no records" in message
    assert "Study.params; or make the records first" in message
    given = ("Experiment.num_classes=256", "Data.images=128000")
    assert scaling_study.main([*words, f"--gin_param=Study.params={given}"]) == 0
    printed = capsys.readouterr().out
    # Each row of budgets is the same compute, on fewer images.
    rows = re.findall(r"\| nano(?:_\d+k)? (\|.*\|)", printed)
    assert len(rows) == 3 and len(set(rows)) == 1


def test_a_study_of_families_is_configured(tmp_path):
    (tmp_path / "study.gin").write_text(
        """
scaling_study.study = @Study()
Study.directory = "runs/compare"
Study.epochs = (1.0, 2.0)
Study.families = (@nfnet/Family(), @vit/Family())

nfnet/Family.name = "NFNet"
nfnet/Family.models = ("pico", "nano")
nfnet/Family.learning_rates = (0.4, 0.2)
nfnet/Family.pretrain_file = "gin/study/demo_pretrain.gin"

vit/Family.name = "ViT"
vit/Family.models = ("gin/model/vit_pico.gin", "gin/model/vit_nano.gin")
vit/Family.learning_rates = (0.002, 0.001)
vit/Family.pretrain_file = "gin/vit_demo.gin"
"""
    )
    study = scaling_study.load([str(tmp_path / "study.gin")], [])
    assert [(family.name, family.variants) for family in study.members] == [
        ("NFNet", ["pico", "nano"]),
        ("ViT", ["vit_pico", "vit_nano"]),
    ]
    with pytest.raises(configure.ConfigurationError, match=r"vit/Family\.pretrain_file must be str"):
        scaling_study.load([str(tmp_path / "study.gin")], ["vit/Family.pretrain_file=3"])


@pytest.mark.parametrize(
    ("name", "setting", "values"),
    [
        ("batch", "Data.batch", ["16", "64", "256", "1024"]),
        ("subset", "Data.train_examples", [None, "32000", "8000"]),
    ],
)
def test_the_other_demo_studies_vary_one_setting(name, setting, values):
    study = scaling_study.load([str(ROOT / f"gin/study/demo_{name}.gin")], [])
    runs = [
        run_files.start(trial, study.directory, registry.bindings(*sweep.configuration(study, trial)))
        for trial in search.next_trials(study, [])
    ]
    recipe.check_same(runs)
    first = {run.trial.family: run.bindings for run in runs}
    assert [bindings.get(setting) for bindings in first.values()] == values
    rest = [
        {key: value for key, value in bindings.items() if key not in (setting, "cosine.peak", "Experiment.epochs")}
        for bindings in first.values()
    ]
    assert all(each == rest[0] for each in rest)


def test_the_hybrid_has_the_recipe_of_the_vits():
    bindings = []
    for name in ("hybrid", "compare"):
        study = scaling_study.load([str(ROOT / f"gin/study/demo_{name}.gin")], [])
        trial = next(trial for trial in search.next_trials(study, []) if trial.family != "NFNet")
        resolved = registry.bindings(*sweep.configuration(study, trial))
        own = ("hybrid.", "garden.", "Experiment.model", "Experiment.epochs", "cosine.peak")
        bindings.append({key: value for key, value in resolved.items() if not key.startswith(own)})
        assert study.directory == "runs/study"
    assert bindings[0] == bindings[1]


def test_the_demo_study_is_configured_as_documented(tmp_path, capsys):
    study = scaling_study.load([str(ROOT / "gin/study/demo.gin")], [])
    assert len(study.grid) == 25
    # From the smallest run to the largest: at least 1.5 decades of compute.
    work = [speeds.training_flops(variant, 24, 256) * epochs for variant, epochs in study.grid]
    assert np.log10(max(work) / min(work)) > 1.5
    for file in (study.pretrain_file, *study.finetune_files):
        registry.register()
        configure.load([str(ROOT / file)], [], entry="main", tasks=registry.TASKS)
        assert configure.get("Experiment")().data.train_size == 24
    words = ["run", f"--gin_file={ROOT / 'gin/study/demo.gin'}", "--print_commands"]
    assert scaling_study.main([*words, f'--gin_param=Study.directory="{tmp_path}"']) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(study.learning_rates)
    assert scaling_study.main([*words, "--gin_param=Study.variant=3"]) == 1
    assert "Study" in capsys.readouterr().err
    compared = scaling_study.load([str(ROOT / "gin/study/demo_compare.gin")], [])
    assert [family.name for family in compared.members] == ["NFNet", "ViT", "ResNet-RS"]
    assert dataclasses.replace(compared, families=()) == study
    assert all(family.tasks.keys() == {"demo_finetune"} for family in compared.members)
    for family in compared.members:
        for task in ("", *family.tasks):
            files, bindings = family.configuration(family.variants[-1], task)
            experiment = registry.configured([str(ROOT / file) for file in files], bindings)
            assert (experiment.data.train_size, experiment.ema_decay is None) == (24, not task)


@pytest.mark.parametrize(
    ("topology", "installed", "message"),
    [
        ("v4:9x9", True, "v4:9x9"),
        ("v4:2x2x1", False, "pip install -r requirements-tpu.txt"),
    ],
)
def test_an_estimate_that_cannot_be_made_is_a_message(topology, installed, message, tmp_path, monkeypatch, capsys):
    if not installed:
        monkeypatch.setattr(compiler, "TESTED", {"no-such-tpu-compiler": "1"})
    arguments = ["estimate", f"--gin_file={ROOT / 'gin/study/demo.gin'}", f"--topology={topology}"]
    assert scaling_study.main([*arguments, f'--gin_param=Study.directory="{tmp_path / "study"}"']) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
