"""The whole line on one machine: images -> records -> pre-training -> fine-tuning -> SavedModel -> predictions.

    python examples/quickstart.py [--input=FOLDER] [--output_dir=runs/quickstart]

Each stage is a command that a user could type; it is printed before it runs. A second run skips what is done.
Without --input, the fine-tuning task is a second set of demo images; with it, the user's own folder, in which each
class is a folder of images.
"""

import argparse
import hashlib
import json
import logging
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping

logging.getLogger().setLevel(logging.ERROR)  # before Apache Beam imports cloud libraries, and warns
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import matplotlib
import matplotlib.pyplot as plt
from PIL import Image
from rich.console import Console
from rich.table import Table

from beam import splits
from beam.errors import BuildError
from beam.sources.folder import FolderSource

ROOT = pathlib.Path(__file__).resolve().parent.parent
console = Console(width=None if sys.stdout.isatty() else 120)


def main() -> int:
    """Runs the stages; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=pathlib.Path, help="your own images: a folder a class")
    parser.add_argument("--output_dir", type=pathlib.Path, default=pathlib.Path("runs/quickstart"))
    arguments = parser.parse_args()
    out, given = arguments.output_dir.resolve(), arguments.input and arguments.input.resolve()
    os.chdir(ROOT)  # the commands that are shown run here
    out = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out
    signal.signal(signal.SIGINT, lambda *_: None)  # the stage that runs gets it too, saves, and ends

    images = out / "images"
    run("Demo images", "examples/make_demo_images.py", f"--output_dir={images}")
    task_images = given or images / "finetune"
    task = own_name(given) if given else "finetune"
    pretrain_records, task_records = out / "records/pretrain", out / "records" / task
    run(
        "Records for pre-training",
        "beam/build_tfrecords.py",
        *(f"--input={images / 'pretrain'}", f"--output_dir={pretrain_records}", "--name=pretrain"),
        "--validation_examples=500",
    )
    run(
        "Records for fine-tuning",
        "beam/build_tfrecords.py",
        *(f"--input={task_images}", f"--output_dir={task_records}", "--name=finetune"),
        *([] if has_validation(task_images) else ["--validation_fraction=0.4"]),
    )
    print(held_out(task_records, "the folder's own" if has_validation(task_images) else "by a hash of their names"))
    pretrain, finetune, scratch = out / "pretrain", out / task, out / f"{task}-from-scratch"
    train("Pre-training", "quickstart_pretrain", pretrain, DATA_DIR=pretrain_records)
    train("Fine-tuning", "quickstart_finetune", finetune, DATA_DIR=task_records, INITIAL_CHECKPOINT=pretrain)
    train("The same network from scratch", "quickstart_finetune", scratch, DATA_DIR=task_records, INITIAL_CHECKPOINT="")

    saved_model = finetune / "saved_model"
    trained = (finetune / "run.json").stat().st_mtime
    if not any(version.stat().st_mtime > trained for version in saved_model.glob("[0-9]*")):
        settings = {"DATA_DIR": task_records, "INITIAL_CHECKPOINT": pretrain}
        train("Export", "quickstart_finetune", finetune, RUN="@export", **settings)
    print(run("Evaluation", "pipeline/main.py", f"--model_dir={finetune}", "--task=evaluate"), end="")
    truths = held_out_images(task_images, task_records, 8)
    predictions = predict(saved_model, list(truths))
    picture = draw(predictions, truths, finetune / "predictions.png")
    show(out, finetune, scratch, predictions, picture)
    return 0


def own_name(images: pathlib.Path) -> str:
    """A name for what is made of a folder, different for folders of the same name at different places."""
    return f"finetune-{images.name}-{hashlib.sha256(str(images).encode()).hexdigest()[:6]}"


def has_validation(images: pathlib.Path) -> bool:
    """Whether a folder of images has a folder for validation, which the records then take as such."""
    try:
        return splits.VALIDATION in [split for split, _, _ in FolderSource.splits_of(str(images))]
    except (BuildError, OSError):
        return False  # the build says what is wrong with the folder


def held_out(records: pathlib.Path, choice: str) -> str:
    """What a record set keeps from training, and by what choice, in a sentence."""
    made = json.loads((records / "manifest.json").read_text())["splits"]
    kept, trained = made["validation"]["written"], made["train"]["written"]
    return (
        f"Held out: {kept:,} of {kept + trained:,} images ({choice}); training never sees them, and accuracy is "
        "measured on them."
    )


def run(title: str, *command: object) -> str:
    """Runs a Python program of this repository, showing its progress; returns what it printed."""
    words = [str(word) for word in command]
    console.rule(f"[bold]{title}")
    print("python", shlex.join(words), flush=True)
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode in (130, -signal.SIGINT):
        sys.exit("\nInterrupted; the same command continues.")
    if done.returncode:
        print(done.stdout)
        sys.exit(f"\n{title} failed with exit code {done.returncode}; what went wrong stands above.")
    return done.stdout


def train(title: str, gin_file: str, model_dir: pathlib.Path, **settings: object) -> None:
    """Runs `pipeline/main.py` with an experiment file and bindings over it."""
    print(run(title, *command(gin_file, settings, model_dir)), end="")


def command(gin_file: str, settings: Mapping[str, object], model_dir: pathlib.Path) -> list[str]:
    """The arguments of Python for a run of `pipeline/main.py` with bindings over its experiment file."""

    def literal(value: object) -> object:
        is_text = isinstance(value, str | pathlib.Path) and not str(value).startswith("@")
        return f'"{value}"' if is_text else value

    bindings = [f"--gin_param={name}={literal(value)}" for name, value in settings.items()]
    return ["pipeline/main.py", f"--gin_file=gin/{gin_file}.gin", *bindings, f"--model_dir={model_dir}"]


def predict(saved_model: pathlib.Path, images: list[pathlib.Path]) -> list[dict]:
    """Classifies images with the exported model, in a process that has nothing but the SavedModel."""
    lines = run("Predictions", "pipeline/predict.py", f"--saved_model={saved_model}", "--json", *images)
    return [json.loads(line) for line in lines.splitlines()]


def held_out_images(folder: pathlib.Path, records: pathlib.Path, count: int) -> dict[pathlib.Path, str]:
    """Some images of the validation split, which training has not seen, and their classes, as the records have them."""
    import tensorflow_datasets as tfds  # the record set is an ordinary TFDS data set

    builder = tfds.builder_from_directory(str(records))
    dataset = builder.as_dataset("validation", decoders={"image": tfds.decode.SkipDecoding()})
    names = builder.info.features["label"].names
    classes = {example["key"].decode(): names[example["label"]] for example in dataset.as_numpy_iterator()}
    return {folder / key: classes[key] for key in random.Random(0).sample(sorted(classes), min(count, len(classes)))}


def draw(predictions: list[dict], truths: Mapping[pathlib.Path, str], path: pathlib.Path) -> pathlib.Path:
    """Draws the images with their classes and the best of the model's; right ones in blue, wrong ones in orange."""
    matplotlib.use("Agg")
    columns = 4
    rows = -(-len(predictions) // columns)
    figure, axes = plt.subplots(rows, 2 * columns, figsize=(16, 2.6 * rows), width_ratios=[1, 1.2] * columns)
    for axis in axes.flat:
        axis.axis("off")
    for (picture, chart), prediction in zip(axes.reshape(-1, 2), predictions, strict=False):
        truth = truths[pathlib.Path(prediction["image"])]
        picture.imshow(Image.open(prediction["image"]).convert("RGB"))
        picture.set_title(truth, fontsize=11)
        names, shares = prediction["classes"][::-1], prediction["probabilities"][::-1]
        bars = chart.barh(names, shares, color=["#0072B2" if name == truth else "#E69F00" for name in names])
        chart.bar_label(bars, [f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True)], fontsize=9)
        chart.set_xlim(0, 2.4)
    figure.suptitle("Held-out images (true class above) and what the fine-tuned model says: right in blue")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    return path


def show(
    out: pathlib.Path, finetune: pathlib.Path, scratch: pathlib.Path, predictions: list[dict], picture: pathlib.Path
) -> None:
    """Prints the closing tables."""
    tuned, raw = (json.loads((folder / "run.json").read_text()) for folder in (finetune, scratch))
    console.rule("[bold]Done")
    table = Table("held-out accuracy", "top-1", "top-5", "loss", "steps")
    for name, summary in (("pre-trained, then fine-tuned", tuned), ("the same network from scratch", raw)):
        scores = (
            f"{summary['validation_top1']:.1%}",
            f"{summary['validation_top5']:.1%}",
            f"{summary['validation_loss']:.3f}",
        )
        table.add_row(name, *scores, str(summary["step"]))
    gain = tuned["validation_top1"] - raw["validation_top1"]
    table.caption = f"Pre-training is worth {100 * gain:+.1f} points of accuracy here."
    console.print(table)
    guesses = Table("image", "top-5")
    for prediction in predictions[:4]:
        pairs = zip(prediction["classes"], prediction["probabilities"], strict=True)
        guesses.add_row(prediction["image"], ", ".join(f"{name} {share:.0%}" for name, share in pairs))
    console.print(guesses)
    where = Table("what", "where")
    for what, place in (
        ("evaluation, as a page", finetune / "evaluation" / "validation" / "report.html"),
        ("predictions, as a picture", picture),
        ("SavedModel", finetune / "saved_model"),
        ("pre-trained run: checkpoints, metrics, TensorBoard", out / "pretrain"),
        ("fine-tuned run, as a page", finetune / "report.html"),
        ("records, with a report of what was refused", out / "records"),
    ):
        where.add_row(what, str(place))
    console.print(where)
    console.print("[bold]Next:", highlight=False)
    for command in (
        f"python pipeline/predict.py --saved_model={finetune / 'saved_model'} YOUR_IMAGE.jpg",
        "python beam/build_tfrecords.py --input=MY_IMAGES --output_dir=data/mine --validation_fraction=0.1",
        f"tensorboard --logdir={out}",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
