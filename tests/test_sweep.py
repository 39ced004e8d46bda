"""The search for learning rates, and the sweep: skips, resumes, marks, refuses."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline.study import execution, search, sweep
from pipeline.study import runs as reading
from pipeline.study.errors import StudyError
from pipeline.study.runs import Run, Trial
from tests import record_sets, simulated_studies

# Stands in for pipeline/main.py: diverges above a learning rate of 3, else leaves what a run leaves.
STAND_IN = """
import json, os, signal, sys, time
words = dict(word[2:].split("=", 1) for word in sys.argv[1:] if not word.startswith("--gin_param"))
bindings = dict(word.split("=", 2)[1:] for word in sys.argv[1:] if word.startswith("--gin_param"))
folder = words["model_dir"]
with open(os.path.join(folder, "starts"), "a") as file:
    file.write(".")
checkpoint = os.path.join(folder, "checkpoints", "step-7")
with open(os.path.join(folder, "config.gin"), "w") as file:
    file.write("sgd.momentum = " + bindings.get("MOMENTUM", "0.9"))
def stop(*_):
    os.makedirs(checkpoint, exist_ok=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, signal.SIG_DFL if "DEAF" in bindings else stop)
if "WAIT_WITHOUT" in bindings and not os.path.exists(bindings["WAIT_WITHOUT"]):
    time.sleep(60)
while "MEET" in bindings and not os.path.exists(bindings["MEET"]):
    time.sleep(0.05)
rate = float(bindings.get("LEARNING_RATE", 0))
if str(rate) == bindings.get("SLOW"):
    time.sleep(60)
if rate > 3:
    print("step 7: loss nan", flush=True)
    sys.exit("\\nDivergedError: The loss is nan at step 7.")
if rate == 0.375:
    sys.exit("ValueError: out of luck")
summary = {"validation_loss": 2 + abs(rate - 0.5), "validation_top1": 0.5, "images_seen": 10, "data_digest": "d"}
json.dump(summary, open(os.path.join(folder, "run.json"), "w"))
"""


def study(directory, **changes):
    settings = {
        "directory": str(directory),
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
        status = reading.DIVERGED if math.isinf(value) else reading.FINISHED
        yield Run(trial, "", status, {"validation_loss": value, "validation_top1": 0.5})


def simulate(settings, loss_of):
    """Plays a whole study; returns the trials in order, and the last state of each search."""
    done = []
    while wanted := search.next_trials(settings, done):
        done += finished(loss_of, [wanted[0].trial])
        assert len(done) < 200
    return [run.trial for run in done], search.searches(settings, {run.trial: run for run in done})


def bowl(best):
    """A loss with its least at the learning rate `best(trial)`; the same for fine-tuning."""
    return lambda trial: 1 + abs(math.log2(trial.learning_rate / best(trial)))


def test_two_trials_start_from_the_neighbour():
    trials, states = simulate(study("x"), bowl(lambda trial: 0.5))
    rates = {}
    for trial in trials:
        rates.setdefault((trial.variant, trial.epochs), []).append(trial.learning_rate)
    # The grid's best is on its lower edge, so that 0.25 is tried too; then 0.5, half of it, and what is above.
    assert rates[("nano", 1.0)] == [1.0, 0.5, 0.25]
    assert all(rates[key] == [0.5, 0.25, 1.0] for key in (("nano", 2.0), ("tiny", 1.0), ("tiny", 2.0)))
    assert set(states.values()) == {search.Search(best=0.5)}


def test_the_search_follows_a_falling_optimum_and_says_so():
    settings = study("x", variants=("nano",), epochs=(1.0, 8.0))
    done = list(finished(bowl(lambda t: 0.5), [Trial("nano", 1.0, rate) for rate in (1.0, 0.5)]))
    (wanted,) = search.next_trials(settings, done)
    assert wanted.trial.learning_rate == 0.25
    assert wanted.reason == "the best, 0.5, lies on the lower edge: the grid is extended"
    _, states = simulate(settings, bowl(lambda trial: 0.5 if trial.epochs == 1 else 0.125))
    assert states[("nano", 8.0)].best == 0.125


def test_the_search_follows_a_rising_optimum():
    settings = study("x", variants=("nano",), epochs=(1.0, 8.0))
    trials, states = simulate(settings, bowl(lambda trial: 0.5 if trial.epochs == 1 else 2.0))
    assert [trial.learning_rate for trial in trials if trial.epochs == 8] == [0.5, 0.25, 1.0, 2.0, 4.0]
    assert states[("nano", 8.0)] == search.Search(best=2.0)


def test_a_grid_is_extended_at_its_upper_edge():
    settings = study("x", variants=("nano",), epochs=(1.0,), search="grid")
    trials, states = simulate(settings, bowl(lambda trial: 2.0))
    assert [trial.learning_rate for trial in trials] == [1.0, 0.5, 2.0, 4.0]
    assert states[("nano", 1.0)] == search.Search(best=2.0)


def test_extension_has_a_limit_and_says_so():
    settings = study("x", variants=("nano",), epochs=(1.0,), max_extensions=2)
    trials, states = simulate(settings, bowl(lambda trial: 1e-6))
    assert len(trials) == 4
    assert states[("nano", 1.0)].note == "the best learning rate, 0.125, still lies on the lower edge"


def test_divergence_drives_the_search_down():
    settings = study("x", variants=("nano",), epochs=(1.0,))
    trials, states = simulate(settings, lambda t: math.inf if t.learning_rate > 0.3 else 2 - t.learning_rate)
    assert [trial.learning_rate for trial in trials] == [1.0, 0.5, 0.25, 0.125]
    assert states[("nano", 1.0)].best == 0.25
    _, states = simulate(settings, lambda trial: math.inf)
    assert "every learning rate from 0.0625 to 1 diverged" in states[("nano", 1.0)].note


@pytest.mark.parametrize(("finetune", "count"), [("best", 4), ("all", 16)])
def test_seeds_and_finetuning_follow_the_best(finetune, count):
    settings = study("x", seeds=(3, 4), finetune_files=("gin/a.gin",), finetune=finetune)
    trials, _ = simulate(settings, bowl(lambda trial: 0.5))
    assert sum(trial.task == "a" for trial in trials) == count
    again = [trial for trial in trials if trial.seed == 4 and not trial.task]
    assert len(again) == 4
    assert {trial.learning_rate for trial in again} == {0.5}


def test_what_remains_is_foreseen():
    settings = study("x", finetune_files=("gin/a.gin",))
    assert len(list(search.remaining(settings, []))) == 2 + 3 * 3 + 4
    done = list(finished(bowl(lambda t: 1.0), [Trial("nano", 1.0, rate) for rate in (2.0, 1.0, 0.5)]))
    assert len(list(search.remaining(settings, done))) == 1 + 2 * (2 + 1) + 3 + 1
    done = [Run(run.trial, "", run.status, run.summary, wall_seconds=10.0) for run in done]
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
        study("x", **changes)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    monkeypatch.setattr(execution, "MAIN", str(path))
    monkeypatch.setattr(sweep, "LOOK_SECONDS", 0.05)
    return tmp_path


def starts(folder):
    return (folder / "starts").read_text()


def test_sweep_runs_what_is_missing_and_skips_what_is_done(stand_in, capfd):
    small = study(stand_in / "s", variants=("nano",), epochs=(1.0,), learning_rates=(4.0, 2.0, 1.0))
    done = sweep.run(small)
    # 4 diverged; 1 is better than 2, then 0.5 better than 1, then 0.25 worse.
    assert {run.trial.learning_rate: run.status for run in done} == {4: "diverged", 2: "finished", 1: "finished"} | {
        0.5: "finished",
        0.25: "finished",
    }
    folder = stand_in / "s" / "pretrain" / "nano_e1_lr4_s0"
    assert (folder / "diverged.txt").read_text() == "The loss is nan at step 7.\n"
    assert "loss nan" in (folder / "log.txt").read_text()
    said = capfd.readouterr().err
    assert "lies on the lower edge: the grid is extended" in said
    assert "time left not known yet" in said and "min left" in said
    sweep.run(small)
    assert starts(folder) == "."
    assert "5 runs are finished (1 diverged); skipping them" in capfd.readouterr().err
    grown = study(stand_in / "s", variants=("nano", "tiny"), epochs=(1.0,), learning_rates=(4.0, 2.0, 1.0))
    assert len(sweep.run(grown)) == 8
    assert starts(folder) == "."


def test_runs_at_once_share_the_work(stand_in, capfd):
    """The first run ends only when the second has begun."""
    here = stand_in / "s"
    second = here / "pretrain" / "nano_e1_lr0.5_s0" / "config.gin"
    settings = {"variants": ("nano", "tiny"), "epochs": (1.0,), "at_once": 2, "params": (f"MEET={second}",)}
    done = sweep.run(study(here, **settings))
    assert {run.status for run in done} == {"finished"}
    one, two = (sorted(run.trial.learning_rate for run in done if run.trial.variant == v) for v in ("nano", "tiny"))
    assert one == two == [0.25, 0.5, 1.0]
    assert "[2 of about" in capfd.readouterr().err


def test_a_failure_stops_the_runs_at_work(stand_in):
    failing = study(stand_in / "s", learning_rates=(0.75, 0.375), epochs=(1.0,), at_once=2, params=("SLOW=0.75",))
    with pytest.raises(StudyError, match=r"(?s)failed with exit code 1.*out of luck"):
        sweep.run(failing)
    assert (stand_in / "s" / "pretrain" / "nano_e1_lr0.75_s0" / "checkpoints").exists()


def test_a_stopped_sweep_resumes(stand_in):
    small = study(stand_in / "s", variants=("nano",), epochs=(1.0,), params=("WAIT_WITHOUT=x",))
    folder = stand_in / "s" / "pretrain" / "nano_e1_lr1_s0"

    def stop_when_it_works():
        while not (folder / "config.gin").exists():
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_it_works)
    thread.start()
    with pytest.raises(sweep.Stopped, match="the same command goes on"):
        sweep.run(small)
    thread.join()
    assert (folder / "checkpoints").exists()  # the run was asked to stop, and waited for
    assert not (folder / "run.json").exists()
    assert reading.read(small.directory)[0].status == "unfinished"
    resumed = study(stand_in / "s", variants=("nano",), epochs=(1.0,), params=(f"WAIT_WITHOUT={folder}/checkpoints",))
    assert {run.status for run in sweep.run(resumed)} == {"finished"}
    assert starts(folder) == ".."


def test_a_second_sweep_is_refused(stand_in):
    small = study(stand_in / "s")
    os.makedirs(small.directory)
    with sweep._lock(small.directory), pytest.raises(StudyError, match="Another `scaling_study"):
        sweep.run(small)


def test_another_recipe_is_refused_and_leaves_nothing(stand_in):
    here = stand_in / "s"
    sweep.run(study(here, variants=("nano",), epochs=(1.0,)))
    other = study(here, variants=("nano", "tiny"), epochs=(1.0,), params=("MOMENTUM=0.8", "WAIT_WITHOUT=x"))
    with pytest.raises(StudyError, match=r"(?s)do not belong to one study.*-sgd.momentum = 0.9.*\+sgd.momentum = 0.8"):
        sweep.run(other)
    assert len(reading.read(str(here))) == 3


def test_another_recipe_of_several_runs_leaves_nothing(stand_in):
    """Neither of those that began at once, nor what an attempt without a checkpoint left, stands in the way."""
    here = stand_in / "s"
    settings = {"variants": ("nano", "tiny"), "epochs": (1.0,), "at_once": 2}
    sweep.run(study(here, **{**settings, "variants": ("nano",)}))
    stale = Trial("tiny", 1.0, 0.5)
    reading.write_trial(stale, str(here))
    shutil.copy(here / "pretrain" / "nano_e1_lr0.5_s0" / "config.gin", stale.folder(str(here)))
    with pytest.raises(StudyError, match="do not belong to one study"):
        sweep.run(study(here, **settings, params=("MOMENTUM=0.8", "WAIT_WITHOUT=x", "DEAF=x")))
    assert len(reading.read(str(here))) == 3
    assert len(sweep.run(study(here, **settings))) == 6


def test_a_failed_run_stops_the_sweep_with_its_last_words(stand_in):
    small = study(stand_in / "s", variants=("nano",), epochs=(1.0,), learning_rates=(0.375,))
    with pytest.raises(StudyError, match=r"(?s)failed with exit code 1.*out of luck"):
        sweep.run(small)


def test_commands_for_a_scheduler(tmp_path):
    small = study(tmp_path / "s", finetune_files=("gin/a.gin",), params=("GLOBAL_BATCH=8",))
    first = sweep.commands(small)
    assert len(first) == 2
    assert first[0] == (
        "python pipeline/main.py --gin_file=pretrain.gin --gin_param=GLOBAL_BATCH=8 "
        "'--gin_param=nfnet.variant=\"nano\"' "
        f"--gin_param=SEED=0 --gin_param=EPOCHS=1.0 --gin_param=LEARNING_RATE=1.0 "
        f"--model_dir={tmp_path}/s/pretrain/nano_e1_lr1_s0"
    )
    assert sweep.commands(small) == first  # noted, not finished
    for rate in (4.0, 2.0, 1.0, 0.5):
        simulated_studies.write_run(tmp_path / "s", Trial("nano", 1.0, rate))
    following = sweep.commands(small)
    # Two searches wait for this one, and its fine-tuning.
    assert sum("SEED" in line for line in following) == 5
    (tuning,) = [line for line in following if "gin/a.gin" in line]
    assert f'INITIAL_CHECKPOINT="{tmp_path}/s/pretrain/nano_e1_lr' in tuning
    assert "LEARNING_RATE" not in tuning


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"momentum": 0.5}, "sgd.momentum = 0.5"),
        ({"digest": "another"}, "training or evaluation records"),
    ],
)
def test_mixed_runs_are_refused(tmp_path, damage, message):
    simulated_studies.write(tmp_path, variants=("F0",))
    simulated_studies.write_run(tmp_path, Trial("F1", 1.0, 1.6), **damage)
    with pytest.raises(StudyError, match=rf"(?s)F0_e0\.25.*F1_e1.*{message}"):
        reading.check_same(reading.read(str(tmp_path)))


def test_length_and_rate_of_finetuning_belong_to_its_recipe(tmp_path):
    simulated_studies.write(tmp_path, variants=("F0",), task="t")
    simulated_studies.write_run(tmp_path, Trial("F1", 1.0, 1.6, task="t"), tuning_epochs=20)
    with pytest.raises(StudyError, match=r"(?s)-EPOCHS = 50.*\+EPOCHS = 20"):
        reading.check_same(reading.read(str(tmp_path)))


def test_how_a_run_works_is_no_recipe(tmp_path):
    simulated_studies.write(tmp_path, variants=("F0",), task="t")
    reading.check_same(reading.read(str(tmp_path)))
    found = reading.recipe(str(tmp_path / "pretrain" / "F0_e1_lr0.8_s0"))
    assert found == [
        "Experiment.data = @Data()",
        "GLOBAL_BATCH = 1024",
        "sgd.long_list = \\ (1, 2)",
        "sgd.momentum = 0.9",
    ]


def test_best_of_each_cell_over_seeds(tmp_path):
    for seed, noise in ((0, 0.0), (1, 0.1)):
        simulated_studies.write_run(tmp_path, Trial("F0", 1.0, 0.8, seed), noise=noise)
    simulated_studies.write_run(tmp_path, Trial("F0", 1.0, 0.4))
    simulated_studies.write_run(tmp_path, Trial("F0", 1.0, 3.2), validation_loss=math.nan)
    (cell,) = reading.cells(reading.read(str(tmp_path)))
    assert (cell.learning_rate, len(cell.runs), cell.edge, cell.tried) == (0.8, 2, "", (0.4, 0.8, 3.2))
    assert cell.loss == pytest.approx(simulated_studies.loss("F0", 1.0, 0.8, 4e9) * math.exp(0.05))


def test_damaged_files_are_named(tmp_path):
    folder = simulated_studies.write_run(tmp_path, Trial("F0", 1.0, 0.8))
    path = os.path.join(folder, "run.json")
    with open(path, "w") as file:
        json.dump({"validation_loss": 1.0}, file)
    with pytest.raises(StudyError, match=r"run\.json lacks validation_top1, images_seen"):
        reading.read(str(tmp_path))
    with open(path, "w") as file:
        file.write("{")
    with pytest.raises(StudyError, match=r"run\.json cannot be read"):
        reading.read(str(tmp_path))
    with pytest.raises(StudyError, match="does not exist"):
        reading.read(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match="No run in"):
        reading.read(str(tmp_path / "empty"))


@pytest.mark.slow
def test_a_real_sweep_is_interrupted_and_resumed(tmp_path):
    """Two models of the family on real records, by the real commands; SIGTERM in the middle."""
    for name in ("pretrain", "finetune"):
        record_sets.make(tmp_path / name, examples=128, validation=32, classes=4)
    small = ("GLOBAL_BATCH=16", "TRAIN_SIZE=32", "EVAL_SIZE=32", "WARMUP_EPOCHS=0", "Loop.steps_per_loop=2")
    for name in ("pretrain", "finetune"):
        lines = [f"include 'gin/study/demo_{name}.gin'", f"DATA_DIR = '{tmp_path / name}'", *map(_spaced, small)]
        (tmp_path / f"{name}.gin").write_text("\n".join([*lines, *(["EPOCHS = 1"] if name == "finetune" else [])]))
    (tmp_path / "study.gin").write_text(
        f"""
scaling_study.study = @Study()
Study.directory = '{tmp_path / "study"}'
Study.variants = ('nano', 'tiny')
Study.epochs = (4.0,)
Study.learning_rates = (0.2, 0.1)
Study.max_extensions = 0
Study.pretrain_file = '{tmp_path / "pretrain.gin"}'
Study.finetune_files = ('{tmp_path / "finetune.gin"}',)
"""
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    words = [sys.executable, "pipeline/scaling_study.py", "run", f"--gin_file={tmp_path / 'study.gin'}"]
    metrics = tmp_path / "study" / "pretrain" / "nano_e4_lr0.2_s0" / "metrics.jsonl"
    with subprocess.Popen(words, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        while not (metrics.exists() and metrics.read_text()):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 143, said
    assert not (metrics.parent / "run.json").exists()
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "Going on from step" in (metrics.parent / "log.txt").read_text()
    found = reading.read(str(tmp_path / "study"))
    reading.check_same(found)
    assert sorted((run.trial.variant, run.trial.task, run.status) for run in found) == [
        ("nano", "", "finished"),
        ("nano", "", "finished"),
        ("nano", "finetune", "finished"),
        ("tiny", "", "finished"),
        ("tiny", "", "finished"),
        ("tiny", "finetune", "finished"),
    ]
    assert all(entry["exactly_once"] for run in found for entry in run.summary["ledger"])
    lines = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert lines == sorted(lines)


def _spaced(binding):
    return " = ".join(binding.split("=", 1))
