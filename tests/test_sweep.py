"""The sweep: it skips, resumes and marks runs, and refuses to mix recipes."""

import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from pipeline import registry
from pipeline.study import StudyError, execution, live_table, run_files, search, sweep
from pipeline.study.family import Family
from pipeline.study.run_files import Trial
from tests import record_sets, simulated_studies

# Stands in for pipeline/main.py: diverges above a learning rate of 3, else leaves what a run leaves.
STAND_IN = """
import json, os, signal, sys, time
words = dict(word[2:].split("=", 1) for word in sys.argv[1:] if not word.startswith("--gin_param"))
params = dict(word.split("=", 2)[1:] for word in sys.argv[1:] if word.startswith("--gin_param"))
folder, rate = words["model_dir"], float(params.get("LEARNING_RATE", 0))
with open(os.path.join(folder, "trial.json")) as file:
    bindings = json.load(file)["bindings"]
def stop(*_):
    os.makedirs(os.path.join(folder, "checkpoints", "step-7"))
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
with open(os.path.join(folder, "starts"), "a") as file:
    file.write(".")
with open(os.path.join(folder, "threads"), "w") as file:
    file.write(" ".join(os.environ.get(f"TF_NUM_{kind}OP_THREADS", "all") for kind in ("INTRA", "INTER")))
while "WAIT_FOR" in os.environ and not os.path.exists(os.environ["WAIT_FOR"]):
    time.sleep(0.02)
while str(rate) == os.environ.get("ENDLESS"):
    time.sleep(0.02)
if rate > 3:
    print("step 7: loss nan", flush=True)
    sys.exit("\\nDivergedError: The loss is nan at step 7.")
if rate == 0.375:
    sys.exit("ValueError: out of luck")
summary = {"validation_loss": 2 + abs(rate - 0.5), "validation_top1": 0.5, "images_seen": 10, "data_digest": "d"}
path = os.path.join(folder, "run.json")
with open(path + ".partial", "w") as file:
    json.dump({**summary, "bindings": bindings}, file)
os.replace(path + ".partial", path)
"""


def study(directory: pathlib.Path, **changes) -> search.Study:
    settings = {
        "directory": str(directory),
        "variants": ("nano",),
        "epochs": (1.0,),
        "learning_rates": (1.0, 0.5),
        "pretrain_file": "gin/study/demo_pretrain.gin",
        **changes,
    }
    return search.Study(**settings)


def run(settings: search.Study) -> list[run_files.Run]:
    return sweep.run(settings, registry.bindings)


def starts(folder: pathlib.Path) -> int:
    return len((folder / "starts").read_text())


@pytest.fixture
def here(tmp_path, monkeypatch) -> pathlib.Path:
    """A study's folder, whose runs are the stand-in's."""
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    monkeypatch.setattr(execution, "MAIN", str(path))
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.02)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    return tmp_path / "study"


def test_sweep_runs_what_is_missing_and_skips_what_is_done(here, capfd):
    rates = {"learning_rates": (4.0, 2.0, 1.0)}
    # 4 diverged; 1 is better than 2, then 0.5 better than 1, then 0.25 worse.
    statuses = {run.trial.learning_rate: run.status for run in run(study(here, **rates))}
    assert statuses == {4: "diverged", 2: "finished", 1: "finished", 0.5: "finished", 0.25: "finished"}
    folder = here / "pretrain" / "nano_e1_lr4_s0"
    assert (folder / "diverged.txt").read_text() == "The loss is nan at step 7.\n"
    assert "loss nan" in (folder / "log.txt").read_text()
    output = capfd.readouterr().err
    assert "is on the lower edge: the grid is extended" in output
    assert "time left unknown" in output and "min left" in output
    assert re.search(r"study: 5 of about 5 runs, 0:\d\d gone, none left", output)
    assert re.search(r"│ nano │ \d\.\d{3} at 0\.5 │", output)
    assert len(run(study(here, **rates, variants=("nano", "tiny")))) == 8
    assert starts(folder) == 1
    assert "5 runs are finished (1 diverged); skipping them" in capfd.readouterr().err


def test_a_file_has_wide_tables(here, capfd):
    budgets = tuple(float(epochs) for epochs in range(1, 8))
    run(study(here, learning_rates=(1.0, 0.5), epochs=budgets))
    assert len(re.findall(r"\d\.\d{3} at 0?\.?\d+", capfd.readouterr().err)) == len(budgets)


def test_a_terminal_shows_a_table_of_what_is_done_and_runs(here, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(live_table, "_REFRESHES_PER_SECOND", 100)
    run(study(here, learning_rates=(4.0, 2.0), variants=("nano", "tiny"), epochs=(1.0, 2.0)))
    output = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capfd.readouterr().err)
    assert re.search(r"study: \d+ of about \d+ runs, 0:\d\d gone, ", output)
    assert re.search(r"┃ 1 epochs\s+┃ 2 epochs", output)
    assert re.search(r"│ nano │ .* ▸ [\d.]+ ", output), "what runs"


def test_the_table_of_a_study(here):
    settings = study(here, learning_rates=(2.0, 1.0), variants=("nano", "tiny"), epochs=(1.0, 2.0))
    runs = run(settings)
    console = Console(width=100, record=True, file=io.StringIO())
    done = [each for each in runs if each.trial.variant == "nano"]
    console.print(live_table.table(settings, done, [settings.trial(("tiny", 1.0), 0.5, 0)], "0:10 gone, 1 min left"))
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:-1] for line in console.export_text().splitlines() if "│" in line
    }
    best = min((each for each in done if each.trial.epochs == 1), key=lambda each: each.loss)
    assert rows["nano"][0].strip() == f"{best.loss:.3f} at {best.trial.learning_rate:g}"
    assert rows["tiny"][0].strip() == "▸ 0.5" and rows["tiny"][1].strip() == "·"


BUDGETS = {"all": (2.0, 1.0), "part": (2.0, 8.0)}


def test_the_table_has_a_column_for_each_budget_of_a_family():
    members = [Family(name, (f"{name}.gin",), (1.0,), "a.gin", (), epochs) for name, epochs in BUDGETS.items()]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(live_table.table(search.Study("runs", families=members), [], [], ""))
    rows = [line.replace("┃", "│").split("│")[1:-1] for line in console.export_text().splitlines() if line[0] in "┃│"]
    assert [[text.strip() for text in row] for row in rows] == [
        ["", "1 epochs", "2 epochs", "8 epochs"],
        ["all", "·", "·", ""],
        ["part", "", "·", "·"],
    ]


def test_runs_at_once_share_the_work(here, capfd, monkeypatch):
    """The first run ends only when the second has started."""
    monkeypatch.setenv("WAIT_FOR", str(here / "pretrain" / "nano_e1_lr0.5_s0" / "starts"))
    done = run(study(here, variants=("nano", "tiny"), at_once=2))
    assert {run.status for run in done} == {"finished"}
    for variant in ("nano", "tiny"):
        assert sorted(run.trial.learning_rate for run in done if run.trial.variant == variant) == [0.25, 0.5, 1.0]
    assert "[2 of about" in capfd.readouterr().err


@pytest.mark.parametrize(("at_once", "threads"), [(1, "all all"), (2, "3 3"), (16, "1 1")])
def test_runs_at_once_share_the_cores(here, monkeypatch, at_once, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    for kind in ("INTRA", "INTER"):
        monkeypatch.delenv(f"TF_NUM_{kind}OP_THREADS", raising=False)
    folders = [run.folder for run in run(study(here, at_once=at_once))]
    assert [pathlib.Path(folder, "threads").read_text() for folder in folders] == [threads] * 3


def test_a_failure_stops_the_other_runs(here, monkeypatch):
    monkeypatch.setenv("ENDLESS", "0.75")
    monkeypatch.setenv("WAIT_FOR", str(here / "pretrain" / "nano_e1_lr0.75_s0" / "starts"))
    with pytest.raises(StudyError, match=r"(?s)failed with exit code 1.*out of luck"):
        run(study(here, learning_rates=(0.75, 0.375), at_once=2))
    assert (here / "pretrain" / "nano_e1_lr0.75_s0" / "checkpoints").exists()


def interrupt(here: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Starts the study in `here` and stops it in its first run, whose folder is returned."""
    folder = here / "pretrain" / "nano_e1_lr1_s0"

    def stop_when_it_runs():
        while not (folder / "starts").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setenv("WAIT_FOR", "nothing")
    thread = threading.Thread(target=stop_when_it_runs)
    thread.start()
    with pytest.raises(sweep.Stopped, match="the same command resumes"):
        run(study(here))
    thread.join()
    monkeypatch.delenv("WAIT_FOR")
    return folder


def test_a_stopped_sweep_resumes(here, monkeypatch):
    folder = interrupt(here, monkeypatch)
    assert (folder / "checkpoints").exists()  # the run was told to stop, and waited for
    assert not (folder / "run.json").exists()
    assert run_files.read(str(here))[0].status == "unfinished"
    assert {run.status for run in run(study(here))} == {"finished"}
    assert starts(folder) == 2


def test_an_interrupted_run_does_not_resume_with_another_recipe(here, monkeypatch):
    folder = interrupt(here, monkeypatch)
    trial = (folder / "trial.json").read_text()
    with pytest.raises(StudyError, match="do not belong to one study"):
        run(study(here, params=("sgd.momentum=0.8",)))
    assert starts(folder) == 1 and (folder / "trial.json").read_text() == trial


def test_families_run_with_their_own_recipes(here, tmp_path):
    """A model is a variant, or a gin file after the recipe's."""
    (tmp_path / "vit.gin").write_text(
        "include 'gin/run/train.gin'\ninclude 'gin/run/adamw.gin'\nDATA_DIR = ''\nGLOBAL_BATCH = 32\nTRAIN_SIZE = 24\n"
        "EVAL_SIZE = 24\nWARMUP_EPOCHS = 0\n"
    )
    nfnets = Family("NFNet", ("nano",), (0.5,), "gin/study/demo_pretrain.gin")
    vits = Family("ViT", ("gin/model/vit_pico.gin",), (0.5,), str(tmp_path / "vit.gin"))
    done = run(search.Study(str(here), (1.0,), families=(nfnets, vits)))
    assert {(one.trial.family, one.trial.variant, one.status) for one in done} == {
        ("NFNet", "nano", "finished"),
        ("ViT", "vit_pico", "finished"),
    }
    recipes = {one.trial.family: one.bindings for one in done}
    assert recipes["ViT"]["garden.backbone"] == "'vit'" and recipes["ViT"]["adamw.weight_decay"] == "0.05"
    assert recipes["NFNet"]["sgd.momentum"] == "0.9"


def test_a_second_sweep_is_refused(here):
    os.makedirs(here)
    with sweep._lock(str(here)), pytest.raises(StudyError, match="Another `scaling_study"):
        run(study(here))


@pytest.mark.parametrize("at_once", [1, 2])
def test_another_recipe_is_refused_and_leaves_nothing(here, at_once):
    """Before it starts; what an attempt without a checkpoint left is not in the way."""
    run(study(here))
    paths = sorted(here.rglob("*"))
    settings = {"variants": ("nano", "tiny"), "at_once": at_once}
    with pytest.raises(StudyError, match=r"(?s)do not belong.*sgd\.momentum: 0\.9 in the first, 0\.8 in the second"):
        run(study(here, **settings, params=("sgd.momentum=0.8",)))
    assert sorted(here.rglob("*")) == paths
    failed = run_files.start(Trial("tiny", 1.0, 0.5), str(here), {"sgd.momentum": "0.8"})
    run_files.write_trial(failed)
    assert len(run(study(here, **settings))) == 6


def test_a_wrong_recipe_is_refused_before_any_run(here):
    with pytest.raises(ValueError, match=r"sgd(.|\n)*momentums"):
        run(study(here, params=("sgd.momentums=0.8",)))
    assert not (here / "pretrain").exists()


def test_a_failed_run_stops_the_sweep_with_the_end_of_its_log(here):
    with pytest.raises(StudyError, match=r"(?s)failed with exit code 1.*out of luck"):
        run(study(here, learning_rates=(0.375,)))


def test_commands_for_a_scheduler(tmp_path):
    tuning_file = "gin/study/demo_finetune.gin"
    settings = {"variants": ("tiny", "nano"), "epochs": (2.0, 1.0), "finetune_files": (tuning_file,)}
    small = study(tmp_path, **settings, params=("GLOBAL_BATCH=8",))
    first = sweep.commands(small, registry.bindings)
    assert len(first) == 2
    assert first[0] == (
        "python pipeline/main.py --gin_file=gin/study/demo_pretrain.gin --gin_param=GLOBAL_BATCH=8 "
        "'--gin_param=nfnet.variant=\"nano\"' "
        f"--gin_param=SEED=0 --gin_param=EPOCHS=1.0 --gin_param=LEARNING_RATE=1.0 "
        f"--model_dir={tmp_path}/pretrain/nano_e1_lr1_s0"
    )
    assert sweep.commands(small, registry.bindings) == first  # written down, not finished
    bindings = run_files.read(str(tmp_path))[0].bindings
    assert bindings == registry.bindings([small.pretrain_file], [*small.params, "LEARNING_RATE=0.5", "EPOCHS=1.0"])
    for rate in (4.0, 2.0, 1.0, 0.5):
        folder = pathlib.Path(simulated_studies.write_run(tmp_path, Trial("nano", 1.0, rate)))
        summary = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**summary, "bindings": bindings}))
    following = sweep.commands(small, registry.bindings)
    # Two searches wait for this one, and its fine-tuning.
    assert sum("SEED" in line for line in following) == 5
    (tuning,) = [line for line in following if tuning_file in line]
    assert f'INITIAL_CHECKPOINT="{tmp_path}/pretrain/nano_e1_lr' in tuning
    assert "LEARNING_RATE" not in tuning
    with pytest.raises(StudyError, match=r"Data\.batch: 8 in the first, 16 in the second"):
        sweep.commands(study(tmp_path, **settings, params=("GLOBAL_BATCH=16",)), registry.bindings)


@pytest.mark.slow
def test_a_real_sweep_is_interrupted_and_resumed(tmp_path):
    """A pre-training and its fine-tuning on real records, by the real commands; SIGTERM in the middle."""
    for name in ("pretrain", "finetune"):
        record_sets.make(tmp_path / name, examples=128, validation=32, classes=4)
    small = "GLOBAL_BATCH = 16\nTRAIN_SIZE = 32\nEVAL_SIZE = 32\nWARMUP_EPOCHS = 0\nLoop.steps_per_loop = 2\n"
    for name, epochs in (("pretrain", 24), ("finetune", 1)):
        (tmp_path / f"{name}.gin").write_text(
            f"include 'gin/study/demo_{name}.gin'\nDATA_DIR = '{tmp_path / name}'\nEPOCHS = {epochs}\n{small}"
        )
    (tmp_path / "study.gin").write_text(
        f"""
scaling_study.study = @Study()
Study.directory = '{tmp_path / "study"}'
Study.variants = ('pico',)
Study.epochs = (24.0,)
Study.learning_rates = (0.2,)
Study.max_extensions = 0
Study.pretrain_file = '{tmp_path / "pretrain.gin"}'
Study.finetune_files = ('{tmp_path / "finetune.gin"}',)
"""
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    words = [sys.executable, "pipeline/scaling_study.py", "run", f"--gin_file={tmp_path / 'study.gin'}"]
    folder = tmp_path / "study" / "pretrain" / "pico_e24_lr0.2_s0"
    metrics = folder / "metrics.jsonl"
    with subprocess.Popen(words, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        while not (metrics.exists() and metrics.read_text()):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=120)[1]
    assert process.returncode == 143, output
    assert not (folder / "run.json").exists()
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    runs = run_files.read(str(tmp_path / "study"))
    outcomes = sorted((run.trial.task, run.status) for run in runs)
    assert outcomes == [("", "finished"), ("finetune", "finished")]
    assert all(entry["exactly_once"] for run in runs for entry in run.summary["ledger"])
    for run in runs:  # what the sweep resolved is what the run used
        trial = json.loads((pathlib.Path(run.folder) / "trial.json").read_text())
        assert trial["bindings"] == run.summary["bindings"]
    assert "Continuing from step" in (folder / "log.txt").read_text()
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(steps)
