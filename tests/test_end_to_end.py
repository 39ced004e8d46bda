"""The whole line with its real commands, in small: images -> records -> two trainings -> export -> predictions."""

import csv
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from pipeline import registry, report
from pipeline.serving import client
from pipeline.train import checkpoint, preemption
from tests import programs
from tests.ingest_builds import build

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLASSES = {"pretrain": 6, "finetune": 3}
SMALL = (
    'nfnet.variant="femto"',
    "GLOBAL_BATCH=16",
    "TRAIN_SIZE=32",
    "EVAL_SIZE=40",
    "Loop.steps_per_loop=5",
    "Loop.checkpoint_every=5",
    "WARMUP_EPOCHS=0",
)


def run(task, gin_file, model_dir, *params):
    """What `pipeline/main.py` does, in this process."""
    files, bindings = [str(ROOT / "gin" / gin_file)], [*SMALL, *params, f"RUN=@{task}"]
    registry.run_configured(files, bindings, str(model_dir))
    return report.find_summary(str(model_dir))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two folders of classes that differ in the direction of a grating; a broken file in each."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, classes in CLASSES.items():
        for label in range(classes):
            place = folder / name / f"angle{label}"
            place.mkdir(parents=True)
            for i in range(40):
                width, height = rng.integers(40, 64, 2)
                y, x = np.mgrid[:height, :width]
                angle = np.pi * (label + (0 if name == "pretrain" else 0.25)) / classes
                wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / 3 + rng.uniform(0, 6))
                pixels = 128 + 80 * wave[..., None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 10, (height, width, 3))
                suffix = "png" if i % 5 == 0 else "jpg"
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(place / f"{i:03d}.{suffix}")
        (folder / name / "angle0" / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def records(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    words = (f"--input={images / 'pretrain'}", f"--output_dir={folder / 'pretrain'}", "--name=pretrain", "--shards=2")
    done = programs.run("beam/build_tfrecords.py", *words, "--validation_examples=30")
    assert done.returncode == 0, done.stderr
    build(images / "finetune", folder / "finetune", "--name=finetune", "--validation_examples=30")
    return folder


@pytest.fixture(scope="module")
def pretrained(records, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("runs") / "pretrain"
    run("train", "quickstart_pretrain.gin", model_dir, f'DATA_DIR="{records / "pretrain"}"', "EPOCHS=2")
    return model_dir


def finetune_params(records, pretrained):
    data, start = f'DATA_DIR="{records / "finetune"}"', f'INITIAL_CHECKPOINT="{pretrained}"'
    return data, start, "EPOCHS=1.5"


@pytest.fixture(scope="module")
def finetuned(records, pretrained, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("runs") / "finetune"
    params = finetune_params(records, pretrained)
    words = [f"--gin_param={param}" for param in (*SMALL, *params)]
    done = programs.run(
        "pipeline/main.py", "--gin_file=gin/quickstart_finetune.gin", f"--model_dir={model_dir}", *words
    )
    assert done.returncode == 0, done.stderr
    assert "initialized at random: linear/bias, linear/kernel" in done.stdout
    assert "epoch 0: exactly once" in done.stderr
    run("export", "quickstart_finetune.gin", model_dir, *params)
    return model_dir


def test_records_add_up_and_tfds_reads_them(records):
    manifest = json.loads((records / "pretrain" / "manifest.json").read_text())
    assert manifest["classes"] == [f"angle{i}" for i in range(6)]
    assert sum(split["written"] for split in manifest["splits"].values()) == 240
    assert sum(sum(split["rejected"].values()) for split in manifest["splits"].values()) == 1
    rejected = [json.loads(line) for line in (records / "pretrain" / "rejected.jsonl").read_text().splitlines()]
    assert [line["key"] for line in rejected] == ["angle0/broken.jpg"]
    dataset = tfds.builder_from_directory(str(records / "pretrain")).as_dataset("validation")
    example = next(iter(dataset))
    assert example["image"].dtype == tf.uint8
    assert manifest["classes"][int(example["label"])] == example["key"].numpy().decode().split("/")[0]


def test_a_run_leaves_its_summary_metrics_and_configuration(pretrained):
    summary = report.find_summary(str(pretrained))
    assert summary["variant"] == "femto"
    assert summary["examples_seen"] == summary["images_seen"] == 2 * 210  # 240 images, 30 of them held out
    assert summary["ledger"] == [
        {"epoch": epoch, "examples": 210, "expected": 210, "exactly_once": True} for epoch in (0, 1)
    ]
    wanted = "parameters flops_per_image images_seen tpu_v4_core_hours seconds images_per_second validation_loss"
    wanted += " validation_top1 validation_top5 config_digest data_digest weights_digest bindings"
    assert set(wanted.split()) <= summary.keys()
    lines = report.read_metrics(str(pretrained))
    assert lines[-1]["validation_loss"] == summary["validation_loss"]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert "Experiment.epochs = %EPOCHS" in (pretrained / "config.gin").read_text()
    assert list((pretrained / "tensorboard").glob("events.*"))


def test_running_again_changes_nothing(pretrained, records):
    before = (pretrained / "run.json").read_bytes()
    run("train", "quickstart_pretrain.gin", pretrained, f'DATA_DIR="{records / "pretrain"}"', "EPOCHS=2")
    assert (pretrained / "run.json").read_bytes() == before


def test_the_exported_model_agrees_with_the_evaluator_to_the_last_example(finetuned, images, records):
    summary = report.find_summary(str(finetuned))
    directory = str(records / "finetune")
    dataset = tfds.builder_from_directory(directory).as_dataset(
        "validation", decoders={"image": tfds.decode.SkipDecoding()}
    )
    encoded, labels = zip(*[(example["image"].numpy(), int(example["label"])) for example in dataset], strict=True)
    output = client.load(str(finetuned / "saved_model")).signatures["serving_default"](tf.constant(encoded))
    hits = int((output["probabilities"].numpy().argmax(1) == labels).sum())
    assert hits == round(summary["validation_top1"] * len(labels))
    loss = -np.log(output["probabilities"].numpy()[np.arange(len(labels)), labels]).mean()
    assert loss == pytest.approx(summary["validation_loss"], rel=1e-4)


def test_the_readmes_python_classifies_an_image(finetuned, images, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(finetuned)
    shutil.copy(images / "finetune" / "angle1" / "001.jpg", tmp_path / "photo.jpg")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # as if installed
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(snippets) == 2
    code = "".join(f"exec({snippet!r}, {{}})\n" for snippet in snippets)  # one process, no name in common
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert re.fullmatch(r"(angle\d [01]\.\d+\n){2}", done.stdout), done.stderr


@pytest.fixture(scope="module")
def predicted(finetuned, images):
    """Two images and a broken one, and what `predict.py` says of them."""
    paths = [*sorted(images.glob("finetune/angle1/*.jpg"))[:2], images / "finetune/angle0/broken.jpg"]
    done = programs.run("pipeline/predict.py", f"--saved_model={finetuned / 'saved_model'}", "--json", *paths)
    assert done.returncode == 1  # one image could not be classified; the others were
    return paths, done.stdout


def test_predict_says_which_classes_and_what_is_no_image(predicted):
    paths, shown = predicted
    first, second, third = (json.loads(line) for line in shown.splitlines())
    assert first["image"] == str(paths[0])
    assert sorted(first["classes"]) == ["angle0", "angle1", "angle2"]
    assert sum(second["probabilities"]) == pytest.approx(1, abs=1e-4)
    assert third["error"]


def test_a_split_is_evaluated_to_a_page_and_the_run_has_one(finetuned, capsys):
    before = report.find_summary(str(finetuned))
    lines = report.read_metrics(str(finetuned))
    folder = finetuned / "evaluation" / "train"

    def evaluate_again(split):
        registry.run_configured([], [f"evaluate.split={split!r}"], str(finetuned), task="evaluate")
        return capsys.readouterr().out

    done = programs.run("pipeline/main.py", f"--model_dir={finetuned}", "--task=evaluate", "--split=train")
    assert done.returncode == 0, done.stderr
    for shown in (done.stdout, evaluate_again("train")):
        values = json.loads((folder / "metrics.json").read_text())
        assert f"{folder / 'report.html'}" in shown and f"top1 {values['top1']:.4g}" in shown
    with open(folder / "confusion.csv", newline="") as file:
        assert sum(int(row["count"]) for row in csv.DictReader(file)) == values["examples"] == 90
    added = {
        "step": before["step"],
        "split": "train",
        **{f"train_{name}": values[name] for name in ("loss", "top1", "top5")},
    }
    *rest, last = report.read_metrics(str(finetuned))
    assert rest == lines and last.items() >= added.items()
    assert report.find_summary(str(finetuned)) == before

    page = (finetuned / "report.html").read_text()
    for text in ("Experiment.epochs", "exactly once", "evaluation/train/report.html", "data:image/png", "finetune, in"):
        assert text in page
    with pytest.raises(ValueError, match=r"No split 'test'.*train, validation"):
        evaluate_again("test")


def test_evaluate_gives_the_numbers_of_the_summary(finetuned, pretrained, records, capsys):
    run("evaluate", "quickstart_finetune.gin", finetuned, *finetune_params(records, pretrained))
    shown = capsys.readouterr().out
    assert f"loss {report.find_summary(str(finetuned))['validation_loss']:.4g}" in shown


@pytest.fixture
def moved(finetuned, tmp_path):
    """The run's folder alone, as somebody else gets it: at another place, and its records named nowhere that exists."""
    model_dir = tmp_path / "moved"
    shutil.copytree(finetuned, model_dir, ignore=shutil.ignore_patterns("saved_model", "tensorboard"))
    config = (model_dir / "config.gin").read_text()
    (model_dir / "config.gin").write_text(re.sub(r"DATA_DIR = (\\\n)?.*", "DATA_DIR = 'no/records'", config))
    return model_dir


def test_a_runs_folder_is_enough_to_export_and_predict(predicted, moved, capsys):
    paths, expected = predicted
    done = programs.run("pipeline/predict.py", f"--model_dir={moved}", "--json", *paths)
    assert done.stdout == expected, done.stderr
    registry.run_configured([], ["export.top=2"], str(moved), task="export")
    assert f"Exported to {moved}/saved_model/2" in capsys.readouterr().out


def test_a_runs_folder_is_enough_to_evaluate_and_probe_it(moved, records, capsys):
    data = f'DATA_DIR="{records / "finetune"}"'
    registry.run_configured([], [data], str(moved), task="evaluate")
    assert f"loss {report.find_summary(str(moved))['validation_loss']:.4g}" in capsys.readouterr().out
    registry.run_configured([], [data, "few_shot.shots=(2,)"], str(moved), task="few_shot")
    assert "few_shot_2" in json.loads((moved / "few_shot.json").read_text())
    registry.run_configured([], [data], str(moved), force_resume=True)
    assert "is finished: step" in capsys.readouterr().out


# Bad input


def test_a_folder_that_is_no_run_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.gin.*--gin_file"):
        registry.run_configured([], [], str(tmp_path), task="export")
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        registry.run_configured([], [], str(tmp_path / "nowhere"), task="export")


def test_classes_that_a_run_was_not_trained_on_are_not_evaluated(moved, records):
    params = [f'DATA_DIR="{records / "pretrain"}"']
    with pytest.raises(ValueError, match=r"trained on 3 classes, and .* has 6 others.*--task=few_shot"):
        registry.run_configured([], params, str(moved), task="evaluate")


def test_a_command_with_a_mistake_exits_with_its_message_alone(tmp_path):
    done = programs.run("pipeline/main.py", "--gin_file=gin/f7_jft.gin", f"--model_dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "No record set at 'data/jft'" in done.stderr
    assert "python beam/build_tfrecords.py" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_onednn_exports_answer_and_training_says_what_to_set(predicted, finetuned, records, tmp_path):
    """As TensorFlow is by itself on CPUs without instructions for neural networks."""

    def started(*words):
        environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
        line = [sys.executable, *map(str, words)]
        return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    paths, expected = predicted
    done = started("pipeline/predict.py", f"--saved_model={finetuned / 'saved_model'}", "--json", *paths)
    for line, other in zip(done.stdout.splitlines(), expected.splitlines(), strict=True):
        found, wanted = json.loads(line), json.loads(other)
        assert found.get("classes") == wanted.get("classes"), done.stderr
        assert found.get("probabilities") == pytest.approx(wanted.get("probabilities"), abs=1e-4)
    words = [f"--gin_param={param}" for param in (*SMALL, f'DATA_DIR="{records / "pretrain"}"')]
    done = started(
        "pipeline/main.py", "--gin_file=gin/quickstart_pretrain.gin", f"--model_dir={tmp_path / 'run'}", *words
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "without oneDNN" in done.stderr and "TF_ENABLE_ONEDNN_OPTS=1" in done.stderr


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (
            ["GLOBAL_BATCH=16", "Loop.strategy='mirrored'", "Loop.cpu_replicas=1", "Loop.strategy='pods'"],
            ValueError,
            "Unknown strategy 'pods'",
        ),
        (["Loop.strategy='multi_worker'"], ValueError, "needs TF_CONFIG"),
        (["EPOCHS=0"], ValueError, "must be greater than 0"),
        (["Experiment.num_classes=2"], ValueError, "has 6 classes, but num_classes is 2"),
        (["Data.train_split='test'"], ValueError, "No split 'test'"),
        (["Loop.steps_per_loop=0"], ValueError, "must be at least 1"),
        (["WARMUP_EPOCHS=9"], ValueError, "warm-up"),
        (["LEARNING_RATE=1e30", "sgd.clipping=None"], Exception, "not finite at step"),
    ],
)
def test_settings_that_cannot_be_are_refused(records, tmp_path, params, error, message):
    with pytest.raises(error, match=message):
        run("train", "quickstart_pretrain.gin", tmp_path, f'DATA_DIR="{records / "pretrain"}"', "EPOCHS=1", *params)
    assert not (tmp_path / "run.json").exists()


def test_a_checkpoint_of_another_variant_is_refused(records, pretrained, tmp_path):
    params = finetune_params(records, pretrained)
    with pytest.raises(checkpoint.CheckpointError, match=r"\(variant femto\) does not fit this model") as error:
        run("train", "quickstart_finetune.gin", tmp_path, *params, 'nfnet.variant="tiny"')
    assert "has shape" in str(error.value)


def test_a_missing_checkpoint_is_refused(records, tmp_path):
    params = finetune_params(records, tmp_path / "nowhere")
    with pytest.raises(checkpoint.CheckpointError, match="does not exist"):
        run("train", "quickstart_finetune.gin", tmp_path, *params)


def test_going_on_under_another_configuration_is_refused(records, pretrained):
    data = f'DATA_DIR="{records / "pretrain"}"'
    with pytest.raises(checkpoint.CheckpointError, match=r"Experiment.epochs: 2 then, 3 now"):
        run("train", "quickstart_pretrain.gin", pretrained, data, "EPOCHS=3")


def test_preemption_is_an_expected_error():
    assert issubclass(preemption.Preempted, registry.EXPECTED_ERRORS)
